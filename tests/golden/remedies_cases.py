"""The cases of remedies.py: which model, which remedies at what strength, and where a model has their places."""

from dataclasses import dataclass, field, replace

import families_cases
import families_reference as ref
from methods_cases import MODEL

ATTENTION = "remedies"
"""The name under which remedies_reference.py registers its attention with transformers."""


@dataclass
class Base:
    """A tiny model, and the modules of a block that the remedies meet."""

    path: str
    """Its folder, from tests/golden."""
    case: ref.Case
    norm: str
    """The norm that the feed-forward reads; it norms the stream (pre-norm) or the sum with attention's output."""
    attention: str
    output: str
    """Attention's output projection."""
    head: list | None = None
    """Modules that make logits of the final norm, where remedies_by_hand.py has not the whole model."""

    @property
    def causal(self):
        return self.case.loss == "next_token"


def family(name):
    return next(case for case in families_cases.CASES if case.name == name)


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
LLAMA = Base(
    "methods/model",
    replace(MODEL, targets=LINEARS, mixed=["q_proj", "k_proj", "v_proj", "up_proj"], attention=ATTENTION),
    norm="post_attention_layernorm", attention="self_attn", output="self_attn.o_proj",
)  # fmt: skip
SPREAD = replace(
    LLAMA, path="remedies/model",
    case=replace(
        LLAMA.case,
        config=LLAMA.case.config | dict(
            hidden_size=20, intermediate_size=31, vocab_size=53, attention_bias=False, mlp_bias=False,
            tie_word_embeddings=True,
        ),
    ),
)  # fmt: skip
"""Tokens that are not all alike: without the biases and the shared direction of the other models' embeddings, their
cosines are of either sign, and the absolute value is seen."""
BERT = Base(
    "families/bert_mlm",
    replace(family("bert_mlm"), attention=ATTENTION),
    norm="attention.output.LayerNorm", attention="attention.self", output="attention.output.dense",
)  # fmt: skip
MODERNBERT = Base(
    "families/modernbert", family("modernbert"), norm="mlp_norm", attention="attn", output="attn.Wo",
    head=["head", "decoder"],
)  # fmt: skip
"""With transformers' own attention: it has a final norm, which is to read the fused state, and is here for that."""


@dataclass
class Case:
    name: str
    base: Base
    remedies: dict
    """As golden.json states them; an absent key is off. README.md has the formulas."""
    share: float = 0.0
    """lambda of the initial residual; 0 is plain LoRA."""
    twin: str | None = None
    """The case whose start values these are."""
    notes: list = field(default_factory=list)


CONTRANORM = {"contranorm": {"strength": 0.4, "temperature": 0.6}}
NEUTRENO = {"neutreno": {"mu": 0.35}}
ATTN_SCALE, FEAT_SCALE = {"attn_scale": True}, {"feat_scale": True}
COSINE = {"cosine": 0.5}
INSIDE = {"contranorm": {"strength": 0.25, "temperature": 1.3}, "neutreno": {"mu": 0.6}, **ATTN_SCALE, **FEAT_SCALE}
"""All remedies within a block."""

NORM_READS = (
    "contranorm: the norm in front of the feed-forward reads Y = (1 + s) X - s softmax(X^ X^T^ / tau) X for X, the "
    "rows of X^ those of X over their L2 norms; the skip connection of a pre-norm block keeps X."
)
FIRST_VALUES = (
    "neutreno: a head gives A V + mu (V1 - V), V1 the first block's values of the same head and text, with their "
    "gradient; they come from the value projection with its bias and LoRA, before grouped heads are repeated."
)
BY_HEAD = (
    "attn_scale: a query head h gives U V + (1 + omega[h]) (A - U) V with U uniform over the positions that the query "
    "sees; omega is [heads], one a block. With neutreno its term comes on top, itself not scaled."
)
BY_FEATURE = (
    "feat_scale: attention's output X, behind the projection with its bias and LoRA and before the sum, becomes "
    "X + s * DC + t * (X - DC), DC the mean of X over the positions that a position sees; s and t are [hidden]."
)
PENALTY = (
    "cosine: gamma times the mean over the three texts of the mean over i != j of |cos(h_i, h_j)| is added to the "
    "loss that is differentiated; h is block_L; the text of one token counts 0. loss and losses are without it, "
    "penalties (without gamma) stand beside them."
)
FUSION = (
    "fusion: everything behind the last block reads the fused state in place of block_L. max: the largest of h_1 to "
    "h_L, number by number; concat: sum of h_l W_l^T; gate: sum of sigmoid(h_l . u_l + b_l) h_l."
)
NOTES = dict(
    contranorm=NORM_READS, neutreno=FIRST_VALUES, attn_scale=BY_HEAD, feat_scale=BY_FEATURE, cosine=PENALTY,
    fusion=FUSION,
)  # fmt: skip


def with_and_without(name, remedies, base=LLAMA):
    """On a causal model, at lambda 0 and at 0.3, from the same start values."""
    return [Case(name, base, remedies), Case(f"{name}_sibo", base, remedies, share=ref.LAMBDA, twin=name)]


CASES = [
    *with_and_without("contranorm", CONTRANORM),
    *with_and_without("neutreno", NEUTRENO),
    *with_and_without("attn_scale", ATTN_SCALE),
    *with_and_without("feat_scale", FEAT_SCALE),
    *with_and_without("cosine", COSINE, SPREAD),
    Case("cosine_negative", SPREAD, {"cosine": -0.5}, twin="cosine"),
    Case("all_together_sibo", LLAMA, {**INSIDE, **COSINE}, share=ref.LAMBDA),
    Case("encoder_all", BERT, INSIDE),
    Case("fusion_max", BERT, {"fusion": "max"}),
    Case("fusion_concat", BERT, {"fusion": "concat"}),
    Case("fusion_gate_sibo", BERT, {"fusion": "gate"}, share=ref.LAMBDA),
    Case("fusion_gate_final_norm", MODERNBERT, {"fusion": "gate"}),
]
for case in CASES:
    case.notes = [NOTES[name] for name in case.remedies]
