//! Adapters on disk: PEFT's own format for vanilla LoRA, and its relatives that real PEFT must refuse.
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors`. Vanilla LoRA is written so that
//! Python's `peft` loads it. With λ > 0 the `peft_type` is `SIBO_LORA`, with another remedy `REMEDIED_LORA`: real PEFT refuses an unknown type,
//! while an extra key or renamed tensors would only make it warn and then compute something else.

use super::adapter_config::{CONFIG_FILE, config_json, read_config};
use super::plan::{PlanError, PlannedModule};
use super::{Peft, virtual_tokens};
use crate::model::Transformer;
use crate::model::weights::{self, WeightsError};
use crate::persist::{self, PersistError};
use crate::remedies::Applied;
use candle_core::{DType, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The weights' name in an adapter folder, and the one that PEFT gave them earlier.
pub(super) const WEIGHTS_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What PEFT puts in front of a module's path.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Why an adapter cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The plan cannot be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A config file's content asks for a plan that cannot be made.
    #[error("{file}: {source}")]
    PlanOfFile {
        /// The file.
        file: String,
        /// What is wrong.
        source: PlanError,
    },
    /// The weights file is not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file cannot be read.
    #[error(
        "{file}: cannot be read: {source}; an adapter folder holds adapter_config.json and adapter_model.safetensors"
    )]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration is not JSON or lacks a key.
    #[error("{file}: {source}; correct it, or copy the adapter folder again")]
    Malformed {
        /// The file.
        file: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A feature that is not supported.
    #[error("{file}: {key} is {value}, which is not supported; {remedy}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is.
        remedy: String,
    },
    /// Tensors and plan do not match.
    #[error(
        "{file}: does not fit the model: missing {missing}; unexpected {unexpected}; the adapter was made for {base}"
    )]
    Mismatch {
        /// The file.
        file: String,
        /// Tensors that the plan needs and the file lacks.
        missing: String,
        /// Tensors that the file has and the plan does not.
        unexpected: String,
        /// The base model that the adapter names.
        base: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("{file}: {tensor} has shape {found:?}, the model needs {expected:?}; the adapter was made for {base}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The model's.
        expected: Vec<usize>,
        /// The base model that the adapter names.
        base: String,
    },
    /// A tensor holds a value that is not finite.
    #[error("{file}: {tensor} holds a value that is not finite; the adapter is damaged or its training diverged")]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// The folder cannot be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The names of a module's tensors in an adapter file.
pub(super) fn tensor_names(planned: &PlannedModule) -> Vec<String> {
    names_of(&planned.path, planned)
}

/// The name of a module's θ in an adapter file.
pub(super) fn theta_name(planned: &PlannedModule) -> Option<String> {
    planned.theta.as_ref().map(|theta| format!("{PREFIX}{theta}"))
}

fn names_of(path: &str, planned: &PlannedModule) -> Vec<String> {
    planned.form.tensor_names().iter().map(|name| format!("{PREFIX}{path}.{name}")).collect()
}

/// Writes an adapter into the existing folder `folder`, with what of the model's head for classes was trained beside it, by
/// the names of the model.
///
/// # Errors
/// The folder cannot be written.
pub fn save_adapter(
    folder: &Path,
    peft: &Peft,
    head: &BTreeMap<String, Tensor>,
    base_model: &str,
) -> Result<(), AdapterError> {
    let peft = &peft.settled();
    let mut tensors = BTreeMap::new();
    for module in peft.iter() {
        let shapes = module.planned.tensors().into_iter().map(|(_, shape)| shape);
        for ((name, tensor), shape) in tensor_names(&module.planned).into_iter().zip(&module.tensors).zip(shapes) {
            tensors.insert(name, tensor.detach().reshape(shape)?);
        }
        if let (Some(name), Some(theta)) = (theta_name(&module.planned), &module.theta) {
            tensors.insert(name, theta.detach());
        }
    }
    if let Some(table) = &peft.virtual_table {
        tensors.insert(virtual_tokens::NAME.to_owned(), table.detach());
    }
    tensors.extend(peft.remedies.tensors().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.detach())));
    tensors.extend(head.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone())));
    weights::save_tensors(&folder.join(WEIGHTS_FILES[0]), &tensors, Some(("format", "pt")))?;
    let config = config_json(peft, head, base_model);
    let mut text = serde_json::to_string_pretty(&config)
        .map_err(|source| AdapterError::Malformed { file: CONFIG_FILE.to_owned(), source })?;
    text.push('\n');
    Ok(persist::write_file(&folder.join(CONFIG_FILE), text.as_bytes())?)
}

/// The model that an adapter folder says it was trained on.
///
/// # Errors
/// The folder's configuration cannot be read.
pub fn base_model(folder: &Path) -> Result<Option<String>, AdapterError> {
    let (_, read) = read_config(folder)?;
    Ok(read.base_model_name_or_path.filter(|name| !name.is_empty()))
}

/// Reads an adapter folder, ours or real PEFT's LoRA, for `model`.
///
/// # Errors
/// A file is missing or malformed, asks for what is not supported, or belongs to another model.
pub fn load_adapter(folder: &Path, model: &Transformer) -> Result<Peft, AdapterError> {
    let (file, read) = read_config(folder)?;
    let config = read.to_config(&file, model)?;
    let base = read.base_model_name_or_path.clone().unwrap_or_else(|| "an unnamed model".to_owned());

    let plan = super::Plan::new(model.architecture(), &config)
        .map_err(|source| AdapterError::PlanOfFile { file: file.clone(), source })?;
    let there = WEIGHTS_FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    let weights_path = there.unwrap_or_else(|| folder.join(WEIGHTS_FILES[0]));
    let weights_file = weights_path.display().to_string();
    let mut tensors = weights::load_adapter_file(&weights_path)?;
    let mut found: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    let mut missing = Vec::new();
    for planned in &plan.modules {
        let names = tensor_names(planned);
        for other in &planned.other_paths {
            for (name, other) in names.iter().zip(names_of(other, planned)) {
                if let Some(tensor) = tensors.remove(&other) {
                    tensors.entry(name.clone()).or_insert(tensor);
                }
            }
        }
        let mut own = Vec::new();
        for (name, (_, shape)) in names.into_iter().zip(planned.tensors()) {
            match tensors.remove(&name) {
                Some(tensor) => own.push(fitted(&weights_file, &base, &name, tensor, &shape, model)?),
                None => missing.push(name),
            }
        }
        found.insert(planned.path.clone(), own);
    }
    // Blocks share a θ among their modules.
    let mut thetas = BTreeMap::new();
    for name in plan.modules.iter().filter_map(theta_name).collect::<BTreeSet<_>>() {
        match tensors.remove(&name) {
            Some(theta) => {
                let theta = fitted(&weights_file, &base, &name, theta, &[1], model)?;
                thetas.insert(name, theta);
            }
            None => missing.push(name),
        }
    }
    let mut virtual_table = None;
    if let Some(shape) = plan.virtual_table {
        match tensors.remove(virtual_tokens::NAME) {
            Some(table) => {
                virtual_table = Some(fitted(&weights_file, &base, virtual_tokens::NAME, table, &shape, model)?);
            }
            None => missing.push(virtual_tokens::NAME.to_owned()),
        }
    }
    let mut learned = BTreeMap::new();
    for (name, shape) in plan.remedies.clone() {
        let full = format!("{PREFIX}{name}");
        match tensors.remove(&full) {
            Some(tensor) => {
                learned.insert(name, fitted(&weights_file, &base, &full, tensor, &shape, model)?);
            }
            None => missing.push(full),
        }
    }
    let mut base_values = BTreeMap::new();
    for wanted in &plan.base {
        let name = format!("{PREFIX}{}", wanted.file);
        match tensors.remove(&name) {
            Some(tensor) => {
                base_values
                    .insert(wanted.model.clone(), fitted(&weights_file, &base, &name, tensor, &wanted.shape, model)?);
            }
            None => missing.push(name),
        }
    }
    // A head for classes that was trained beside the modules: hidden states do not need it.
    let saved = read.modules_to_save.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_head = |name: &String| {
        let path = name.trim_start_matches(PREFIX);
        saved.iter().filter_map(Value::as_str).any(|module| path.starts_with(&format!("{module}.")))
    };
    let (head, tensors): (BTreeMap<_, _>, BTreeMap<_, _>) = tensors.into_iter().partition(|(name, _)| is_head(name));
    if !missing.is_empty() || !tensors.is_empty() {
        let unexpected = tensors.into_keys().collect::<Vec<_>>();
        return Err(AdapterError::Mismatch {
            file: weights_file,
            missing: shortened(&missing),
            unexpected: shortened(&unexpected),
            base,
        });
    }
    let remedies = Applied::new(config.details.remedies, model.architecture(), |name, _| match learned.get(name) {
        Some(tensor) => Ok(tensor.clone()),
        None => candle_core::bail!("{name}: no such tensor"),
    })?;
    let mut peft = Peft::from_tensors(model, config, |planned: &PlannedModule| found.get(&planned.path).cloned())?;
    peft.set_thetas(&thetas);
    peft.base = base_values;
    peft.remedies = remedies;
    peft.virtual_table = virtual_table;
    peft.head = head.into_iter().map(|(name, tensor)| (name.trim_start_matches(PREFIX).to_owned(), tensor)).collect();
    Ok(peft)
}

fn fitted(
    file: &str,
    base: &str,
    name: &str,
    tensor: Tensor,
    expected: &[usize],
    model: &Transformer,
) -> Result<Tensor, AdapterError> {
    if tensor.dims() != expected {
        return Err(AdapterError::Shape {
            file: file.to_owned(),
            tensor: name.to_owned(),
            found: tensor.dims().to_vec(),
            expected: expected.to_vec(),
            base: base.to_owned(),
        });
    }
    let sum = tensor.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    if !sum.is_finite() {
        return Err(AdapterError::NotFinite { file: file.to_owned(), tensor: name.to_owned() });
    }
    Ok(tensor.to_dtype(model.precision().trained())?.to_device(model.device())?)
}

fn shortened(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        [first] => first.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}
