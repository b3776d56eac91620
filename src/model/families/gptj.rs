//! GPT-J: attention and feed-forward beside each other behind one norm, neighbours rotated, a head with a bias.

use super::common::{Defaults, decoder, rope};
use super::config::{Config, ConfigError};
use crate::kernels::Pairing;
use crate::model::architecture::{Architecture, ClassHead, Names, Positions, Role, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "transformer.",
    prefixes: &["transformer.", ""],
    embedding: "wte",
    layers: "h",
    norms: SubLayerNorms::before("ln_1", "ln_1"),
    final_norm: "ln_f",
    head: "lm_head",
    head_bias: "lm_head.bias",
    classes: ClassHead::SCORE,
    linears: ["attn.q_proj", "attn.k_proj", "attn.v_proj", "", "attn.out_proj", "", "mlp.fc_in", "", "mlp.fc_out"],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let config = &config.with_default("rotary_dim", 64);
    let mut a = decoder(config, "gptj", NAMES, Defaults { tied: false, positions: 2048, ..Defaults::GPT })?;
    a.positions = Positions::Rotary(rope(config, a.head_dim, Pairing::Neighbours, 10_000.0)?);
    a.biased = vec![Role::Up, Role::Down];
    a.parallel = true;
    Ok(a)
}
