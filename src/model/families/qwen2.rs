//! Qwen 2 and 2.5: LLaMA with biases on queries, keys and values.

use super::common::{Defaults, reaches, window};
use super::config::{Config, ConfigError};
use super::llama::{NAMES, like_llama};
use crate::model::architecture::{Architecture, Role};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = like_llama(config, "qwen2", NAMES, Defaults { positions: 32_768, ..Defaults::LLAMA })?;
    a.biased = vec![Role::Query, Role::Key, Role::Value];
    a.reaches = upper_window(config, a.layers)?;
    Ok(a)
}

/// The window of the blocks from `max_window_layers` on, which is off unless `use_sliding_window` says otherwise.
pub(super) fn upper_window(config: &Config<'_>, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let first = config.optional_id("max_window_layers")?.unwrap_or(28) as usize;
    let reach = if used { window(config, Some(4096))? } else { None };
    reaches(config, layers, reach, |layer| layer >= first)
}
