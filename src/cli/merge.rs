//! `smooth-probe merge`: an adapter into the weights of its base model, checked on what was written.

use super::{device, inspect, open, progress};
use crate::data::Packed;
use crate::model::weights::{TensorSource, Weights, save_tensors};
use crate::model::{LoadedModel, PARTIAL, Pass, Transformer};
use crate::peft::{Merged, Peft, load_adapter, save_adapter};
use crate::persist;
use crate::random::stream;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::Args;
use rand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Texts and tokens of the check.
const CHECKED: (usize, usize) = (4, 64);
/// The folders of a partial merge.
const BASE: &str = "base";
const TABLES: &str = "tables.safetensors";

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The adapter: ours or PEFT's.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The base model; by default the one that the adapter names.
    #[arg(long)]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// The new folder: a Hugging Face model, or with --partial the adapter that is left and the model in `base`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Merge what is exact of an adapter with the initial residual, W' = W + (1-lambda)*s*B*A, and keep lambda*s*B*A*h0 beside
    /// it as an adapter; neither may be run alone.
    #[arg(long)]
    partial: bool,
    /// With --partial, also lambda*s*A*h0 of every token, where h0 is the embedding row: tables.safetensors.
    #[arg(long, requires = "partial")]
    tables: bool,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &MergeArgs, quiet: bool) -> Result<()> {
    ensure!(!args.out.exists(), "{}: is there already; choose another --out", args.out.display());
    let name = open::base_of(&args.adapter, args.model.as_deref())?;
    let place = device::open(&args.device)?;
    let model = open::model(&name, args.revision.as_deref(), DType::F32.into(), &place)?;
    model.refuse_partial()?;
    let peft = load_adapter(&args.adapter, &model.transformer)?;
    let waiting = progress::waiting("merging");
    let merged = peft.merged(&model.transformer, args.partial)?;
    let source = open::files(&name, args.revision.as_deref())?;
    let tensors = tensors(&model, &merged.model, &peft, source.as_deref())?;
    let tables = match &merged.remainder {
        Some(remainder) if args.tables => Some(remainder.tables(&model.transformer)?),
        None if args.tables => anyhow::bail!("--tables: nothing is left of this adapter that reads h0; leave it out"),
        _ => None,
    };
    persist::replace_folder(&args.out, |folder| -> Result<()> {
        let base = match merged.remainder {
            Some(_) => folder.join(BASE),
            None => folder.to_owned(),
        };
        persist::create_folder(&base)?;
        save_tensors(&base.join("model.safetensors"), &tensors, Some(("format", "pt")))?;
        for (name, bytes) in &model.companions {
            let bytes = match (name.as_str(), &merged.remainder) {
                ("config.json", Some(_)) => marked(bytes)?,
                _ => bytes.clone(),
            };
            persist::write_file(&base.join(name), &bytes)?;
        }
        if let Some(remainder) = &merged.remainder {
            save_adapter(folder, remainder, peft.class_head(), &args.out.join(BASE).display().to_string())?;
        }
        if let Some(tables) = &tables {
            save_tensors(&folder.join(TABLES), tables, None)?;
        }
        Ok(())
    })?;
    drop(waiting);
    let waiting = progress::waiting("checking what was written");
    let checked = check(args, &model.transformer, &peft, &merged, &place)?;
    drop(waiting);
    if args.json {
        say!("{:#}", described(args, &merged, tensors.len(), checked.as_ref()));
    } else {
        report(args, &merged, &tensors, &checked);
    }
    if !quiet {
        note!("wrote {}", args.out.display());
    }
    Ok(())
}

/// The model's `config.json` with a type that no library knows: its weights alone compute something else.
fn marked(config: &[u8]) -> Result<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config).context("config.json")?;
    if let Some(kind) = config.get_mut("model_type") {
        *kind = format!("{PARTIAL}{}", kind.as_str().unwrap_or_default()).into();
    }
    Ok(format!("{config:#}\n").into_bytes())
}

/// All tensors of the model's files, those that were merged into in the place of their own and in their own type.
fn tensors(
    model: &LoadedModel,
    merged: &Transformer,
    peft: &Peft,
    source: Option<&Path>,
) -> Result<BTreeMap<String, Tensor>> {
    let ours = merged.stored_tensors()?;
    let mut all = match source.filter(|path| path.is_dir()) {
        None => ours,
        Some(folder) => {
            let weights = Weights::open(folder)?;
            let before = model.transformer.stored_tensors()?;
            let mut all = BTreeMap::new();
            for name in weights.names() {
                all.insert(name.clone(), weights.as_stored(&name)?);
            }
            for (name, tensor) in ours {
                let same = before.get(&name).is_some_and(|other| other.id() == tensor.id());
                let stored = model.transformer.architecture().stored_name(&weights, &name).unwrap_or(name);
                if !same {
                    let dtype = all.get(&stored).map_or(tensor.dtype(), Tensor::dtype);
                    all.insert(stored, tensor.to_dtype(dtype)?);
                }
            }
            all
        }
    };
    all.extend(peft.class_head().iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
    Ok(all)
}

/// The largest and the mean difference of logits (of last states, where there is no head for tokens) between the adapter on
/// its base and what was written, and the largest value.
struct Check {
    what: &'static str,
    largest: f64,
    mean: f64,
    of: f64,
}

fn check(
    args: &MergeArgs,
    model: &Transformer,
    peft: &Peft,
    merged: &Merged,
    place: &candle_core::Device,
) -> Result<Option<Check>> {
    let architecture = model.architecture();
    if architecture.patches.is_some() {
        return Ok(None);
    }
    let folder = if merged.remainder.is_some() { args.out.join(BASE) } else { args.out.clone() };
    let written = LoadedModel::from_folder(&folder, "merged", DType::F32, place)?;
    let left = match merged.remainder {
        Some(_) => Some(load_adapter(&args.out, &written.transformer)?),
        None => None,
    };
    let mut random = stream(0, &["merge"]);
    let length = CHECKED.1.min(architecture.max_positions);
    let ids = |random: &mut _| -> Vec<u32> {
        (0..length).map(|_| Rng::random_range(random, 0..architecture.vocab_size as u32)).collect()
    };
    let sequences: Vec<Vec<u32>> = (0..CHECKED.0).map(|_| ids(&mut random)).collect();
    let batch = Packed::from_sequences(&sequences);
    let tuned = peft.tuned(model);
    let before = tuned.as_ref().unwrap_or(model);
    let has_head = before.head().is_ok() && written.transformer.head().is_ok();
    let answer = |model: &Transformer, peft: Option<&Peft>| -> Result<Vec<f64>> {
        let frozen = peft.map(Peft::frozen);
        let pass = Pass::inference(frozen.as_ref());
        let answer = match has_head {
            true => model.logits(&batch, &pass)?,
            false => model.hidden_states(&batch, &pass, &mut crate::probe::Silent)?,
        };
        Ok(answer.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
    };
    let (before, after) = (answer(before, Some(peft))?, answer(&written.transformer, left.as_ref())?);
    let differences: Vec<f64> = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).collect();
    Ok(Some(Check {
        what: if has_head { "logits" } else { "last states" },
        largest: differences.iter().copied().fold(0.0, f64::max),
        mean: differences.iter().sum::<f64>() / differences.len().max(1) as f64,
        of: before.iter().map(|x| x.abs()).fold(0.0, f64::max),
    }))
}

/// The merge for machines: `docs/json.md`.
fn described(args: &MergeArgs, merged: &Merged, tensors: usize, checked: Option<&Check>) -> Value {
    let difference = checked.map(|check| {
        json!({
            "of": check.what,
            "texts": CHECKED.0,
            "tokens": CHECKED.1,
            "largest": check.largest,
            "mean": check.mean,
            "reach": check.of,
        })
    });
    let left = merged.remainder.as_ref().map(|remainder| {
        json!({
            "modules": remainder.plan().modules.len(),
            "numbers": remainder.plan().trainable(),
            "base": args.out.join(BASE).display().to_string(),
        })
    });
    json!({
        "out": args.out.display().to_string(),
        "modules": merged.modules,
        "tensors": tensors,
        "difference": difference,
        "left": left,
    })
}

fn report(args: &MergeArgs, merged: &Merged, tensors: &BTreeMap<String, Tensor>, checked: &Option<Check>) {
    say!("merged      {} modules into {} tensors", merged.modules, tensors.len());
    match checked {
        Some(Check { what, largest, mean, of }) => say!(
            "difference  {what} of {} random texts of {} tokens: largest {largest:.1e}, mean {mean:.1e}, where they reach {of:.3}",
            CHECKED.0,
            CHECKED.1
        ),
        None => say!("difference  not checked: a model of images has no texts to be checked on"),
    }
    if let Some(remainder) = &merged.remainder {
        let numbers = inspect::thousands(remainder.plan().trainable());
        say!(
            "left        {numbers} numbers in {} modules, an adapter of {}",
            remainder.plan().modules.len(),
            args.out.join(BASE).display()
        );
    }
}
