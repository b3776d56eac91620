//! The course of a cell's training, and how it is kept when the cell is asked to stop.

use super::StudyError;
use super::cpu_time::CpuClock;
use crate::persist;
use crate::train::{Observer, StepEvent};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A moment of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CoursePoint {
    /// Steps done.
    pub step: u64,
    /// Validation loss, in nats.
    pub loss: f64,
    /// Token similarity of the last block over the watched texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
}

/// How a cell is asked to stop, and where it keeps what it has done.
#[derive(Debug, Clone, Copy)]
pub struct Pause<'a> {
    /// Set when it is to stop after the step that it is at.
    pub stop: &'a AtomicBool,
    /// The store's folder.
    pub folder: &'a Path,
}

/// What was seen of a training so far. Beside the checkpoint it is a TOML file, which keeps numbers to the last bit.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Course {
    /// Seconds that were spent before the last pause.
    pub(super) seconds: f64,
    /// CPU time of the steps.
    pub(super) clock: CpuClock,
    /// What was validated.
    #[serde(default)]
    pub(super) points: Vec<CoursePoint>,
}

const FILE: &str = "course.toml";

impl Course {
    /// Takes the course out of the folder of a paused training: from now on the training is not paused, and if it dies it
    /// begins anew. `None` where there is none.
    pub(super) fn take(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).ok();
        std::fs::remove_file(&path).ok()?;
        toml::from_str(&text?).ok()
    }

    /// Lays the course beside the checkpoint that was just written.
    pub(super) fn lay_down(mut self, folder: &Path, begun: Instant) -> Result<(), StudyError> {
        self.seconds += begun.elapsed().as_secs_f64();
        let text = toml::to_string(&self).map_err(|error| StudyError::Settings { problem: error.to_string() })?;
        Ok(persist::write_file(&folder.join(FILE), text.as_bytes())?)
    }

    /// Whether a training is paused in the folder.
    pub(super) fn lies_in(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }
}

impl Observer for Course {
    fn step(&mut self, event: &StepEvent, _total: u64) {
        // What was validated or probed after the step is no part of its time.
        let alone = event.val_loss.is_none() && event.similarity.is_none() && event.similarity_before.is_none();
        self.clock.lap(alone);
        if let Some(loss) = event.val_loss {
            let last = event.similarity.as_ref().and_then(|s| s.get(s.len().checked_sub(2)?).copied().flatten());
            self.points.push(CoursePoint { step: event.step, loss, similarity: last });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_is_taken_once_and_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let point = CoursePoint { step: 44, loss: 1.232_131_235_535_531, similarity: Some(0.1 + 0.2) };
        let course = Course { points: vec![point.clone()], ..Course::default() };
        course.lay_down(dir.path(), Instant::now()).unwrap();
        assert!(Course::lies_in(dir.path()));
        let taken = Course::take(dir.path()).unwrap();
        assert_eq!(taken.points, [point]);
        assert_eq!(Course::take(dir.path()), None);
        assert!(!Course::lies_in(dir.path()));
    }
}
