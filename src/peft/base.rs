//! What of the base model is trained, beside modules or in their place: biases, norms, whole modules.

use super::config::{Biases, Method, PeftConfig};
use super::plan::{PlannedModule, is_target};
use crate::model::Architecture;
use std::collections::BTreeSet;

/// A tensor of the base model that is trained, and is whole in an adapter file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTensor {
    /// Its name in the model's files.
    pub model: String,
    /// Its name in an adapter file, behind PEFT's prefix.
    pub file: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl BaseTensor {
    /// The path of the module that holds it, in an adapter file.
    #[must_use]
    pub fn file_path(&self) -> String {
        self.file.rsplit_once('.').map_or_else(|| self.file.clone(), |(path, _)| path.to_owned())
    }
}

/// The tensors of the base model that a configuration trains, whose modules are `modules`.
pub(super) fn base_tensors(
    architecture: &Architecture,
    config: &PeftConfig,
    modules: &[PlannedModule],
) -> Vec<BaseTensor> {
    let norms: BTreeSet<String> = architecture.norm_paths().into_iter().collect();
    let with_module: BTreeSet<String> = modules.iter().map(|m| architecture.linear_path(m.layer, m.role)).collect();
    let one = |(model, shape): (String, Vec<usize>)| {
        let (path, tensor) = model.rsplit_once('.')?;
        let spelled = architecture.module_name(&model);
        let spelled_path = spelled.rsplit_once('.').map_or(spelled.as_str(), |(path, _)| path);
        let is_named = |targets: &[String]| targets.iter().any(|t| is_target(path, t) || is_target(spelled_path, t));
        let has_module = with_module.contains(path);
        let file = if is_named(&config.details.whole_modules) {
            spelled.clone()
        } else if config.method == Method::Norms && norms.contains(path) && is_named(&config.targets) {
            format!("{spelled_path}.ln_tuning_layers.{tensor}")
        } else if tensor != "bias" {
            return None;
        } else {
            match (config.method, config.details.biases) {
                (Method::BitFit, _) => spelled.clone(),
                (_, Biases::All | Biases::Targets) if has_module => format!("{spelled_path}.base_layer.bias"),
                (_, Biases::All) => spelled.clone(),
                _ => return None,
            }
        };
        Some(BaseTensor { model, file, shape })
    };
    architecture.tensors().into_iter().filter_map(one).collect()
}
