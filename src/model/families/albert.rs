//! ALBERT: BERT whose blocks share their weights, with narrow embeddings that are projected.

use super::bert::{self, like_bert};
use super::config::{Config, ConfigError};
use crate::model::architecture::{Architecture, ClassHead, Names, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "albert.",
    prefixes: &["albert.", ""],
    embedding_projection: "encoder.embedding_hidden_mapping_in",
    layers: "encoder.albert_layer_groups",
    norms: SubLayerNorms::after("albert_layers.0.attention.LayerNorm", "albert_layers.0.full_layer_layer_norm"),
    head_bias: "predictions.bias",
    head_dense: "predictions.dense",
    head_norm: "predictions.LayerNorm",
    classes: ClassHead { dense: "albert.pooler", ..bert::NAMES.classes },
    linears: [
        "albert_layers.0.attention.query",
        "albert_layers.0.attention.key",
        "albert_layers.0.attention.value",
        "",
        "albert_layers.0.attention.dense",
        "",
        "albert_layers.0.ffn",
        "",
        "albert_layers.0.ffn_output",
    ],
    ..bert::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let config = &config.with_default("hidden_act", "gelu_new");
    let mut a = like_bert(config, "albert", NAMES)?;
    if let Some(inner @ 2..) = config.optional_size("inner_group_num")? {
        return Err(config.invalid("inner_group_num", &format!("is {inner}; supported: 1")));
    }
    a.embedding_size = config.optional_size("embedding_size")?.unwrap_or(128);
    let groups = config.optional_size("num_hidden_groups")?.unwrap_or(1);
    if a.layers % groups != 0 {
        let problem = format!("is {groups}, which does not divide the {} layers", a.layers);
        return Err(config.invalid("num_hidden_groups", &problem));
    }
    a.names.shared = a.layers / groups;
    Ok(a)
}
