"""The cases of families.py: which model, which sizes, and where its parts are."""

from transformers import (
    AlbertForMaskedLM, BertForMaskedLM, BertForSequenceClassification, BloomForCausalLM, DebertaV2ForMaskedLM,
    DistilBertForMaskedLM, ElectraForMaskedLM, FalconForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM,
    GemmaForCausalLM, GPT2LMHeadModel, GPTJForCausalLM, GPTNeoXForCausalLM, LlamaForSequenceClassification,
    MistralForCausalLM, ModernBertForMaskedLM, Olmo2ForCausalLM, OPTForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM,
    Qwen3ForCausalLM, RobertaForMaskedLM, StableLmForCausalLM, Starcoder2ForCausalLM, T5EncoderModel,
    T5ForTokenClassification,
    ViTForImageClassification,
)  # fmt: skip

from families_reference import Case

QKV = ["q_proj", "k_proj", "v_proj"]
COMMON = dict(use_cache=False, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(theta=10000.0, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


def old_rope(config):
    """`rope_parameters` as it was before transformers 5: theta at the top and `rope_scaling`."""
    table = config.pop("rope_parameters")
    config["rope_theta"] = table.pop("rope_theta")
    if "partial_rotary_factor" in table:
        config["partial_rotary_factor"] = table.pop("partial_rotary_factor")
    config["rope_scaling"] = table if table["rope_type"] != "default" else None


def old_qwen2(config):
    """A window that `use_sliding_window` switches off, as hub folders have it."""
    old_rope(config)
    del config["layer_types"]
    config["sliding_window"] = 5


def old_gemma(config):
    """`hidden_act` "gelu" in a Gemma means the tanh form."""
    old_rope(config)
    config |= {"hidden_act": "gelu", "hidden_activation": None}


def old_gemma2(config):
    old_rope(config)
    del config["layer_types"]


def old_gemma3(config):
    kinds = config.pop("rope_parameters")
    config["rope_local_base_freq"] = kinds["sliding_attention"]["rope_theta"]
    config["rope_theta"] = kinds["full_attention"].pop("rope_theta")
    config["rope_scaling"] = kinds["full_attention"]
    del config["layer_types"]
    config["sliding_window_pattern"] = 2


def old_gpt_neox(config):
    table = config.pop("rope_parameters")
    config |= {"rotary_emb_base": table["rope_theta"], "rotary_pct": table["partial_rotary_factor"]}


def old_falcon(config):
    """Falcon-40B's folder says nothing of its two norms."""
    old_rope(config)
    del config["num_ln_in_parallel_attn"]


def old_modernbert(config):
    kinds = config.pop("rope_parameters")
    config["local_rope_theta"] = kinds["sliding_attention"]["rope_theta"]
    config["global_rope_theta"] = kinds["full_attention"]["rope_theta"]
    del config["layer_types"]
    config["global_attn_every_n_layers"] = 3


def old_deberta(config):
    config["pos_att_type"] = "|".join(config["pos_att_type"])


def llama_like(name, cls, config, **more):
    """q, k, v, gate, up and down projections over RMSNorms, as LLaMA names them."""
    return Case(
        name, cls, {**COMMON, **config}, stack="model.layers", table="model.embed_tokens", final_norm="model.norm",
        **{"targets": [*QKV, "up_proj", "down_proj"], "mixed": [*QKV, "up_proj"], **more},
    )  # fmt: skip


GPTJ = dict(
    COMMON, vocab_size=61, n_positions=32, n_embd=28, n_layer=2, n_head=2, rotary_dim=6, n_inner=41,
    tie_word_embeddings=False,
)  # fmt: skip
BLOOM = dict(COMMON, vocab_size=67, hidden_size=24, n_layer=2)
QWEN2 = dict(
    vocab_size=71, hidden_size=30, num_attention_heads=5, num_key_value_heads=1, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, tie_word_embeddings=True, rope_parameters=rope(1000.0),
    use_sliding_window=False, sliding_window=64, max_window_layers=2,
)  # fmt: skip
QWEN3 = dict(
    vocab_size=59, hidden_size=30, num_attention_heads=4, num_key_value_heads=2, head_dim=10, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, tie_word_embeddings=False, rope_parameters=rope(1000.0),
)  # fmt: skip
MISTRAL = dict(
    vocab_size=73, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, sliding_window=5, rope_parameters=rope(1000.0),
)  # fmt: skip
GEMMA = dict(
    vocab_size=67, hidden_size=28, num_attention_heads=4, num_key_value_heads=1, head_dim=8, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, rope_parameters=rope(1000.0), tie_word_embeddings=True,
)  # fmt: skip
GEMMA2 = dict(
    GEMMA, num_key_value_heads=2, num_hidden_layers=3, sliding_window=5, attn_logit_softcapping=1.5,
    final_logit_softcapping=2.0, query_pre_attn_scalar=11,
)  # fmt: skip
GEMMA3 = dict(
    GEMMA, num_key_value_heads=2, num_hidden_layers=3, sliding_window=5, query_pre_attn_scalar=11,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters={"sliding_attention": rope(50.0),
                     "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}},
)  # fmt: skip
PHI3 = dict(
    vocab_size=61, hidden_size=36, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, original_max_position_embeddings=64, sliding_window=None,
    rope_parameters=rope(1000.0), tie_word_embeddings=False,
)  # fmt: skip
PHI3_PARTIAL = dict(
    PHI3, vocab_size=59, hidden_size=32, num_attention_heads=4,
    rope_parameters=rope(1000.0, partial_rotary_factor=0.5), tie_word_embeddings=True,
)  # fmt: skip
PHI3_PLACES = dict(targets=["qkv_proj", "gate_up_proj", "down_proj"], mixed=["qkv_proj", "gate_up_proj"])
FUSED = dict(
    targets=["query_key_value", "dense_h_to_4h", "dense_4h_to_h"], mixed=["query_key_value", "dense_h_to_4h"]
)  # fmt: skip
GPT2 = dict(
    COMMON, vocab_size=61, n_positions=32, n_embd=30, n_layer=2, n_head=5, n_inner=41, resid_pdrop=0.0,
    embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
GPT_NEOX = dict(
    COMMON, vocab_size=67, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=41,
    max_position_embeddings=64, rope_parameters=rope(1000.0, partial_rotary_factor=0.5),
)  # fmt: skip
GPT_NEOX_SEQUENTIAL = dict(
    GPT_NEOX, hidden_size=32, num_attention_heads=2, use_parallel_residual=False,
    rope_parameters=rope(500.0, partial_rotary_factor=0.25),
)  # fmt: skip
OPT = dict(
    COMMON, vocab_size=61, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, ffn_dim=41, pad_token_id=1,
    max_position_embeddings=32, dropout=0.0, word_embed_proj_dim=30,
)  # fmt: skip
OPT_350M = dict(OPT, word_embed_proj_dim=14, do_layer_norm_before=False)
FALCON = dict(
    COMMON, vocab_size=67, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, ffn_hidden_size=41,
    max_position_embeddings=64, rope_parameters=rope(1000.0),
)  # fmt: skip
FALCON_NEW = dict(hidden_size=32, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True)
FALCON_ALIBI = dict(
    alibi=True, bias=True, parallel_attn=False, multi_query=False, hidden_size=36, num_attention_heads=6
)  # fmt: skip
# Twelve heads have slopes that are no powers of two, which transformers rounds to bfloat16 in Falcon.
FALCON_ALIBI_BF16 = dict(FALCON_ALIBI, hidden_size=24, num_attention_heads=12)
ENCODER = dict(
    vocab_size=67, hidden_size=30, num_attention_heads=5, num_hidden_layers=2, intermediate_size=41,
    max_position_embeddings=24, type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
DISTILBERT = dict(
    vocab_size=67, max_position_embeddings=24, n_layers=2, n_heads=5, dim=30, hidden_dim=41, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
ALBERT = dict(ENCODER, embedding_size=14, num_hidden_layers=3, hidden_act="gelu_new")
ELECTRA = dict(ENCODER, embedding_size=14, hidden_act="gelu")
ROBERTA = dict(ENCODER, hidden_size=28, num_attention_heads=4, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
MODERNBERT = dict(
    vocab_size=67, hidden_size=24, num_attention_heads=3, num_hidden_layers=4, intermediate_size=31, norm_eps=1e-5,
    max_position_embeddings=64, local_attention=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
    sep_token_id=2,
    rope_parameters={"sliding_attention": rope(50.0), "full_attention": rope(1000.0)},
)  # fmt: skip
# Distances to 4 have buckets of their own, those to 18 share three by their logarithm.
DEBERTA = dict(
    ENCODER, type_vocab_size=0, relative_attention=True, position_buckets=8, max_relative_positions=-1,
    norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
    layer_norm_eps=1e-7,
)  # fmt: skip
# Projections of their own for a row a distance, without a norm, for queries alone to meet.
DEBERTA_OWN = dict(
    ENCODER, type_vocab_size=2, relative_attention=True, position_buckets=-1, max_relative_positions=9,
    norm_rel_ebd="none", share_att_key=False, pos_att_type=["c2p"], position_biased_input=False, layer_norm_eps=1e-7,
)  # fmt: skip
OLMO2 = dict(QWEN3, num_attention_heads=3, num_key_value_heads=1)
del OLMO2["head_dim"]
STABLELM = dict(
    vocab_size=61, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, use_qkv_bias=True,
    rope_parameters=rope(1000.0, partial_rotary_factor=0.5),
)  # fmt: skip
STARCODER2 = dict(
    vocab_size=61, hidden_size=30, num_attention_heads=5, num_key_value_heads=1, num_hidden_layers=2,
    intermediate_size=41, max_position_embeddings=64, sliding_window=None, rope_parameters=rope(1000.0),
)  # fmt: skip
# Two distances a side have buckets of their own, the others to 13 share two by their logarithm.
T5 = dict(
    vocab_size=61, d_model=26, d_kv=8, d_ff=41, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
    relative_attention_max_distance=14, dropout_rate=0.0,
)  # fmt: skip
VIT = dict(
    hidden_size=30, num_attention_heads=5, num_hidden_layers=2, intermediate_size=41, image_size=12, patch_size=4,
    num_channels=3, num_labels=3,
)  # fmt: skip
LLAMA = dict(QWEN2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, num_labels=3)
for name in ("use_sliding_window", "sliding_window", "max_window_layers"):
    del LLAMA[name]


def bloom(name, heads):
    return Case(
        name, BloomForCausalLM, dict(BLOOM, n_head=heads), stack="transformer.h", table="transformer.word_embeddings",
        final_norm="transformer.ln_f", **FUSED,
    )  # fmt: skip


def gpt_neox(name, config, **more):
    return Case(
        name, GPTNeoXForCausalLM, config, stack="gpt_neox.layers", table="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm", **FUSED, **more,
    )  # fmt: skip


def opt(name, config, **more):
    return Case(
        name, OPTForCausalLM, config, stack="model.decoder.layers", table="model.decoder.embed_tokens",
        targets=[*QKV, "fc1", "fc2"], mixed=[*QKV, "fc1"], h0="input", **more,
    )  # fmt: skip


def falcon(name, config, **more):
    return Case(
        name, FalconForCausalLM, {**FALCON, **config}, stack="transformer.h", table="transformer.word_embeddings",
        final_norm="transformer.ln_f", **FUSED, **more,
    )  # fmt: skip


def bert_like(name, cls, config, root, **more):
    """Blocks of post-norms as BERT names them; `output.dense` is the attention's output and the last linear."""
    first = ["query", "key", "value", "intermediate.dense"]
    default = dict(stack=f"{root}.encoder.layer", targets=[*first, "output.dense"], mixed=first)
    default |= dict(table=f"{root}.embeddings.word_embeddings", h0="input", loss="masked_token")
    return Case(name, cls, config, **{**default, **more})


def t5(name, activation, first):
    return Case(
        name, T5EncoderModel, dict(T5, feed_forward_proj=activation), stack="encoder.block", table="shared",
        final_norm="encoder.final_layer_norm", targets=["q", "k", "v", first, "wo"], mixed=["q", "k", "v", first],
        h0="input", loss="half_mean_square",
    )  # fmt: skip


CASES = [
    Case(
        "gptj", GPTJForCausalLM, GPTJ, stack="transformer.h", table="transformer.wte", final_norm="transformer.ln_f",
        targets=[*QKV, "fc_in", "fc_out"], mixed=[*QKV, "fc_in"],
    ),
    bloom("bloom", 4),
    bloom("bloom_odd", 6),
    llama_like("qwen2", Qwen2ForCausalLM, QWEN2, old=old_qwen2),
    llama_like("qwen3", Qwen3ForCausalLM, QWEN3),
    llama_like("mistral", MistralForCausalLM, MISTRAL, old=old_rope),
    llama_like("gemma", GemmaForCausalLM, GEMMA, zero_norm=True, old=old_gemma),
    llama_like("gemma2", Gemma2ForCausalLM, GEMMA2, zero_norm=True, old=old_gemma2),
    llama_like("gemma3_text", Gemma3ForCausalLM, GEMMA3, zero_norm=True, old=old_gemma3),
    llama_like("phi3", Phi3ForCausalLM, PHI3, **PHI3_PLACES),
    llama_like("phi3_partial", Phi3ForCausalLM, PHI3_PARTIAL, old=old_rope, **PHI3_PLACES),
    Case(
        "gpt2", GPT2LMHeadModel, GPT2, stack="transformer.h", table="transformer.wte", final_norm="transformer.ln_f",
        targets=["c_attn", "c_fc", "mlp.c_proj"], mixed=["c_attn", "c_fc"], h0="input",
    ),
    gpt_neox("gpt_neox", GPT_NEOX, old=old_gpt_neox),
    gpt_neox("gpt_neox_sequential", GPT_NEOX_SEQUENTIAL),
    opt("opt", OPT, final_norm="model.decoder.final_layer_norm"),
    opt("opt_350m", OPT_350M),
    falcon("falcon", {}, old=old_rope),
    falcon("falcon_new", FALCON_NEW, old=old_falcon),
    falcon("falcon_alibi", FALCON_ALIBI, attention="sdpa"),
    falcon("falcon_alibi_bf16", FALCON_ALIBI_BF16, attention="sdpa"),
    bert_like(
        "distilbert", DistilBertForMaskedLM, DISTILBERT, "distilbert", stack="distilbert.transformer.layer",
        targets=["q_lin", "k_lin", "v_lin", "lin1", "lin2"], mixed=["q_lin", "k_lin", "v_lin", "lin1"],
    ),
    bert_like(
        "albert", AlbertForMaskedLM, ALBERT, "albert", stack="albert.encoder.albert_layer_groups.0.albert_layers.0",
        targets=["query", "key", "value", "ffn", "ffn_output"], mixed=["query", "key", "value", "ffn"],
    ),
    bert_like("electra", ElectraForMaskedLM, ELECTRA, "electra"),
    bert_like("bert_mlm", BertForMaskedLM, ENCODER, "bert"),
    bert_like("roberta_mlm", RobertaForMaskedLM, ROBERTA, "roberta", position_offset=2),
    bert_like(
        "modernbert", ModernBertForMaskedLM, MODERNBERT, "model", stack="model.layers", final_norm="model.final_norm",
        table="model.embeddings.tok_embeddings", targets=["Wqkv", "Wi", "mlp.Wo"], mixed=["Wqkv", "Wi"],
        old=old_modernbert,
    ),
    bert_like(
        "deberta_v2", DebertaV2ForMaskedLM, DEBERTA, "deberta", relative=True, old=old_deberta,
        targets=["query_proj", "key_proj", "value_proj", "intermediate.dense", "output.dense"],
        mixed=["query_proj", "key_proj", "value_proj", "intermediate.dense"],
    ),
    bert_like(
        "deberta_v2_own", DebertaV2ForMaskedLM, DEBERTA_OWN, "deberta", relative=True, old=old_deberta,
        targets=["query_proj", "key_proj", "value_proj", "intermediate.dense", "output.dense"],
        mixed=["query_proj", "key_proj", "value_proj", "intermediate.dense"],
    ),
    llama_like("olmo2", Olmo2ForCausalLM, OLMO2),
    llama_like("stablelm", StableLmForCausalLM, STABLELM, old=old_rope),
    llama_like(
        "starcoder2", Starcoder2ForCausalLM, STARCODER2, targets=[*QKV, "c_fc", "c_proj"], mixed=[*QKV, "c_fc"]
    ),
    t5("t5_encoder", "relu", "wi"),
    t5("t5_gated", "gated-gelu", "wi_1"),
    Case(
        "t5_classification", T5ForTokenClassification, dict(T5, feed_forward_proj="gated-gelu", num_labels=3),
        stack="transformer.encoder.block", table="transformer.shared",
        final_norm="transformer.encoder.final_layer_norm", targets=["q", "k", "v", "wi_1", "wo"],
        mixed=["q", "k", "v", "wi_1"], h0="input", loss="class", left=False,
    ),
    Case(
        "vit", ViTForImageClassification, VIT, stack="vit.layers", table="vit.embeddings", final_norm="vit.layernorm",
        targets=[*QKV, "fc1", "fc2"], mixed=[*QKV, "fc1"], h0="input", loss="class",
    ),
    bert_like(
        "bert_classification", BertForSequenceClassification, dict(ENCODER, num_labels=3), "bert", loss="class",
        left=False,  # the class is read at the first position
    ),
    llama_like("llama_classification", LlamaForSequenceClassification, LLAMA, loss="class"),
]  # fmt: skip
