//! A run's event log for TensorBoard, beside `events.jsonl`, which stays the record.
//!
//! An event file is a row of TFRecords, each a protocol buffer `Event` with the values of one step as scalars.

mod crc32c;
mod message;
mod record;

use super::events::StepEvent;
use super::trainer::Observer;
use crate::persist::{PersistError, create_folder};
use record::write_record;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the names of event files hold, by which TensorBoard finds them.
const MARK: &str = "tfevents";

/// Why there is no event file, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum TensorBoardError {
    /// The folder holds another run's.
    #[error("--tensorboard {0}: holds the events of a run already; choose another folder, or go on with --resume")]
    Used(String),
    /// The file cannot be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
}

/// Writes the scalars of a run while it goes on: `loss`, `lr`, `grad_norm`, `tokens_per_second`; where they are measured
/// `val_loss`, `val_accuracy`, `penalty`, `lambda/PATH`, and `similarity/layer_K` for the layers 0 to L with
/// `similarity/final_norm`, those before training at step 0.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
    begun: bool,
    failed: Option<PersistError>,
}

impl TensorBoard {
    /// Refuses a folder that holds event files: they are another run's.
    ///
    /// # Errors
    /// It holds some, or cannot be read.
    pub fn refuse_used(folder: &Path) -> Result<(), TensorBoardError> {
        match folder.exists() && event_files(folder)? > 0 {
            true => Err(TensorBoardError::Used(folder.display().to_string())),
            false => Ok(()),
        }
    }

    /// Begins an event file in `folder`; a run that is resumed adds one, and TensorBoard drops of the files before it
    /// what comes again.
    ///
    /// # Errors
    /// The folder holds event files and `resumed` is not set; it cannot be made or written.
    pub fn create(folder: &Path, resumed: bool) -> Result<Self, TensorBoardError> {
        if !resumed {
            Self::refuse_used(folder)?;
        }
        create_folder(folder)?;
        let before = event_files(folder)?;
        // Files are read in the order of their names: seconds first, and within a second the number.
        let name = format!("events.out.{MARK}.{:010}.smooth-probe.{before:04}", now() as u64);
        let path = folder.join(name);
        let created = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = created.map_err(|source| PersistError::new(&path, "create", source))?;
        let mut log = Self { file, path, begun: false, failed: None };
        log.append(&message::version(now()))?;
        Ok(log)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// Some step could not be written; the file holds those before it.
    pub fn finish(self) -> Result<(), TensorBoardError> {
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn append(&mut self, event: &[u8]) -> Result<(), PersistError> {
        write_record(&mut self.file, event).map_err(|source| PersistError::new(&self.path, "write", source))
    }

    fn add(&mut self, event: &StepEvent) -> Result<(), PersistError> {
        if !std::mem::replace(&mut self.begun, true) && event.step > 1 {
            self.append(&message::restart(now(), event.step))?;
        }
        if let Some(similarity) = &event.similarity_before {
            self.append(&message::scalars(now(), 0, &similarities(similarity)))?;
        }
        self.append(&message::scalars(now(), event.step, &scalars(event)))
    }
}

impl Observer for TensorBoard {
    fn step(&mut self, event: &StepEvent, _total: u64) {
        // The first failure is kept, and ends the file: a gap would be taken for the run's.
        if self.failed.is_none() {
            self.failed = self.add(event).err();
        }
    }
}

/// How many event files a folder holds.
fn event_files(folder: &Path) -> Result<usize, PersistError> {
    let unreadable = |source| PersistError::new(folder, "read", source);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        count += usize::from(entry.map_err(unreadable)?.file_name().to_string_lossy().contains(MARK));
    }
    Ok(count)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The scalars of a step, by tag.
fn scalars(event: &StepEvent) -> Vec<(String, f64)> {
    let rate = event.tokens as f64 / event.seconds.max(1e-9);
    let always = [("loss", event.loss), ("lr", event.lr), ("grad_norm", event.grad_norm), ("tokens_per_second", rate)];
    let measured = [("val_loss", event.val_loss), ("val_accuracy", event.val_accuracy), ("penalty", event.penalty)];
    let measured = measured.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
    let mut all: Vec<(String, f64)> =
        always.into_iter().chain(measured).map(|(tag, value)| (tag.to_owned(), value)).collect();
    all.extend(event.lambda.iter().map(|(path, &lambda)| (format!("lambda/{path}"), lambda)));
    all.extend(event.similarity.as_deref().map(similarities).unwrap_or_default());
    all
}

/// Layers 0 to L, then after the final norm; one without a value is left out.
fn similarities(values: &[Option<f64>]) -> Vec<(String, f64)> {
    let last = values.len().saturating_sub(1);
    let tag = |layer: usize| match layer == last {
        true => "similarity/final_norm".to_owned(),
        false => format!("similarity/layer_{layer}"),
    };
    values.iter().enumerate().filter_map(|(layer, value)| Some((tag(layer), (*value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn event(step: u64) -> StepEvent {
        StepEvent {
            step,
            loss: 2.5,
            penalty: None,
            lr: 1e-3,
            tokens: 30,
            seconds: 0.5,
            grad_norm: 0.75,
            epoch: 0.1,
            lambda: BTreeMap::from([("all".to_owned(), 0.25)]),
            val_loss: Some(3.0),
            val_accuracy: None,
            similarity: Some(vec![Some(0.125), None, Some(0.5), Some(0.625)]),
            similarity_before: None,
            phase_seconds: None,
        }
    }

    #[test]
    fn a_step_becomes_scalars_by_tag() {
        let expected = [
            ("loss", 2.5),
            ("lr", 1e-3),
            ("grad_norm", 0.75),
            ("tokens_per_second", 60.0),
            ("val_loss", 3.0),
            ("lambda/all", 0.25),
            ("similarity/layer_0", 0.125),
            ("similarity/layer_2", 0.5),
            ("similarity/final_norm", 0.625),
        ];
        assert_eq!(scalars(&event(1)), expected.map(|(tag, value)| (tag.to_owned(), value)));
    }

    #[test]
    fn a_folder_with_a_run_is_refused_but_for_one_that_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs/run");
        let mut log = TensorBoard::create(&folder, false).unwrap();
        log.step(&event(1), 2);
        log.finish().unwrap();
        let refused = TensorBoard::create(&folder, false).unwrap_err().to_string();
        assert!(refused.contains("logs/run") && refused.contains("--resume"), "{refused}");
        TensorBoard::create(&folder, true).unwrap().finish().unwrap();
        let mut names: Vec<String> =
            std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert!(names[0].ends_with(".smooth-probe.0000") && names[1].ends_with(".smooth-probe.0001"), "{names:?}");
    }
}
