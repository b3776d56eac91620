//! One short file a family: `config.json` to an [`Architecture`].

mod bert;
mod config;
mod llama;
mod roberta;

pub use config::ConfigError;

use super::Architecture;
use config::Config;
use std::path::Path;

/// The `model_type`s that are supported.
pub const SUPPORTED: &[&str] = &["llama", "bert", "roberta"];

/// Reads a folder's `config.json`.
///
/// # Errors
/// The file is missing, not JSON, of an unsupported family, or holds a value that no model can have.
pub fn read_config(folder: &Path) -> Result<Architecture, ConfigError> {
    let path = folder.join("config.json");
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
    let value = serde_json::from_str(&text).map_err(|source| ConfigError::NotJson { file: file.clone(), source })?;
    parse_config(&file, &value)
}

/// Turns a parsed `config.json` into an [`Architecture`]; `file` is named in errors.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(file: &str, value: &serde_json::Value) -> Result<Architecture, ConfigError> {
    let config = Config::new(file, value)?;
    match config.text("model_type")?.as_deref() {
        Some("llama") => llama::architecture(&config),
        Some("bert") => bert::architecture(&config),
        Some("roberta") => roberta::architecture(&config),
        Some(other) => {
            Err(config
                .invalid("model_type", &format!("\"{other}\" is not supported; supported: {}", SUPPORTED.join(", "))))
        }
        None => Err(config.invalid("model_type", "is missing; is this a Hugging Face model folder?")),
    }
}
