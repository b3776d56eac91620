//! What a cell is: everything that decides its result, and the digest of that.

use super::StudyError;
use crate::hash::sha256_bytes;
use crate::model::LoadedModel;
use crate::pretrain::holdout::Split;
use crate::pretrain::tasks::{Task, to_jsonl};
use crate::train::TrainConfig;
use candle_core::{DType, Device};
use std::collections::BTreeMap;

/// Counted up when the same settings come to mean another computation, so that no cell of before is taken for one of after.
const GENERATION: &str = "1";

/// Everything that decides a cell's result, by name, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// SHA-256 of `entries`, in hexadecimal: the cell's name.
    pub digest: String,
    /// What it is the digest of.
    pub entries: BTreeMap<String, String>,
}

impl Identity {
    /// The identity that has `entries`.
    #[must_use]
    pub fn new(mut entries: BTreeMap<String, String>) -> Self {
        entries.insert("generation".to_owned(), GENERATION.to_owned());
        // No name holds a line break or "=", no value a line break that could be taken for the next entry's: both are quoted.
        let lines: Vec<String> = entries.iter().map(|(name, value)| format!("{name:?} = {value:?}")).collect();
        Self { digest: sha256_bytes(lines.join("\n").as_bytes()), entries }
    }

    /// The digest's first 80 bits, by which files are named: people can still tell them apart.
    #[must_use]
    pub fn name(&self) -> &str {
        self.digest.get(..20).unwrap_or(&self.digest)
    }
}

/// The settings that are not the defaults, by name.
///
/// A setting that is new and left at its default changes no cell, so that cells outlive the settings that come after them;
/// for that a default is never changed without [`GENERATION`].
///
/// # Errors
/// The settings have no TOML form.
pub(super) fn changed_settings(config: &TrainConfig) -> Result<BTreeMap<String, String>, StudyError> {
    let unwritable = |error: toml::ser::Error| StudyError::Settings { problem: error.to_string() };
    let default = toml::Table::try_from(TrainConfig::default()).map_err(unwritable)?;
    let given = toml::Table::try_from(config).map_err(unwritable)?;
    let changed = given.into_iter().filter(|(key, value)| default.get(key) != Some(value));
    Ok(changed.map(|(key, value)| (format!("training.{key}"), value.to_string())).collect())
}

/// The digests of what cells read, each made once: the model, and a task's items of a seed.
#[derive(Debug)]
pub struct Digests {
    model: String,
    items: BTreeMap<(&'static str, u64), String>,
}

impl Digests {
    /// The digest of the embedded model.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn new() -> Result<Self, StudyError> {
        let hashes = LoadedModel::embedded(DType::F32, &Device::Cpu)?.hashes()?;
        let model = hashes.iter().map(|(name, digest)| format!("{name} {digest}")).collect::<Vec<_>>().join(", ");
        Ok(Self { model, items: BTreeMap::new() })
    }

    /// What every cell of a task and seed has: the model, the task, the seed and its items.
    pub fn of(&mut self, task: Task, seed: u64) -> BTreeMap<String, String> {
        let items = self.items.entry((task.name(), seed)).or_insert_with(|| {
            let splits = [Split::Train, Split::Validation, Split::Test].map(|split| to_jsonl(&task.items(split, seed)));
            sha256_bytes(splits.concat().as_bytes())
        });
        BTreeMap::from([
            ("model".to_owned(), self.model.clone()),
            ("task".to_owned(), task.name().to_owned()),
            ("seed".to_owned(), seed.to_string()),
            ("items".to_owned(), items.clone()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_no_part_of_an_identity() {
        assert!(changed_settings(&TrainConfig::default()).unwrap().is_empty());
        let config = TrainConfig { rank: 8, steps: Some(3), ..TrainConfig::default() };
        let changed: Vec<(String, String)> = changed_settings(&config).unwrap().into_iter().collect();
        let expected = [("training.rank", "8"), ("training.steps", "3")];
        assert_eq!(changed, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_setting_that_is_turned_off_is_part_of_it() {
        let config = TrainConfig { dropout: 0.0, ..TrainConfig::default() };
        assert_eq!(changed_settings(&config).unwrap()["training.dropout"], "0.0");
    }

    #[test]
    fn what_differs_has_another_digest() {
        let one = |name: &str, value: &str| Identity::new(BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(one("a", "b"), one("a", "b"));
        assert_ne!(one("a", "b").digest, one("a", "c").digest);
        assert_ne!(one("a", "b\"\n\"c\" = \"d").digest, {
            let two = [("a", "b"), ("c", "d")].map(|(name, value)| (name.to_owned(), value.to_owned()));
            Identity::new(BTreeMap::from(two)).digest
        });
        assert_eq!(one("a", "b").digest.len(), 64);
    }
}
