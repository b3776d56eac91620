"""The sites inside a block, written out in plain torch for LLaMA with LoRA and the initial residual.

One case of sibo/ (LoRA on every linear, policy all, arm h0) over gqa_tied. Nothing of transformers' model code
is used but for the check at the end: the blocks must be those of the wrapped model of `sibo_cases.py`.
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

import exact
from sibo_cases import LAMBDA, MODULES, Run

CASE = "lora_every_linear"
SEQUENCE = 1
HEADS = (0, 3, 5)
MIXED = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}


def rms_norm(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rotate(x, angles):
    """x [heads, n, head_dim], angles [n, head_dim / 2]; element i is paired with i + head_dim / 2."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


class Layer:
    """One block over one sequence; `h0` what the residual mixes in."""

    def __init__(self, index, weights, lora, config, h0):
        self.prefix, self.weights, self.lora, self.config, self.h0 = f"model.layers.{index}.", weights, lora, config, h0

    def weight(self, name):
        return self.weights[self.prefix + name + ".weight"]

    def linear(self, name, x, mode):
        """mode: `peft`, `none` (the residual mixes in zero) or `base` (no PEFT)."""
        y = x @ self.weight(name).T
        if mode == "base":
            return y
        read = x
        if name.rsplit(".")[-1] in MIXED:
            read = (1 - LAMBDA) * x + (LAMBDA * self.h0 if mode == "peft" else 0.0)
        path = f"base_model.model.{self.prefix}{name}"
        down, up = (self.lora[f"{path}.lora_{part}.weight"] for part in "AB")
        return y + MODULES[CASE]["scale"] * (read @ down.T @ up.T)

    def attention(self, h, mode):
        """(added [n, d], probabilities [heads, n, n], what each head adds by the base weights [heads, n, d])."""
        config, n = self.config, len(h)
        heads, shared, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        x = rms_norm(h, self.weight("input_layernorm"), config["rms_norm_eps"])
        frequencies = 1.0 / config["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
        angles = torch.arange(n).double()[:, None] * frequencies
        q, k, v = (
            self.linear(f"self_attn.{name}_proj", x, mode).view(n, count, width).transpose(0, 1)
            for name, count in (("q", heads), ("k", shared), ("v", shared))
        )
        q, k = rotate(q, angles), rotate(k, angles)
        rows, maps = [], torch.zeros(heads, n, n).double()
        for head in range(heads):
            key = head // (heads // shared)
            for i in range(n):
                scores = (k[key, : i + 1] @ q[head, i]) / width**0.5
                maps[head, i, : i + 1] = torch.softmax(scores, 0)
            rows.append(maps[head] @ v[key])
        output = self.weight("self_attn.o_proj")
        parts = torch.stack([row @ output[:, h * width : (h + 1) * width].T for h, row in enumerate(rows)])
        return self.linear("self_attn.o_proj", torch.cat(rows, -1), mode), maps, parts

    def feed_forward(self, h, mode):
        x = rms_norm(h, self.weight("post_attention_layernorm"), self.config["rms_norm_eps"])
        gate, up = (self.linear(f"mlp.{name}_proj", x, mode) for name in ("gate", "up"))
        return self.linear("mlp.down_proj", gate * torch.sigmoid(gate) * up, mode)

    def sites(self, h):
        """Every site of the block by its name, and the stream behind it."""
        attention, maps, parts = self.attention(h, "peft")
        base, none = (self.attention(h, mode)[0] for mode in ("base", "none"))
        after = h + attention
        ffn, ffn_base, ffn_none = (self.feed_forward(after, mode) for mode in ("peft", "base", "none"))
        return {
            "attention": attention, "attention_peft": attention - base, "attention_h0": attention - none,
            "after_attention": after, "after_attention_no_peft": h + base, "after_attention_no_h0": h + none,
            "feed_forward": ffn, "feed_forward_peft": ffn - ffn_base, "feed_forward_h0": ffn - ffn_none,
            "block": after + ffn, "block_no_peft": after + ffn_base, "block_no_h0": after + ffn_none,
            "maps": maps,
        } | {f"head_{head}": parts[head] for head in HEADS}  # fmt: skip


def write_sites(root, sibo, folder, all_ids):
    """sites/golden.safetensors: `<site>_<layer>` of the second sequence (F32), layers from 1."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    config = json.loads((folder / "config.json").read_text())
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    weights = {name: t.double() for name, t in load_file(folder / "model.safetensors").items()}
    lora = {name: t.double() for name, t in load_file(sibo / f"{CASE}.safetensors").items()}
    h = h0 = weights["model.embed_tokens.weight"][all_ids[SEQUENCE]]
    stored, blocks = {}, []
    for index in range(config["num_hidden_layers"]):
        sites = Layer(index, weights, lora, config, h0).sites(h)
        h = sites["block"]
        blocks.append(h)
        stored |= {f"{name}_{index + 1}": value.float().contiguous() for name, value in sites.items()}
    case = {"name": CASE, "lambda": LAMBDA, "policy": "all", "residual": "h0", **MODULES[CASE]}
    run = Run(folder, all_ids, case, [], None)
    run.set(load_file(sibo / f"{CASE}.safetensors"))
    run.residual.start(SEQUENCE, run.model.get_input_embeddings()(all_ids[SEQUENCE]))
    with torch.no_grad():
        wrapped = exact.forward(run.model, all_ids[SEQUENCE])[1]
    worst = max(exact.relative_error(a, b) for a, b in zip(blocks, wrapped))
    assert worst < 1e-13, worst
    save_file(stored, root / "golden.safetensors")
    print(f"sites: {len(stored)} tensors; blocks off the wrapped model by {worst:.1e}")
