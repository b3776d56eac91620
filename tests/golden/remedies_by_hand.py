"""The same functions once more, from the stored weights: no module of transformers, no mask, one query at a time.

A second opinion on remedies_reference.py, and causal because a query is given nothing later than itself.
"""

import math

import torch
from torch.nn.functional import gelu, silu

import families_reference as ref

PREFIX = "base_model.model."


class ByHand:
    def __init__(self, case, config, weights, tensors):
        """`weights`: the base model's by name, f64; `tensors`: LoRA's and the remedies' by the file's names."""
        self.case, self.config, self.weights, self.tensors = case, config, weights, tensors
        self.remedies, self.base = case.remedies, case.base
        self.h0 = self.first = None

    def seen(self, i, n):
        """The positions that position i of n reads."""
        return list(range(i + 1 if self.base.causal else n))

    def linear(self, path, x):
        y = x @ self.weights[f"{path}.weight"].T + self.weights.get(f"{path}.bias", 0.0)
        if f"{PREFIX}{path}.lora_A.weight" not in self.tensors:
            return y
        a, b = (self.tensors[f"{PREFIX}{path}.{part}.weight"] for part in ("lora_A", "lora_B"))
        mixed = any(path.endswith("." + name) for name in self.base.case.mixed)
        read = x + self.case.share * (self.h0 - x) if mixed else x
        return y + ref.SCALE * (read @ a.T) @ b.T

    def norm(self, path, x):
        weight = self.weights[f"{path}.weight"]
        if self.base.causal:
            return weight * x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        size = (centred.square().mean(-1, keepdim=True) + self.config.layer_norm_eps).sqrt()
        return weight * centred / size + self.weights[f"{path}.bias"]

    def contranorm(self, x):
        """Token by token, every pair's cosine by itself."""
        if "contranorm" not in self.remedies:
            return x
        s, tau = (self.remedies["contranorm"][key] for key in ("strength", "temperature"))
        rows = []
        for i, row in enumerate(x):
            others = [x[j] for j in self.seen(i, len(x))]
            parts = [torch.exp((row @ other) / (row.norm() * other.norm()) / tau) for other in others]
            pull = sum(part * other for part, other in zip(parts, others)) / sum(parts)
            rows.append(row + s * (row - pull))
        return torch.stack(rows)

    def attention(self, layer, q, k, v):
        """q [n, heads, size], k and v with as many heads or fewer; gives [n, heads * size]."""
        if layer == 0:
            self.first = v
        n, heads, size = q.shape
        mu = self.remedies.get("neutreno", {"mu": 0.0})["mu"]
        omega = self.tensors.get(f"{PREFIX}{self.base.case.stack}.{layer}.attn_scale.omega", torch.zeros(heads))
        rows = []
        for i in range(n):
            row, places = [], self.seen(i, n)
            for h in range(heads):
                group = h * k.shape[1] // heads
                values = v[places, group]
                parts = torch.exp(k[places, group] @ q[i, h] / math.sqrt(size))
                mean, read = values.mean(0), (parts / parts.sum()) @ values
                stretched = mean + (1 + omega[h]) * (read - mean)
                row.append(stretched + mu * (self.first[i, group] - v[i, group]))
            rows.append(torch.cat(row))
        return torch.stack(rows)

    def feat_scale(self, layer, x):
        if "feat_scale" not in self.remedies:
            return x
        s, t = (self.tensors[f"{PREFIX}{self.base.case.stack}.{layer}.feat_scale.{part}"] for part in "st")
        means = torch.stack([x[self.seen(i, len(x))].mean(0) for i in range(len(x))])
        return (1 + s) * means + (1 + t) * (x - means)

    def fused(self, blocks):
        kind, get = self.remedies.get("fusion"), lambda l, part: self.tensors[f"{PREFIX}fusion.{l}.{part}"]
        if kind is None:
            return blocks[-1]
        if kind == "max":
            best = blocks[0]
            for block in blocks[1:]:
                best = torch.where(block > best, block, best)
            return best
        rows = []
        for tokens in zip(*blocks):
            if kind == "concat":
                whole = torch.cat([get(l, "weight") for l in range(1, len(blocks) + 1)], dim=1)
                rows.append(whole @ torch.cat(tokens))
            else:
                scores = [(h * get(l, "gate")).sum() + get(l, "bias") for l, h in enumerate(tokens, start=1)]
                rows.append(sum(h / (1 + torch.exp(-score)) for h, score in zip(tokens, scores)))
        return torch.stack(rows)

    def penalty(self, states):
        """Pair by pair; a text of one token has none and counts all the same."""
        if "cosine" not in self.remedies:
            return None
        means = []
        for state in states:
            h = state[f"block_{self.config.num_hidden_layers}"]
            pairs = [(a, b) for i, a in enumerate(h) for j, b in enumerate(h) if i != j]
            each = [abs(a @ b) / (a.norm() * b.norm()) for a, b in pairs]
            means.append(sum(each) / len(each) if each else 0.0)
        return sum(means) / len(means)

    def run(self, text):
        of_kind = self.llama if self.base.causal else self.bert
        blocks, final_norm, logits = of_kind(*text["inputs"].values())
        states = {f"block_{l}": block for l, block in enumerate(blocks, start=1)}
        return states | ({} if final_norm is None else {"final_norm": final_norm}) | {"logits": logits}

    def each(self, texts):
        return [self.run(text) for text in texts]

    def llama(self, ids):
        config, n = self.config, len(ids)
        size = config.head_dim
        pairs = torch.arange(size // 2, dtype=torch.float64)
        angles = torch.arange(n)[:, None] * config.rope_parameters["rope_theta"] ** (-2 * pairs / size)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]

        def turned(x):
            """The pairs are (x_k, x_k+size/2), complex numbers here."""
            both = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
            return torch.cat([both.real, both.imag], dim=-1)

        x = self.weights["model.embed_tokens.weight"][ids]
        self.h0, blocks = x, []
        for layer in range(config.num_hidden_layers):
            path = f"model.layers.{layer}"
            read = self.norm(f"{path}.input_layernorm", x)
            q, k, v = (self.linear(f"{path}.self_attn.{p}_proj", read).view(n, -1, size) for p in "qkv")
            added = self.linear(f"{path}.self_attn.o_proj", self.attention(layer, turned(q), turned(k), v))
            x = x + self.feat_scale(layer, added)
            read = self.norm(f"{path}.post_attention_layernorm", self.contranorm(x))
            gate, up = (self.linear(f"{path}.mlp.{part}_proj", read) for part in ("gate", "up"))
            x = x + self.linear(f"{path}.mlp.down_proj", silu(gate) * up)
            blocks.append(x)
        final_norm = self.norm("model.norm", self.fused(blocks))
        return blocks, final_norm, final_norm @ self.weights["lm_head.weight"].T

    def bert(self, ids, types):
        config, n, table = self.config, len(ids), lambda name: self.weights[f"bert.embeddings.{name}_embeddings.weight"]
        x = table("word")[ids] + table("position")[:n] + table("token_type")[types]
        x = self.norm("bert.embeddings.LayerNorm", x)
        self.h0, blocks = x, []
        for layer in range(config.num_hidden_layers):
            path = f"bert.encoder.layer.{layer}"
            split = lambda part: self.linear(f"{path}.attention.self.{part}", x).view(n, config.num_attention_heads, -1)
            mixed = self.attention(layer, split("query"), split("key"), split("value"))
            added = self.feat_scale(layer, self.linear(f"{path}.attention.output.dense", mixed))
            x = self.norm(f"{path}.attention.output.LayerNorm", self.contranorm(x + added))
            inner = gelu(self.linear(f"{path}.intermediate.dense", x))
            x = self.norm(f"{path}.output.LayerNorm", x + self.linear(f"{path}.output.dense", inner))
            blocks.append(x)
        head = "cls.predictions"
        read = gelu(self.linear(f"{head}.transform.dense", self.fused(blocks)))
        read = self.norm(f"{head}.transform.LayerNorm", read)
        return blocks, None, read @ table("word").T + self.weights[f"{head}.bias"]
