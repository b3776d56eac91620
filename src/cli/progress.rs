//! What the user sees while work goes on: a live line on a terminal, plain lines in a log.

use super::pace::Pace;
use super::terminal::{Charset, Verbosity, stderr_columns, verbosity};
use crate::train::{Observer, StepEvent};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The time between two plain lines of a log.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// A progress bar over `total` units; silent if `quiet` or if stderr is no terminal.
pub(super) fn bar(total: u64, unit: &str, quiet: bool) -> ProgressBar {
    let wide = bar_width();
    styled(total, quiet, &format!("{{bar:{wide}}} {{pos}}/{{len}} {unit}  {{per_sec}}  ETA {{eta}}  {{wide_msg}}"))
}

/// Columns of a bar: fewer where they are wanted for what stands behind it.
fn bar_width() -> usize {
    if stderr_columns().is_some_and(|columns| columns < 100) { 10 } else { 24 }
}

/// A bar of one line, cut where the terminal ends.
fn styled(total: u64, quiet: bool, template: &str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = style(template) {
        bar.set_style(style);
    }
    bar
}

/// A style whose characters the terminal shows.
pub(super) fn style(template: &str) -> Result<ProgressStyle, indicatif::style::TemplateError> {
    let style = ProgressStyle::with_template(template)?;
    Ok(match Charset::of_locale() {
        Charset::Unicode => style,
        Charset::Ascii => style.progress_chars("#>-").tick_chars("|/-\\ "),
    })
}

/// A line on a terminal while something goes on whose amount is not known; gone when dropped.
pub(super) struct Waiting {
    bar: ProgressBar,
    started: Instant,
}

/// Says on a terminal what is waited for, and how long already; silent under `--quiet`.
pub(super) fn waiting(what: &str) -> Waiting {
    let bar = styled(0, verbosity() == Verbosity::Quiet, "{spinner} {wide_msg} {elapsed}");
    if !bar.is_hidden() {
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    Waiting { bar, started: Instant::now() }
}

impl Waiting {
    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
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
            bar: styled(0, quiet, &format!("{{prefix}} {{bar:{}}} {{wide_msg}}", bar_width())),
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

    /// Goes on under another name.
    pub(super) fn rename(&mut self, stage: &str) {
        stage.clone_into(&mut self.stage);
        self.bar.set_prefix(self.stage.clone());
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

/// Shows the download of a file of so many bytes; what it answers takes in how many more have come.
pub(super) fn download(file: &str, bytes: u64) -> Box<dyn FnMut(u64)> {
    let megabytes = |bytes: u64| bytes / 1_000_000;
    let mut progress = Progress::new("MB", false, EVERY);
    progress.expect(megabytes(bytes));
    progress.begin(file, megabytes(bytes));
    let mut come = 0;
    Box::new(move |more| {
        let before = megabytes(come);
        come += more;
        progress.advance(megabytes(come) - before);
    })
}

/// Shows a training run in one line.
pub(super) struct TrainingProgress {
    bar: ProgressBar,
    quiet: bool,
    pace: Pace,
    /// When the last plain line was due.
    last: Instant,
}

impl TrainingProgress {
    pub(super) fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let bar = styled(0, quiet, &format!("{{bar:{}}} {{wide_msg}}", bar_width()));
        Self { bar, quiet, pace: Pace::new(now), last: now }
    }
}

impl Observer for TrainingProgress {
    fn step(&mut self, event: &StepEvent, total: u64) {
        if self.pace.total == 0 {
            self.bar.set_length(total);
            self.pace.total = total;
            // What a run that is resumed had done before.
            self.pace.skip(event.step.saturating_sub(1));
        }
        self.pace.done = event.step;
        let now = Instant::now();
        let line = format!("{}  {}", self.pace.describe("steps", now), in_words(event));
        let due = now.saturating_duration_since(self.last) >= EVERY;
        let measured = event.val_loss.is_some() || event.similarity.is_some() || event.step == total;
        if self.bar.is_hidden() && !self.quiet && (measured || due) {
            note!("{line}");
            self.last = now;
        }
        self.bar.set_position(event.step);
        self.bar.set_message(line);
        if event.step == total {
            self.bar.finish();
        }
    }
}

/// What a step gave, the most important first: a narrow terminal cuts the rest.
pub(super) fn in_words(event: &StepEvent) -> String {
    let rate = event.tokens as f64 / event.seconds.max(1e-9);
    let mut line = format!("loss {:.4}", event.loss);
    if let Some(loss) = event.val_loss {
        line.push_str(&format!("  val {loss:.4}"));
    }
    if let Some(last) = event.similarity.as_deref().and_then(last_block) {
        line.push_str(&format!("  similarity {last:.3}"));
    }
    line.push_str(&format!("  lr {:.2e}  {rate:.0} tok/s", event.lr));
    line
}

/// The last block's of the similarities of layers 0 to L and after the final norm.
pub(super) fn last_block(similarity: &[Option<f64>]) -> Option<f64> {
    similarity.get(similarity.len().checked_sub(2)?).copied().flatten()
}
