//! `smooth-probe pretrain`: the embedded model, made by one command.

use super::{open, progress};
use crate::pretrain::recipe::Recipe;
use crate::pretrain::run::pretrain;
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct PretrainArgs {
    /// Folder for config.json, tokenizer.json, model.safetensors and the log; a run that was interrupted
    /// there goes on from its checkpoint.
    #[arg(long, default_value = "models/embedded")]
    out: PathBuf,
    /// A recipe (TOML); by default the one of the embedded model. Unset keys keep its values.
    #[arg(long)]
    recipe: Option<PathBuf>,
}

pub(super) fn run(args: &PretrainArgs, quiet: bool) -> Result<()> {
    let recipe = match &args.recipe {
        None => Recipe::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| open::unreadable(path))?;
            toml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.message()))?
        }
    };
    let bar = progress::bar(recipe.total_steps(), "steps", quiet);
    let last = pretrain(&recipe, &args.out, &mut |event, total| {
        bar.set_position(event.step);
        let gates: Vec<String> = event
            .gates
            .iter()
            .filter(|gate| gate.split == "validation")
            .map(|gate| format!("{} {:.3}", gate.kind, gate.accuracy))
            .collect();
        let above = event.loss.zip(event.floor).map_or(f64::NAN, |(loss, floor)| loss - floor);
        let line = format!(
            "step {}/{total}  {:.0} s  loss-floor {above:.4}  determined {:.4}  {}",
            event.step,
            event.seconds,
            event.validation_determined,
            gates.join("  ")
        );
        if bar.is_hidden() && !quiet {
            note!("{line}");
        }
        bar.println(line);
    })?;
    bar.finish_and_clear();
    say!("{}", args.out.display());
    for gate in &last.gates {
        say!("{:10} {:10} {:.3} of {}", gate.kind, gate.split, gate.accuracy, gate.items);
    }
    Ok(())
}
