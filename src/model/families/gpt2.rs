//! GPT-2: learned positions, fused queries, keys and values, matrices stored as `[in, out]`.

use super::common::{Defaults, decoder, refuse_flag};
use super::config::{Config, ConfigError};
use crate::model::architecture::{Architecture, ClassHead, H0Kind, Names, Role, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "transformer.",
    prefixes: &["transformer.", ""],
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    norms: SubLayerNorms::before("ln_1", "ln_2"),
    final_norm: "ln_f",
    head: "lm_head",
    classes: ClassHead::SCORE,
    linears: ["", "", "", "attn.c_attn", "attn.c_proj", "", "mlp.c_fc", "", "mlp.c_proj"],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let key = "scale_attn_by_inverse_layer_idx";
    refuse_flag(config, key, true, "is true, which is not supported")?;
    refuse_flag(config, "add_cross_attention", true, "is true; a gpt2 is read as a decoder only")?;
    let mut a = decoder(config, "gpt2", NAMES, Defaults::GPT)?;
    if config.flag("scale_attn_weights")? == Some(false) {
        a.attention_scale = 1.0;
    }
    a.biased = vec![Role::QueryKeyValue, Role::AttentionOutput, Role::Up, Role::Down];
    (a.transposed, a.h0_kind) = (true, H0Kind::Input);
    Ok(a)
}
