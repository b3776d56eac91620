//! GPT-NeoX and Pythia: attention and feed-forward beside each other, a part of each head rotated.

use super::common::{Defaults, decoder, rope};
use super::config::{Config, ConfigError};
use crate::kernels::Pairing;
use crate::model::architecture::{Architecture, ClassHead, FusedOrder, Names, Positions, Role, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    prefixes: &["gpt_neox.", ""],
    embedding: "embed_in",
    layers: "layers",
    norms: SubLayerNorms::before("input_layernorm", "post_attention_layernorm"),
    final_norm: "final_layer_norm",
    head: "embed_out",
    classes: ClassHead::SCORE,
    linears: [
        "",
        "",
        "",
        "attention.query_key_value",
        "attention.dense",
        "",
        "mlp.dense_h_to_4h",
        "",
        "mlp.dense_4h_to_h",
    ],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let defaults = Defaults { activation: "gelu", tied: false, positions: 2048, ..Defaults::GPT };
    let mut a = decoder(config, "gpt_neox", NAMES, defaults)?;
    let config = &config.with_default("rotary_pct", 0.25);
    a.positions = Positions::Rotary(rope(config, a.head_dim, Pairing::Halves, 10_000.0)?);
    a.fused_order = FusedOrder::Groups;
    a.biased = vec![Role::Up, Role::Down];
    if config.flag("attention_bias")?.unwrap_or(true) {
        a.biased.extend([Role::QueryKeyValue, Role::AttentionOutput]);
    }
    a.parallel = config.flag("use_parallel_residual")?.unwrap_or(true);
    Ok(a)
}
