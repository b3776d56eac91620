//! `smooth-probe export`: an adapter for other programs, and the authors' checkpoints as ours.

use super::open;
use crate::model::{H0Kind, LoadedModel};
use crate::peft::{Arm, Peft, Policy, Released, convert_released, load_adapter, save_adapter, write_python};
use crate::persist;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["python", "from"])))]
pub(super) struct ExportArgs {
    /// The adapter.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The base model; by default the one that the adapter names.
    #[arg(long)]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// Write sibo_adapter.py, a short PyTorch module that applies the adapter to a transformers model, and
    /// sibo_modules.json, which it reads.
    #[arg(long)]
    python: bool,
    /// Convert a checkpoint of another program: sibo, the authors' released code.
    #[arg(long)]
    from: Option<From>,
    /// The lambda that the checkpoint was trained with, where it does not store it.
    #[arg(long, requires = "from")]
    sibo_lambda: Option<f64>,
    /// Which modules received it: the released code's is official.
    #[arg(long, default_value = "official", requires = "from")]
    sibo_policy: Policy,
    /// The folder that is written. With --python by default the adapter's own, to which the two files are added.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    /// github.com/Jaygagaga/SIBO, a fork of LLM-Adapters.
    Sibo,
}

pub(super) fn run(args: &ExportArgs, quiet: bool) -> Result<()> {
    let name = open::base_of(&args.adapter, args.model.as_deref())?;
    let model = open::model(&name, args.revision.as_deref(), DType::F32.into(), &Device::Cpu)?;
    let (written, peft) = match args.from {
        None => python(args, &model, &name)?,
        Some(From::Sibo) => released(args, &model, &name)?,
    };
    if args.json {
        say!("{:#}", described(&written, &name, &peft));
    } else if args.from.is_some() {
        print_text(&peft);
    }
    if !quiet {
        note!("wrote {}", written.display());
    }
    Ok(())
}

fn python(args: &ExportArgs, model: &LoadedModel, name: &str) -> Result<(PathBuf, Peft)> {
    let mut peft = load_adapter(&args.adapter, &model.transformer)?;
    // A head for classes changes what transformers calls the modules, where the base model was saved without one.
    let classified = match classes(&peft, model) {
        None => None,
        Some(classes) => {
            let files = open::files(name, args.revision.as_deref())?;
            Some(model.classifying(classes, files.as_deref(), DType::F32, &Device::Cpu)?)
        }
    };
    if let Some(transformer) = &classified {
        peft = load_adapter(&args.adapter, transformer)?;
    }
    let architecture = classified.as_ref().unwrap_or(&model.transformer).architecture();
    let Some(out) = &args.out else {
        write_python(&args.adapter, &peft, architecture)?;
        return Ok((args.adapter.clone(), peft));
    };
    ensure!(!out.exists(), "{}: is there already; choose another --out", out.display());
    persist::replace_folder(out, |folder| -> Result<()> {
        save_adapter(folder, &peft, peft.class_head(), name)?;
        Ok(write_python(folder, &peft, architecture)?)
    })?;
    Ok((out.clone(), peft))
}

/// How many classes the head that was trained with the modules tells apart.
fn classes(peft: &Peft, model: &LoadedModel) -> Option<usize> {
    let last = format!("{}.weight", model.transformer.architecture().names.classes.out);
    peft.class_head().get(&last)?.dims().first().copied()
}

fn released(args: &ExportArgs, model: &LoadedModel, name: &str) -> Result<(PathBuf, Peft)> {
    let out = args.out.as_ref().context("--out is missing: the converted adapter is a new folder")?;
    ensure!(!out.exists(), "{}: is there already; choose another --out", out.display());
    // The released code reads the rows of the table for every family.
    let stated = Released { lambda: args.sibo_lambda, policy: args.sibo_policy, arm: Arm::H0, h0_kind: H0Kind::Token };
    let peft = convert_released(&args.adapter, &model.transformer, &stated)?;
    persist::replace_folder(out, |folder| -> Result<()> { Ok(save_adapter(folder, &peft, peft.class_head(), name)?) })?;
    Ok((out.clone(), peft))
}

fn print_text(peft: &Peft) {
    let residual = peft
        .config()
        .residual
        .map_or("vanilla".to_owned(), |r| format!("lambda {}, policy {}, h0 {}", r.lambda, r.policy, r.h0_kind));
    say!("converted   {}; {residual}", peft.config().method);
    say!("mixed       {} of {} modules", peft.plan().mixed(), peft.plan().modules.len());
}

/// The adapter for machines: `docs/json.md`.
fn described(out: &Path, model: &str, peft: &Peft) -> Value {
    let residual = peft
        .config()
        .residual
        .map(|r| json!({"lambda": r.lambda, "policy": r.policy, "residual": r.arm, "h0": r.h0_kind}));
    json!({
        "out": out.display().to_string(),
        "model": model,
        "method": peft.config().method.to_string(),
        "residual": residual,
        "modules": peft.plan().modules.len(),
        "mixed": peft.plan().mixed(),
    })
}
