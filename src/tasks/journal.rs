//! The file of a run's items: a line each, written as it comes, from which an interrupted evaluation goes on.

use super::{ItemRecord, TaskError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The open file of a run's items. While it is open no other evaluation writes to it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the file and reads the items that it holds, by id; `settings` are what their values depend on, and stand beside
    /// it. A last line that was cut off is dropped.
    ///
    /// # Errors
    /// The file belongs to other settings, another evaluation has it open, a line is broken or an item stands there twice.
    pub fn open(path: &Path, settings: &Value) -> Result<(Self, BTreeMap<String, ItemRecord>), TaskError> {
        let name = path.display().to_string();
        let failed = |source| TaskError::File { path: name.clone(), source };
        let wrong = |reason: String| TaskError::Journal { path: name.clone(), reason };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(wrong("another evaluation is writing it".to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        agree(path, settings, !bytes.is_empty())?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut records = BTreeMap::new();
        let lines = bytes.get(..whole).unwrap_or_default().split(|&byte| byte == b'\n');
        for (line, text) in (1..).zip(lines).filter(|(_, text)| !text.is_empty()) {
            let record: ItemRecord = serde_json::from_slice(text)
                .map_err(|e| wrong(format!("line {line}: no item of an evaluation: {e}")))?;
            if let Some(known) = records.insert(record.id.clone(), record) {
                return Err(wrong(format!("line {line}: the item {} stands there twice", known.id)));
            }
        }
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { path: path.to_owned(), file }, records))
    }

    /// Adds items.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, records: &[ItemRecord]) -> Result<(), TaskError> {
        let failed = |source| TaskError::File { path: self.path.display().to_string(), source };
        let mut text = String::new();
        for record in records {
            text.push_str(&serde_json::to_string(record).map_err(|e| failed(e.into()))?);
            text.push('\n');
        }
        self.file.write_all(text.as_bytes()).map_err(failed)
    }

    /// Puts what was written on the disk.
    ///
    /// # Errors
    /// The system refuses.
    pub fn finish(self) -> Result<(), TaskError> {
        self.file.sync_all().map_err(|source| TaskError::File { path: self.path.display().to_string(), source })
    }
}

/// The settings' file beside the items.
fn settings_file(path: &Path) -> PathBuf {
    path.with_extension("settings.json")
}

/// Writes the settings beside a new file, and holds those of an old one to them.
fn agree(path: &Path, settings: &Value, used: bool) -> Result<(), TaskError> {
    let beside = settings_file(path);
    let wrong = |reason: String| TaskError::Journal { path: path.display().to_string(), reason };
    if !used {
        return Ok(crate::persist::write_file(&beside, format!("{settings:#}\n").as_bytes())?);
    }
    let text = std::fs::read_to_string(&beside)
        .map_err(|_| wrong("holds items, and nothing beside it says of what".to_owned()))?;
    let known: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("{}: {e}", beside.display())))?;
    if known == *settings {
        return Ok(());
    }
    let keys = settings.as_object().into_iter().flatten();
    let other: Vec<&str> =
        keys.filter(|(key, value)| known.get(key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    Err(wrong(format!("holds items of another evaluation, which differs in {}", other.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(index: usize) -> ItemRecord {
        serde_json::from_value(json!({
            "id": format!("t/{index}"), "index": index, "prompt_sha256": "0", "prompt": "p\nq", "label": "é",
            "right": true, "seconds": 0.5
        }))
        .unwrap()
    }

    #[test]
    fn an_interrupted_file_goes_on_without_its_cut_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        let settings = json!({"model": "m", "mode": "alpaca"});
        let (mut journal, known) = Journal::open(&path, &settings).unwrap();
        assert!(known.is_empty());
        journal.append(&[record(0), record(1)]).unwrap();
        let open = Journal::open(&path, &settings).unwrap_err().to_string();
        assert!(open.contains("another evaluation is writing it"), "{open}");
        journal.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let line = serde_json::to_string(&record(2)).unwrap();
        // However much of the next line was written, in the middle of a letter too.
        for cut in 0..line.len() {
            std::fs::write(&path, [&whole, &line.as_bytes()[..cut]].concat()).unwrap();
            let (_, known) = Journal::open(&path, &settings).unwrap();
            assert_eq!(known.keys().collect::<Vec<_>>(), ["t/0", "t/1"]);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        let (mut journal, _) = Journal::open(&path, &settings).unwrap();
        journal.append(&[record(2)]).unwrap();
        journal.finish().unwrap();
        assert_eq!(Journal::open(&path, &settings).unwrap().1["t/2"], record(2));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        let settings = json!({"model": "m", "mode": "alpaca"});
        std::fs::write(&path, "something\n").unwrap();
        let refused = |settings: &Value| Journal::open(&path, settings).unwrap_err().to_string();
        assert!(refused(&settings).contains("nothing beside it says of what"));
        std::fs::remove_file(&path).unwrap();
        let (mut journal, _) = Journal::open(&path, &settings).unwrap();
        journal.append(&[record(0)]).unwrap();
        drop(journal);
        assert!(refused(&json!({"model": "m", "mode": "released"})).ends_with(
            "holds items of another evaluation, which differs in mode; choose another --out, or remove the file"
        ));
        let line = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{line}{line}")).unwrap();
        assert!(refused(&settings).contains("line 2: the item t/0 stands there twice"));
        std::fs::write(&path, format!("{{}}\n{line}")).unwrap();
        assert!(refused(&settings).contains("line 1: no item of an evaluation"));
    }
}
