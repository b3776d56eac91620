//! LLaMA 1 to 3.2 and what shares its layout (TinyLlama, SmolLM, stories15M).

use super::common::{Defaults, decoder, llama_biases, rope};
use super::config::{Config, ConfigError};
use crate::kernels::Pairing;
use crate::model::architecture::{Architecture, ClassHead, Names, Positions, SubLayerNorms};

/// LLaMA's names, which most decoders after it share.
pub(super) const NAMES: Names = Names {
    prefix: "model.",
    prefixes: &["model.", ""],
    embedding: "embed_tokens",
    layers: "layers",
    norms: SubLayerNorms::before("input_layernorm", "post_attention_layernorm"),
    final_norm: "norm",
    head: "lm_head",
    classes: ClassHead::SCORE,
    linears: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "",
        "mlp.down_proj",
    ],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    like_llama(config, "llama", NAMES, Defaults::LLAMA)
}

/// A gated decoder with rotary embedding; the family corrects what it does otherwise.
pub(super) fn like_llama(
    config: &Config<'_>,
    family: &'static str,
    names: Names,
    defaults: Defaults,
) -> Result<Architecture, ConfigError> {
    let mut a = decoder(config, family, names, defaults)?;
    a.positions = Positions::Rotary(rope(config, a.head_dim, Pairing::Halves, 10_000.0)?);
    a.biased = llama_biases(config)?;
    Ok(a)
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
            ("hidden_act", json!("mish")),
            ("model_type", json!("mamba")),
        ];
        for (key, value) in cases {
            let error = parse_config("x/config.json", &with(key, value)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x/config.json: {key} ")), "{error}");
        }
        let error = parse_config("c", &with("rope_scaling", json!({"rope_type": "yarn"}))).unwrap_err();
        assert_eq!(error.to_string(), "c: rope_type is \"yarn\"; supported: default, linear, llama3");
    }

    #[test]
    fn rope_of_llama_3_1_stretches_long_wavelengths_only() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192});
        let mut config = with("rope_scaling", scaling);
        config["rope_theta"] = json!(500_000.0);
        config["head_dim"] = json!(128);
        let rope = parse_config("c", &config).unwrap().rope().unwrap().clone();
        let frequencies = rope.inverse_frequencies();
        // transformers' LlamaRotaryEmbedding for Llama-3.1: the first is 1, the last 500000^(-126/128) / 8
        assert_eq!(frequencies[0], 1.0);
        let last = 500_000f64.powf(-126.0 / 128.0) / 8.0;
        assert!((frequencies[63] / last - 1.0).abs() < 1e-12);
    }
}
