//! GGUF files of every family that is read: the golden models under llama.cpp's names, with what its converter does to
//! their values, must have transformers' states and logits.

use super::each_family::forward_of;
use super::*;
use crate::model::gguf::Gguf;
use crate::model::gguf_header::tests::{File, Item};

/// Names by `gguf-py/gguf/tensor_mapping.py`; where a name depends on the family, the family's own comes first.
const NAMES: &[(&str, &str)] = &[
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("input_layernorm.", "attn_norm."),
    ("self_attn.q_proj.", "attn_q."),
    ("self_attn.k_proj.", "attn_k."),
    ("self_attn.v_proj.", "attn_v."),
    ("self_attn.qkv_proj.", "attn_qkv."),
    ("self_attn.o_proj.", "attn_output."),
    ("self_attn.q_norm.", "attn_q_norm."),
    ("self_attn.k_norm.", "attn_k_norm."),
    ("pre_feedforward_layernorm.", "ffn_norm."),
    ("post_feedforward_layernorm.", "post_ffw_norm."),
    ("mlp.gate_proj.", "ffn_gate."),
    ("mlp.up_proj.", "ffn_up."),
    ("mlp.gate_up_proj.", "ffn_up."),
    ("mlp.down_proj.", "ffn_down."),
];

/// llama.cpp's name of a tensor.
fn stored(family: &str, name: &str) -> String {
    let sandwich = ["gemma2", "gemma3"].contains(&family);
    let after = if sandwich { "post_attention_norm." } else { "ffn_norm." };
    let own = [("post_attention_layernorm.", after)];
    let (front, part) = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (format!("blk.{layer}."), part),
        None => (String::new(), name),
    };
    let renamed = |(theirs, ours): &(&str, &str)| part.strip_prefix(theirs).map(|end| format!("{front}{ours}{end}"));
    own.iter().chain(NAMES).find_map(renamed).unwrap()
}

/// `LlamaModel.permute`: each head's rows from (half, pair) order to (pair, half).
fn permuted(rows: &Tensor, heads: u64) -> Tensor {
    let (heads, dims) = (heads as usize, rows.dims().to_vec());
    let split = rows.reshape((heads, 2, dims[0] / heads / 2, rows.elem_count() / dims[0])).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape(dims).unwrap()
}

/// A golden folder as the GGUF file that llama.cpp's converter would make of it.
fn converted(family: &str, folder: &Path) -> File {
    let config = json(&folder.join("config.json"));
    let whole = |key: &str| config[key].as_u64();
    let (heads, kv_heads) = (whole("num_attention_heads").unwrap(), whole("num_key_value_heads").unwrap());
    let head_dim = whole("head_dim").unwrap_or(whole("hidden_size").unwrap() / heads);
    let theta = config["rope_theta"].as_f64().or(config["rope_parameters"]["rope_theta"].as_f64()).unwrap();
    let share = config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
    let mut made = File::default().key("general.architecture", Item::Text(family));
    let mut put = |name: &str, item: Item<'_>| {
        made = std::mem::take(&mut made).key(&format!("{family}.{name}"), item);
    };
    for (name, key) in [
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("context_length", "max_position_embeddings"),
    ] {
        put(name, Item::U32(whole(key).unwrap() as u32));
    }
    put("attention.layer_norm_rms_epsilon", Item::F32(config["rms_norm_eps"].as_f64().unwrap() as f32));
    put("rope.freq_base", Item::F32(theta as f32));
    if family == "llama" || family == "phi3" {
        put("rope.dimension_count", Item::U32((share * head_dim as f64) as u32));
    }
    if whole("head_dim").is_some() {
        put("attention.key_length", Item::U32(head_dim as u32));
        put("attention.value_length", Item::U32(head_dim as u32));
    }
    // Qwen's windows have no key, Phi-3 writes 0 for none.
    let window = whole("sliding_window").filter(|_| family != "qwen2");
    if let Some(window) = window.or((family == "phi3").then_some(0)) {
        put("attention.sliding_window", Item::U32(window as u32));
    }
    if let Some(period) = whole("sliding_window_pattern") {
        put("attention.sliding_window_pattern", Item::U32(period as u32));
    }
    if let Some(base) = config["rope_local_base_freq"].as_f64() {
        put("rope.freq_base_swa", Item::F32(base as f32));
    }
    if let Some(factor) = config["rope_scaling"]["factor"].as_f64() {
        put("rope.scaling.type", Item::Text("linear"));
        put("rope.scaling.factor", Item::F32(factor as f32));
    }
    for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = config[name].as_f64() {
            put(name, Item::F32(cap as f32));
        }
    }
    // The scale of attention has no key, and that of the golden models is none of Gemma's: the queries bear the difference.
    let scale = config["query_pre_attn_scalar"].as_f64().map(|scalar| (head_dim as f64 / scalar).sqrt());
    for (name, tensor) in tensors(&folder.join("model.safetensors")) {
        let plain = !(family == "llama" && (name.contains("q_proj") || name.contains("k_proj")));
        let heads = if name.contains("q_proj") { heads } else { kv_heads };
        let mut tensor = if plain { tensor } else { permuted(&tensor, heads) };
        if family.starts_with("gemma") && name.ends_with("norm.weight") {
            tensor = tensor.affine(1.0, 1.0).unwrap();
        }
        let scaled = if family == "gemma3" { "q_norm.weight" } else { "q_proj.weight" };
        if let Some(scale) = scale.filter(|_| name.ends_with(scaled)) {
            tensor = tensor.affine(scale, 0.0).unwrap();
        }
        let shape: Vec<u64> = tensor.dims().iter().rev().map(|&n| n as u64).collect();
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        made = made.tensor(&stored(family, &name), &shape, &values);
    }
    made
}

#[test]
fn gguf_files_of_every_family_have_the_states_of_transformers() {
    for (family, kind, case) in [
        ("llama", "mistral", "mistral"),
        ("qwen2", "qwen2", "qwen2"),
        ("qwen3", "qwen3", "qwen3"),
        ("gemma", "gemma", "gemma"),
        ("gemma2", "gemma2", "gemma2"),
        ("gemma3", "gemma3_text", "gemma3_text"),
        ("phi3", "phi3", "phi3"),
        ("phi3", "phi3", "phi3_partial"),
    ] {
        let folder = golden("families").join(case);
        let dir = tempfile::tempdir().unwrap();
        let gguf = Gguf::open(&converted(family, &folder).write(dir.path())).unwrap();
        let config = gguf.config_json().unwrap();
        assert_eq!(config["model_type"], kind);
        let architecture = families::parse_config(case, &config).unwrap();
        assert!(architecture.unread(&gguf).is_empty(), "{case}: {:?}", architecture.unread(&gguf));
        // All but the scale is that of Hugging Face's own configuration, and the names alone differ.
        let mut expected = families::read_config(&folder).unwrap();
        expected.attention_scale = architecture.attention_scale;
        assert_eq!(architecture, expected, "{case}");
        let model = Transformer::load(case, architecture, &gguf, DType::F32, &Device::Cpu).unwrap();
        let (states, logits) = forward_of(&model, case, &tensors(&folder.join("golden.safetensors")));
        assert!(states < 1e-5 && logits.is_some_and(|d| d < 1e-5), "{case}: {states:.1e} {logits:?}");
    }
}
