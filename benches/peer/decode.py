"""Greedy decoding of one text: smooth-probe's example decode_speed and transformers' generate, in turns; a table.

    cargo build --release --example decode_speed
    python benches/peer/decode.py --program target/release/examples/decode_speed --model ../shared/models/stories15M

Each run is a process of its own, after one that warms up; the best of each side counts, since other load on the machine
only slows. Both sides must write the same tokens.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from turns import in_turns


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, help="the built example decode_speed")
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", action="store_true", help="be the other side: one run, as JSON")
    return parser.parse_args()


def peer(args):
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    ids = torch.tensor([[1]])

    def seconds(tokens):
        config = GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=0, use_cache=True)
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, generation_config=config, attention_mask=torch.ones_like(ids))
        return time.perf_counter() - started, out[0, 1:].tolist()

    seconds(8)
    # What the first token takes cancels.
    speeds = []
    for _ in range(3):
        long, written = seconds(args.tokens)
        short, _ = seconds(1)
        speeds.append((args.tokens - 1) / (long - short))
    print(json.dumps({"tokens_a_second": max(speeds), "ids": written}))


def main():
    args = arguments()
    if args.peer:
        return peer(args)
    if args.program is None:
        raise SystemExit("--program is missing: build the example decode_speed and name it")
    sides = {
        "smooth-probe": [args.program, args.model, args.tokens, 3],
        "transformers": [sys.executable, __file__, "--peer", "--model", args.model, "--tokens", args.tokens, "--threads", args.threads],
    }  # fmt: skip
    before = os.getloadavg()[0]
    in_turns(sides, 1, args.threads)
    found = in_turns(sides, args.runs, args.threads)
    ours = max(found["smooth-probe"], key=lambda run: run["tokens_a_second"])
    theirs = max(found["transformers"], key=lambda run: run["tokens_a_second"])
    read = max(run["read_gb_s"] for run in found["smooth-probe"])
    share = ours["weights_gb_s"] / read
    same = ours["ids"] == theirs["ids"]
    print(f"{args.model.name}, f32, {args.tokens} tokens, {args.threads} threads, best of {args.runs}; load before {before:.1f}, after {os.getloadavg()[0]:.1f}\n")
    print("| | |\n|---|---|")
    print(f"| read rate of the machine, GB/s | {read:.1f} |")
    print(f"| weights a token, MB | {ours['weights_mb']:.1f} |")
    print(f"| smooth-probe, tokens a second | {ours['tokens_a_second']:.0f} |")
    print(f"| weights read, GB/s (share of the machine's) | {ours['weights_gb_s']:.1f} ({100 * share:.0f} %) |")
    print(f"| transformers' generate, tokens a second | {theirs['tokens_a_second']:.0f} |")
    print(f"| ratio | {ours['tokens_a_second'] / theirs['tokens_a_second']:.2f} |")
    print(f"| the same tokens | {'yes' if same else 'NO'} |")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
