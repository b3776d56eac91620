//! Settings of SIBO's released scripts, by name.

use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Table;

/// What is in front of every name.
const PREFIX: &str = "sibo/";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Presets {
    common: Table,
    models: BTreeMap<String, Table>,
    methods: BTreeMap<String, Table>,
    tasks: BTreeMap<String, Table>,
    exceptions: BTreeMap<String, Table>,
}

/// A preset that is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--preset {name}: no such preset; there are {known}")]
pub struct UnknownPreset {
    name: String,
    known: String,
}

/// The settings of a preset, by the names that `train`'s options have.
///
/// # Errors
/// There is no preset of that name.
pub fn preset(name: &str) -> Result<Table, UnknownPreset> {
    let unknown = |known: String| UnknownPreset { name: name.to_owned(), known };
    let Ok(presets) = toml::from_str::<Presets>(include_str!("presets.toml")) else {
        return Err(unknown(String::new()));
    };
    for (model, of_model) in &presets.models {
        for (method, of_method) in &presets.methods {
            for (task, of_task) in &presets.tasks {
                let own = format!("{model}/{method}-{task}");
                if name.strip_prefix(PREFIX) != Some(own.as_str()) {
                    continue;
                }
                let mut settings = presets.common.clone();
                for layer in [of_model, of_method, of_task].into_iter().chain(presets.exceptions.get(&own)) {
                    settings.extend(layer.clone());
                }
                return Ok(settings);
            }
        }
    }
    Err(unknown(names(&presets).join(", ")))
}

fn names(presets: &Presets) -> Vec<String> {
    let mut names = Vec::new();
    for model in presets.models.keys() {
        for method in presets.methods.keys() {
            names.extend(presets.tasks.keys().map(|task| format!("{PREFIX}{model}/{method}-{task}")));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainConfig;

    #[test]
    fn every_preset_is_a_setting_and_the_exceptions_hold() {
        let presets: Presets = toml::from_str(include_str!("presets.toml")).unwrap();
        let all = names(&presets);
        assert_eq!(all.len(), 16);
        assert!(presets.exceptions.keys().all(|name| all.contains(&format!("{PREFIX}{name}"))));
        for name in &all {
            let config: TrainConfig = preset(name).unwrap().try_into().unwrap();
            config.check().unwrap();
            let numbers = (config.batch_size * config.accumulate, config.epochs, config.lr, config.warmup_steps);
            assert_eq!(numbers, (16, 3, 3e-4, 100), "{name}");
        }
        let of = |name: &str| -> TrainConfig { preset(name).unwrap().try_into().unwrap() };
        let small = of("sibo/llama-7b/lora-math");
        assert_eq!((small.rank, small.alpha, small.sibo_lambda, small.dropout), (8, Some(16.0), 0.1, 0.05));
        let large = of("sibo/llama-13b/lora-math");
        assert_eq!((large.rank, large.alpha, large.task.as_deref()), (32, Some(64.0), Some("arithmetic")));
        assert_eq!(of("sibo/gpt-j-6b/adapter-math").sibo_lambda, 0.3);
        assert_eq!(of("sibo/gpt-j-6b/adapter-commonsense").sibo_lambda, 0.1);
        assert_eq!(of("sibo/gpt-j-6b/lora-commonsense").sibo_lambda, 0.3);
        let error = preset("sibo/llama-7b/lora").unwrap_err().to_string();
        assert!(error.starts_with(
            "--preset sibo/llama-7b/lora: no such preset; there are sibo/bloom-7b1/adapter-commonsense, "
        ));
    }
}
