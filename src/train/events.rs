//! The event log of a run: one JSON line a step.

use super::TrainError;
use crate::persist;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// What happened in one optimizer step, and after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss over all target tokens of the step's batch, before the update, in nats.
    pub loss: f64,
    /// Mean over the batch's texts of how alike their tokens are, where the cosine regulariser is on; the loss does not hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<f64>,
    /// The learning rate of the update.
    pub lr: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// The learned λ after the step, by the path of the block or module that each belongs to; only where λ is learned.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lambda: BTreeMap<String, f64>,
    /// Mean validation loss after the step, where it was validated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Share of validation targets predicted exactly after the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_accuracy: Option<f64>,
    /// Token similarity of the probe set after the step: layers 0 to L, then after the final norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<Vec<Option<f64>>>,
    /// The same before the first step; on the first line only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity_before: Option<Vec<Option<f64>>>,
    /// Seconds by phase ([`crate::profile::Phase::name`]), validation and similarity after the step among them; only
    /// where a profile is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_seconds: Option<BTreeMap<String, f64>>,
}

/// The log file, open for appending.
#[derive(Debug)]
pub(super) struct EventLog {
    file: File,
    path: String,
}

impl EventLog {
    /// Opens the log of a run that continues after `step`: later lines, which the resumed run will write
    /// again, and a last line that a crash cut short are dropped.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let mut kept = String::new();
        if step > 0 && path.exists() {
            for event in read_events(path)?.into_iter().filter(|event| event.step <= step) {
                kept.push_str(&line(&event, path)?);
            }
        }
        persist::write_file(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|source| unreadable(path, source))?;
        Ok(Self { file, path: path.display().to_string() })
    }

    pub(super) fn append(&mut self, event: &StepEvent) -> Result<(), TrainError> {
        let text = line(event, Path::new(&self.path))?;
        self.file.write_all(text.as_bytes()).map_err(|source| unreadable(Path::new(&self.path), source))
    }
}

/// The events of a log, up to a last line that a crash cut short.
///
/// # Errors
/// The file cannot be read.
pub fn read_events(path: &Path) -> Result<Vec<StepEvent>, TrainError> {
    let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
    Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect())
}

fn line(event: &StepEvent, path: &Path) -> Result<String, TrainError> {
    let mut text = serde_json::to_string(event).map_err(|e| unreadable(path, e.into()))?;
    text.push('\n');
    Ok(text)
}

fn unreadable(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Unreadable { file: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(step: u64) -> StepEvent {
        StepEvent {
            penalty: None,
            step,
            loss: 1.0 / step as f64,
            lr: 1e-3,
            tokens: 10,
            seconds: 0.1,
            grad_norm: 0.5,
            lambda: BTreeMap::new(),
            epoch: 0.1,
            val_loss: None,
            val_accuracy: None,
            similarity: Some(vec![Some(0.1), None]),
            similarity_before: None,
            phase_seconds: None,
        }
    }

    #[test]
    fn a_resumed_log_drops_what_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::open(&path, 0).unwrap();
        (1..=5).for_each(|step| log.append(&event(step)).unwrap());
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 6, \"lo");
        std::fs::write(&path, text).unwrap();
        let mut log = EventLog::open(&path, 3).unwrap();
        log.append(&event(4)).unwrap();
        let steps: Vec<u64> = read_events(&path).unwrap().iter().map(|e| e.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert_eq!(read_events(&path).unwrap()[3], event(4));
    }
}
