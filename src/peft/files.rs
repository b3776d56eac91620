//! Adapters on disk: PEFT's own format for vanilla LoRA, and its relatives that real PEFT must refuse.
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors`. Vanilla LoRA is written so that
//! Python's `peft` loads it. With λ > 0 the `peft_type` is `SIBO_LORA`: real PEFT refuses an unknown type,
//! while an extra key or renamed tensors would only make it warn and then compute something else.

use super::Peft;
use super::config::{Arm, Method, PeftConfig, Placement, Policy, ResidualConfig};
use super::module::Module;
use super::plan::{PlanError, PlannedModule};
use crate::model::weights::{self, WeightsError};
use crate::model::{H0Kind, Transformer};
use crate::persist::{self, PersistError};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The modules of heads for classes that PEFT saves whole.
const CLASS_MODULES: [&str; 2] = ["classifier", "score"];
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

/// The names of a module's two matrices in an adapter file.
pub(super) fn tensor_names(module: &Module) -> (String, String) {
    names_of(&module.planned.path, module.method())
}

fn names_of(path: &str, method: Method) -> (String, String) {
    let (down, up) = match method {
        Method::Lora { .. } => ("lora_A", "lora_B"),
        Method::Adapter { .. } => ("adapter_down", "adapter_up"),
    };
    (format!("{PREFIX}{path}.{down}.weight"), format!("{PREFIX}{path}.{up}.weight"))
}

/// The `sibo` section of a configuration: all that inference needs, so that nothing is retyped there.
#[derive(Debug, Serialize, Deserialize)]
struct SiboSection {
    lambda: f64,
    policy: Policy,
    residual: Arm,
    h0: H0Kind,
    #[serde(default)]
    seed: u64,
}

/// The keys of `adapter_config.json` that decide what is computed.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    peft_type: String,
    target_modules: Value,
    base_model_name_or_path: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    bias: Option<String>,
    modules_to_save: Option<Value>,
    layers_to_transform: Option<Value>,
    rank_pattern: Option<Value>,
    alpha_pattern: Option<Value>,
    bottleneck_size: Option<usize>,
    scaling: Option<f64>,
    placement: Option<Placement>,
    non_linearity: Option<String>,
    sibo: Option<SiboSection>,
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
    let mut tensors = BTreeMap::new();
    for module in peft.iter() {
        let (down, up) = tensor_names(module);
        tensors.insert(down, module.down.detach());
        tensors.insert(up, module.up.detach());
    }
    tensors.extend(head.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone())));
    weights::save_tensors(&folder.join(WEIGHTS_FILE), &tensors, Some(("format", "pt")))?;
    let config = config_json(peft, head, base_model);
    let mut text = serde_json::to_string_pretty(&config)
        .map_err(|source| AdapterError::Malformed { file: CONFIG_FILE.to_owned(), source })?;
    text.push('\n');
    Ok(persist::write_file(&folder.join(CONFIG_FILE), text.as_bytes())?)
}

fn config_json(peft: &Peft, head: &BTreeMap<String, Tensor>, base_model: &str) -> Value {
    let config = &peft.config;
    // PEFT has no type for masked tokens; without one it wraps the model as it is.
    let task = match (head.is_empty(), peft.plan.causal) {
        (false, _) => json!("SEQ_CLS"),
        (true, true) => json!("CAUSAL_LM"),
        (true, false) => Value::Null,
    };
    let saved = match head.is_empty() {
        true => Value::Null,
        false => json!(head.keys().map(|name| module_to_save(name)).collect::<BTreeSet<_>>()),
    };
    let mut json = match config.method {
        Method::Lora { rank, alpha, dropout, rank_stabilised } => json!({
            "peft_type": if config.residual.is_some() { "SIBO_LORA" } else { "LORA" },
            "task_type": task,
            "base_model_name_or_path": base_model,
            "target_modules": config.targets,
            "r": rank,
            "lora_alpha": plain_number(alpha),
            "lora_dropout": dropout,
            "use_rslora": rank_stabilised,
            "use_dora": false,
            "bias": "none",
            "fan_in_fan_out": peft.plan.transposed,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": saved,
            "layers_to_transform": null,
            "rank_pattern": {},
            "alpha_pattern": {},
        }),
        Method::Adapter { bottleneck, scale, placement } => json!({
            "peft_type": if config.residual.is_some() { "SIBO_BOTTLENECK_ADAPTER" } else { "BOTTLENECK_ADAPTER" },
            "task_type": task,
            "base_model_name_or_path": base_model,
            "target_modules": config.targets,
            "bottleneck_size": bottleneck,
            "non_linearity": "tanh",
            "scaling": scale,
            "placement": placement,
            "bias": "none",
            "modules_to_save": saved,
        }),
    };
    if let (Some(residual), Some(object)) = (&config.residual, json.as_object_mut()) {
        let section = SiboSection {
            lambda: residual.lambda,
            policy: residual.policy,
            residual: residual.arm,
            h0: residual.h0_kind,
            seed: residual.seed,
        };
        object.insert("sibo".to_owned(), json!(section));
    }
    json
}

/// By what PEFT's `modules_to_save` speaks of a tensor of a head.
fn module_to_save(tensor: &str) -> &str {
    let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
    match CLASS_MODULES.iter().find(|module| path == **module || path.starts_with(&format!("{module}."))) {
        Some(module) => module,
        None => path,
    }
}

/// PEFT writes a whole α as an integer.
fn plain_number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
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
    let weights_path = folder.join(WEIGHTS_FILE);
    let weights_file = weights_path.display().to_string();
    let mut tensors = weights::load_adapter_file(&weights_path)?;
    let mut matrices = BTreeMap::new();
    let mut missing = Vec::new();
    for planned in &plan.modules {
        let (down, up) = names_of(&planned.path, config.method);
        for other in &planned.other_paths {
            let (other_down, other_up) = names_of(other, config.method);
            for (name, other) in [(&down, other_down), (&up, other_up)] {
                if let Some(tensor) = tensors.remove(&other) {
                    tensors.entry(name.clone()).or_insert(tensor);
                }
            }
        }
        let width = config.method.width();
        match (tensors.remove(&down), tensors.remove(&up)) {
            (Some(a), Some(b)) => {
                let fit = |name: &str, tensor: Tensor, expected: [usize; 2]| {
                    fitted(&weights_file, &base, name, tensor, expected, model)
                };
                let pair = (fit(&down, a, [width, planned.input])?, fit(&up, b, [planned.output, width])?);
                matrices.insert(planned.path.clone(), pair);
            }
            (a, b) => {
                missing.extend(a.is_none().then_some(down));
                missing.extend(b.is_none().then_some(up));
            }
        }
    }
    // A head for classes that was trained beside the modules: hidden states do not need it.
    let saved = read.modules_to_save.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tensors.retain(|name, _| {
        let path = name.trim_start_matches(PREFIX);
        !saved.iter().filter_map(Value::as_str).any(|module| path.starts_with(&format!("{module}.")))
    });
    if !missing.is_empty() || !tensors.is_empty() {
        let unexpected = tensors.into_keys().collect::<Vec<_>>();
        return Err(AdapterError::Mismatch {
            file: weights_file,
            missing: shortened(&missing),
            unexpected: shortened(&unexpected),
            base,
        });
    }
    Peft::from_matrices(model, config, |planned: &PlannedModule| matrices.get(&planned.path).cloned())
}

fn fitted(
    file: &str,
    base: &str,
    name: &str,
    tensor: Tensor,
    expected: [usize; 2],
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

/// The configuration of an adapter folder, and the file's name.
fn read_config(folder: &Path) -> Result<(String, ConfigFile), AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| AdapterError::Unreadable { file: file.clone(), source })?;
    match serde_json::from_str(&text) {
        Ok(read) => Ok((file, read)),
        Err(source) => Err(AdapterError::Malformed { file, source }),
    }
}

fn shortened(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        [first] => first.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

impl ConfigFile {
    fn to_config(&self, file: &str, model: &Transformer) -> Result<PeftConfig, AdapterError> {
        let unsupported = |key: &'static str, value: String, remedy: &str| {
            Err(AdapterError::Unsupported { file: file.to_owned(), key, value, remedy: remedy.to_owned() })
        };
        let missing = |key: &str| AdapterError::Malformed {
            file: file.to_owned(),
            source: serde::de::Error::custom(format!("{key} is missing")),
        };
        let is_set = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        for (key, value) in [
            ("layers_to_transform", &self.layers_to_transform),
            ("rank_pattern", &self.rank_pattern),
            ("alpha_pattern", &self.alpha_pattern),
        ] {
            if is_set(value) {
                return unsupported(key, value.as_ref().map(Value::to_string).unwrap_or_default(), "leave it empty");
            }
        }
        // Says how the base weights lie, which GPT-2's do; PEFT corrects the flag where it is wrong.
        let fan_in_fan_out = self.fan_in_fan_out.filter(|_| !model.architecture().transposed);
        for (key, flag) in [("use_dora", self.use_dora), ("fan_in_fan_out", fan_in_fan_out)] {
            if flag == Some(true) {
                return unsupported(key, "true".to_owned(), "plain LoRA is supported");
            }
        }
        let head = |module: &Value| {
            module
                .as_str()
                .is_some_and(|m| CLASS_MODULES.contains(&m) || m.ends_with("pooler.dense") || m.ends_with("pooler"))
        };
        if let Some(saved) = self.modules_to_save.as_ref().filter(|saved| !saved.is_null())
            && !saved.as_array().is_some_and(|list| list.iter().all(head))
        {
            let remedy = "heads for classes (classifier, score) are; the embedding table and norms are not";
            return unsupported("modules_to_save", saved.to_string(), remedy);
        }
        if let Some(bias) = &self.bias
            && bias != "none"
        {
            return unsupported("bias", format!("\"{bias}\""), "only \"none\" is supported");
        }
        let (sibo, method) = match self.peft_type.as_str() {
            kind @ ("LORA" | "SIBO_LORA") => {
                let rank = self.r.ok_or_else(|| missing("r"))?;
                let method = Method::Lora {
                    rank,
                    alpha: self.lora_alpha.ok_or_else(|| missing("lora_alpha"))?,
                    dropout: self.lora_dropout.unwrap_or(0.0),
                    rank_stabilised: self.use_rslora.unwrap_or(false),
                };
                (kind == "SIBO_LORA", method)
            }
            kind @ ("BOTTLENECK_ADAPTER" | "SIBO_BOTTLENECK_ADAPTER") => {
                if let Some(name) = self.non_linearity.as_deref()
                    && name != "tanh"
                {
                    return unsupported("non_linearity", format!("\"{name}\""), "only \"tanh\" is supported");
                }
                let method = Method::Adapter {
                    bottleneck: self.bottleneck_size.ok_or_else(|| missing("bottleneck_size"))?,
                    scale: self.scaling.unwrap_or(1.0),
                    placement: self.placement.unwrap_or(Placement::Series),
                };
                (kind == "SIBO_BOTTLENECK_ADAPTER", method)
            }
            other => {
                let known = "supported are LORA, SIBO_LORA, BOTTLENECK_ADAPTER, SIBO_BOTTLENECK_ADAPTER";
                return unsupported("peft_type", format!("\"{other}\""), known);
            }
        };
        let residual = match (sibo, &self.sibo) {
            (false, None) => None,
            (true, Some(s)) => Some(ResidualConfig {
                lambda: s.lambda,
                policy: s.policy,
                arm: s.residual,
                h0_kind: s.h0,
                seed: s.seed,
            }),
            (true, None) => return Err(missing("sibo (lambda, policy, residual, h0)")),
            (false, Some(_)) => {
                let remedy = "a vanilla peft_type cannot carry it; SIBO_LORA or SIBO_BOTTLENECK_ADAPTER does";
                return unsupported("sibo", "present".to_owned(), remedy);
            }
        };
        Ok(PeftConfig { method, targets: self.targets(file, model)?, residual })
    }

    fn targets(&self, file: &str, model: &Transformer) -> Result<Vec<String>, AdapterError> {
        let architecture = model.architecture();
        match &self.target_modules {
            Value::String(all) if all == "all-linear" => {
                Ok(architecture.roles().iter().map(|&role| architecture.names.target(role).to_owned()).collect())
            }
            Value::Array(list) if list.iter().all(Value::is_string) => {
                let mut targets: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                targets.sort();
                Ok(targets)
            }
            other => Err(AdapterError::Unsupported {
                file: file.to_owned(),
                key: "target_modules",
                value: other.to_string(),
                remedy: "a list of module names or \"all-linear\" is supported".to_owned(),
            }),
        }
    }
}
