//! Who watches a training run: the terminal, TensorBoard, and what the result will say.

use super::dashboard::Dashboard;
use crate::cli::progress::TrainingProgress;
use crate::train::{Observer, StepEvent, TensorBoard};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

/// What a terminal shows.
enum Shown {
    Line(TrainingProgress),
    Curves(Box<Dashboard>),
}

/// Everyone who watches a run.
pub(super) struct Watchers {
    shown: Shown,
    log: Option<TensorBoard>,
    step: Option<StepEvent>,
    /// The last of what is not measured in every step.
    val_loss: Option<f64>,
    val_accuracy: Option<f64>,
    similarity: Option<Vec<Option<f64>>>,
    similarity_before: Option<Vec<Option<f64>>>,
}

impl Watchers {
    /// `curves` where a terminal is there to show them; `log` is the folder of event files.
    pub(super) fn new(curves: bool, quiet: bool, log: Option<&Path>, resumed: bool) -> Result<Self> {
        let board = if curves && !quiet { Dashboard::on_terminal() } else { None };
        let shown = match board {
            Some(board) => Shown::Curves(Box::new(board)),
            None => Shown::Line(TrainingProgress::new(quiet)),
        };
        let log = log.map(|folder| TensorBoard::create(folder, resumed)).transpose()?;
        Ok(Self {
            shown,
            log,
            step: None,
            val_loss: None,
            val_accuracy: None,
            similarity: None,
            similarity_before: None,
        })
    }

    /// The last that was seen of each value; null for what never was, all of it where nothing was left to do.
    pub(super) fn last(&self) -> Value {
        json!({
            "step": self.step.as_ref().map(|event| event.step),
            "loss": self.step.as_ref().map(|event| event.loss),
            "lr": self.step.as_ref().map(|event| event.lr),
            "val_loss": self.val_loss,
            "val_accuracy": self.val_accuracy,
            "similarity": self.similarity,
            "similarity_before": self.similarity_before,
        })
    }

    /// Ends the log.
    ///
    /// # Errors
    /// The log could not be written.
    pub(super) fn finish(self) -> Result<()> {
        Ok(self.log.map_or(Ok(()), TensorBoard::finish)?)
    }
}

impl Observer for Watchers {
    fn step(&mut self, event: &StepEvent, total: u64) {
        match &mut self.shown {
            Shown::Line(line) => line.step(event, total),
            Shown::Curves(board) => board.step(event, total),
        }
        if let Some(log) = &mut self.log {
            log.step(event, total);
        }
        self.val_loss = event.val_loss.or(self.val_loss);
        self.val_accuracy = event.val_accuracy.or(self.val_accuracy);
        self.similarity = event.similarity.clone().or(self.similarity.take());
        self.similarity_before = event.similarity_before.clone().or(self.similarity_before.take());
        self.step = Some(event.clone());
    }
}
