"""Remedies for over-smoothing over transformers' own modules: one attention of our own, and hooks.

README.md has the formulas. LoRA and the initial residual are those of families_reference.py; nothing but h0 is
detached.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import families_reference as ref
from remedies_cases import ATTENTION

PREFIX = "base_model.model."


def attend(module, query, key, value, mask, scaling, **_):
    """transformers' eager attention, [text, head, position, head_dim], with what module.remedy asks for."""
    remedy, repeat = module.remedy, query.shape[1] // value.shape[1]
    if remedy["layer"] == 0:
        remedy["shared"]["values"] = value
    key, value, first = (x.repeat_interleave(repeat, 1) for x in (key, value, remedy["shared"]["values"]))
    scores = scaling * (query @ key.mT)
    visible = torch.ones_like(scores) if mask is None else (mask == 0).to(scores.dtype).expand_as(scores)
    weights = scores.masked_fill(visible == 0, -torch.inf).softmax(-1)
    if remedy["omega"] is not None:
        uniform = visible / visible.sum(-1, keepdim=True)
        weights = uniform + (1 + remedy["omega"][:, None, None]) * (weights - uniform)
    out = weights @ value + remedy["mu"] * (first - value)
    return out.transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def contranorm(x, strength, temperature, causal):
    """What the norm reads in place of x, [..., position, hidden]."""
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = unit @ unit.mT / temperature
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return (1 + strength) * x - strength * (scores.softmax(-1) @ x)


def feat_scale(x, s, t, causal):
    """Attention's output with its mean and the rest scaled apart, [..., position, hidden]."""
    if causal:
        mean = x.cumsum(-2) / torch.arange(1, x.shape[-2] + 1)[:, None]
    else:
        mean = x.mean(-2, keepdim=True)
    return x + s * mean + t * (x - mean)


def fuse(kind, blocks, get):
    """The state behind the last block; `get(l, part)` are the tensors of block l."""
    if kind == "max":
        return torch.stack(blocks).amax(0)
    if kind == "concat":
        return sum(h @ get(l, "weight").T for l, h in enumerate(blocks, start=1))
    assert kind == "gate"
    share = lambda l, h: torch.sigmoid(h @ get(l, "gate") + get(l, "bias"))
    return sum(share(l, h)[..., None] * h for l, h in enumerate(blocks, start=1))


def cosine_penalty(states):
    """Mean over texts of the mean |cos| of two tokens of the last block, [position, hidden] each."""
    total = 0.0
    for state in states:
        last = state[max((name for name in state if name.startswith("block_")), key=lambda name: int(name[6:]))]
        n = len(last)
        if n > 1:
            unit = last / last.norm(dim=-1, keepdim=True)
            total = total + ((unit @ unit.mT).abs() * (1 - torch.eye(n))).sum() / (n * (n - 1))
    return total / len(states)


def own_shapes(case, model):
    """Names and shapes of the tensors that the remedies train."""
    config, stack, found = model.config, f"{PREFIX}{case.base.case.stack}", {}
    heads, width, depth = config.num_attention_heads, config.hidden_size, config.num_hidden_layers
    for layer in range(depth):
        if "attn_scale" in case.remedies:
            found[f"{stack}.{layer}.attn_scale.omega"] = (heads,)
        if "feat_scale" in case.remedies:
            found |= {f"{stack}.{layer}.feat_scale.{part}": (width,) for part in "st"}
    parts = {"concat": {"weight": (width, width)}, "gate": {"gate": (width,), "bias": (1,)}}
    for l in range(1, depth + 1):
        shapes = parts.get(case.remedies.get("fusion"), {})
        found |= {f"{PREFIX}fusion.{l}.{part}": shape for part, shape in shapes.items()}
    return found


def start_values(case, folder, seed):
    """Random f32 start values by name: LoRA's, and those of the remedies, away from where they do nothing."""
    model, noise = ref.load_plain(case.base.case, folder), torch.Generator().manual_seed(seed + 1)
    values = ref.lora_values(case.base.case, model, seed)
    for name, shape in own_shapes(case, model).items():
        size = 0.4 if len(shape) == 1 and not name.endswith(".gate") else 0.9 / shape[-1] ** 0.5
        values[name] = size * torch.randn(shape, generator=noise)
    return values


def attach(case, watched, values, remedies, share):
    """Puts LoRA and the remedies into a watched model; the trainable tensors by name."""
    base, model = case.base, watched.model
    is_lora = lambda name: ".lora_" in name
    tensors = ref.attach(base.case, watched, {n: v for n, v in values.items() if is_lora(n)}, share)
    tensors |= {n: v.double().requires_grad_() for n, v in values.items() if not is_lora(n)}
    stack, shared = model.get_submodule(base.case.stack), {}

    def amend(block, layer):
        own = lambda name: tensors.get(f"{PREFIX}{base.case.stack}.{layer}.{name}")
        mu = remedies.get("neutreno", {"mu": 0.0})["mu"]
        omega = own("attn_scale.omega") if "attn_scale" in remedies else None
        block.get_submodule(base.attention).remedy = dict(layer=layer, shared=shared, mu=mu, omega=omega)
        if "feat_scale" in remedies:
            # Hooks run in the order of their registration: this one sees LoRA's part.
            scale = lambda _m, _args, out: feat_scale(out, own("feat_scale.s"), own("feat_scale.t"), base.causal)
            block.get_submodule(base.output).register_forward_hook(scale)
        if "contranorm" in remedies:
            apart = lambda _m, args: (contranorm(args[0], **remedies["contranorm"], causal=base.causal),)
            block.get_submodule(base.norm).register_forward_pre_hook(apart)

    for layer, block in enumerate(stack):
        amend(block, layer)
    if "fusion" in remedies:
        get = lambda l, part: tensors[f"{PREFIX}fusion.{l}.{part}"]

        def replace(_module, _args, out):
            fused = fuse(remedies["fusion"], watched.blocks, get)
            return (fused, *out[1:]) if isinstance(out, tuple) else fused

        # The watcher's own hook came first and has kept what the block itself gives.
        stack[-1].register_forward_hook(replace)
    return tensors


def build(case, folder, values, remedies=None, share=None):
    """The case in f64, or with other remedies and lambda: its watched model and the trainable tensors by name."""
    watched = ref.Watched(case.base.case, ref.load_exact(case.base.case, folder))
    remedies = case.remedies if remedies is None else remedies
    return watched, attach(case, watched, values, remedies, case.share if share is None else share)


def losses(case, texts, states):
    """The data's loss, and the penalty without gamma (None where there is none)."""
    penalty = cosine_penalty(states) if "cosine" in case.remedies else None
    return ref.loss(case.base.case, texts, states), penalty


def total(case, loss, penalty):
    """What is differentiated."""
    return loss if penalty is None else loss + case.remedies["cosine"] * penalty
