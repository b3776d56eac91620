//! What made a result: command line, versions, hashes, device.

use crate::persist::{self, PersistError};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A manifest that is filled while the work goes on and written at its end.
#[derive(Debug)]
pub struct Manifest {
    entries: Map<String, Value>,
    started: Instant,
    /// The wall time in seconds, once the work is done.
    stopped: Option<f64>,
}

impl Manifest {
    /// Starts a manifest for a verb.
    #[must_use]
    pub fn new(verb: &str) -> Self {
        let mut entries = Map::new();
        entries.insert("program".to_owned(), json!("smooth-probe"));
        entries.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        entries.insert("verb".to_owned(), json!(verb));
        // Where the program lies is the machine's business, not the result's.
        let options = std::env::args().skip(1);
        let command: Vec<String> = std::iter::once("smooth-probe".to_owned()).chain(options).collect();
        entries.insert("command".to_owned(), json!(command));
        Self { entries, started: Instant::now(), stopped: None }
    }

    /// Adds an entry.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.entries.insert(key.to_owned(), value.into());
        self
    }

    /// An entry that was added.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Ends the wall time, so that a page and the file that it was made of say the same.
    pub fn stop(&mut self) -> &mut Self {
        self.stopped = Some(self.seconds());
        self
    }

    fn seconds(&self) -> f64 {
        self.stopped.unwrap_or_else(|| (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0)
    }

    /// The manifest as JSON, with the wall time so far.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut entries = self.entries.clone();
        entries.insert("wall_seconds".to_owned(), json!(self.seconds()));
        entries.insert("threads".to_owned(), json!(rayon::current_num_threads()));
        Value::Object(entries)
    }

    /// Writes `manifest.json` into a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PersistError> {
        write_manifest(folder, &self.json())
    }
}

/// A manifest that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none, or it cannot be read.
    #[error("{path}: cannot read: {source}; give the folder of a run, which holds its manifest")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is none of this program's.
    #[error("{path}: {why}; run the command that made it again")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The manifest of a folder, and the verb that wrote it.
///
/// # Errors
/// There is none, or it is not one of this program's.
pub fn read_manifest(folder: &Path) -> Result<(Value, String), ManifestError> {
    let path = folder.join("manifest.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(ManifestError::Read { path, source }),
    };
    let content = |why: String| ManifestError::Content { path: path.clone(), why };
    let manifest: Value = serde_json::from_slice(&bytes).map_err(|e| content(format!("not JSON: {e}")))?;
    if manifest["program"] != "smooth-probe" {
        return Err(content("`program` is not \"smooth-probe\"".to_owned()));
    }
    let verb = manifest["verb"].as_str().ok_or_else(|| content("`verb` is missing".to_owned()))?.to_owned();
    Ok((manifest, verb))
}

/// Writes a manifest into a folder.
///
/// # Errors
/// The folder cannot be written.
pub fn write_manifest(folder: &Path, manifest: &Value) -> Result<(), PersistError> {
    let mut text = serde_json::to_string_pretty(manifest).unwrap_or_default();
    text.push('\n');
    persist::write_file(&folder.join("manifest.json"), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_back_and_its_time_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::new("similarity");
        manifest.set("seed", 7).stop();
        let said = manifest.json();
        std::thread::sleep(std::time::Duration::from_millis(5));
        manifest.write(dir.path()).unwrap();
        assert_eq!(read_manifest(dir.path()).unwrap(), (said, "similarity".to_owned()));
    }

    #[test]
    fn what_is_no_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: Option<&str>| {
            if let Some(text) = text {
                fs::write(dir.path().join("manifest.json"), text).unwrap();
            }
            read_manifest(dir.path()).unwrap_err().to_string()
        };
        for (text, word) in [
            (None, "cannot read"),
            (Some("{"), "not JSON"),
            (Some("[1]"), "`program`"),
            (Some("{\"program\": \"smooth-probe\"}"), "`verb`"),
        ] {
            let said = error(text);
            assert!(said.contains("manifest.json") && said.contains(word) && !said.contains('\n'), "{said}");
        }
    }
}
