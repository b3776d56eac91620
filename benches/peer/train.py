"""Training steps of smooth-probe against torch + transformers + peft: lays out cases, runs both in turns, prints a table.

train.sh calls it. A case is a folder with a model of random weights (transformers' own initialisation), and token
batches; both sides load it and make the same optimizer steps. The first steps warm up; a run's time is the sum over the
others, and the table shows medians over the runs. Peak memory is that over what was resident when the weights were
loaded. The first loss must agree to 1e-4, of adapters, which begin at random, to 1e-2: both sides train the same thing.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

WARM_UP = 2


def llama(layers, width, heads, kv_heads, inner, vocabulary, positions=1024):
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": True,
    }


# The shape that docs/CANDLE.md of this project's design measured, and those of real models.
BENCH = llama(8, 512, 8, 8, 1376, 4096)
STORIES = llama(6, 288, 6, 6, 768, 32000)
SMOL = llama(30, 576, 9, 3, 1536, 49152)
EMBEDDED = llama(16, 96, 3, 1, 256, 289)


def random_batches(rng, vocabulary, batches, size, length):
    return [[[rng.randrange(vocabulary) for _ in range(length)] for _ in range(size)] for _ in range(batches)]


def problem_batches(rng, vocabulary, batches, size, lengths):
    """Sequences of real problems' lengths, in random order."""
    drawn = [rng.choice(lengths) for _ in range(batches * size)]
    ids = lambda n: [rng.randrange(vocabulary) for _ in range(n)]
    return [[ids(n) for n in drawn[i : i + size]] for i in range(0, len(drawn), size)]


def cases(steps, lengths):
    """Name, model, tuning, targets, batches, target for the time's ratio (None: 0.85 × the share that is no padding)."""
    rng = random.Random(0)
    lora = ["q_proj", "v_proj"]
    every = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    equal = lambda config, size=4, length=256, n=steps: random_batches(rng, config["vocab_size"], n, size, length)
    yield "lora", BENCH, {"lora": {"rank": 8}}, lora, equal(BENCH), 0.85
    yield "adapter", BENCH, {"adapter": {"bottleneck": 64}}, ["gate_proj", "up_proj"], equal(BENCH), 0.95
    yield "full", BENCH, "full", [], equal(BENCH), 0.95
    real = lambda config, n=steps: problem_batches(rng, config["vocab_size"], n, 8, lengths)
    yield "stories15M-gsm8k", STORIES, {"lora": {"rank": 32}}, every, real(STORIES), None
    yield "smollm2-gsm8k", SMOL, {"lora": {"rank": 32}}, every, real(SMOL, max(WARM_UP + 2, steps // 2)), None
    yield "pretrain-embedded", EMBEDDED, "full", [], equal(EMBEDDED, 8, 220), 1 / 1.3


def lay_out(folder, config, tuning, targets, batches):
    """Writes the case, once: weights stay from run to run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    case = {"tuning": tuning, "targets": targets, "learning_rate": 1e-4, "batches": batches}
    (folder / "case.json").write_text(json.dumps(case))


def run(command, threads):
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["time"] = sum(found["seconds"][WARM_UP:])
    return found


def problem_lengths(path, count=512):
    """Lengths of GSM8K problems with their answers, in tokens of about four letters."""
    if not path.is_file():
        rng = random.Random(1)
        return [rng.randint(60, 320) for _ in range(count)]
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for _, line in zip(range(count), lines)]
    return [max(16, len(r["question"] + r["answer"]) // 4) for r in records]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="the train_cost example")
    parser.add_argument("--gsm8k", type=Path, default=Path("none"), help="gsm8k's train.jsonl: real lengths")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", help="only these cases")
    args = parser.parse_args()
    peer = [sys.executable, str(Path(__file__).with_name("train_peer.py"))]
    print(f"{args.runs} runs of {args.steps} steps, {args.threads} threads, f32; load before: {os.getloadavg()[0]:.2f}\n")
    print("| case | padded | smooth-probe, s | SIBO, s | torch, s | ratio | target | SIBO / vanilla | memory, MiB | torch, MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, config, tuning, targets, batches, target in cases(args.steps, problem_lengths(args.gsm8k)):
        if args.only and name not in args.only:
            continue
        folder = args.work / name
        lay_out(folder, config, tuning, targets, batches)
        timed = batches[WARM_UP:]
        cells = sum(len(batch) * max(map(len, batch)) for batch in timed)
        share = 1 - sum(len(s) for batch in timed for s in batch) / cells
        sides = {"ours": [args.program, folder], "torch": [*peer, folder, "--threads", str(args.threads)]}
        if tuning != "full":
            sides["sibo"] = [args.program, folder, "0.2"]
        if share > 0.01:
            sides["sorted"] = [*sides["torch"], "--sort"]
        found = {side: [] for side in sides}
        for _ in range(args.runs):
            for side, command in sides.items():
                found[side].append(run(command, args.threads))
        first = {side: found[side][0]["losses"][0] for side in ("ours", "torch")}
        tolerance = 1e-2 if "adapter" in tuning else 1e-4
        if abs(first["ours"] - first["torch"]) > tolerance * abs(first["torch"]):
            raise SystemExit(f"{name}: first losses {first} differ: the two sides do not train the same thing")
        median = lambda side, key: statistics.median(r[key] for r in found[side]) if side in found else None
        ours, torch_, sibo = (median(side, "time") for side in ("ours", "torch", "sibo"))
        wanted = target if target is not None else 0.85 * (1 - share)
        show = lambda value, form="{:.2f}": "" if value is None else form.format(value)
        memory = [median(side, "peak_mib") for side in ("ours", "torch")]
        print(
            f"| {name} | {share:.0%} | {ours:.2f} | {show(sibo)} | {torch_:.2f} | {ours / torch_:.2f} | ≤ {wanted:.2f} | "
            f"{show(sibo and sibo / ours)} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} |",
            flush=True,
        )
        if "sorted" in found:
            print(f"| with group_by_length | | | | {median('sorted', 'time'):.2f} | {ours / median('sorted', 'time'):.2f} | | | | | |")
    print(f"\nLoad after: {os.getloadavg()[0]:.2f}.")


if __name__ == "__main__":
    main()
