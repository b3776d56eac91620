//! DeBERTa-v2 and v3: an encoder without positions of its own, whose attention meets distances.

use super::bert;
use super::common::{Defaults, encoder};
use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Disentangled, Names, Positions};

const NAMES: Names = Names {
    prefix: "deberta.",
    prefixes: &["deberta.", ""],
    positions: "encoder.rel_embeddings",
    positions_norm: "encoder.LayerNorm",
    classes: ClassHead { dense: "pooler.dense", activation: Some(Activation::Gelu), ..bert::NAMES.classes },
    position_projections: ["attention.self.pos_query_proj", "attention.self.pos_key_proj"],
    linears: [
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        "",
        "attention.output.dense",
        "",
        "intermediate.dense",
        "",
        "output.dense",
    ],
    ..bert::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let head_dim = config.size_above_zero("attention_head_size")?;
    let with_head_dim;
    let config = match head_dim {
        Some(width) => {
            with_head_dim = config.with_default("head_dim", width);
            &with_head_dim
        }
        None => config,
    };
    let mut a = encoder(config, "deberta-v2", NAMES, Defaults { eps: 1e-7, ..Defaults::BERT })?;
    if a.heads * a.head_dim != a.hidden_size {
        let problem = format!("is {}, and {} heads of it are not hidden_size {}", a.head_dim, a.heads, a.hidden_size);
        return Err(config.invalid("attention_head_size", &problem));
    }
    a.token_types = config.size_above_zero("type_vocab_size")?.unwrap_or(0);
    if let Some(width) = config.optional_size("embedding_size")?.filter(|&width| width != a.hidden_size) {
        let problem = format!("is {width}; supported: hidden_size, {}", a.hidden_size);
        return Err(config.invalid("embedding_size", &problem));
    }
    if let Some(width) = config.size_above_zero("conv_kernel_size")? {
        let problem = format!("is {width}; the convolution of DeBERTa-v2 xlarge is not supported, DeBERTa-v3 has none");
        return Err(config.invalid("conv_kernel_size", &problem));
    }
    if config.flag("position_biased_input")?.unwrap_or(true) {
        return Err(config.invalid("position_biased_input", "is not false; positions in the input are not supported"));
    }
    if !config.flag("relative_attention")?.unwrap_or(false) {
        return Err(config.invalid("relative_attention", "is not true; attention without distances is not supported"));
    }
    let distances = distances(config, a.max_positions)?;
    a.attention_scale = 1.0 / ((a.head_dim * distances.terms()) as f64).sqrt();
    a.positions = Positions::Disentangled(distances);
    Ok(a)
}

fn distances(config: &Config<'_>, max_positions: usize) -> Result<Disentangled, ConfigError> {
    let named = |key: &str, known: [&str; 2]| -> Result<[bool; 2], ConfigError> {
        let words = config.words(key)?;
        match words.iter().find(|word| !known.contains(&word.as_str())) {
            None => Ok(known.map(|known| words.iter().any(|word| word == known))),
            Some(word) => Err(config.invalid(key, &format!("holds \"{word}\"; supported: {}", known.join(", ")))),
        }
    };
    let [content_to_position, position_to_content] = named("pos_att_type", ["c2p", "p2c"])?;
    let [normed, _] = named("norm_rel_ebd", ["layer_norm", "none"])?;
    if !content_to_position && !position_to_content {
        return Err(config.invalid("pos_att_type", "names no kind of attention to distances; supported: c2p, p2c"));
    }
    let max_distance = config.size_above_zero("max_relative_positions")?.unwrap_or(max_positions);
    let buckets = config.size_above_zero("position_buckets")?;
    if let Some(buckets) = buckets.filter(|buckets| *buckets < 2 || buckets / 2 + 1 >= max_distance) {
        let problem = format!("is {buckets}; it must be at least 2 and its half below max_relative_positions - 1");
        return Err(config.invalid("position_buckets", &problem));
    }
    let shared = config.flag("share_att_key")?.unwrap_or(false);
    Ok(Disentangled { buckets, max_distance, content_to_position, position_to_content, shared, normed })
}

#[cfg(test)]
mod tests {
    use crate::model::families::parse_config;
    use serde_json::{Value, json};

    /// microsoft/deberta-v3-small.
    fn small() -> Value {
        json!({"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
               "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-7, "max_position_embeddings": 512,
               "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "num_attention_heads": 12,
               "num_hidden_layers": 6, "pos_att_type": "p2c|c2p", "position_biased_input": false,
               "position_buckets": 256, "relative_attention": true, "share_att_key": true, "type_vocab_size": 0,
               "vocab_size": 128_100})
    }

    #[test]
    fn the_weights_of_the_small_one_are_counted() {
        let a = parse_config("c", &small()).unwrap();
        let mut bare = a.clone();
        bare.head = crate::model::Head::Absent;
        // 98,380,800 for the table of tokens, 7,087,872 a block, two norms and 512 distances.
        assert_eq!(bare.parameter_count(), 98_380_800 + 6 * 7_087_872 + 2 * 1536 + 512 * 768);
        assert_eq!(a.attention_scale, 1.0 / 192f64.sqrt());
        assert_eq!(a.tensors()["deberta.encoder.rel_embeddings.weight"], [512, 768]);
    }

    #[test]
    fn own_projections_token_types_and_a_row_a_distance() {
        let mut config = small();
        for (key, value) in [
            ("share_att_key", json!(false)),
            ("type_vocab_size", json!(2)),
            ("position_buckets", json!(-1)),
            ("max_relative_positions", json!(100)),
            ("pos_att_type", json!(["c2p"])),
            ("norm_rel_ebd", json!("none")),
            ("attention_head_size", json!(64)),
        ] {
            config[key] = value;
        }
        let tensors = parse_config("c", &config).unwrap().tensors();
        assert_eq!(tensors["deberta.encoder.rel_embeddings.weight"], [200, 768]);
        assert_eq!(tensors["deberta.embeddings.token_type_embeddings.weight"], [2, 768]);
        assert!(tensors.contains_key("deberta.encoder.layer.5.attention.self.pos_key_proj.bias"));
        assert!(!tensors.keys().any(|name| name.contains("pos_query_proj") || name.contains("encoder.LayerNorm")));
    }

    #[test]
    fn what_is_not_supported_names_its_key() {
        let cases = [
            ("conv_kernel_size", json!(3)),
            ("embedding_size", json!(128)),
            ("position_biased_input", json!(true)),
            ("relative_attention", json!(false)),
            ("pos_att_type", json!("c2p|p2p")),
            ("pos_att_type", json!([])),
            ("norm_rel_ebd", json!("batch_norm")),
            ("position_buckets", json!(1)),
            ("position_buckets", json!(1024)),
            ("attention_head_size", json!(32)),
            ("type_vocab_size", json!("two")),
        ];
        for (key, value) in cases {
            let mut config = small();
            config[key] = value;
            let error = parse_config("x/config.json", &config).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x/config.json: {key} ")), "{error}");
        }
    }
}
