//! `adapter_config.json`: PEFT's own keys where PEFT has the method, and a section of ours for the initial residual.

use super::Peft;
use super::config::{Arm, Biases, Details, LearnedBy, Method, PeftConfig, Placement, Policy, ResidualConfig};
use super::files::AdapterError;
use super::plan::is_target;
use crate::model::{Architecture, H0Kind, Transformer};
use crate::remedies::Remedies;
use candle_core::Tensor;
use regex::Regex;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The configuration's name in an adapter folder.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";
/// The modules of heads for classes that PEFT saves whole.
const CLASS_MODULES: [&str; 2] = ["classifier", "score"];
/// What stands in front of PEFT's types where an initial residual is mixed in.
const SIBO: &str = "SIBO_";
/// What stands in front of all where other remedies are applied.
const REMEDIED: &str = "REMEDIED_";

/// The `sibo` section of a configuration: all that inference needs, so that nothing is retyped there.
#[derive(Debug, Serialize, Deserialize)]
struct SiboSection {
    lambda: f64,
    policy: Policy,
    residual: Arm,
    h0: H0Kind,
    #[serde(default)]
    seed: u64,
    /// Where each learned λ belongs; `lambda` is then where they began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learned: Option<LearnedBy>,
    /// λ of every block, in the place of `lambda`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<f64>,
}

/// The keys of `adapter_config.json` that decide what is computed.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    peft_type: String,
    target_modules: Option<Value>,
    pub(super) base_model_name_or_path: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    bias: Option<String>,
    pub(super) modules_to_save: Option<Value>,
    layers_to_transform: Option<Value>,
    rank_pattern: Option<Value>,
    alpha_pattern: Option<Value>,
    feedforward_modules: Option<Value>,
    bottleneck_size: Option<usize>,
    scaling: Option<f64>,
    placement: Option<Placement>,
    non_linearity: Option<String>,
    num_virtual_tokens: Option<usize>,
    sibo: Option<SiboSection>,
    remedies: Option<Remedies>,
}

/// What `adapter_config.json` says of modules, of what of the model's head was trained with them, and of the base model.
pub(super) fn config_json(peft: &Peft, head: &BTreeMap<String, Tensor>, base_model: &str) -> Value {
    let config = &peft.config;
    // Biases and norms have keys of their own.
    let apart = |name: &str| {
        let base = peft
            .plan
            .base
            .iter()
            .filter(|t| !peft.config.details.whole_modules.iter().any(|m| is_target(&t.file_path(), m)));
        base.into_iter().any(|tensor| tensor.file == name)
    };
    let head: BTreeSet<&str> =
        head.keys().map(String::as_str).filter(|name| !apart(name)).map(module_to_save).collect();
    let saved = if head.is_empty() { Value::Null } else { json!(head) };
    let classifies = head.iter().any(|module| CLASS_MODULES.contains(module));
    // PEFT has no type for masked tokens; without one it wraps the model as it is.
    let task = match (classifies, peft.plan.causal) {
        (true, _) => json!("SEQ_CLS"),
        (false, true) => json!("CAUSAL_LM"),
        (false, false) => Value::Null,
    };
    let kind = match config.method {
        Method::Lora { .. } | Method::Dora { .. } => "LORA",
        Method::Ia3 => "IA3",
        Method::Adapter { .. } => "BOTTLENECK_ADAPTER",
        Method::BitFit => "BITFIT",
        Method::Norms => "LN_TUNING",
        Method::Prefix { .. } => "PREFIX_TUNING",
        Method::Prompt { .. } => "PROMPT_TUNING",
    };
    let remedies = config.details.remedies;
    let remedied = if remedies.is_none() { "" } else { REMEDIED };
    let prefix = if config.residual.is_some() { SIBO } else { "" };
    let mut json = json!({
        "peft_type": format!("{remedied}{prefix}{kind}"),
        "task_type": task,
        "base_model_name_or_path": base_model,
        "target_modules": config.targets,
    });
    let of_method = match config.method {
        Method::Lora { .. } | Method::Dora { .. } => low_rank_json(peft, &saved),
        Method::Ia3 => json!({
            "feedforward_modules": config.details.feed_forward,
            "fan_in_fan_out": peft.plan.transposed,
            "inference_mode": true,
            "init_ia3_weights": true,
            "modules_to_save": saved,
        }),
        Method::Adapter { bottleneck, scale, placement } => json!({
            "bottleneck_size": bottleneck,
            "non_linearity": "tanh",
            "scaling": scale,
            "placement": placement,
            "bias": "none",
            "modules_to_save": saved,
        }),
        Method::BitFit | Method::Norms => json!({"inference_mode": true, "modules_to_save": saved}),
        Method::Prefix { .. } | Method::Prompt { .. } => virtual_tokens_json(peft, &saved),
    };
    if let (Value::Object(object), Value::Object(of_method)) = (&mut json, of_method) {
        object.extend(of_method);
        // PEFT warns of keys that its method does not have.
        if matches!(config.method, Method::Prefix { .. } | Method::Prompt { .. }) {
            object.shift_remove("target_modules");
        }
        if let Some(residual) = &config.residual {
            let section = SiboSection {
                lambda: residual.lambda,
                policy: residual.policy,
                residual: residual.arm,
                h0: residual.h0_kind,
                seed: residual.seed,
                learned: residual.learned,
                layers: config.details.lambdas.clone(),
            };
            object.insert("sibo".to_owned(), json!(section));
        }
        if !remedies.is_none() {
            object.insert("remedies".to_owned(), json!(remedies));
        }
    }
    json
}

fn virtual_tokens_json(peft: &Peft, saved: &Value) -> Value {
    let [tokens, columns] = peft.plan.virtual_table.unwrap_or_default();
    let (layers, [heads, head_dim]) = (peft.modules.len(), peft.plan.key_heads);
    let mut json = json!({
        "num_virtual_tokens": tokens,
        "num_layers": layers,
        "num_transformer_submodules": 1,
        "inference_mode": true,
        "modules_to_save": saved,
    });
    let own = match peft.config.method {
        // PEFT counts the heads and widths of keys here.
        Method::Prefix { .. } => json!({
            "token_dim": heads * head_dim, "num_attention_heads": heads, "encoder_hidden_size": heads * head_dim,
            "prefix_projection": false,
        }),
        _ => json!({"token_dim": columns, "num_attention_heads": heads, "prompt_tuning_init": "RANDOM"}),
    };
    if let (Value::Object(json), Value::Object(own)) = (&mut json, own) {
        json.extend(own);
    }
    json
}

fn low_rank_json(peft: &Peft, saved: &Value) -> Value {
    let config = &peft.config;
    let Some(sizes) = config.method.low_rank() else { return Value::Null };
    let Details { ranks, alphas, .. } = &config.details;
    json!({
        "r": sizes.rank,
        "lora_alpha": plain_number(sizes.alpha),
        "lora_dropout": sizes.dropout,
        "use_rslora": sizes.rank_stabilised,
        "use_dora": matches!(config.method, Method::Dora { .. }),
        "bias": match config.details.biases {
            Biases::None => "none",
            Biases::All => "all",
            Biases::Targets => "lora_only",
        },
        "fan_in_fan_out": peft.plan.transposed,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": saved,
        "layers_to_transform": null,
        "rank_pattern": ranks.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect::<Map<_, _>>(),
        "alpha_pattern": alphas.iter().map(|(key, alpha)| (key.clone(), plain_number(*alpha))).collect::<Map<_, _>>(),
    })
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

/// The configuration of an adapter folder, and the file's name.
pub(super) fn read_config(folder: &Path) -> Result<(String, ConfigFile), AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| AdapterError::Unreadable { file: file.clone(), source })?;
    match serde_json::from_str(&text) {
        Ok(read) => Ok((file, read)),
        Err(source) => Err(AdapterError::Malformed { file, source }),
    }
}

/// Whether a key says something.
fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    }
}

/// What is wrong with one key of a file.
struct Fault<'f>(&'f str);

impl Fault<'_> {
    fn unsupported<T>(&self, key: &'static str, value: impl ToString, remedy: &str) -> Result<T, AdapterError> {
        let (file, value, remedy) = (self.0.to_owned(), value.to_string(), remedy.to_owned());
        Err(AdapterError::Unsupported { file, key, value, remedy })
    }

    fn missing(&self, key: &str) -> AdapterError {
        let source = serde_json::Error::custom(format!("{key} is missing"));
        AdapterError::Malformed { file: self.0.to_owned(), source }
    }
}

impl ConfigFile {
    /// What the file asks for, over a model.
    pub(super) fn to_config(&self, file: &str, model: &Transformer) -> Result<PeftConfig, AdapterError> {
        let fault = Fault(file);
        self.refuse_unsupported(&fault, model.architecture())?;
        let remedied = self.peft_type.strip_prefix(REMEDIED);
        match (remedied.is_some(), &self.remedies) {
            (true, None) => return Err(fault.missing("remedies")),
            (false, Some(_)) => {
                let remedy =
                    "this peft_type cannot carry them; REMEDIED_ in front of the type says that they are applied";
                return fault.unsupported("remedies", "present", remedy);
            }
            _ => {}
        }
        let plain = remedied.unwrap_or(&self.peft_type);
        let vanilla = plain.strip_prefix(SIBO);
        let method = self.method(&fault, vanilla.unwrap_or(plain))?;
        let residual = match (vanilla.is_some(), &self.sibo) {
            (false, None) => None,
            (true, Some(s)) => Some(ResidualConfig {
                lambda: s.lambda,
                policy: s.policy,
                arm: s.residual,
                h0_kind: s.h0,
                seed: s.seed,
                learned: s.learned,
            }),
            (true, None) => return Err(fault.missing("sibo (lambda, policy, residual, h0)")),
            (false, Some(_)) => {
                let remedy = "a vanilla peft_type cannot carry it; SIBO_ in front of the type says that it is mixed in";
                return fault.unsupported("sibo", "present", remedy);
            }
        };
        let targets = self.targets(&fault, model.architecture())?;
        Ok(PeftConfig { method, targets, residual, details: self.details(&fault)? })
    }

    fn refuse_unsupported(&self, fault: &Fault<'_>, architecture: &Architecture) -> Result<(), AdapterError> {
        // Says how the base weights lie, which GPT-2's do; PEFT corrects the flag where it is wrong.
        if self.fan_in_fan_out == Some(true) && !architecture.transposed {
            return fault.unsupported("fan_in_fan_out", true, "the model's linears are [out, in]");
        }
        if let Some(saved) =
            self.modules_to_save.as_ref().filter(|saved| is_set(Some(saved)) && strings(saved).is_none())
        {
            return fault.unsupported("modules_to_save", saved, "a list of modules is");
        }
        Ok(())
    }

    /// Modules that are saved whole, heads for classes apart: hidden states do not need those.
    fn whole_modules(&self) -> Vec<String> {
        let all = self.modules_to_save.as_ref().and_then(strings).unwrap_or_default();
        let head =
            |m: &String| CLASS_MODULES.contains(&m.as_str()) || m.ends_with("pooler.dense") || m.ends_with("pooler");
        all.into_iter().filter(|module| !head(module)).collect()
    }

    fn method(&self, fault: &Fault<'_>, kind: &str) -> Result<Method, AdapterError> {
        match kind {
            "LORA" => {
                let rank = self.r.ok_or_else(|| fault.missing("r"))?;
                let alpha = self.lora_alpha.ok_or_else(|| fault.missing("lora_alpha"))?;
                let dropout = self.lora_dropout.unwrap_or(0.0);
                let rank_stabilised = self.use_rslora.unwrap_or(false);
                Ok(match self.use_dora {
                    Some(true) => Method::Dora { rank, alpha, dropout, rank_stabilised },
                    _ => Method::Lora { rank, alpha, dropout, rank_stabilised },
                })
            }
            "IA3" => Ok(Method::Ia3),
            "BITFIT" => Ok(Method::BitFit),
            "PREFIX_TUNING" => Ok(Method::Prefix { tokens: self.virtual_tokens(fault)? }),
            "PROMPT_TUNING" => Ok(Method::Prompt { tokens: self.virtual_tokens(fault)? }),
            "LN_TUNING" => Ok(Method::Norms),
            "BOTTLENECK_ADAPTER" => {
                if let Some(name) = self.non_linearity.as_deref().filter(|name| *name != "tanh") {
                    return fault.unsupported("non_linearity", format!("\"{name}\""), "only \"tanh\" is supported");
                }
                Ok(Method::Adapter {
                    bottleneck: self.bottleneck_size.ok_or_else(|| fault.missing("bottleneck_size"))?,
                    scale: self.scaling.unwrap_or(1.0),
                    placement: self.placement.unwrap_or(Placement::Series),
                })
            }
            _ => {
                let known = "supported are LORA, IA3 and BOTTLENECK_ADAPTER, each also with SIBO_ in front, LN_TUNING, \
                    PREFIX_TUNING, PROMPT_TUNING and BITFIT, all also with REMEDIED_ in front";
                fault.unsupported("peft_type", format!("\"{}\"", self.peft_type), known)
            }
        }
    }

    fn virtual_tokens(&self, fault: &Fault<'_>) -> Result<usize, AdapterError> {
        self.num_virtual_tokens.ok_or_else(|| fault.missing("num_virtual_tokens"))
    }

    fn details(&self, fault: &Fault<'_>) -> Result<Details, AdapterError> {
        fn pairs<T>(
            fault: &Fault<'_>,
            key: &'static str,
            value: Option<&Value>,
            read: impl Fn(&Value) -> Option<T>,
        ) -> Result<Vec<(String, T)>, AdapterError> {
            let Some(value) = value.filter(|value| is_set(Some(value))) else { return Ok(Vec::new()) };
            let pairs = value.as_object().and_then(|object| {
                object.iter().map(|(pattern, value)| Some((pattern.clone(), read(value)?))).collect::<Option<Vec<_>>>()
            });
            pairs.map_or_else(|| fault.unsupported(key, value, "a number for each pattern is"), Ok)
        }
        let rank = |value: &Value| value.as_u64().and_then(|rank| usize::try_from(rank).ok());
        let feed_forward = match self.feedforward_modules.as_ref().filter(|value| is_set(Some(value))) {
            None => Vec::new(),
            Some(value) => match strings(value) {
                Some(list) => list,
                None => return fault.unsupported("feedforward_modules", value, "a list of names is"),
            },
        };
        let biases = match self.bias.as_deref() {
            None | Some("none") => Biases::None,
            Some("all") => Biases::All,
            Some("lora_only") => Biases::Targets,
            Some(other) => return fault.unsupported("bias", format!("\"{other}\""), "none, all and lora_only are"),
        };
        Ok(Details {
            biases,
            whole_modules: self.whole_modules(),
            ranks: pairs(fault, "rank_pattern", self.rank_pattern.as_ref(), rank)?,
            alphas: pairs(fault, "alpha_pattern", self.alpha_pattern.as_ref(), Value::as_f64)?,
            feed_forward,
            lambdas: self.sibo.as_ref().map(|sibo| sibo.layers.clone()).unwrap_or_default(),
            remedies: self.remedies.unwrap_or_default(),
        })
    }

    /// The linears that get a module: names, or every path that a regular expression matches, in the layers that are named.
    fn targets(&self, fault: &Fault<'_>, architecture: &Architecture) -> Result<Vec<String>, AdapterError> {
        let Some(stated) = self.target_modules.as_ref().filter(|value| !value.is_null()) else {
            return match self.peft_type.strip_prefix(REMEDIED).unwrap_or(&self.peft_type) {
                "BITFIT" | "PREFIX_TUNING" | "PROMPT_TUNING" => Ok(Vec::new()),
                "LN_TUNING" => Ok(Method::Norms.default_targets(architecture)),
                _ => Err(fault.missing("target_modules")),
            };
        };
        let names = || architecture.roles().iter().map(|&role| architecture.names.target(role).to_owned()).collect();
        let remedy = "a list of module names, a regular expression of paths, or \"all-linear\" is";
        let pattern = match stated {
            Value::String(all) if all == "all-linear" => None,
            Value::String(pattern) => match Regex::new(&format!("^(?:{pattern})$")) {
                Ok(regex) => Some(regex),
                Err(_) => return fault.unsupported("target_modules", stated, remedy),
            },
            _ => None,
        };
        let mut targets: Vec<String> = match (strings(stated), &pattern) {
            (Some(list), _) => list,
            (None, None) if stated.is_string() => names(),
            (None, Some(pattern)) => {
                paths(architecture, |_, spelled| spelled.iter().any(|path| pattern.is_match(path)))
            }
            (None, None) => return fault.unsupported("target_modules", stated, remedy),
        };
        if let Some(layers) = self.layers_to_transform.as_ref().filter(|value| is_set(Some(value))) {
            let listed = match layers {
                Value::Array(list) => list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>(),
                one => one.as_u64().map(|layer| vec![layer]),
            };
            let Some(listed) = listed else {
                return fault.unsupported("layers_to_transform", layers, "a block's number or a list of them is");
            };
            let is_one = |path: &String| targets.iter().any(|target| is_target(path, target));
            targets =
                paths(architecture, |layer, spelled| listed.contains(&(layer as u64)) && spelled.iter().any(is_one));
        }
        targets.sort();
        Ok(targets)
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The paths of the linears that `wanted` takes, by their block and every spelling of their path.
fn paths(architecture: &Architecture, wanted: impl Fn(usize, &[String]) -> bool) -> Vec<String> {
    let all =
        (0..architecture.layers).flat_map(|layer| architecture.roles().into_iter().map(move |role| (layer, role)));
    let taken = all.filter(|&(layer, role)| wanted(layer, &architecture.adapter_paths(layer, role)));
    taken.map(|(layer, role)| architecture.module_path(layer, role)).collect()
}
