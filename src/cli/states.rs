//! The options of `similarity` about states in files.

use super::progress::Progress;
use super::texts::token_names;
use super::token_pairs::file_name;
use crate::analysis::layers::Layers;
use crate::analysis::similarity::EncodedText;
use crate::analysis::states::{StoredStates, StoredText};
use crate::analysis::states_save::{SavePlan, SavedRun, SavedText, save_states};
use crate::analysis::texts::{FileTexts, Located};
use crate::hash;
use crate::measures::Point;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Args)]
pub(super) struct StatesArgs {
    /// Write the hidden states of the first --max-texts texts at --layers into this new folder, to be measured
    /// again without the model, or by other programs. The size is printed first. A folder that holds these very
    /// states already is left as it is.
    #[arg(long, value_name = "DIR")]
    pub(super) save_states: Option<PathBuf>,
    /// Save states even if they take more than 10 GB.
    #[arg(long, requires = "save_states")]
    force: bool,
    /// Measure states made elsewhere, as DIR or NAME=DIR; any number of times. An unsupported model still gets
    /// every measure that needs only states.
    #[arg(long, value_name = "[NAME=]DIR")]
    pub(super) states: Vec<String>,
}

/// A run of stored states.
pub(super) struct StatesSpec {
    pub(super) name: String,
    pub(super) folder: PathBuf,
}

impl StatesArgs {
    /// The runs of stored states, by name.
    pub(super) fn specs(&self) -> Result<Vec<StatesSpec>> {
        let spec = |text: &String| {
            // A folder may have an equals sign in its name.
            let (name, folder) = match text.split_once('=').filter(|_| !Path::new(text).is_dir()) {
                Some((name, folder)) if !name.is_empty() => (Some(name.to_owned()), PathBuf::from(folder)),
                _ => (None, PathBuf::from(text)),
            };
            let own = || folder.file_name().map(|name| name.to_string_lossy().into_owned());
            match name.or_else(own) {
                Some(name) => Ok(StatesSpec { name, folder }),
                None => Err(anyhow!("--states {text}: give the run a name, as NAME={text}")),
            }
        };
        self.states.iter().map(spec).collect()
    }

    /// Saves the first `most` texts of a run at `points`, if that is asked for; `alone` says that there is no other
    /// run.
    pub(super) fn save(
        &self,
        run: &SavedRun<'_>,
        alone: bool,
        texts: &FileTexts<'_>,
        points: &[Point],
        most: usize,
        progress: &mut Progress,
    ) -> Result<()> {
        let Some(folder) = &self.save_states else { return Ok(()) };
        let folder = if alone { folder.clone() } else { folder.join(file_name(run.name)) };
        let mut names = token_names(run.model);
        let located = texts.located()?.take(most);
        let texts = located.map(|text| text.map(|text| saved(text, &mut names))).collect::<Result<Vec<_>, _>>()?;
        let plan = SavePlan::new(points, &texts, run.model.transformer.architecture().hidden_size);
        progress.begin(&format!("{}, saving states", run.name), texts.len() as u64);
        if run.is_saved(&plan, &texts, &folder) {
            progress.say(&format!(
                "{}: {} holds these states already; they stay as they are",
                run.name,
                folder.display()
            ));
            progress.skip(texts.len() as u64);
            return Ok(());
        }
        progress.say(&format!("{}: saving states: {}", run.name, plan.describe()));
        plan.check(&folder, self.force)?;
        save_states(run, &texts, &plan, &folder, &mut |texts| progress.advance(texts as u64))?;
        progress.finish_stage();
        Ok(())
    }
}

fn saved((text, offsets): Located, names: &mut dyn FnMut(&EncodedText) -> Vec<String>) -> SavedText {
    let tokens = names(&text);
    let whole = text.span == (0..text.ids.len());
    let line = StoredText {
        text: text.index,
        tokens,
        special: text.special,
        offsets,
        span: (!whole).then_some((text.span.start, text.span.end)),
        group: text.group,
    };
    SavedText { line, ids: text.ids, types: text.types, image: text.image }
}

/// Refuses a layer that is asked for by name (with the option `option`) and not stored.
pub(super) fn check_layers(states: &StoredStates, layers: &Layers, option: &str, folder: &str) -> Result<()> {
    let Layers::Some(list) = layers else { return Ok(()) };
    let stored: BTreeSet<usize> = states.points().map(|point| point.layer).collect();
    match list.iter().find(|layer| !stored.contains(layer)) {
        Some(layer) => {
            let there: Vec<String> = stored.iter().map(usize::to_string).collect();
            bail!("{option} {layer}: {folder} holds states of layers {}; choose among those", there.join(", "))
        }
        None => Ok(()),
    }
}

/// What the manifest says of a run of stored states.
pub(super) fn describe(spec: &StatesSpec, states: &StoredStates) -> Result<Value> {
    let mut hashes = Map::new();
    for path in states.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = hash::sha256_file(&path).with_context(|| super::open::unreadable(&path))?;
        hashes.insert(name, digest.into());
    }
    Ok(json!({"name": spec.name, "states": spec.folder.display().to_string(), "states_sha256": hashes}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_before_the_folder() {
        let args = |states: &str| StatesArgs { save_states: None, force: false, states: vec![states.to_owned()] };
        let spec = |states: &str| args(states).specs().map(|specs| (specs[0].name.clone(), specs[0].folder.clone()));
        assert_eq!(spec("a/b").unwrap(), ("b".to_owned(), PathBuf::from("a/b")));
        assert_eq!(spec("gpt=a/b").unwrap(), ("gpt".to_owned(), PathBuf::from("a/b")));
        assert!(spec("..").unwrap_err().to_string().contains("NAME=.."));
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("lr=0.1");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(spec(folder.to_str().unwrap()).unwrap().0, "lr=0.1");
    }
}
