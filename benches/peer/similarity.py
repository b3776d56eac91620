"""The peer of `smooth-probe similarity`: the same numbers with transformers and torch.

Written as a careful user would: batches of texts of like length, padding masked out of attention and
measure, inference mode, fused attention (sdpa), the base model without its head, hooks instead of stored
states, and the cosine from sums of unit vectors instead of an n x n matrix. Two passes, since the centred
cosine needs the corpus means first; nothing grows with the corpus but the results. `--keep-states` spares the
second pass and keeps all states in memory instead.

Writes similarity.csv (mean, deviation and count over texts) and per_text.csv. It draws nothing and computes
no intervals, which smooth-probe does in the time that it is compared by.

`--check DIR` compares with what smooth-probe wrote there: every value to 1e-5, or the exit code is 1.
"""

import time

START = time.perf_counter()

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

TOKEN_SETS = ("all", "no_first", "no_special")
TOLERANCE = 1e-5


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--texts", required=True, type=Path, help="a text a line")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--limit", type=int, help="only the first N texts")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-states", action="store_true", help="keep all states instead of a second pass")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with smooth-probe's output there")
    return parser.parse_args()


def load(name):
    """The base model in f32, its blocks, and its final norm (None where blocks end in their own)."""
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    tokenizer = AutoTokenizer.from_pretrained(name)
    try:
        model = AutoModel.from_pretrained(name, add_pooling_layer=False, **options)
    except TypeError:  # families without a pooler do not know the option
        model = AutoModel.from_pretrained(name, **options)
    model.eval()
    if hasattr(model, "encoder"):
        return tokenizer, model, model.encoder.layer, None
    return tokenizer, model, model.layers, model.norm


def read_texts(path, limit):
    with path.open(encoding="utf-8") as lines:
        texts = [line.rstrip("\r\n") for line in lines]
    texts = [text for text in texts if text.strip()]
    return texts[:limit] if limit else texts


class Batch:
    """Padded ids and, by token set, which tokens enter: `members` is [texts, sets, tokens] in f32."""

    def __init__(self, members_of, encoded, pad):
        self.texts = members_of
        longest = max(len(encoded[i][0]) for i in members_of)
        self.ids = torch.full((len(members_of), longest), pad)
        self.mask = torch.zeros((len(members_of), longest), dtype=torch.long)
        self.members = torch.zeros((len(members_of), len(TOKEN_SETS), longest))
        for row, text in enumerate(members_of):
            ids, special = encoded[text]
            n = len(ids)
            self.ids[row, :n] = torch.tensor(ids)
            self.mask[row, :n] = 1
            self.members[row, 0, :n] = 1
            self.members[row, 1, 1:n] = 1
            self.members[row, 2, :n] = 1 - torch.tensor(special, dtype=torch.float32)


def batches(encoded, batch_size, pad):
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    return [Batch(order[i : i + batch_size], encoded, pad) for i in range(0, len(order), batch_size)]


def cosine(units, norms, members):
    """Mean pairwise cosine, [texts, sets]; NaN below two rows that are not zero."""
    members = members * (norms > 0).float().unsqueeze(1)
    n = members.sum(-1).double()
    sums = torch.matmul(members, units).double()
    return ((sums * sums).sum(-1) - n) / torch.where(n > 1, n * (n - 1), torch.nan)


class Plain:
    """First pass: cosine, and the corpus sums of every point."""

    name = "cosine"

    def __init__(self, texts):
        self.texts = texts
        self.values, self.sums, self.counts = {}, {}, {}

    def record(self, point, states, batch):
        norms = states.norm(dim=-1)
        if not torch.isfinite(norms).all():
            raise SystemExit(f"a hidden state is not finite at {point}")
        units = states / norms.clamp_min(1e-30).unsqueeze(-1)
        store = self.values.setdefault(point, torch.full((self.texts, len(TOKEN_SETS)), torch.nan, dtype=torch.float64))
        store[batch.texts] = cosine(units, norms, batch.members)
        sums = torch.matmul(batch.members, states).double().sum(0)
        self.sums[point] = self.sums.get(point, 0) + sums
        self.counts[point] = self.counts.get(point, 0) + batch.members.sum((0, 2)).double()

    def centres(self):
        return {point: (self.sums[point] / self.counts[point].clamp_min(1).unsqueeze(-1)).float() for point in self.sums}


class Centred:
    """Second pass: cosine after the corpus mean of the token set is taken off."""

    name = "cosine_centred"

    def __init__(self, texts, centres):
        self.texts, self.centres = texts, centres
        self.values = {}

    def record(self, point, states, batch):
        store = self.values.setdefault(point, torch.full((self.texts, len(TOKEN_SETS)), torch.nan, dtype=torch.float64))
        for index, centre in enumerate(self.centres[point]):
            shifted = states - centre
            norms = shifted.norm(dim=-1)
            units = shifted / norms.clamp_min(1e-30).unsqueeze(-1)
            store[batch.texts, index] = cosine(units, norms, batch.members[:, index : index + 1])[:, 0]


def attach(blocks, norm, sink):
    """Hooks at layer 0 (what the first block receives), after every block, and after the final norm."""

    def first(states):
        return states[0] if isinstance(states, tuple) else states

    def before(_, args, kwargs):
        sink(("embedding", 0), args[0] if args else kwargs["hidden_states"])

    blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    for layer, block in enumerate(blocks, start=1):
        block.register_forward_hook(lambda _, __, out, layer=layer: sink(("block", layer), first(out)))
    if norm is not None:
        norm.register_forward_hook(lambda _, __, out: sink(("final_norm", len(blocks)), first(out)))


def summary(values):
    known = [value for value in values if value == value]
    mean = statistics.fmean(known) if known else None
    std = statistics.stdev(known, mean) if len(known) > 1 else None
    return mean, std, len(known)


def write(out, passes, encoded):
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    with (out / "per_text.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "n_tokens", "layer", "site", "measure", "tokens", "value"])
        for measure in passes:
            for (site, layer), values in measure.values.items():
                for index, tokens in enumerate(TOKEN_SETS):
                    column = values[:, index].tolist()
                    rows[(layer, site, measure.name, tokens)] = summary(column)
                    table.writerows(
                        [text, len(encoded[text][0]), layer, site, measure.name, tokens, "" if v != v else v]
                        for text, v in enumerate(column)
                    )
    with (out / "similarity.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", "site", "measure", "tokens", "mean", "std", "texts"])
        table.writerows([*key, *("" if v is None else v for v in values)] for key, values in rows.items())
    return rows


def worst(pairs):
    """The largest deviation among (what, ours, theirs); an undefined value must be undefined in both."""
    largest, where = 0.0, "nothing"
    for what, ours, theirs in pairs:
        apart = 0.0 if ours is None and theirs is None else float("inf")
        if ours is not None and theirs is not None:
            apart = abs(ours - theirs)
        if apart > largest:
            largest, where = apart, what
    return largest, where


def check(folder, rows, passes):
    """Compares with smooth-probe's tables; per text too where pyarrow can read them."""
    number = lambda text: float(text) if text else None
    with (folder / "similarity.csv").open(newline="") as file:
        ours = [row for row in csv.DictReader(file) if not row["group"]]
    pairs, found = [], set()
    for row in ours:
        key = (int(row["layer"]), row["site"], row["measure"], row["tokens"])
        if key not in rows:
            continue
        found.add(key)
        mean, std, texts = rows[key]
        pairs += [((*key, "mean"), number(row["mean"]), mean), ((*key, "std"), number(row["std"]), std)]
        pairs.append(((*key, "texts"), float(row["texts"]), float(texts)))
    missing = set(rows) - found
    try:
        from pyarrow import parquet
    except ImportError:
        per_text = 0
    else:
        values = {m.name: m.values for m in passes}
        table = parquet.read_table(folder / "per_text.parquet").to_pylist()
        for row in table:
            point = (row["site"], row["layer"])
            if row["measure"] in values and point in values[row["measure"]]:
                theirs = values[row["measure"]][point][row["text"], TOKEN_SETS.index(row["tokens"])].item()
                what = (row["layer"], row["site"], row["measure"], row["tokens"], "text", row["text"])
                pairs.append((what, row["value"], None if theirs != theirs else theirs))
        per_text = len(pairs) - 3 * len(found)
    largest, where = worst(pairs)
    print(f"check: {len(found)} rows and {per_text} per-text values; largest deviation {largest:.2e} at {where}", file=sys.stderr)
    if missing:
        print(f"check: smooth-probe has no {sorted(missing)[0]} and {len(missing) - 1} others", file=sys.stderr)
    return largest <= TOLERANCE and not missing and bool(found)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    seconds = {"imports": time.perf_counter() - START}

    def lap(name):
        seconds[name] = time.perf_counter() - START - sum(seconds.values())

    tokenizer, model, blocks, norm = load(args.model)
    lap("loading")
    longest = model.config.max_position_embeddings
    texts = read_texts(args.texts, args.limit)
    encoding = tokenizer(texts, truncation=True, max_length=longest, return_special_tokens_mask=True)
    encoded = list(zip(encoding["input_ids"], encoding["special_tokens_mask"]))
    lap("tokenizing")

    current = {}
    kept = []

    def sink(point, states):
        current["measure"].record(point, states, current["batch"])
        if args.keep_states:
            kept.append((point, states, current["batch"]))

    attach(blocks, norm, sink)
    work = batches(encoded, args.batch_size, tokenizer.pad_token_id or 0)
    passes = []
    with torch.inference_mode():
        for make in (lambda: Plain(len(texts)), lambda: Centred(len(texts), passes[0].centres())):
            current["measure"] = make()
            if kept:
                for point, states, batch in kept:
                    current["measure"].record(point, states, batch)
                work = []
            for current["batch"] in work:
                batch = current["batch"]
                options = {} if hasattr(model, "encoder") else {"use_cache": False}
                model(input_ids=batch.ids, attention_mask=batch.mask, **options)
            passes.append(current["measure"])
            lap(f"pass {len(passes)}")
    rows = write(args.out, passes, encoded)
    lap("writing")
    print(json.dumps({name: round(value, 3) for name, value in seconds.items()}), file=sys.stderr)
    if args.check and not check(args.check, rows, passes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
