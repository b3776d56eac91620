//! BERT and what shares its layout (MiniLM, the sentence encoders made from them).

use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, FeedForward, H0Kind, Head, Names, NormKind, NormPlace, Positions};

/// The names of BERT, which RoBERTa shares but for the prefix.
pub(super) const NAMES: Names = Names {
    prefix: "bert.",
    prefixes: &["bert.", ""],
    embedding: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    attention_norm: "attention.output.LayerNorm",
    feed_forward_norm: "output.LayerNorm",
    final_norm: "",
    head: "",
    linears: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "",
        "intermediate.dense",
        "output.dense",
    ],
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    encoder(config, "bert", NAMES)
}

/// A BERT-like encoder; the family corrects what it does otherwise.
pub(super) fn encoder(config: &Config<'_>, family: &'static str, names: Names) -> Result<Architecture, ConfigError> {
    for key in ["is_decoder", "add_cross_attention"] {
        if config.flag(key)? == Some(true) {
            return Err(config.invalid(key, &format!("is true; a {family} is read as an encoder only")));
        }
    }
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(config.invalid("position_embedding_type", &format!("is \"{kind}\"; supported: absolute")));
    }
    let hidden_size = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    if hidden_size % heads != 0 {
        let problem = format!("is {heads}, which does not divide hidden_size {hidden_size}");
        return Err(config.invalid("num_attention_heads", &problem));
    }
    // A model that was saved without any head has no prefix; the weights have the last word.
    let bare = config.first_text("architectures").is_some_and(|name| name.ends_with("Model"));
    Ok(Architecture {
        family,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        layers: config.layers("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: hidden_size / heads,
        causal: false,
        norm: NormKind::Layer,
        norm_place: NormPlace::After,
        norm_eps: config.positive("layer_norm_eps")?.unwrap_or(1e-12),
        max_positions: config.optional_size("max_position_embeddings")?.unwrap_or(512),
        positions: Positions::Learned { first: 0, padding: None },
        token_types: config.optional_size("type_vocab_size")?.unwrap_or(2),
        embedding_norm: true,
        feed_forward: FeedForward::Plain(activation(config, family)?),
        head: Head::Absent,
        attention_bias: true,
        mlp_bias: true,
        h0_kind: H0Kind::Input,
        names: Names { prefix: if bare { "" } else { names.prefix }, ..names },
    })
}

fn activation(config: &Config<'_>, family: &str) -> Result<Activation, ConfigError> {
    let name = config.text("hidden_act")?.unwrap_or_else(|| "gelu".to_owned());
    match name.as_str() {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => {
            let problem = format!("is \"{other}\"; supported for {family}: gelu, gelu_new, gelu_pytorch_tanh, relu");
            Err(config.invalid("hidden_act", &problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(a.feed_forward, FeedForward::Plain(Activation::Gelu));
    }

    #[test]
    fn nonsense_names_its_key() {
        let cases = [
            ("num_attention_heads", json!(7)),
            ("num_hidden_layers", json!(100_000)),
            ("hidden_act", json!("swish")),
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
