//! Mistral: LLaMA whose tokens see a window of the last ones.

use super::common::{Defaults, reaches, window};
use super::config::{Config, ConfigError};
use super::llama::{NAMES, like_llama};
use crate::model::architecture::Architecture;

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = like_llama(config, "mistral", NAMES, Defaults { positions: 131_072, ..Defaults::LLAMA })?;
    a.biased = Vec::new();
    a.reaches = reaches(config, a.layers, window(config, Some(4096))?, |_| true)?;
    Ok(a)
}
