"""The cases of methods.py: one tiny model, every method's settings, and where each method mixes h0 in."""

import re
from dataclasses import dataclass, field

from peft import IA3Config, LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import LlamaForCausalLM

import families_reference as ref
from sibo_reference import HIDDEN_INPUT

MODEL = ref.Case(
    "model",
    LlamaForCausalLM,
    dict(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6, num_hidden_layers=3,
        intermediate_size=37, vocab_size=61, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        use_cache=False, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    ),
    stack="model.layers", table="model.embed_tokens", final_norm="model.norm", targets=[], mixed=[],
)  # fmt: skip
DEPTH, WIDTH = MODEL.config["num_hidden_layers"], MODEL.config["hidden_size"]
VIRTUAL = 4
"""Virtual tokens of the prefix and prompt cases."""


@dataclass
class Case:
    name: str
    method: str
    """lora | dora | ia3 | adapter | bitfit | ln_tuning | prefix | prompt"""
    config: object = None
    """PEFT's own configuration, where PEFT has the method."""
    targets: list = field(default_factory=list)
    """Ends of module paths; the configuration's where there is one."""
    share: object = None
    """lambda: None (no residual), a number, a list by layer, or "layer" / "module" where it is trained."""
    twin: str | None = None
    """The case whose start values these are."""
    scale: float = 1.0
    """Of the bottleneck adapters; LoRA's is resolved module by module."""
    bottleneck: int = 0
    notes: list = field(default_factory=list)

    def __post_init__(self):
        if self.config is not None:
            # PEFT makes a set of them, whose order is another one every time.
            self.targets = sorted(getattr(self.config, "target_modules", None) or [])


def resolve(config, path):
    """Rank, alpha and scale of a module by PEFT's rule.

    Patterns are regular expressions; the first that is the path in the base model, or its end at a dot, counts.
    """

    def find(patterns, default):
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)

    rank, alpha = find(config.rank_pattern, config.r), find(config.alpha_pattern, config.lora_alpha)
    return {"rank": rank, "alpha": alpha, "scale": alpha / (rank**0.5 if config.use_rslora else rank)}


def input_form(case, path):
    """Does IA3 scale what this linear reads, not what it writes? PEFT asks for the end, no dot before it."""
    return any(path.endswith(name) for name in case.config.feedforward_modules)


def is_mixed(case, path):
    """Policy "all": does the branch of this module read x~ (where the case has a residual)?"""
    if case.method == "adapter":
        return True
    reads_branch = case.method != "ia3" or input_form(case, path)
    return reads_branch and path.rpartition(".")[2] in HIDDEN_INPUT


def targets(case, model):
    """(path, linear) of every target, in the model's order."""
    return [(path, m) for path, m in model.named_modules() if path.rpartition(".")[2] in case.targets]


def lora(**more):
    return LoraConfig(**{"r": 3, "lora_alpha": 7.5, "task_type": "CAUSAL_LM", **more})


def patterns():
    return lora(
        r=4, lora_alpha=10, use_rslora=True, alpha_pattern={"down_proj": 3},
        rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6},
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    )  # fmt: skip


def dora():
    return lora(use_dora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"])


def ia3(target_modules, feedforward_modules):
    return IA3Config(
        task_type="CAUSAL_LM", target_modules=target_modules, feedforward_modules=feedforward_modules
    )  # fmt: skip


def ia3_up():
    return ia3(["q_proj", "up_proj", "down_proj"], ["up_proj", "down_proj"])


def plain_lora():
    return lora(target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])


def norms():
    return LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=["input_layernorm", "post_attention_layernorm", "norm"]
    )  # fmt: skip


def prefix(**more):
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, **more)


def adapter(name, targets, **more):
    return Case(name, "adapter", targets=targets, scale=1.7, bottleneck=5, notes=[ADAPTER], **more)


BIASES = ["q_proj", "v_proj", "up_proj"]
HOULSBY, PFEIFFER = ["o_proj", "down_proj"], ["down_proj"]

PATTERNS = (
    "rank_pattern, alpha_pattern: keys are regular expressions (a dot is any character), tried in order; the "
    "first with re.match('(.*\\.)?(KEY)$', path) counts, path without base_model.model. PEFT sorts the keys when "
    "it saves, so where two match, a reloaded adapter may resolve otherwise than in training; here no two match."
)
SAVED_BIAS = (
    "The file holds whole biases, not differences. A bias of a module with LoRA is <module>.base_layer.bias, one "
    "of any other module <module>.bias; base_tensors gives the model's own names."
)
DORA = (
    "y = (m / norm) (W0 x + s B A x~) + bias with norm the row norms (over inputs) of W0 + s B A, held fixed in "
    "the gradient but recomputed at every forward; lora_magnitude_vector is m, [out], with no .weight in its "
    "name. The bias is not scaled."
)
IA3_OUT = "Output form: (W x + bias) * l, so the bias is scaled too; ia3_l is [out, 1]."
IA3_IN = "Input form (feedforward_modules): W (x * l) + bias; ia3_l is [1, in]."
ADAPTER = (
    "y' = y + s U tanh(D y~) after the linear, y with its bias and y~ = (1 - lambda) y + lambda h0 (y without the "
    "residual); D is adapter_down, U adapter_up, no biases."
)
NORMS = "The file holds whole norm weights as <norm>.ln_tuning_layers.weight, one for every norm of the model."
BITFIT = "The file holds whole biases, under the model's own names."
PREFIX = (
    "prompt_embeddings [virtual, layers * 2 * kv_heads * head_dim] is read as "
    "[virtual][layer][key, value][kv_head][head_dim]; the keys stand in the cache as they are, without rotation, "
    "and every real token reads all of them. Real tokens begin at rotary position 4."
)
PROJECTION = (
    "The trained tensors are the projection's: every row of prompt_embeddings is W2 tanh(W0 e + b0) + b2 with e a "
    "row of prompt_encoder.default.embedding.weight [virtual, kv_heads * head_dim], W0, b0 transform.0, W2, b2 "
    "transform.2. The adapter file holds prompt_embeddings only; the projection's tensors are start.<name> (F32) "
    "in golden.safetensors, prompt_embeddings_start and prompt_embeddings_after what they give (F64)."
)
PROMPT = (
    "prompt_embeddings [virtual, hidden] goes before the token embeddings; virtual tokens are at rotary positions "
    "0 to 3 and real ones begin at 4; attention is causal throughout."
)
LEARNED = "lambda = sigmoid(theta), theta the sibo_lambda [1] of the layer or of the mixed module."

CASES = [
    Case("lora_patterns", "lora", patterns(), notes=[PATTERNS]),
    Case(
        "lora_bias_all", "lora", lora(target_modules=BIASES, bias="all", modules_to_save=["lm_head"]),
        notes=[SAVED_BIAS, "modules_to_save: the whole weight as base_model.model.lm_head.weight."],
    ),
    Case("lora_bias_only", "lora", lora(target_modules=BIASES, bias="lora_only"), notes=[SAVED_BIAS]),
    Case("lora_sibo_patterns", "lora", patterns(), share=0.3, twin="lora_patterns", notes=[PATTERNS]),
    Case("dora", "dora", dora(), notes=[DORA]),
    Case("dora_sibo", "dora", dora(), share=0.3, twin="dora", notes=[DORA]),
    Case("ia3", "ia3", ia3(["k_proj", "v_proj", "down_proj"], ["down_proj"]), notes=[IA3_OUT, IA3_IN]),
    Case("ia3_up", "ia3", ia3_up(), notes=[IA3_OUT, IA3_IN]),
    Case(
        "ia3_up_sibo", "ia3", ia3_up(), share=0.3, twin="ia3_up",
        notes=[IA3_OUT, "Input form: W (x + (l - 1) * x~) + bias where mixed, W (x * l) + bias elsewhere."],
    ),
    adapter("houlsby", HOULSBY),
    adapter("houlsby_sibo", HOULSBY, share=0.3, twin="houlsby"),
    adapter("pfeiffer", PFEIFFER),
    adapter("pfeiffer_sibo", PFEIFFER, share=0.3, twin="pfeiffer"),
    Case("ln_tuning", "ln_tuning", norms(), notes=[NORMS]),
    Case("bitfit", "bitfit", notes=[BITFIT]),
    Case("prefix", "prefix", prefix(), notes=[PREFIX]),
    Case(
        "prefix_projection", "prefix", prefix(prefix_projection=True, encoder_hidden_size=11),
        notes=[PREFIX, PROJECTION],
    ),
    Case(
        "prompt", "prompt", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL), notes=[PROMPT]
    ),
    Case("lambda_per_layer", "lora", plain_lora(), share=[0.1, 0.5, 0.0]),
    Case(
        "lambda_learnable_layer", "lora", plain_lora(), share="layer", twin="lambda_per_layer", notes=[LEARNED]
    ),
    Case(
        "lambda_learnable_module", "lora", plain_lora(), share="module", twin="lambda_per_layer", notes=[LEARNED]
    ),
]  # fmt: skip
