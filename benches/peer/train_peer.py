"""Optimizer steps of one case with torch, transformers and peft, as JSON: the peer of examples/train_cost.rs.

At its best settings on a CPU: fused attention (sdpa) without a mask where all sequences are equally long, fused AdamW,
no cache, the loss inside the model, gradients set to None. `--sort` pads sequences that were sorted by length before
they were put into batches, as `group_by_length` does; the batches themselves are the case's.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


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
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "labels": labels} | ({} if mask.all() else {"attention_mask": mask})


def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sort", action="store_true", help="batches of like lengths, as group_by_length makes them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    case = json.loads((args.case / "case.json").read_text())
    batches = case["batches"]
    if args.sort:
        size, every = len(batches[0]), sorted((s for batch in batches for s in batch), key=len)
        batches = [every[i : i + size] for i in range(0, len(every), size)]
    model = AutoModelForCausalLM.from_pretrained(args.case, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model = tuned(model, case)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["learning_rate"], weight_decay=0.0, fused=True)
    loaded = memory("VmRSS")
    # The peak from here on.
    Path("/proc/self/clear_refs").write_text("5")
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
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": memory("VmHWM") - loaded}))


if __name__ == "__main__":
    main()
