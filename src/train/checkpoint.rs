//! Checkpoints: everything that a run needs to go on as if it had never stopped.

use super::optimizer::Moments;
use super::{Subject, TrainError};
use crate::model::{ModelError, weights};
use crate::persist;
use serde::{Deserialize, Serialize};
use std::path::Path;

const STATE_FILE: &str = "trainer_state.json";
const MOMENTS_FILE: &str = "optimizer.safetensors";

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Optimizer steps done.
    pub(super) step: u64,
    /// Lowest validation loss so far and the step after which it was seen.
    pub(super) best: Option<(f64, u64)>,
    /// Validations since then.
    pub(super) stale: u64,
    /// Whether early stopping has ended the run.
    pub(super) stopped: bool,
    /// Hash of what must be the same for a continued run.
    pub(super) fingerprint: String,
    /// Hash of what was trained, to tell a damaged file.
    pub(super) weights: String,
}

/// Writes `last/` as a whole: what was trained, the optimizer's moments, the progress.
pub(super) fn save(
    target: &Path,
    subject: &Subject,
    moments: &Moments,
    progress: &Progress,
    base_model: &str,
) -> Result<(), TrainError> {
    persist::replace_folder(target, |folder| {
        subject.save(folder, base_model)?;
        let tensors = moments.to_tensors();
        weights::save_tensors(&folder.join(MOMENTS_FILE), &tensors, None).map_err(ModelError::from)?;
        let progress = Progress { weights: weights_hash(folder, subject)?, ..progress.clone() };
        let text = serde_json::to_string_pretty(&progress).map_err(|e| broken(&e.to_string()))?;
        Ok(persist::write_file(&folder.join(STATE_FILE), text.as_bytes())?)
    })
}

/// Sets `subject` to the newest whole checkpoint at `target`; `None` if there is none.
pub(super) fn load(
    target: &Path,
    subject: &Subject,
    fingerprint: &str,
) -> Result<Option<(Moments, Progress)>, TrainError> {
    let Some(folder) = persist::whole_folder(target) else { return Ok(None) };
    let path = folder.join(STATE_FILE);
    let text = std::fs::read_to_string(&path)
        .map_err(|source| TrainError::Unreadable { file: path.display().to_string(), source })?;
    let progress: Progress = serde_json::from_str(&text).map_err(|e| broken(&format!("{}: {e}", path.display())))?;
    if progress.fingerprint != fingerprint {
        return Err(broken("it was made with other settings, model or data"));
    }
    if weights_hash(&folder, subject)? != progress.weights {
        return Err(broken(&format!("{} is damaged", folder.join(weights_file(subject)).display())));
    }
    let tensors = weights::load_adapter_file(&folder.join(weights_file(subject))).map_err(ModelError::from)?;
    subject.restore(&tensors)?;
    let saved = weights::load_adapter_file(&folder.join(MOMENTS_FILE)).map_err(ModelError::from)?;
    let moments = Moments::from_tensors(saved, subject.variables(), progress.step)?;
    Ok(Some((moments, progress)))
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
