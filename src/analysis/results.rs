//! The files of a result in a folder that an earlier result may lie in: written beside, moved in when all are there,
//! and what the earlier one wrote and this one does not is removed.
//!
//! `manifest.json` lists the files that belong to it; nothing else in the folder is ever touched.

use crate::hash;
use crate::persist::{self, PersistError};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The entry of a manifest that lists the files.
pub const FILES: &str = "files";
/// The entry of a manifest that holds the SHA-256 of every table.
pub const TABLE_HASHES: &str = "tables_sha256";
/// What tables and means end in: what figures and pages are made of.
const TABLE_ENDINGS: [&str; 3] = ["csv", "parquet", "safetensors"];
/// What tables, figures, means and pages end in.
const ENDINGS: [&str; 8] = ["csv", "parquet", "png", "svg", "safetensors", "html", "md", "tex"];

/// A result that is being written.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
    staging: PathBuf,
}

impl Results {
    /// Begins a result of `folder` that is written into `staging`, a folder on the same disk, which is emptied.
    ///
    /// # Errors
    /// The staging folder cannot be made.
    pub fn begin(folder: &Path, staging: PathBuf) -> Result<Self, PersistError> {
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(|e| PersistError::new(&staging, "remove", e))?;
        }
        persist::create_folder(&staging)?;
        Ok(Self { folder: folder.to_owned(), staging })
    }

    /// Where its files are written; they may lie in folders one deep.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Moves the files into the folder and removes those of an earlier result of the same verb that are not among
    /// them. Answers the names of both.
    ///
    /// # Errors
    /// A file cannot be moved or removed.
    pub fn settle(self, verb: &str) -> Result<Settled, PersistError> {
        let files = self.staged()?;
        for name in &files {
            let target = self.folder.join(name);
            if let Some(parent) = target.parent() {
                persist::create_folder(parent)?;
            }
            fs::rename(self.staging.join(name), &target).map_err(|e| PersistError::new(&target, "write", e))?;
        }
        let mut removed = Vec::new();
        for name in earlier(&self.folder, verb).into_iter().filter(|name| !files.contains(name)) {
            let path = self.folder.join(&name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(PersistError::new(&path, "remove", e)),
                Ok(()) => {}
            }
            // A folder goes with its last file.
            if let Some(parent) = path.parent().filter(|parent| *parent != self.folder) {
                let _ = fs::remove_dir(parent);
            }
            removed.push(name);
        }
        let _ = fs::remove_dir_all(&self.staging);
        Ok(Settled { files: files.into_iter().collect(), removed })
    }

    fn staged(&self) -> Result<BTreeSet<String>, PersistError> {
        file_names(&self.staging)
    }
}

/// The names of a folder's files, and of those in folders one deep.
///
/// # Errors
/// The folder cannot be read.
pub fn file_names(folder: &Path) -> Result<BTreeSet<String>, PersistError> {
    let failed = |e| PersistError::new(folder, "read", e);
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.path().is_dir() {
            names.insert(name(&entry));
            continue;
        }
        for inner in fs::read_dir(entry.path()).map_err(failed)? {
            names.insert(format!("{}/{}", name(&entry), name(&inner.map_err(failed)?)));
        }
    }
    Ok(names)
}

/// The SHA-256 of every table in a folder, by name.
///
/// # Errors
/// A table cannot be read.
pub fn table_hashes(folder: &Path) -> Result<Value, PersistError> {
    let mut hashes = Map::new();
    for name in file_names(folder)? {
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if TABLE_ENDINGS.contains(&ending) {
            let path = folder.join(&name);
            let hash = hash::sha256_file(&path).map_err(|e| PersistError::new(&path, "read", e))?;
            hashes.insert(name, hash.into());
        }
    }
    Ok(Value::Object(hashes))
}

/// What became of a result's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What was written, by name.
    pub files: Vec<String>,
    /// What an earlier result had written beside and is gone.
    pub removed: Vec<String>,
}

/// The files that the folder's manifest lists, if it is one of this program's and of the same verb.
fn earlier(folder: &Path, verb: &str) -> BTreeSet<String> {
    let manifest = fs::read(folder.join("manifest.json")).ok();
    let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
    if manifest["program"] != "smooth-probe" || manifest["verb"] != verb {
        return BTreeSet::new();
    }
    let names = manifest[FILES].as_array().into_iter().flatten().filter_map(Value::as_str);
    names.filter(|name| is_result(name)).map(str::to_owned).collect()
}

/// Whether a name can be one of a result's files; a manifest may come from anywhere.
fn is_result(name: &str) -> bool {
    let path = Path::new(name);
    let parts: Vec<Component<'_>> = path.components().collect();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    parts.len() <= 2 && parts.iter().all(|part| matches!(part, Component::Normal(_))) && ENDINGS.contains(&ending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(folder: &Path, names: &[&str]) -> Settled {
        let results = Results::begin(folder, folder.join("progress/results")).unwrap();
        for name in names {
            let path = results.staging().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let settled = results.settle("similarity").unwrap();
        let manifest = json!({"program": "smooth-probe", "verb": "similarity", FILES: settled.files});
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        settled
    }

    #[test]
    fn what_is_not_written_anew_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, at) = (dir.path(), |name: &str| dir.path().join(name));
        fs::write(at("notes.png"), "mine").unwrap();
        fs::write(at("b.png"), "old").unwrap();
        let first = result(folder, &["a.csv", "b.png", "heatmap/c.png"]);
        assert_eq!(
            first,
            Settled { files: vec!["a.csv".into(), "b.png".into(), "heatmap/c.png".into()], removed: vec![] }
        );
        assert_eq!(fs::read_to_string(at("b.png")).unwrap(), "b.png");
        let second = result(folder, &["a.csv"]);
        assert_eq!(second.removed, ["b.png", "heatmap/c.png"]);
        assert!(!at("b.png").exists() && !at("heatmap").exists() && at("a.csv").exists());
        assert_eq!(fs::read_to_string(at("notes.png")).unwrap(), "mine");
    }

    #[test]
    fn a_hostile_manifest_removes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        fs::create_dir(&folder).unwrap();
        fs::write(dir.path().join("mine.csv"), "mine").unwrap();
        fs::write(folder.join("train.rs"), "mine").unwrap();
        let outside = dir.path().join("mine.csv").display().to_string();
        let manifest = |verb: &str| json!({"program": "smooth-probe", "verb": verb, FILES: ["../mine.csv", outside, "train.rs", 4]});
        for verb in ["similarity", "train"] {
            fs::write(folder.join("manifest.json"), manifest(verb).to_string()).unwrap();
            assert_eq!(result(&folder, &[]).removed, Vec::<String>::new());
            assert!(dir.path().join("mine.csv").exists() && folder.join("train.rs").exists());
        }
        fs::write(folder.join("manifest.json"), "{").unwrap();
        assert_eq!(result(&folder, &["a.csv"]).files, ["a.csv"]);
    }
}
