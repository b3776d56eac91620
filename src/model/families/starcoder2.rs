//! StarCoder 2: LLaMA's attention with biases and a window, GPT-2's feed-forward, layer norms.

use super::common::{Defaults, reaches, window};
use super::config::{Config, ConfigError};
use super::llama::{self, like_llama};
use crate::model::architecture::{Architecture, Names, NormKind};

const NAMES: Names = Names {
    linears: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "",
        "self_attn.o_proj",
        "",
        "mlp.c_fc",
        "",
        "mlp.c_proj",
    ],
    ..llama::NAMES
};

const DEFAULTS: Defaults =
    Defaults { norm: NormKind::Layer, eps: 1e-5, activation: "gelu_pytorch_tanh", tied: true, positions: 4096 };

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = like_llama(config, "starcoder2", NAMES, DEFAULTS)?;
    a.biased = if config.flag("use_bias")?.unwrap_or(true) { a.roles() } else { Vec::new() };
    a.reaches = reaches(config, a.layers, window(config, None)?, |_| true)?;
    Ok(a)
}
