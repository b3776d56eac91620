//! An adapter for Python: a module that applies it to a transformers model, and what that module must be told.

use super::config::Arm;
use super::plan::{Form, Mixing};
use super::{AdapterError, Peft};
use crate::model::{Architecture, H0Kind, Positions, Role};
use crate::persist;
use serde_json::{Value, json};
use std::path::Path;

/// The module, as it is written beside an adapter.
const MODULE: &str = include_str!("python/sibo_adapter.py");
const MODULE_FILE: &str = "sibo_adapter.py";
const MODULES_FILE: &str = "sibo_modules.json";

/// Writes into an adapter's folder the Python module that applies it, and `sibo_modules.json`, which that reads.
///
/// # Errors
/// The method or the residual's arm is not one that the module computes, or the folder cannot be written.
pub fn write_python(folder: &Path, peft: &Peft, architecture: &Architecture) -> Result<(), AdapterError> {
    let config = peft.config();
    let refuse = |what: String, remedy: &str| {
        let file = folder.display().to_string();
        Err(AdapterError::Unsupported { file, key: "export --python", value: what, remedy: remedy.to_owned() })
    };
    if !config.method.has_modules() {
        return refuse(config.method.to_string(), "it has no modules; its files load in peft");
    }
    if let Some(residual) = config.residual.filter(|r| matches!(r.arm, Arm::Shuffled | Arm::Random)) {
        return refuse(format!("the arm {}", residual.arm), "it draws from a random stream that Python does not have");
    }
    if !config.details.remedies.is_none() {
        return refuse("an adapter with remedies beside its modules".to_owned(), "run it here");
    }
    if !peft.plan().base.is_empty() {
        return refuse("an adapter with weights of the base model".to_owned(), "merge it instead");
    }
    let text = format!("{:#}\n", modules(peft, architecture)?);
    persist::write_file(&folder.join(MODULES_FILE), text.as_bytes())?;
    Ok(persist::write_file(&folder.join(MODULE_FILE), MODULE.as_bytes())?)
}

fn modules(peft: &Peft, architecture: &Architecture) -> Result<Value, AdapterError> {
    let residual = peft.config().residual;
    let one = |module: &super::Module| -> Result<Value, AdapterError> {
        let planned = &module.planned;
        let mut told = json!({
            "path": planned.path,
            "position": planned.position.to_string(),
            "mixed": planned.residual == Mixing::Mixed,
            "lambda": peft.lambda_of(module)?,
            "scale": planned.form.scale(),
            "form": match planned.form {
                Form::LowRank { .. } | Form::Bottleneck { .. } => "branch",
                Form::Decomposed { .. } => "decomposed",
                Form::Factors => "factors",
            },
            "activation": if matches!(planned.form, Form::Bottleneck { .. }) { "tanh" } else { "none" },
        });
        // DeBERTa's linears of queries and keys read the table of distances in their second call.
        let shared = matches!(architecture.positions, Positions::Disentangled(form) if form.shared);
        if shared
            && matches!(planned.role, Role::Query | Role::Key)
            && let Some((attention, _)) = planned.path.rsplit_once('.')
        {
            told["first_call_of"] = json!(attention);
        }
        Ok(told)
    };
    let modules = peft.first_modules().map(one).collect::<Result<Vec<_>, _>>()?;
    let h0 = residual.filter(|r| r.arm != Arm::None).map(|r| h0(architecture, r.h0_kind));
    Ok(json!({"format": 1, "arm": residual.map(|r| r.arm), "h0": h0, "modules": modules}))
}

/// Where a transformers model shows h0.
fn h0(a: &Architecture, kind: H0Kind) -> Value {
    let names = &a.names;
    let module = |name: &str| a.module_name(&names.path(name));
    let first_block = json!({"kind": kind, "module": a.block_path(0), "at": "input"});
    match kind {
        // One block that runs for all layers is called many times: what it is given first is made here.
        H0Kind::Input if names.shared > 1 => match a.projection_path() {
            Some(path) => json!({"kind": kind, "module": a.module_name(&path), "at": "output"}),
            None => json!({"kind": kind, "module": module(names.embedding_norm), "at": "output"}),
        },
        H0Kind::Input => first_block,
        // transformers scales the rows inside the table's module or behind it, by its version; nothing else follows.
        H0Kind::Token if a.embedding_scale.is_some() => first_block,
        H0Kind::Token => {
            let table =
                if names.embedding == "shared" { module("encoder.embed_tokens") } else { module(names.embedding) };
            let projection = a.projection_path().map(|path| a.module_name(&path));
            json!({"kind": kind, "module": table, "at": "output", "projection": projection})
        }
    }
}
