//! StableLM 2 and 3B: LLaMA with layer norms, of which a part of each head is rotated.

use super::common::{Defaults, refuse_flag};
use super::config::{Config, ConfigError};
use super::llama::{NAMES, like_llama};
use crate::model::architecture::{Architecture, NormKind, Role, SubLayerNorms};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    refuse_flag(config, "qk_layernorm", true, "is true, which is not supported")?;
    let defaults = Defaults { norm: NormKind::Layer, eps: 1e-5, positions: 4096, ..Defaults::LLAMA };
    let config = &config.with_default("partial_rotary_factor", 0.25);
    let mut a = like_llama(config, "stablelm", NAMES, defaults)?;
    a.biased = match config.flag("use_qkv_bias")?.unwrap_or(false) {
        true => vec![Role::Query, Role::Key, Role::Value],
        false => Vec::new(),
    };
    a.parallel = config.flag("use_parallel_residual")?.unwrap_or(false);
    if a.parallel {
        a.names.norms = SubLayerNorms::before("input_layernorm", "input_layernorm");
    }
    Ok(a)
}
