//! RoBERTa: BERT whose positions are counted from behind the padding token's id.

use super::bert::{self, like_bert};
use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Names, Positions};

/// RoBERTa's head, which ELECTRA shares but for the activation.
pub(super) const CLASSES: ClassHead = ClassHead {
    out: "classifier.out_proj",
    out_bias: "classifier.out_proj.bias",
    dense: "classifier.dense",
    activation: Some(Activation::Tanh),
    ..ClassHead::NONE
};

const NAMES: Names = Names {
    prefix: "roberta.",
    prefixes: &["roberta.", ""],
    head_bias: "lm_head.bias",
    head_dense: "lm_head.dense",
    head_norm: "lm_head.layer_norm",
    classes: CLASSES,
    ..bert::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut architecture = like_bert(config, "roberta", NAMES)?;
    architecture.head_activation = Some(Activation::Gelu);
    let padding = config.optional_id("pad_token_id")?.unwrap_or(1);
    let (first, rows) = (padding as usize + 1, architecture.max_positions);
    architecture.max_positions = rows.checked_sub(first).filter(|&n| n > 0).ok_or_else(|| {
        let problem = format!("is {rows}, which leaves no position behind pad_token_id {padding}");
        config.invalid("max_position_embeddings", &problem)
    })?;
    architecture.positions = Positions::Learned { first, padding: Some(padding) };
    Ok(architecture)
}

#[cfg(test)]
mod tests {
    use crate::model::families::parse_config;
    use serde_json::json;

    #[test]
    fn positions_are_counted_from_behind_the_padding() {
        let mut config = json!({"model_type": "roberta", "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 514});
        let a = parse_config("c", &config).unwrap();
        assert_eq!(a.max_positions, 512);
        assert_eq!(a.tensors()["roberta.embeddings.position_embeddings.weight"], [514, 8]);
        config["max_position_embeddings"] = json!(2);
        let error = parse_config("c", &config).unwrap_err().to_string();
        assert_eq!(error, "c: max_position_embeddings is 2, which leaves no position behind pad_token_id 1");
    }
}
