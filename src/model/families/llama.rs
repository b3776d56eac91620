//! LLaMA 1 to 3.2 and what shares its layout (TinyLlama, SmolLM, stories15M).

use super::config::{Config, ConfigError};
use crate::model::architecture::{
    Architecture, FeedForward, H0Kind, Head, Names, NormKind, NormPlace, Positions, Rope, RopeScaling,
};
use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};

const NAMES: Names = Names {
    prefix: "",
    prefixes: &[""],
    embedding: "model.embed_tokens",
    positions: "",
    token_types: "",
    embedding_norm: "",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    feed_forward_norm: "post_attention_layernorm",
    final_norm: "model.norm",
    head: "lm_head",
    linears: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let hidden_size = config.size("hidden_size")?;
    let layers = config.layers("num_hidden_layers")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(
            config.invalid("num_key_value_heads", &format!("is {kv_heads}, which does not divide the {heads} heads"))
        );
    }
    let head_dim = match config.optional_size("head_dim")? {
        Some(width) => width,
        None if hidden_size % heads == 0 => hidden_size / heads,
        None => {
            let problem = format!("is {heads}, which does not divide hidden_size {hidden_size}; set head_dim");
            return Err(config.invalid("num_attention_heads", &problem));
        }
    };
    if head_dim % 2 != 0 {
        return Err(config.invalid("head_dim", &format!("is {head_dim}; rotary embedding needs an even width")));
    }
    if let Some(activation) = config.text("hidden_act")?
        && activation != "silu"
    {
        return Err(config.invalid("hidden_act", &format!("is \"{activation}\"; only \"silu\" is supported for llama")));
    }
    Ok(Architecture {
        family: "llama",
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        causal: true,
        norm: NormKind::Rms,
        norm_place: NormPlace::Before,
        norm_eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6),
        max_positions: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
        positions: Positions::Rotary(rope(config)?),
        token_types: 0,
        embedding_norm: false,
        feed_forward: FeedForward::Gated,
        head: if config.flag("tie_word_embeddings")?.unwrap_or(false) { Head::Tied } else { Head::Own },
        attention_bias: config.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
        h0_kind: H0Kind::Token,
        names: NAMES,
    })
}

/// Reads `rope_theta` and `rope_scaling`, or transformers 5's `rope_parameters` that holds both.
fn rope(config: &Config<'_>) -> Result<Rope, ConfigError> {
    let section = config.section("rope_parameters").or_else(|| config.section("rope_scaling"));
    let inner_theta = match &section {
        Some(section) => section.positive("rope_theta")?,
        None => None,
    };
    let theta = inner_theta.or(config.positive("rope_theta")?).unwrap_or(10_000.0);
    let Some(section) = section else { return Ok(Rope { theta, scaling: None }) };
    let kind = match section.text("rope_type")? {
        Some(kind) => kind,
        None => section.text("type")?.unwrap_or_else(|| "default".to_owned()),
    };
    let scaling = match kind.as_str() {
        "default" => None,
        "llama3" => {
            let read = Llama3RopeConfig {
                factor: section.required_positive("factor")? as f32,
                low_freq_factor: section.required_positive("low_freq_factor")? as f32,
                high_freq_factor: section.required_positive("high_freq_factor")? as f32,
                original_max_position_embeddings: section.size("original_max_position_embeddings")?,
                rope_type: Llama3RopeType::Llama3,
            };
            if read.high_freq_factor <= read.low_freq_factor {
                return Err(section.invalid("high_freq_factor", "must be larger than low_freq_factor"));
            }
            Some(RopeScaling {
                factor: f64::from(read.factor),
                low_freq_factor: f64::from(read.low_freq_factor),
                high_freq_factor: f64::from(read.high_freq_factor),
                original_max_positions: read.original_max_position_embeddings as f64,
            })
        }
        other => {
            let problem = format!("is \"{other}\"; supported: default, llama3");
            return Err(section.invalid("rope_type", &problem));
        }
    };
    Ok(Rope { theta, scaling })
}

#[cfg(test)]
mod tests {
    use crate::model::architecture::Head;
    use crate::model::families::parse_config;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
               "num_key_value_heads": 2, "intermediate_size": 80, "vocab_size": 97})
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = base();
        config[key] = value;
        config
    }

    #[test]
    fn defaults_are_transformers_own() {
        let a = parse_config("config.json", &base()).unwrap();
        assert_eq!((a.head_dim, a.kv_heads, a.max_positions), (8, 2, 2048));
        assert_eq!((a.norm_eps, a.rope().unwrap().theta, a.head), (1e-6, 10_000.0, Head::Own));
        let linears = 48 * 48 + 2 * (48 * 16) + 48 * 48 + 3 * 48 * 80;
        assert_eq!(a.parameter_count(), 2 * 97 * 48 + 3 * (linears + 96) + 48);
    }

    #[test]
    fn nonsense_names_its_key() {
        let cases = [
            ("num_attention_heads", json!(0)),
            ("num_hidden_layers", json!(1_000_000_000_u64)),
            ("hidden_size", json!(-48)),
            ("vocab_size", json!("many")),
            ("num_key_value_heads", json!(4)),
            ("head_dim", json!(7)),
            ("rms_norm_eps", json!(-1.0)),
            ("hidden_act", json!("gelu")),
            ("model_type", json!("mamba")),
        ];
        for (key, value) in cases {
            let error = parse_config("x/config.json", &with(key, value)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x/config.json: {key} ")), "{error}");
        }
        let error = parse_config("c", &with("rope_scaling", json!({"rope_type": "yarn"}))).unwrap_err();
        assert_eq!(error.to_string(), "c: rope_type is \"yarn\"; supported: default, llama3");
    }

    #[test]
    fn rope_of_llama_3_1_stretches_long_wavelengths_only() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192});
        let mut config = with("rope_scaling", scaling);
        config["rope_theta"] = json!(500_000.0);
        config["head_dim"] = json!(128);
        let rope = parse_config("c", &config).unwrap().rope().unwrap().clone();
        let frequencies = rope.inverse_frequencies(128);
        // transformers' LlamaRotaryEmbedding for Llama-3.1: the first is 1, the last 500000^(-126/128) / 8
        assert_eq!(frequencies[0], 1.0);
        let last = 500_000f64.powf(-126.0 / 128.0) / 8.0;
        assert!((frequencies[63] / last - 1.0).abs() < 1e-12);
    }
}
