//! Phi-3 and 3.5 mini: LLaMA with fused linears.

use super::common::{Defaults, reaches, window};
use super::config::{Config, ConfigError};
use super::llama::{self, like_llama};
use crate::model::architecture::{Architecture, Names};

const NAMES: Names = Names {
    linears: ["", "", "", "self_attn.qkv_proj", "self_attn.o_proj", "", "", "mlp.gate_up_proj", "mlp.down_proj"],
    ..llama::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = like_llama(config, "phi3", NAMES, Defaults { eps: 1e-5, positions: 4096, ..Defaults::LLAMA })?;
    a.biased = Vec::new();
    a.reaches = reaches(config, a.layers, window(config, None)?, |_| true)?;
    Ok(a)
}
