//! One short file a family: `config.json` to an [`Architecture`].

mod albert;
mod bert;
mod bloom;
mod common;
mod config;
mod deberta_v2;
mod distilbert;
mod electra;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod gptj;
mod llama;
mod mistral;
mod modernbert;
mod olmo2;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod stablelm;
mod starcoder2;
mod t5;
mod vit;

pub use config::ConfigError;

use super::Architecture;
use config::Config;
use std::path::Path;

type Read = fn(&Config<'_>) -> Result<Architecture, ConfigError>;

/// What reads the configuration of every `model_type`.
const FAMILIES: &[(&str, Read)] = &[
    ("llama", llama::architecture),
    ("mistral", mistral::architecture),
    ("qwen2", qwen2::architecture),
    ("qwen3", qwen3::architecture),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3),
    ("gemma3", gemma::gemma3),
    ("phi3", phi3::architecture),
    ("olmo2", olmo2::architecture),
    ("stablelm", stablelm::architecture),
    ("starcoder2", starcoder2::architecture),
    ("gptj", gptj::architecture),
    ("bloom", bloom::architecture),
    ("gpt2", gpt2::architecture),
    ("gpt_neox", gpt_neox::architecture),
    ("opt", opt::architecture),
    ("falcon", falcon::architecture),
    ("RefinedWeb", falcon::architecture),
    ("RefinedWebModel", falcon::architecture),
    ("bert", bert::architecture),
    ("roberta", roberta::architecture),
    ("xlm-roberta", roberta::architecture),
    ("camembert", roberta::architecture),
    ("distilbert", distilbert::architecture),
    ("albert", albert::architecture),
    ("electra", electra::architecture),
    ("modernbert", modernbert::architecture),
    ("deberta-v2", deberta_v2::architecture),
    ("t5", t5::architecture),
    ("mt5", t5::architecture),
    ("vit", vit::architecture),
];

/// The `model_type`s that are supported.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

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

/// What stands in front of the `model_type` of weights into which an adapter was merged in part: alone they compute neither the
/// base model nor the tuned one.
pub const PARTIAL: &str = "sibo_partial_";

/// Turns a parsed `config.json` into an [`Architecture`]; `file` is named in errors.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(file: &str, value: &serde_json::Value) -> Result<Architecture, ConfigError> {
    let config = Config::new(file, value)?;
    let Some(kind) = config.text("model_type")? else {
        return Err(config.invalid("model_type", "is missing; is this a Hugging Face model folder?"));
    };
    let partial = kind.strip_prefix(PARTIAL);
    let whole = partial.unwrap_or(&kind);
    match FAMILIES.iter().find(|(name, _)| *name == whole) {
        Some((_, read)) => Ok(Architecture { partial: partial.is_some(), ..read(&config)? }),
        None => {
            let problem = format!("\"{kind}\" is not supported; {}", nearest(&kind));
            Err(config.invalid("model_type", &problem))
        }
    }
}

/// The supported families whose names are most like `wanted`, and where to find the rest.
fn nearest(wanted: &str) -> String {
    let mut names: Vec<(f64, &str)> =
        supported().map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), name), name)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    let close: Vec<&str> = names.iter().take(3).map(|(_, name)| *name).collect();
    format!("the nearest that are: {}; docs/models.md lists all {}", close.join(", "), names.len())
}
