//! Checkpoints of SIBO's released code (a fork of LLM-Adapters) as adapters of ours.

use super::Peft;
use super::adapter_config::CONFIG_FILE;
use super::config::{Arm, Policy};
use super::files::{AdapterError, WEIGHTS_FILES, load_adapter};
use crate::model::weights::{load_adapter_file, save_tensors};
use crate::model::{H0Kind, Transformer};
use crate::persist::{self, PersistError};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a released checkpoint does not say of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Released {
    /// λ, where it is not stored: the released code stores it for LoRA (`embedding_lambda`) and not for adapters.
    pub lambda: Option<f64>,
    /// Which modules received h0.
    pub policy: Policy,
    /// What they read.
    pub arm: Arm,
    /// What h0 is.
    pub h0_kind: H0Kind,
}

/// Reads a folder of the released code, `adapter_config.json` with `adapter_model.bin` or `.safetensors`, for `model`.
///
/// # Errors
/// λ is nowhere stated or stated twice and differently, a setting has no counterpart here, or the files do not fit the model.
pub fn convert_released(folder: &Path, model: &Transformer, stated: &Released) -> Result<Peft, AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(&path).map_err(|source| AdapterError::Unreadable { file: file.clone(), source })?;
    let released =
        serde_json::from_str(&text).map_err(|source| AdapterError::Malformed { file: file.clone(), source })?;
    let config = converted(&file, &released, stated)?;
    let made = tempfile::tempdir().map_err(|source| AdapterError::Unreadable { file: file.clone(), source })?;
    let weights = WEIGHTS_FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    let tensors = load_adapter_file(&weights.unwrap_or_else(|| folder.join("adapter_model.bin")))?;
    save_tensors(&made.path().join(WEIGHTS_FILES[0]), &tensors, None)?;
    let written: Result<(), PersistError> =
        persist::write_file(&made.path().join(CONFIG_FILE), config.to_string().as_bytes());
    written?;
    load_adapter(made.path(), model)
}

/// The configuration in our keys.
fn converted(file: &str, released: &Map<String, Value>, stated: &Released) -> Result<Value, AdapterError> {
    let refuse = |key: &'static str, value: String, remedy: &str| {
        Err(AdapterError::Unsupported { file: file.to_owned(), key, value, remedy: remedy.to_owned() })
    };
    let flag = |key: &str| released.get(key).and_then(Value::as_bool).unwrap_or(false);
    let stored = released.get("embedding_lambda").and_then(Value::as_f64);
    let lambda = match (stored, stated.lambda) {
        (Some(stored), Some(given)) if (stored - given).abs() > 1e-9 => {
            return refuse("embedding_lambda", stored.to_string(), "--sibo-lambda says otherwise: leave it out");
        }
        (Some(lambda), _) | (None, Some(lambda)) => lambda,
        (None, None) => {
            return refuse(
                "embedding_lambda",
                "missing".to_owned(),
                "give the lambda of its training with --sibo-lambda",
            );
        }
    };
    let mut config = released.clone();
    for key in ["merge_weights", "enable_lora", "embedding_lambda", "init_weights", "adapter_dropout"] {
        config.remove(key);
    }
    let kind = match released.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => "LORA",
        Some("BOTTLENECK") => {
            for key in ["use_adapterp", "mam_adapter"] {
                if flag(key) {
                    return refuse(
                        "use_adapterp",
                        "true".to_owned(),
                        "the series and the parallel adapter are supported",
                    );
                }
            }
            let placement = if flag("use_parallel_adapter") { "parallel" } else { "series" };
            config.insert("placement".to_owned(), json!(placement));
            "BOTTLENECK_ADAPTER"
        }
        other => {
            let other = other.unwrap_or("missing").to_owned();
            return refuse("peft_type", other, "LORA and BOTTLENECK are what the released code writes");
        }
    };
    let sibo = if lambda == 0.0 { "" } else { "SIBO_" };
    config.insert("peft_type".to_owned(), json!(format!("{sibo}{kind}")));
    if lambda != 0.0 {
        let section = json!({"lambda": lambda, "policy": stated.policy, "residual": stated.arm, "h0": stated.h0_kind});
        config.insert("sibo".to_owned(), section);
    }
    Ok(Value::Object(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATED: Released = Released { lambda: None, policy: Policy::Official, arm: Arm::H0, h0_kind: H0Kind::Token };

    fn of(released: &Value, lambda: Option<f64>) -> Result<Value, String> {
        let stated = Released { lambda, ..STATED };
        converted("c", released.as_object().unwrap(), &stated).map_err(|e| e.to_string())
    }

    #[test]
    fn lambda_is_stored_or_demanded_and_never_guessed() {
        let lora = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "enable_lora": null, "merge_weights": false});
        let wanted = "c: embedding_lambda is missing, which is not supported; give the lambda of its training with --sibo-lambda";
        assert_eq!(of(&lora, None).unwrap_err(), wanted);
        assert_eq!(of(&lora, Some(0.2)).unwrap()["sibo"]["lambda"], 0.2);
        assert_eq!(of(&lora, Some(0.0)).unwrap()["peft_type"], "LORA");
        let mut stores = lora.clone();
        stores["embedding_lambda"] = json!(0.1);
        assert_eq!(of(&stores, None).unwrap()["sibo"]["lambda"], 0.1);
        assert!(of(&stores, Some(0.3)).unwrap_err().contains("--sibo-lambda says otherwise"));
    }

    #[test]
    fn bottlenecks_say_where_they_stand() {
        let series =
            json!({"peft_type": "BOTTLENECK", "bottleneck_size": 256, "non_linearity": "tanh", "scaling": 1.0});
        let made = of(&series, Some(0.1)).unwrap();
        assert_eq!((&made["peft_type"], &made["placement"]), (&json!("SIBO_BOTTLENECK_ADAPTER"), &json!("series")));
        let mut parallel = series.clone();
        parallel["use_parallel_adapter"] = json!(true);
        assert_eq!(of(&parallel, Some(0.1)).unwrap()["placement"], "parallel");
        parallel["use_adapterp"] = json!(true);
        assert!(of(&parallel, Some(0.1)).is_err());
        assert!(of(&json!({"peft_type": "PREFIX_TUNING"}), Some(0.1)).unwrap_err().contains("LORA and BOTTLENECK"));
    }
}
