//! `smooth-probe pretrain`: the embedded model, made by one command.

use super::pace::Pace;
use super::{open, progress};
use crate::pretrain::recipe::Recipe;
use crate::pretrain::run::{PretrainEvent, pretrain};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub(super) struct PretrainArgs {
    /// Folder for config.json, tokenizer.json, model.safetensors and the log; a run that was interrupted
    /// there goes on from its checkpoint.
    #[arg(long, default_value = "models/embedded")]
    out: PathBuf,
    /// A recipe (TOML); by default the one of the embedded model. Unset keys keep its values.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PretrainArgs, quiet: bool) -> Result<()> {
    let recipe = match &args.recipe {
        None => Recipe::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| open::unreadable(path))?;
            toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.message()))?
        }
    };
    let total = recipe.total_steps();
    let bar = progress::bar(total, "steps", quiet);
    let mut pace = Pace::new(Instant::now());
    pace.total = total;
    // What follows the last step: fine-tunings that see whether the model can be tuned.
    let mut tuning = None;
    let last = pretrain(&recipe, &args.out, &mut |event, _| {
        if pace.done == 0 {
            // A run that goes on from its checkpoint begins with a later event.
            pace.skip(event.step.saturating_sub(recipe.eval_every));
        }
        pace.done = event.step;
        bar.set_position(event.step);
        let line = format!("{}  {}", pace.describe("steps", Instant::now()), in_words(event));
        if bar.is_hidden() && !quiet {
            note!("{line}");
        }
        bar.println(line);
        if event.step == total && recipe.tuning_steps > 0 {
            bar.finish_and_clear();
            tuning = Some(progress::waiting("fine-tuning what was made"));
        }
    })?;
    drop(tuning);
    bar.finish_and_clear();
    if args.json {
        say!("{:#}", json!({"out": args.out.display().to_string(), "last": last}));
        return Ok(());
    }
    say!("{}", args.out.display());
    for gate in &last.gates {
        say!("{:10} {:10} {:.3} of {}", gate.kind, gate.split, gate.accuracy, gate.items);
    }
    Ok(())
}

/// How far the loss is above what no model can go below, and the share of right answers by gate.
fn in_words(event: &PretrainEvent) -> String {
    let gates = event.gates.iter().filter(|gate| gate.split == "validation");
    let gates: Vec<String> = gates.map(|gate| format!("{} {:.3}", gate.kind, gate.accuracy)).collect();
    let above =
        event.loss.zip(event.floor).map_or_else(|| "-".to_owned(), |(loss, floor)| format!("{:.4}", loss - floor));
    format!("loss-floor {above}  determined {:.4}  {}", event.validation_determined, gates.join("  "))
}
