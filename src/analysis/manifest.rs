//! What made a result: command line, versions, hashes, device.

use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

/// A manifest that is filled while the work goes on and written at its end.
#[derive(Debug)]
pub struct Manifest {
    entries: Map<String, Value>,
    started: Instant,
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
        Self { entries, started: Instant::now() }
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

    /// The manifest as JSON, with the wall time so far.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut entries = self.entries.clone();
        let seconds = (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        entries.insert("wall_seconds".to_owned(), json!(seconds));
        entries.insert("threads".to_owned(), json!(rayon::current_num_threads()));
        Value::Object(entries)
    }

    /// Writes `manifest.json` into a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), crate::persist::PersistError> {
        let mut text = serde_json::to_string_pretty(&self.json()).unwrap_or_default();
        text.push('\n');
        crate::persist::write_file(&folder.join("manifest.json"), text.as_bytes())
    }
}
