//! BERT and what shares its layout (MiniLM, the sentence encoders made from them).

use super::common::{Defaults, encoder};
use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Names, SubLayerNorms};

/// The names of BERT, which its relatives share but for the prefix and the head.
pub(super) const NAMES: Names = Names {
    prefix: "bert.",
    prefixes: &["bert.", ""],
    embedding: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    norms: SubLayerNorms::after("attention.output.LayerNorm", "output.LayerNorm"),
    head_bias: "cls.predictions.bias",
    head_dense: "cls.predictions.transform.dense",
    head_norm: "cls.predictions.transform.LayerNorm",
    classes: ClassHead {
        out: "classifier",
        out_bias: "classifier.bias",
        dense: "bert.pooler.dense",
        activation: Some(Activation::Tanh),
        ..ClassHead::NONE
    },
    linears: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "",
        "attention.output.dense",
        "",
        "intermediate.dense",
        "",
        "output.dense",
    ],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    like_bert(config, "bert", NAMES)
}

/// BERT with other names.
pub(super) fn like_bert(config: &Config<'_>, family: &'static str, names: Names) -> Result<Architecture, ConfigError> {
    let mut a = encoder(config, family, names, Defaults::BERT)?;
    a.token_types = config.optional_size("type_vocab_size")?.unwrap_or(2);
    Ok(a)
}

#[cfg(test)]
mod tests {
    use crate::kernels::Activation;
    use crate::model::Role;
    use crate::model::families::parse_config;
    use serde_json::{Value, json};

    fn base() -> Value {
        json!({"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
               "intermediate_size": 1536, "vocab_size": 30522, "architectures": ["BertModel"]})
    }

    #[test]
    fn the_weights_of_minilm_are_counted() {
        let a = parse_config("config.json", &base()).unwrap();
        // sentence-transformers/all-MiniLM-L6-v2 has 22,713,216 numbers, 147,840 of them in its pooler.
        assert_eq!(a.parameter_count(), 22_713_216 - 147_840);
        assert_eq!(a.linear_path(2, Role::Up), "encoder.layer.2.intermediate.dense");
        let mut with_head = base();
        with_head["architectures"] = json!(["BertForMaskedLM"]);
        let a = parse_config("config.json", &with_head).unwrap();
        assert_eq!(a.linear_path(0, Role::Query), "bert.encoder.layer.0.attention.self.query");
        assert_eq!((a.max_positions, a.norm_eps, a.has_final_norm()), (512, 1e-12, false));
        assert_eq!(a.activation, Activation::Gelu);
    }

    #[test]
    fn nonsense_names_its_key() {
        let cases = [
            ("num_attention_heads", json!(7)),
            ("num_hidden_layers", json!(100_000)),
            ("hidden_act", json!("mish")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
            ("layer_norm_eps", json!(0)),
            ("type_vocab_size", json!(0)),
        ];
        for (key, value) in cases {
            let mut config = base();
            config[key] = value;
            let error = parse_config("x/config.json", &config).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x/config.json: {key} ")), "{error}");
        }
    }
}
