"""smooth-probe against torch + transformers + peft: every row of the table, in turns, with the machine it stands for.

run.sh calls it. A time is the sum over a run's steps after the warm-up; ratios are medians over the runs, of sides that ran
one after another, with their range behind them. Peak memory is that over what was resident when the weights were loaded.
The first loss of both sides must agree to 1e-4, with adapters, which begin at random, to 1e-2; the cosines to 1e-5: both
sides do the same work. The table is written again after every row, so that what was measured is not lost.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import cases
import machine
from turns import Ratio, in_turns, run, wall

BEGIN, END = "<!-- benches/peer/run.sh writes from here -->", "<!-- to here -->"
HERE = Path(__file__).parent


class Table:
    """The rows so far, and where they are written."""

    def __init__(self, args):
        self.args, self.rows, self.extra = args, [], []
        self.machine = machine.describe()
        self.load = os.getloadavg()[0]

    def row(self, work, ours, theirs="", ratio="", target="", met=None):
        verdict = "" if met is None else "yes" if met else "**no**"
        self.rows.append(f"| {work} | {ours} | {theirs} | {ratio} | {target} | {verdict} |")
        print(self.rows[-1], flush=True)
        self.write()

    def bounded(self, work, form, ours, theirs, target, at_least=False):
        """A row of paired values whose ratio is bounded."""
        ratio = Ratio(ours, theirs)
        median = lambda values: form.format(statistics.median(values))
        met = ratio.value >= target if at_least else ratio.value <= target
        self.row(work, median(ours), median(theirs), ratio, f"{'≥' if at_least else '≤'} {target:.2f}", met)

    def text(self):
        args, settings = self.args, [*self.machine]
        settings.append(("threads", f"{args.threads} on both sides"))
        shape = f"{args.runs} in turns, {args.steps} steps each after {args.warm_up} to warm up, f32"
        settings.append(("runs", shape + ("; **quick: these are not to be quoted**" if args.quick else "")))
        settings.append(("load before", f"{self.load:.2f}"))
        lines = ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in settings), ""]
        lines += ["| work | smooth-probe | peer | ratio | target | met |", "|---|---|---|---|---|---|", *self.rows]
        if self.extra:
            lines += ["", "What the initial residual adds to a step, by formula:", ""]
            lines += ["| work | mixed modules | extra GFLOP | of the step's | bytes moved, MB |"]
            lines += ["|---|---|---|---|---|", *self.extra]
        return "\n".join(lines) + "\n"

    def write(self):
        out = self.args.out
        page = out.read_text(encoding="utf-8") if out.exists() else f"{BEGIN}\n{END}\n"
        before, found, rest = page.partition(BEGIN)
        _, closed, after = rest.partition(END)
        if not (found and closed):
            raise SystemExit(f"{out}: has no place for the table; put these two lines into it:\n{BEGIN}\n{END}")
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = out.with_suffix(".draft")
        draft.write_text(f"{before}{BEGIN}\n\n{self.text()}\n{END}{after}", encoding="utf-8")
        draft.replace(out)


def training(table, case):
    args = table.args
    folder = case.lay_out(args.work)
    ours = [args.programs / "examples" / "train_cost", folder]
    theirs = [sys.executable, HERE / "train_peer.py", folder, "--threads", args.threads]
    timed = case.batches[args.warm_up :]
    share = cases.padded_share(timed)
    sides = {"ours": ours, "torch": theirs}
    if case.tuning != "full":
        sides["sibo"] = [*ours, "0.2"]
    if share > 0.01:
        sides["sorted"] = [*theirs, "--sort", args.warm_up]
    found = in_turns(sides, args.runs, args.threads)
    first = {side: found[side][0]["losses"][0] for side in ("ours", "torch")}
    tolerance = 1e-2 if "adapter" in case.tuning else 1e-4
    if abs(first["ours"] - first["torch"]) > tolerance * abs(first["torch"]):
        raise RuntimeError(f"first losses {first} differ: the two sides do not train the same thing")
    seconds = {side: [sum(r["seconds"][args.warm_up :]) / len(timed) for r in runs] for side, runs in found.items()}
    peaks = {side: [r["peak_mib"] for r in runs] for side, runs in found.items()}
    if case.name == "pretrain":
        tokens = sum(len(s) for batch in timed for s in batch) / len(timed)
        rates = {side: [tokens / s for s in values] for side, values in seconds.items()}
        table.bounded(case.title, "{:.0f} tokens/s", rates["ours"], rates["torch"], 1 / case.target, at_least=True)
        return
    title = case.title + (f", {share:.0%} of torch's tokens padding" if share > 0.01 else "")
    target = case.target if case.target is not None else 0.85 * (1 - share)
    table.bounded(title, "{:.3f} s a step", seconds["ours"], seconds["torch"], target)
    if "sorted" in sides:
        left = cases.padded_share(cases.by_length(timed))
        ratio = Ratio(seconds["ours"], seconds["sorted"])
        per_step = f"{statistics.median(seconds['sorted']):.3f} s a step"
        table.row(f"the same, torch with group_by_length ({left:.0%} padding)", "", per_step, ratio)
    if case.name == "lora":
        table.bounded("its peak memory over the loaded weights", "{:.0f} MiB", peaks["ours"], peaks["torch"], 0.6)
    else:
        memory = [f"{statistics.median(peaks[side]):.0f} MiB" for side in ("ours", "torch")]
        table.row("its peak memory over the loaded weights", *memory, Ratio(peaks["ours"], peaks["torch"]))
    if "sibo" in sides:
        table.bounded("with SIBO; peer: our own vanilla", "{:.3f} s a step", seconds["sibo"], seconds["ours"], 1.03)
        tokens = sum(len(s) for batch in timed for s in batch) / len(timed)
        mixed, trained = found["sibo"][0]["mixed"], found["sibo"][0]["trained"]
        flop, moved = cases.residual_cost(mixed, tokens, next(iter(next(iter(case.tuning.values())).values())))
        share = flop / cases.step_flop(case, trained, timed)
        table.extra.append(
            f"| {case.title} | {len(mixed)} | {flop / 1e9:.3f} | {share:.2%} | {moved / 1e6:.0f} |"
        )


def states(table):
    args = table.args
    case = cases.states(args.threads)
    folder = case.lay_out(args.work)
    passes = 2 if args.quick else 4
    sides = {
        "ours": [args.programs / "examples" / "states_cost", folder, passes],
        "torch": [sys.executable, HERE / "states_peer.py", folder, passes, "--threads", args.threads],
    }
    found = in_turns(sides, args.runs, args.threads)
    pairs = zip(found["ours"][0]["values"], found["torch"][0]["values"], strict=True)
    apart = max(abs(a - b) for a, b in pairs)
    if apart > 1e-5:
        raise RuntimeError(f"cosines differ by {apart:.1e}")
    # The first pass warms up.
    tokens = sum(len(s) for batch in case.batches for s in batch)
    per_token = {side: [1e6 * sum(r["seconds"][1:]) / (passes - 1) / tokens for r in runs] for side, runs in found.items()}
    table.bounded(case.title, "{:.1f} µs a token", per_token["ours"], per_token["torch"], case.target)
    peaks = {side: [r["peak_mib"] for r in runs] for side, runs in found.items()}
    memory = [f"{statistics.median(peaks[side]):.0f} MiB" for side in ("ours", "torch")]
    table.row("its peak memory over the loaded weights", *memory, Ratio(peaks["ours"], peaks["torch"]))


def growth(table):
    args = table.args
    command = [args.programs / "examples" / "growth", "--csv", args.work / "growth.csv", "--json"]
    for verdict in run([*command, "--quick"] if args.quick else command, args.threads):
        table.row(f"growth: {verdict['what']}", verdict["found"], "", "", verdict["target"], verdict["met"])


def start_up(table):
    args = table.args
    runs = 5 if args.quick else 41
    # The first run reads the program from the disk.
    help_ms = [1e3 * s for s in wall([str(args.programs / "smooth-probe"), "--help"], runs + 1, args.threads)[1:]]
    found = statistics.median(help_ms)
    table.row("start-up: `--help`", f"{found:.1f} ms", "", "", "< 10 ms", found < 10)
    folder = cases.Case("load", "", cases.STORIES, "full", [], [], None).lay_out(args.work)
    loads = [run([args.programs / "examples" / "load_cost", folder], args.threads) for _ in range(3 if args.quick else 11)]
    median = lambda key: statistics.median(load[key] for load in loads)
    weights = median("weights_mib")
    table.row(f"start-up: {weights:.0f} MiB of weights", f"{median('milliseconds'):.1f} ms", "", "", "< 50 ms", median("milliseconds") < 50)
    copies = Ratio([load["peak_mib"] for load in loads], [load["weights_mib"] for load in loads])
    memory = f"{median('peak_mib'):.0f} MiB"
    # A second copy would make it 2; huge pages that are not full yet count whole.
    table.row("its peak memory over the process before", memory, f"{weights:.0f} MiB (the file)", copies, "< 1.50", copies.value < 1.5)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True, type=Path, help="folder of the program and its examples")
    parser.add_argument("--work", required=True, type=Path, help="folder for cases and raw results")
    parser.add_argument("--out", type=Path, help="the page that holds the table")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="gsm8k's train.jsonl; without it its rows are skipped")
    parser.add_argument("--quick", action="store_true", help="every row once, with few steps: to see that it works")
    parser.add_argument("--runs", type=int, help="runs in turns [5]")
    parser.add_argument("--steps", type=int, help="timed steps of a run [12]")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of both sides [one a core]")
    parser.add_argument("--only", action="append", metavar="ROW", help="only this row; may be given again")
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.quick else 5)
    args.steps = args.steps or (2 if args.quick else 12)
    args.warm_up = 1 if args.quick else 2
    partial = args.quick or args.only
    args.out = args.out or (args.work / "performance.md" if partial else Path("docs/performance.md"))
    if args.gsm8k and not args.gsm8k.is_file():
        parser.error(f"--gsm8k {args.gsm8k}: no such file")
    return args


def main():
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    table = Table(args)
    lengths = cases.problem_lengths(args.gsm8k) if args.gsm8k else None
    rows = [(case.name, lambda case=case: training(table, case)) for case in cases.training(args.steps + args.warm_up, lengths)]
    rows += [(name, lambda work=work: work(table)) for name, work in (("states", states), ("growth", growth), ("start", start_up))]
    if not lengths:
        rows.insert(1, ("gsm8k", lambda: table.row("LoRA on GSM8K lengths", "SKIPPED: give --gsm8k FILE")))
    known = [name for name, _ in rows]
    for name in args.only or []:
        if name not in known:
            raise SystemExit(f"--only {name}: the rows are {', '.join(known)}")
    failures = 0
    for name, measure in rows:
        if args.only and name not in args.only:
            continue
        try:
            measure()
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            failures += 1
            table.row(name, f"FAILED: {error}")
    print(f"\n{args.out}; load after: {os.getloadavg()[0]:.2f}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
