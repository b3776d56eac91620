"""transformers' LLaMA in true f64, and the quantities every golden file is made of.

transformers computes the norm, the attention weights and the rotary tables in f32 even when the model is
f64. A golden value that is meant to hold to 1e-8 cannot have that, so these three places are replaced
here; everything else is transformers' own code. `make.py` checks the result against the untouched f32 model.
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

UNTOUCHED_ATTENTION = modeling_llama.eager_attention_forward


def inverse_frequencies(config):
    """Radians per position of each rotary pair [head_dim / 2], f64; `rope_type` default or llama3."""
    rope = config.rope_parameters
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    plain = 1.0 / rope["rope_theta"] ** half
    if rope["rope_type"] == "default":
        return plain
    assert rope["rope_type"] == "llama3", rope
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - smooth) * plain / factor + smooth * plain


class ExactNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class ExactRotary(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.inv_freq = nn.Buffer(inverse_frequencies(config), persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def exact_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    key = modeling_llama.repeat_kv(key, module.num_key_value_groups)
    value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling + attention_mask
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def make_exact(model):
    """The given LlamaForCausalLM, changed in place to compute in f64 throughout."""
    model = model.double().eval()
    inner = model.model
    for layer in inner.layers:
        layer.input_layernorm = ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ExactNorm(layer.post_attention_layernorm)
    inner.norm = ExactNorm(inner.norm)
    inner.rotary_emb = ExactRotary(model.config)
    modeling_llama.eager_attention_forward = dispatch_attention
    return model


def dispatch_attention(module, query, *rest, **named):
    """f64 goes to the exact attention, any other type to transformers' own."""
    exact = query.dtype == torch.float64
    return (exact_attention if exact else UNTOUCHED_ATTENTION)(module, query, *rest, **named)


def load(folder):
    """The model of a folder, eager attention, f64 throughout; weights are the stored ones, widened."""
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return make_exact(model)


def forward(model, ids):
    """One sequence alone: (layer0, [output of each block before the final norm], final_norm, logits)."""
    decoder = model.get_decoder()
    blocks = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: blocks.append(out)) for layer in decoder.layers]
    normed = decoder(input_ids=ids[None], use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    logits = model.get_output_embeddings()(normed)
    layer0 = decoder.embed_tokens(ids)
    return layer0, [block[0] for block in blocks], normed[0], logits[0]


def loss(all_logits, all_ids):
    """Mean next-token cross-entropy over all target tokens of all sequences together."""
    total = sum(cross_entropy(z[:-1], ids[1:], reduction="sum") for z, ids in zip(all_logits, all_ids) if len(ids) > 1)
    return total / sum(len(ids) - 1 for ids in all_ids)


def states(model, all_ids, peft=None):
    """The golden tensors of a model on its sequences (f64), named as README.md says; and the loss.

    `peft` is the wrapper to run instead of `model` where there is one.
    """
    out, every_logits = {}, []
    for s, ids in enumerate(all_ids):
        layer0, blocks, normed, logits = forward(model if peft is None else peft.get_base_model(), ids)
        out |= {f"ids_{s}": ids, f"layer0_{s}": layer0, f"final_norm_{s}": normed, f"logits_{s}": logits}
        out |= {f"block_{l}_{s}": block for l, block in enumerate(blocks, start=1)}
        every_logits.append(logits)
    return out, loss(every_logits, all_ids).item()


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
