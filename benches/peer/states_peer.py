"""A forward pass over every text of a case with the cosine of all layers, as JSON: the peer of examples/states_cost.rs.

At its best settings on a CPU: the base model without its head, inference mode, sdpa without a mask (all texts are equally
long), no cache, hooks instead of stored states, and the mean pairwise cosine as (‖Σĥ‖² − n) / (n(n−1)) from one product a
text: no n × n matrix, and no normalised copy of the states.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModel

from memory import forget_peak, resident


def cosine(states):
    """Of each text, `[texts, tokens, d]` to `[texts]`."""
    n = states.shape[1]
    inverse = torch.linalg.vector_norm(states, dim=-1).reciprocal().unsqueeze(1)
    sums = torch.bmm(inverse, states).double()
    return ((sums * sums).sum((1, 2)) - n) / (n * (n - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("passes", type=int)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batches = [torch.tensor(batch) for batch in json.loads((args.case / "case.json").read_text())["batches"]]
    model = AutoModel.from_pretrained(args.case, dtype=torch.float32, attn_implementation="sdpa").eval()
    values = [[] for _ in range(len(model.layers) + 2)]
    first = lambda out: out[0] if isinstance(out, tuple) else out

    def hook(point):
        return lambda _, __, out: values[point].append(cosine(first(out)))

    model.embed_tokens.register_forward_hook(hook(0))
    for point, layer in enumerate([*model.layers, model.norm], start=1):
        layer.register_forward_hook(hook(point))
    loaded = resident("VmRSS")
    forget_peak()
    seconds = []
    with torch.inference_mode():
        for _ in range(args.passes):
            for point in values:
                point.clear()
            start = time.perf_counter()
            for batch in batches:
                model(input_ids=batch, use_cache=False)
            found = [torch.cat(point).mean().item() for point in values]
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "values": found, "peak_mib": resident("VmHWM") - loaded}))


if __name__ == "__main__":
    main()
