//! Qwen 3: LLaMA with a norm on every head of queries and keys.

use super::common::Defaults;
use super::config::{Config, ConfigError};
use super::llama::{self, like_llama};
use super::qwen2::upper_window;
use crate::model::architecture::{Architecture, Names};

const NAMES: Names = Names { query_norm: "self_attn.q_norm", key_norm: "self_attn.k_norm", ..llama::NAMES };

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let config = &config.with_default("head_dim", 128);
    let mut a = like_llama(config, "qwen3", NAMES, Defaults { positions: 32_768, ..Defaults::LLAMA })?;
    a.reaches = upper_window(config, a.layers)?;
    Ok(a)
}
