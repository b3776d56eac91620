//! BLOOM: ALiBi, a norm behind the embeddings, fused queries, keys and values.

use super::common::{Defaults, decoder, refuse_flag};
use super::config::{Config, ConfigError};
use crate::model::architecture::{Architecture, ClassHead, FusedOrder, Names, Positions, Role, SubLayerNorms};

pub(super) const NAMES: Names = Names {
    prefix: "transformer.",
    prefixes: &["transformer.", ""],
    embedding: "word_embeddings",
    embedding_norm: "word_embeddings_layernorm",
    layers: "h",
    norms: SubLayerNorms::before("input_layernorm", "post_attention_layernorm"),
    final_norm: "ln_f",
    head: "lm_head",
    classes: ClassHead::SCORE,
    linears: [
        "",
        "",
        "",
        "self_attention.query_key_value",
        "self_attention.dense",
        "",
        "mlp.dense_h_to_4h",
        "",
        "mlp.dense_4h_to_h",
    ],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let key = "apply_residual_connection_post_layernorm";
    refuse_flag(config, key, true, "is true, which is not supported")?;
    let mut a = decoder(config, "bloom", NAMES, Defaults { positions: 2048, ..Defaults::GPT })?;
    a.positions = Positions::Alibi { factor: 1.0, rounded: false };
    a.fused_order = FusedOrder::Groups;
    a.biased = vec![Role::QueryKeyValue, Role::AttentionOutput, Role::Up, Role::Down];
    Ok(a)
}
