//! What the user sees while work goes on: a live line on a terminal, plain lines in a log.

use crate::train::{Observer, StepEvent};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// A progress bar over `total` units; silent if `quiet` or if stderr is no terminal.
pub(super) fn bar(total: u64, unit: &str, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let template = format!("{{prefix}} {{bar:24}} {{pos}}/{{len}} {unit}  {{per_sec}}  ETA {{eta}}  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// Shows a training run.
pub(super) struct TrainingProgress {
    bar: ProgressBar,
    plain: bool,
}

impl TrainingProgress {
    pub(super) fn new(total: u64, quiet: bool) -> Self {
        Self { bar: bar(total, "steps", quiet), plain: !quiet && !std::io::stderr().is_terminal() }
    }
}

impl Observer for TrainingProgress {
    fn step(&mut self, event: &StepEvent, total: u64) {
        self.bar.set_position(event.step);
        let rate = event.tokens as f64 / event.seconds.max(1e-9);
        let mut line = format!("loss {:.4}  lr {:.2e}  {rate:.0} tok/s", event.loss, event.lr);
        if let Some(loss) = event.val_loss {
            line.push_str(&format!("  val {loss:.4}"));
        }
        if let Some(last) = event.similarity.as_ref().and_then(|s| s.get(s.len().checked_sub(2)?).copied().flatten()) {
            line.push_str(&format!("  similarity {last:.3}"));
        }
        if self.plain && (event.val_loss.is_some() || event.similarity.is_some() || event.step == total) {
            note!("step {}/{total}  {line}", event.step);
        }
        self.bar.set_message(line);
        if event.step == total {
            self.bar.finish();
        }
    }
}
