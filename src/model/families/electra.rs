//! ELECTRA: BERT with narrow embeddings that are projected; the generator has a head for masked tokens.

use super::bert::{self, like_bert};
use super::config::{Config, ConfigError};
use super::roberta;
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Names};

const NAMES: Names = Names {
    prefix: "electra.",
    prefixes: &["electra.", ""],
    embedding_projection: "embeddings_project",
    head_bias: "generator_lm_head.bias",
    head_dense: "generator_predictions.dense",
    head_norm: "generator_predictions.LayerNorm",
    classes: ClassHead { activation: Some(Activation::Gelu), ..roberta::CLASSES },
    ..bert::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = like_bert(config, "electra", NAMES)?;
    a.embedding_size = config.optional_size("embedding_size")?.unwrap_or(128);
    a.head_activation = Some(Activation::Gelu);
    Ok(a)
}
