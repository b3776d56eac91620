//! `smooth-probe pretrain`: the embedded model, made by one command.

use super::pace::Pace;
use super::{open, progress};
use crate::pretrain::recipe::Recipe;
use crate::pretrain::run::{PretrainEvent, pretrain};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
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
        say!("{:#}", described(&args.out, &last));
        return Ok(());
    }
    say!("{}", args.out.display());
    for gate in &last.gates {
        say!("{:10} {:10} {:.3} of {}", gate.kind, gate.split, gate.accuracy, gate.items);
    }
    Ok(())
}

/// What was made, for machines: `docs/json.md`.
fn described(out: &Path, last: &PretrainEvent) -> Value {
    json!({"out": out.display().to_string(), "last": last})
}

/// How far the loss is above what no model can go below, and the share of right answers by gate.
fn in_words(event: &PretrainEvent) -> String {
    let gates = event.gates.iter().filter(|gate| gate.split == "validation");
    let gates: Vec<String> = gates.map(|gate| format!("{} {:.3}", gate.kind, gate.accuracy)).collect();
    let above =
        event.loss.zip(event.floor).map_or_else(|| "-".to_owned(), |(loss, floor)| format!("{:.4}", loss - floor));
    format!("loss-floor {above}  determined {:.4}  {}", event.validation_determined, gates.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> PretrainEvent {
        PretrainEvent {
            step: 4,
            tokens: 64,
            seconds: 1.5,
            loss: Some(2.5),
            floor: Some(1.25),
            lr: 1e-3,
            validation_determined: 0.5,
            validation_loss: 2.0,
            gates: Vec::new(),
            similarity: Vec::new(),
            effective_rank: Vec::new(),
        }
    }

    #[test]
    fn before_the_first_step_there_is_no_loss() {
        assert_eq!(in_words(&event()), "loss-floor 1.2500  determined 0.5000  ");
        assert!(in_words(&PretrainEvent { loss: None, ..event() }).starts_with("loss-floor -  "));
    }

    /// Making a model takes minutes, so the tests of the program do not hold this verb to the page.
    #[test]
    fn the_keys_are_those_of_the_page() {
        let value = described(Path::new("out"), &event());
        let page = include_str!("../../docs/json.md").split("\n## pretrain\n").nth(1).unwrap();
        let rows: Vec<&str> =
            page.lines().skip(1).take_while(|l| !l.starts_with('#')).filter(|l| l.starts_with("| `")).collect();
        assert_eq!(value.as_object().unwrap().len(), rows.len());
        for (key, row) in value.as_object().unwrap().keys().zip(&rows) {
            assert!(row.starts_with(&format!("| `{key}` |")), "{row}");
        }
        for key in value["last"].as_object().unwrap().keys() {
            assert!(rows[1].contains(&format!("`{key}`")), "{key}");
        }
    }
}
