//! Checkpoints: everything that a run needs to go on as if it had never stopped.

use super::optimizer::Moments;
use super::{Subject, TrainError};
use crate::model::{ModelError, weights};
use crate::persist;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const STATE_FILE: &str = "trainer_state.json";
const MOMENTS_FILE: &str = "optimizer.safetensors";

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Optimizer steps done.
    pub(super) step: u64,
    /// Lowest validation loss so far and the step after which it was seen.
    pub(super) best: Option<(f64, u64)>,
    /// Validations since then.
    pub(super) stale: u64,
    /// Whether early stopping has ended the run.
    pub(super) stopped: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    progress: Progress,
    /// Hash of what must be the same for a continued run.
    fingerprint: String,
    /// Hash of what was trained, to tell a damaged file.
    weights: String,
}

/// The checkpoint of a run: one folder, replaced as a whole.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    folder: PathBuf,
    fingerprint: String,
}

impl Checkpoint {
    /// The checkpoint at `folder` of the run that `fingerprint` names.
    #[must_use]
    pub fn new(folder: &Path, fingerprint: &str) -> Self {
        Self { folder: folder.to_path_buf(), fingerprint: fingerprint.to_owned() }
    }

    /// Writes what was trained, the optimizer's moments and the progress.
    pub(super) fn save(
        &self,
        subject: &Subject,
        moments: &Moments,
        progress: &Progress,
        base_model: &str,
    ) -> Result<(), TrainError> {
        persist::replace_folder(&self.folder, |folder| {
            subject.save(folder, base_model)?;
            let tensors = moments.to_tensors();
            weights::save_tensors(&folder.join(MOMENTS_FILE), &tensors, None).map_err(ModelError::from)?;
            let state = StateFile {
                progress: progress.clone(),
                fingerprint: self.fingerprint.clone(),
                weights: weights_hash(folder, subject)?,
            };
            let text = serde_json::to_string_pretty(&state).map_err(|e| broken(&e.to_string()))?;
            Ok(persist::write_file(&folder.join(STATE_FILE), text.as_bytes())?)
        })
    }

    /// Sets `subject` to the newest whole checkpoint; `None` if there is none.
    pub(super) fn load(&self, subject: &Subject) -> Result<Option<(Moments, Progress)>, TrainError> {
        let Some(folder) = persist::whole_folder(&self.folder) else { return Ok(None) };
        let path = folder.join(STATE_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| TrainError::Unreadable { file: path.display().to_string(), source })?;
        let state: StateFile = serde_json::from_str(&text).map_err(|e| broken(&format!("{}: {e}", path.display())))?;
        if state.fingerprint != self.fingerprint {
            return Err(broken("it was made with other settings, model or data"));
        }
        if weights_hash(&folder, subject)? != state.weights {
            return Err(broken(&format!("{} is damaged", folder.join(weights_file(subject)).display())));
        }
        let tensors = weights::load_adapter_file(&folder.join(weights_file(subject))).map_err(ModelError::from)?;
        subject.restore(&tensors)?;
        let saved = weights::load_adapter_file(&folder.join(MOMENTS_FILE)).map_err(ModelError::from)?;
        let moments = Moments::from_tensors(saved, subject.variables(), state.progress.step)?;
        Ok(Some((moments, state.progress)))
    }

    /// Writes a checkpoint of a run whose only progress is its step.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save_model(&self, subject: &Subject, moments: &Moments, step: u64) -> Result<(), TrainError> {
        self.save(subject, moments, &Progress { step, ..Progress::default() }, "")
    }

    /// Sets `subject` to the checkpoint, and answers its moments and step; `None` if there is none.
    ///
    /// # Errors
    /// The checkpoint is damaged or belongs to another run.
    pub fn load_model(&self, subject: &Subject) -> Result<Option<(Moments, u64)>, TrainError> {
        Ok(self.load(subject)?.map(|(moments, progress)| (moments, progress.step)))
    }
}

fn weights_file(subject: &Subject) -> &'static str {
    if subject.peft().is_some() { "adapter_model.safetensors" } else { "model.safetensors" }
}

fn weights_hash(folder: &Path, subject: &Subject) -> Result<String, TrainError> {
    let path = folder.join(weights_file(subject));
    crate::hash::sha256_file(&path)
        .map_err(|source| TrainError::Unreadable { file: path.display().to_string(), source })
}

fn broken(problem: &str) -> TrainError {
    TrainError::Checkpoint { problem: problem.to_owned() }
}
