//! Finished cells, by what they are: shared among studies and among processes.
//!
//! A cell is the file `DIGEST.toml`, which holds its identity beside its result. TOML keeps numbers to the last bit.

use super::StudyError;
use super::claim::{self, Claim, Holder};
use super::identity::Identity;
use crate::persist;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A claim that does not change for so long is stale: several signs of life were missed.
const STALE: Duration = Duration::from_secs(60);

/// A folder of finished cells.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    stale: Duration,
    /// The claims of others as they were first seen, and when.
    seen: Mutex<BTreeMap<String, (Option<Holder>, Instant)>>,
}

/// A cell in its file.
#[derive(Debug, Serialize, Deserialize)]
struct Stored<R> {
    identity: BTreeMap<String, String>,
    result: R,
}

/// How a cell stands.
#[derive(Debug)]
pub enum State<R> {
    /// It was finished, perhaps by another.
    Finished(R),
    /// It is this process's to run; [`Store::finish`] ends it.
    Free(Claim),
    /// Another process or thread runs it.
    Busy(Option<Holder>),
}

impl Store {
    /// The store in a folder, which is made.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StudyError> {
        persist::create_folder(folder)?;
        Ok(Self { folder: folder.to_path_buf(), stale: STALE, seen: Mutex::default() })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The result of a cell, if it is finished. What cannot be read, or is another's, is no result.
    #[must_use]
    pub fn finished<R: DeserializeOwned>(&self, identity: &Identity) -> Option<R> {
        let text = std::fs::read_to_string(self.file(identity, "toml")).ok()?;
        let stored: Stored<R> = toml::from_str(&text).ok()?;
        (stored.identity == identity.entries).then_some(stored.result)
    }

    /// Claims a cell, unless it is finished or another's.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin<R: DeserializeOwned>(&self, identity: &Identity) -> Result<State<R>, StudyError> {
        let path = self.file(identity, "claim");
        if let Some(result) = self.finished(identity) {
            // Whoever was killed between the result and the end of its claim left the claim behind.
            if let Some(holder) = claim::read(&path) {
                claim::take_away(&path, Some(&holder), false);
            }
            return Ok(State::Finished(result));
        }
        let mut claim = Claim::take(&path)?;
        if claim.is_none() {
            let holder = claim::read(&path);
            let stale = self.is_unchanged(identity, holder.as_ref());
            if !claim::take_away(&path, holder.as_ref(), stale) {
                return Ok(State::Busy(holder));
            }
            claim = Claim::take(&path)?;
        }
        let Some(claim) = claim else { return Ok(State::Busy(claim::read(&path))) };
        // Whoever held the claim before may have finished in between.
        Ok(match self.finished(identity) {
            Some(result) => State::Finished(result),
            None => State::Free(claim),
        })
    }

    /// Writes a cell's result and lets its claim go; answers the result as a later reader will have it.
    ///
    /// # Errors
    /// The file cannot be written, or does not give back what was written.
    pub fn finish<R: Serialize + DeserializeOwned>(
        &self,
        identity: &Identity,
        claim: Claim,
        result: R,
    ) -> Result<R, StudyError> {
        let stored = Stored { identity: identity.entries.clone(), result };
        let text = toml::to_string(&stored).map_err(|error| StudyError::Settings { problem: error.to_string() })?;
        let path = self.file(identity, "toml");
        persist::write_file(&path, text.as_bytes())?;
        drop(claim);
        self.finished(identity).ok_or_else(|| StudyError::Unreadable { file: path.display().to_string() })
    }

    /// Who runs a cell, as far as its claim says; that of a process that is gone counts for nothing.
    #[must_use]
    pub fn holder(&self, identity: &Identity) -> Option<Holder> {
        claim::read(&self.file(identity, "claim")).filter(|holder| !holder.is_gone())
    }

    /// Whether a claim has not changed for a long time, by this process's clock since it first saw it.
    fn is_unchanged(&self, identity: &Identity, holder: Option<&Holder>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(identity.digest.clone()).or_insert_with(|| (holder.cloned(), Instant::now()));
        if entry.0.as_ref() != holder {
            *entry = (holder.cloned(), Instant::now());
        }
        entry.1.elapsed() >= self.stale
    }

    fn file(&self, identity: &Identity, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", identity.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::CellResult;
    use super::super::course::CoursePoint;
    use super::*;

    fn identity(name: &str) -> Identity {
        Identity::new(BTreeMap::from([("name".to_owned(), name.to_owned())]))
    }

    fn result() -> CellResult {
        CellResult {
            trainable: 163_840,
            accuracy: 0.1 + 0.2,
            loss: 21.432_151_467_724_598,
            majority: 1.0 / 3.0,
            similarity: vec![Some(0.156_818_421_900_149_55), None, Some(-1e-300)],
            effective_rank: vec![Some(f64::MIN_POSITIVE), Some(f64::MAX)],
            seconds: 30.25,
            step_cpu_seconds: Some(0.1 + 0.7),
            course: vec![
                CoursePoint { step: 44, loss: 1.232_131_235_535_531, similarity: None },
                CoursePoint { step: 88, loss: f64::INFINITY, similarity: Some(5e-324) },
            ],
        }
    }

    #[test]
    fn a_result_comes_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let State::Free(claim) = store.begin::<CellResult>(&identity("a")).unwrap() else { panic!() };
        assert_eq!(store.finish(&identity("a"), claim, result()).unwrap(), result());
        assert_eq!(store.finished(&identity("a")), Some(result()));
        assert!(
            matches!(store.begin::<CellResult>(&identity("a")).unwrap(), State::Finished(found) if found == result())
        );
        assert_eq!(store.finished::<CellResult>(&identity("b")), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no claim is left");
    }

    #[test]
    fn a_claimed_cell_is_busy_until_its_claim_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(dir.path()).unwrap(), Store::open(dir.path()).unwrap());
        let State::Free(claim) = one.begin::<CellResult>(&identity("a")).unwrap() else { panic!() };
        assert!(matches!(two.begin::<CellResult>(&identity("a")).unwrap(), State::Busy(Some(holder)) if
            holder.pid == std::process::id()));
        assert!(matches!(two.begin::<CellResult>(&identity("b")).unwrap(), State::Free(_)));
        drop(claim);
        assert!(matches!(two.begin::<CellResult>(&identity("a")).unwrap(), State::Free(_)));
    }

    #[test]
    fn the_claim_of_a_killed_process_is_taken_over_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        claim::tests::of_the_dead(&store.file(&identity("a"), "claim"));
        if !Path::new("/proc/self/stat").exists() {
            println!("SKIPPED: the system does not say which processes there are");
            return;
        }
        let State::Free(claim) = store.begin::<CellResult>(&identity("a")).unwrap() else { panic!() };
        // Killed after it had written the result: the claim is tidied away.
        store.finish(&identity("a"), claim, result()).unwrap();
        claim::tests::of_the_dead(&store.file(&identity("a"), "claim"));
        assert!(matches!(store.begin::<CellResult>(&identity("a")).unwrap(), State::Finished(_)));
        assert!(!store.file(&identity("a"), "claim").exists());
    }

    #[test]
    fn a_claim_that_shows_no_life_is_taken_over_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { stale: Duration::from_millis(30), ..Store::open(dir.path()).unwrap() };
        // Of a machine that this one knows nothing of.
        std::fs::write(store.file(&identity("a"), "claim"), "what no one can read").unwrap();
        assert!(matches!(store.begin::<CellResult>(&identity("a")).unwrap(), State::Busy(None)));
        std::thread::sleep(Duration::from_millis(40));
        assert!(matches!(store.begin::<CellResult>(&identity("a")).unwrap(), State::Free(_)));
    }

    #[test]
    fn half_a_file_and_anothers_file_are_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let State::Free(claim) = store.begin::<CellResult>(&identity("a")).unwrap() else { panic!() };
        store.finish(&identity("a"), claim, result()).unwrap();
        let text = std::fs::read_to_string(store.file(&identity("a"), "toml")).unwrap();
        std::fs::write(store.file(&identity("b"), "toml"), &text).unwrap();
        assert_eq!(store.finished::<CellResult>(&identity("b")), None);
        std::fs::write(store.file(&identity("a"), "toml"), &text[..text.len() / 2]).unwrap();
        assert_eq!(store.finished::<CellResult>(&identity("a")), None);
    }
}
