//! `train --dashboard`: a run as curves, a line each, drawn anew after every step.

use crate::cli::pace::Pace;
use crate::cli::progress::{self, last_block};
use crate::cli::sparkline::{fit, range, sparkline};
use crate::cli::terminal::{Charset, stderr_columns};
use crate::train::{Observer, StepEvent};
use indicatif::{MultiProgress, ProgressBar};
use std::time::Instant;

/// Columns that a curve takes: enough to see a course, in a line that the eye takes in.
const WIDTH: (usize, usize) = (16, 64);
/// Columns in front of a curve, and behind it.
const AROUND: (usize, usize) = (30, 30);

/// Curves on a terminal.
pub(super) struct Dashboard {
    lines: Vec<ProgressBar>,
    /// Draws the lines below each other.
    _all: MultiProgress,
    charset: Charset,
    history: History,
}

impl Dashboard {
    /// `None` where stderr is no terminal that lines can be drawn on anew.
    pub(super) fn on_terminal() -> Option<Self> {
        let all = MultiProgress::new();
        if all.is_hidden() {
            return None;
        }
        let lines = (0..History::LINES).map(|_| all.add(line())).collect();
        Some(Self { lines, _all: all, charset: Charset::of_locale(), history: History::new(Instant::now()) })
    }
}

/// One line without a bar, cut where the terminal ends.
fn line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    match progress::style("{wide_msg}") {
        Ok(style) => line.with_style(style),
        Err(_) => line,
    }
}

impl Observer for Dashboard {
    fn step(&mut self, event: &StepEvent, total: u64) {
        self.history.add(event, total);
        let columns = stderr_columns().unwrap_or(80);
        let width = columns.saturating_sub(AROUND.0 + AROUND.1).clamp(WIDTH.0, WIDTH.1);
        for (line, text) in self.lines.iter().zip(self.history.lines(width, self.charset, Instant::now())) {
            line.set_message(text);
        }
        if event.step == total {
            self.lines.iter().for_each(ProgressBar::finish);
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        // A run that stops early leaves its curves too.
        self.lines.iter().filter(|line| !line.is_finished()).for_each(ProgressBar::finish);
    }
}

/// What has been seen of a run.
struct History {
    pace: Pace,
    epoch: f64,
    loss: Vec<Option<f64>>,
    validation: Vec<Option<f64>>,
    /// Lowest validation loss and its step.
    best: Option<(f64, u64)>,
    rate: Vec<Option<f64>>,
    /// Tokens a second.
    speed: Vec<Option<f64>>,
    /// By layer, before training.
    before: Option<Vec<Option<f64>>>,
    /// By layer, as last measured, and after which step.
    now: Option<(u64, Vec<Option<f64>>)>,
    /// Of the last block, measurement by measurement.
    last_block: Vec<Option<f64>>,
}

impl History {
    const LINES: usize = 9;

    fn new(started: Instant) -> Self {
        Self {
            pace: Pace::new(started),
            epoch: 0.0,
            loss: Vec::new(),
            validation: Vec::new(),
            best: None,
            rate: Vec::new(),
            speed: Vec::new(),
            before: None,
            now: None,
            last_block: Vec::new(),
        }
    }

    fn add(&mut self, event: &StepEvent, total: u64) {
        if self.pace.total == 0 {
            self.pace.total = total;
            self.pace.skip(event.step.saturating_sub(1));
        }
        self.pace.done = event.step;
        self.epoch = event.epoch;
        self.loss.push(Some(event.loss));
        self.rate.push(Some(event.lr));
        self.speed.push(Some(event.tokens as f64 / event.seconds.max(1e-9)));
        if let Some(loss) = event.val_loss {
            self.validation.push(Some(loss));
            if self.best.is_none_or(|(best, _)| loss < best) {
                self.best = Some((loss, event.step));
            }
        }
        if let Some(similarity) = &event.similarity_before {
            self.last_block.push(last_block(similarity));
            self.before = Some(similarity.clone());
        }
        if let Some(similarity) = &event.similarity {
            self.last_block.push(last_block(similarity));
            self.now = Some((event.step, similarity.clone()));
        }
    }

    /// The lines; curves of at most `width` characters.
    fn lines(&self, width: usize, charset: Charset, now: Instant) -> [String; Self::LINES] {
        let curve = |values: &[Option<f64>]| {
            let values = fit(values, width);
            range(&values).map(|range| sparkline(&values, range, charset)).unwrap_or_default()
        };
        let row = |label: &str, value: String, curve: &str, rest: String| {
            format!("{label:<12} {value:>14}  {curve}  {rest}").trim_end().to_owned()
        };
        let last = |values: &[Option<f64>], show: fn(f64) -> String| {
            values.last().copied().flatten().map_or_else(|| "-".to_owned(), show)
        };
        let nats = |value: f64| format!("{value:.4}");
        let best = self.best.map_or_else(String::new, |(loss, step)| format!("lowest {loss:.4} after step {step}"));
        // Both curves of the layers on one scale, so that they can be compared.
        let layers = self.before.iter().chain(self.now.iter().map(|(_, values)| values));
        let blocks: Vec<&[Option<f64>]> = layers.map(|values| without_norm(values)).collect();
        let scale = range(blocks.iter().copied().flatten());
        let by_layer = |values: Option<&[Option<f64>]>| match (values, scale) {
            (Some(values), Some(scale)) => sparkline(&fit(without_norm(values), width), scale, charset),
            _ => String::new(),
        };
        let depth = blocks.first().map_or(0, |values| values.len().saturating_sub(1));
        let title = match scale {
            Some((low, high)) => format!("similarity by layer, 0 to {depth}, drawn from {low:.3} to {high:.3}"),
            None => "similarity by layer: not measured yet".to_owned(),
        };
        let (before, current) = (self.before.as_deref(), self.now.as_ref());
        let at = |values: Option<&[Option<f64>]>| {
            values.and_then(last_block).map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
        };
        let after = current.map_or_else(|| "now".to_owned(), |(step, _)| format!("step {step}"));
        let current = current.map(|(_, values)| values.as_slice());
        [
            format!("{}  epoch {:.2}", self.pace.describe("steps", now), self.epoch),
            row("loss", last(&self.loss, nats), &curve(&self.loss), String::new()),
            row("validation", last(&self.validation, nats), &curve(&self.validation), best),
            row("rate", last(&self.rate, |value| format!("{value:.2e}")), &curve(&self.rate), String::new()),
            row("speed", last(&self.speed, |value| format!("{value:.0} tok/s")), &curve(&self.speed), String::new()),
            title,
            row("  before", at(before), &by_layer(before), String::new()),
            row(&format!("  {after}"), at(current), &by_layer(current), String::new()),
            row("  last block", last(&self.last_block, nats), &curve(&self.last_block), "over the steps".to_owned()),
        ]
    }
}

/// Layers 0 to L alone.
fn without_norm(values: &[Option<f64>]) -> &[Option<f64>] {
    values.get(..values.len().saturating_sub(1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn event(step: u64) -> StepEvent {
        StepEvent {
            step,
            loss: 8.0 - step as f64,
            penalty: None,
            lr: 1e-3,
            tokens: 100,
            seconds: 0.5,
            grad_norm: 1.0,
            epoch: 0.25 * step as f64,
            lambda: BTreeMap::new(),
            val_loss: None,
            val_accuracy: None,
            similarity: None,
            similarity_before: None,
            phase_seconds: None,
        }
    }

    #[test]
    fn nothing_was_measured_yet() {
        let started = Instant::now();
        let mut history = History::new(started);
        history.add(&event(1), 8);
        let lines = history.lines(10, Charset::Unicode, started + Duration::from_secs(2));
        assert_eq!(lines[0], "1/8 steps  0.50/s  ETA 14 s  epoch 0.25");
        assert_eq!(lines[1], "loss                 7.0000  ▅");
        assert_eq!(lines[2], "validation                -");
        assert_eq!(lines[5], "similarity by layer: not measured yet");
    }

    #[test]
    fn a_run_in_curves() {
        let started = Instant::now();
        let mut history = History::new(started);
        let similarity = |last: f64| Some(vec![Some(0.0), Some(0.13), Some(last), Some(0.9)]);
        history.add(&StepEvent { similarity_before: similarity(0.2), ..event(1) }, 4);
        history.add(&StepEvent { val_loss: Some(6.5), similarity: similarity(0.31), ..event(2) }, 4);
        history.add(&event(3), 4);
        history.add(&StepEvent { val_loss: Some(7.5), similarity: similarity(0.4), ..event(4) }, 4);
        let lines = history.lines(10, Charset::Unicode, started + Duration::from_secs(2));
        assert_eq!(lines[0], "4/4 steps  2.00/s  ETA 0 s  epoch 1.00");
        assert_eq!(lines[1], "loss                 4.0000  █▆▃▁");
        assert_eq!(lines[2], "validation           7.5000  ▁█  lowest 6.5000 after step 2");
        assert_eq!(lines[3], "rate                1.00e-3  ▅▅▅▅");
        assert_eq!(lines[4], "speed             200 tok/s  ▅▅▅▅");
        assert_eq!(lines[5], "similarity by layer, 0 to 2, drawn from 0.000 to 0.400");
        assert_eq!(lines[6], "  before             0.2000  ▁▃▅");
        assert_eq!(lines[7], "  step 4             0.4000  ▁▃█");
        assert_eq!(lines[8], "  last block         0.4000  ▁▅█  over the steps");
        let ascii = history.lines(2, Charset::Ascii, started + Duration::from_secs(2));
        assert_eq!(ascii[1], "loss                 4.0000  @.");
        assert_eq!(ascii[7], "  step 4             0.4000  :@", "two places for three layers");
    }

    #[test]
    fn a_resumed_run_counts_what_was_done_before_as_no_speed() {
        let started = Instant::now();
        let mut history = History::new(started);
        history.add(&event(7), 8);
        let line = &history.lines(10, Charset::Unicode, started + Duration::from_secs(2))[0];
        assert_eq!(line, "7/8 steps  0.50/s  ETA 2 s  epoch 1.75");
    }
}
