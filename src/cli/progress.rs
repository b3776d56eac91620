//! What the user sees while work goes on: a live line on a terminal, plain lines in a log.

use super::pace::Pace;
use crate::train::{Observer, StepEvent};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A progress bar over `total` units; silent if `quiet` or if stderr is no terminal.
pub(super) fn bar(total: u64, unit: &str, quiet: bool) -> ProgressBar {
    styled(total, quiet, &format!("{{prefix}} {{bar:24}} {{pos}}/{{len}} {unit}  {{per_sec}}  ETA {{eta}}  {{msg}}"))
}

fn styled(total: u64, quiet: bool, template: &str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Work of a known amount, in stages that follow each other: a live line on a terminal, else a plain line now and
/// then; silent if `quiet`.
pub(super) struct Progress {
    quiet: bool,
    bar: ProgressBar,
    unit: &'static str,
    pace: Pace,
    stage: String,
    /// Where the stage ends, in units of the whole.
    end: u64,
    /// The time between two plain lines.
    every: Duration,
    /// When the last plain line was due.
    last: Instant,
    /// What it said was done; none if there was none.
    said: Option<u64>,
}

impl Progress {
    pub(super) fn new(unit: &'static str, quiet: bool, every: Duration) -> Self {
        let now = Instant::now();
        Self {
            quiet,
            bar: styled(0, quiet, "{prefix} {bar:24} {msg}"),
            unit,
            pace: Pace::new(now),
            stage: String::new(),
            end: 0,
            every,
            last: now,
            said: None,
        }
    }

    /// Says how much work there is in all, as far as it is known.
    pub(super) fn expect(&mut self, total: u64) {
        self.pace.total = total;
        self.bar.set_length(total);
    }

    /// Begins a stage of so many units.
    pub(super) fn begin(&mut self, stage: &str, units: u64) {
        stage.clone_into(&mut self.stage);
        self.end = self.pace.done + units;
        self.bar.set_prefix(self.stage.clone());
        self.show(Instant::now());
    }

    /// Names the stage in a plain line at once: one that says nothing before its end.
    pub(super) fn announce(&mut self) {
        if self.bar.is_hidden() && !self.quiet {
            self.print(Instant::now());
        }
    }

    /// So many units of the stage were done by an earlier run of the program.
    pub(super) fn skip(&mut self, units: u64) {
        let before = self.pace.done;
        self.pace.skip(units.min(self.end.saturating_sub(before)));
        self.show(Instant::now());
    }

    /// So many units of the stage are done now.
    pub(super) fn advance(&mut self, units: u64) {
        self.pace.done = (self.pace.done + units).min(self.end.max(self.pace.done));
        self.show(Instant::now());
    }

    /// Ends the stage, whatever part of it was said to be done.
    pub(super) fn finish_stage(&mut self) {
        self.advance(u64::MAX - self.pace.done);
    }

    /// Ends the work.
    pub(super) fn finish(&mut self) {
        self.bar.finish_and_clear();
        if self.said.is_some_and(|said| said != self.pace.done) {
            self.print(Instant::now());
        }
    }

    /// Prints a line, unless `quiet`.
    pub(super) fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| note!("{line}"));
        }
    }

    fn show(&mut self, now: Instant) {
        if !self.bar.is_hidden() {
            self.bar.set_position(self.pace.done);
            self.bar.set_message(self.pace.describe(self.unit, now));
        } else if !self.quiet && now.saturating_duration_since(self.last) >= self.every {
            self.print(now);
        }
    }

    fn print(&mut self, now: Instant) {
        note!("{}: {}", self.stage, self.pace.describe(self.unit, now));
        self.last = now;
        self.said = Some(self.pace.done);
    }
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
