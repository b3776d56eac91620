//! What a run is: the names and hashes that the manifest and unfinished work are known by.

use crate::analysis::runs::RunSpec;
use crate::analysis::texts::Scan;
use crate::cli::open;
use crate::hash;
use crate::model::LoadedModel;
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A run with what was measured of it.
pub(super) fn describe(identity: &Value, found: &Scan) -> Value {
    let mut described = identity.clone();
    if let Some(entries) = described.as_object_mut() {
        entries.insert("texts_measured".to_owned(), json!(found.texts));
        entries.insert("tokens_measured".to_owned(), json!(found.tokens));
    }
    described
}

/// What hidden states of a run depend on, without its name and where its files lie.
pub(in crate::cli) fn made_from(identity: &Value, dtype: &str) -> Value {
    let adapter = &identity["adapter"];
    json!({
        "model_sha256": identity["model_sha256"],
        "tokenizer_sha256": identity["tokenizer_sha256"],
        "adapter_sha256": adapter["sha256"],
        "adapter_config_sha256": adapter["config_sha256"],
        "dtype": dtype,
    })
}

/// What a run is, with the hashes of its files.
pub(in crate::cli) fn identity(spec: &RunSpec, model: &LoadedModel) -> Result<Value> {
    let adapter = match &spec.adapter {
        Some(folder) => {
            let sha = |name: &str| {
                let path = folder.join(name);
                hash::sha256_file(&path).with_context(|| open::unreadable(&path))
            };
            // λ, scale and placement are in the configuration.
            let (weights, config) = (sha("adapter_model.safetensors")?, sha("adapter_config.json")?);
            json!({"folder": folder.display().to_string(), "sha256": weights, "config_sha256": config})
        }
        None => Value::Null,
    };
    Ok(json!({
        "name": spec.name,
        "model": spec.model,
        "revision": spec.revision,
        "model_sha256": model.hashes()?,
        "tokenizer_sha256": model.processor.sha256(),
        "adapter": adapter,
    }))
}
