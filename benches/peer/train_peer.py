"""Optimizer steps of one case with torch, transformers and peft, as JSON: the peer of examples/train_cost.rs.

At its best settings on a CPU: fused attention (sdpa) that is causal and takes no mask, fused AdamW, no cache, the loss
inside the model, gradients set to None. Sequences are padded on the right to their batch's longest; no token of a
sequence sees the padding behind it, and no padding is a target, so that a mask would change nothing but the time.
`torch.compile` is not used: it compiles anew for every length, for minutes. `--sort N` puts the sequences after the first
N batches into batches of like lengths, as `group_by_length` does.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from cases import by_length
from memory import forget_peak, resident


class SeriesAdapter(torch.nn.Module):
    """A linear whose input passes through `x + U tanh(D x)` first."""

    def __init__(self, linear, bottleneck):
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Linear(linear.in_features, bottleneck, bias=False)
        self.up = torch.nn.Linear(bottleneck, linear.in_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.linear(x + self.up(torch.tanh(self.down(x))))


def tuned(model, case):
    """The model with what is trained; every other weight is frozen."""
    kind, sizes = next(iter(case["tuning"].items())) if isinstance(case["tuning"], dict) else (case["tuning"], {})
    if kind == "full":
        return model
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        rank = sizes["rank"]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=case["targets"], lora_dropout=0.0)
        return get_peft_model(model, config)
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf in case["targets"]:
            setattr(model.get_submodule(parent), leaf, SeriesAdapter(module, sizes["bottleneck"]))
    return model


def padded(batch):
    longest = max(len(ids) for ids in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), -100)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    return {"input_ids": ids, "labels": labels}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sort", type=int, metavar="N", help="batches of like lengths after the first N")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = json.loads((args.case / "case.json").read_text())
    batches = case["batches"]
    if args.sort is not None:
        batches = batches[: args.sort] + by_length(batches[args.sort :])
    model = AutoModelForCausalLM.from_pretrained(args.case, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model = tuned(model, case)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["learning_rate"], weight_decay=0.0, fused=True)
    loaded = resident("VmRSS")
    forget_peak()
    seconds, losses = [], []
    for batch in batches:
        inputs = padded(batch)
        start = time.perf_counter()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": resident("VmHWM") - loaded}))


if __name__ == "__main__":
    main()
