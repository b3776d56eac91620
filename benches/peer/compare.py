"""Runs `smooth-probe similarity` and `similarity.py` as whole commands, in turns, and prints a table.

similarity.sh calls it. Each command runs on all texts and on a fifth of them; the difference of the two
times is the steady state, in which start-up, loading and drawing cancel. Wall time and peak resident memory
are those of each process as the kernel counts them; medians over the runs.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the smooth-probe binary")
    parser.add_argument("--model", required=True, action="append")
    parser.add_argument("--texts", required=True, type=Path)
    parser.add_argument("--count", type=int, default=500, help="texts of the long run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="the script's; its own default if not given")
    parser.add_argument("--keep-states", action="store_true", help="the script keeps states, see there")
    parser.add_argument("--work", required=True, type=Path, help="folder for outputs and logs")
    return parser.parse_args()


def run(command, log, threads):
    """Wall seconds and peak memory in MiB of one process that must succeed."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    with log.open("w") as file:
        redirect = [(os.POSIX_SPAWN_DUP2, file.fileno(), fd) for fd in (1, 2)]
        start = time.perf_counter()
        child = os.posix_spawnp(command[0], command, environment, file_actions=redirect)
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    return wall, usage.ru_maxrss / 1024


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    short = args.count // 5
    script = str(Path(__file__).with_name("similarity.py"))
    print(f"{args.count} texts, {args.runs} runs each, {args.threads} threads, f32; load before: {os.getloadavg()[0]:.2f}\n")
    print("| model | | smooth-probe | script | ratio | target |")
    print("|---|---|---|---|---|---|")
    for model in args.model:
        name = Path(model).name
        ours_out, theirs_out = args.work / f"{name}-ours", args.work / f"{name}-script"
        common = ["--model", model, "--texts", str(args.texts)]
        ours = [args.program, "similarity", *common, "--out", str(ours_out), "-q"]
        theirs = [sys.executable, script, *common, "--out", str(theirs_out), "--threads", str(args.threads)]
        if args.batch_size:
            theirs += ["--batch-size", str(args.batch_size)]
        if args.keep_states:
            theirs.append("--keep-states")
        # Once each to warm the file cache, and to see that both measure the same thing.
        run([*ours, "--limit", str(args.count)], args.work / f"{name}-ours.log", args.threads)
        checked = [*theirs, "--limit", str(args.count), "--check", str(ours_out)]
        run(checked, args.work / f"{name}-check.log", args.threads)
        results = {}
        for _ in range(args.runs):
            for who, command in (("ours", ours), ("script", theirs)):
                for limit in (args.count, short):
                    log = args.work / f"{name}-{who}-{limit}.log"
                    found = run([*command, "--limit", str(limit)], log, args.threads)
                    results.setdefault((who, limit), []).append(found)
        median = lambda who, limit, part: statistics.median(found[part] for found in results[(who, limit)])
        spread = lambda who: "–".join(f"{f([r[0] for r in results[(who, args.count)]]):.2f}" for f in (min, max))
        walls = [median(who, args.count, 0) for who in ("ours", "script")]
        peaks = [median(who, args.count, 1) for who in ("ours", "script")]
        steady = [wall - median(who, short, 0) for who, wall in zip(("ours", "script"), walls)]
        print(f"| {name} | whole command, s | {walls[0]:.2f} ({spread('ours')}) | {walls[1]:.2f} ({spread('script')}) | {walls[1] / walls[0]:.2f} × faster | ≥ 3 |")
        print(f"| | peak memory, MiB | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[0] / peaks[1]:.2f} of its memory | ≤ 0.5 |")
        print(f"| | {args.count - short} more texts, s | {steady[0]:.2f} | {steady[1]:.2f} | {steady[1] / steady[0]:.2f} × faster | |", flush=True)
    print(f"\nLoad after: {os.getloadavg()[0]:.2f}.")


if __name__ == "__main__":
    main()
