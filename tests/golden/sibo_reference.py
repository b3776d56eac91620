"""SIBO written out: LoRA and bottleneck adapters with an initial residual, over a transformers LLaMA model.

Every PEFT module reads  x~ = (1 - lambda) x + lambda r  in place of its input x where the policy mixes r in
there, and x itself elsewhere; the frozen path and the skip always keep x (W0 is the frozen linear, s the scale):

    lora      y  = W0 x + s B A x~           on the linear's input x
    before    x' = x + s U tanh(D x~),       y = W0 x'
    after     y  = W0 x,                     y' = y + s U tanh(D y~)
    parallel  y  = W0 x + s U tanh(D x~)

r is h0, the token's row of the embedding table (detached), or a control arm in its place; see `Residual`.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

HIDDEN_INPUT = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
"""The linears whose input is a norm of the residual stream."""
ARMS = ("h0", "none", "h0-normed", "shuffled", "random")


def placement(method, linear):
    """Where the PEFT module of a linear sits: lora | before | after | parallel."""
    if method != "adapter":
        return {"lora": "lora", "adapter-parallel": "parallel"}[method]
    return "before" if linear in HIDDEN_INPUT else "after"


def is_mixed(policy, method, linear):
    """Does the policy mix r into the input of this linear's PEFT module?"""
    place = placement(method, linear)
    if policy == "official":
        return linear in ({"up_proj"} if place == "lora" else {"gate_proj", "up_proj"})
    return linear in HIDDEN_INPUT or place == "after"


@dataclass
class Residual:
    """What the lambda term reads, for the sequence that is running."""

    arm: str
    share: float
    shuffles: list = field(default_factory=list)
    vector: torch.Tensor | None = None
    h0: torch.Tensor | None = None
    sequence: int = 0

    def start(self, sequence, embedding_rows):
        self.sequence, self.h0 = sequence, embedding_rows.detach()

    def mix(self, x):
        return (1.0 - self.share) * x + self.share * self.read(x)

    def read(self, x):
        match self.arm:
            case "h0":
                return self.h0
            case "none":
                return torch.zeros_like(x)
            case "h0-normed":
                # The factor is a number to the gradient, as h0 is.
                return self.h0 * (x.detach().norm(dim=-1, keepdim=True) / self.h0.norm(dim=-1, keepdim=True))
            case "shuffled":
                return self.h0[self.shuffles[self.sequence]]
            case "random":
                return self.vector.expand_as(x)


class Lora(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.lora_B(self.lora_A(x))


class Adapter(nn.Module):
    def __init__(self, base, bottleneck, place):
        super().__init__()
        read = base.out_features if place == "after" else base.in_features
        written = base.in_features if place == "before" else base.out_features
        self.adapter_down = nn.Linear(read, bottleneck, bias=False)
        self.adapter_up = nn.Linear(bottleneck, written, bias=False)

    def forward(self, x):
        return self.adapter_up(torch.tanh(self.adapter_down(x)))


class Tuned(nn.Module):
    """A frozen linear with its PEFT module."""

    def __init__(self, base, branch, place, scale, residual):
        super().__init__()
        self.base, self.branch, self.place, self.scale, self.residual = base, branch, place, scale, residual

    def term(self, x):
        return self.scale * self.branch(x if self.residual is None else self.residual.mix(x))

    def forward(self, x):
        if self.place == "before":
            return self.base(x + self.term(x))
        if self.place == "after":
            y = self.base(x)
            return y + self.term(y)
        return self.base(x) + self.term(x)


def attach(model, case, residual):
    """Puts the case's PEFT modules into the model, which is frozen; gives the trainable tensors by PEFT's names.

    `case`: method, targets, policy, scale and `rank` (lora) or `bottleneck` (adapters).
    """
    model.requires_grad_(False)
    tensors = {}
    for path, base in list(model.named_modules()):
        parent, _, linear = path.rpartition(".")
        if linear not in case["targets"]:
            continue
        place = placement(case["method"], linear)
        branch = Lora(base, case["rank"]) if place == "lora" else Adapter(base, case["bottleneck"], place)
        mixed = is_mixed(case["policy"], case["method"], linear)
        tuned = Tuned(base, branch.double(), place, case["scale"], residual if mixed else None)
        setattr(model.get_submodule(parent), linear, tuned)
        tensors |= {f"base_model.model.{path}.{name}": p for name, p in branch.named_parameters()}
    return tensors
