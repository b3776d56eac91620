//! The options of `similarity` about states in files.

use super::token_pairs::file_name;
use crate::analysis::layers::Layers;
use crate::analysis::similarity::EncodedText;
use crate::analysis::states::{StoredStates, StoredText};
use crate::analysis::states_save::{SavePlan, SavedText, save_states};
use crate::analysis::token_text::TokenTexts;
use crate::hash;
use crate::measures;
use crate::model::LoadedModel;
use crate::peft::Peft;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct StatesArgs {
    /// Write the hidden states of the first --max-texts texts at --layers into this new folder, to be measured
    /// again without the model, or by other programs. The size is printed first.
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

    /// Saves the first `most` texts of a run, if that is asked for; `alone` says that there is no other run.
    #[expect(clippy::too_many_arguments, reason = "what a run is, and what of it is saved")]
    pub(super) fn save(
        &self,
        run: &str,
        alone: bool,
        model: &LoadedModel,
        peft: Option<&Peft>,
        texts: &[EncodedText],
        layers: &Layers,
        most: usize,
        batch_size: usize,
        say: &dyn Fn(&str),
    ) -> Result<()> {
        let Some(folder) = &self.save_states else { return Ok(()) };
        let folder = if alone { folder.clone() } else { folder.join(file_name(run)) };
        let mut decoder = TokenTexts::new(&model.tokenizer);
        let texts: Vec<SavedText> = texts.iter().take(most).map(|text| saved(text, &mut decoder)).collect();
        let architecture = model.transformer.architecture();
        let plan = SavePlan::new(&measures::points(architecture.layers), layers, &texts, architecture.hidden_size);
        say(&format!("{run}: saving states: {}", plan.describe()));
        plan.check(&folder, self.force)?;
        Ok(save_states(run, model, peft, &texts, &plan, batch_size, &folder)?)
    }
}

fn saved(text: &EncodedText, decoder: &mut TokenTexts<'_>) -> SavedText {
    let whole = text.span == (0..text.ids.len());
    let line = StoredText {
        text: text.index,
        tokens: text.ids.iter().map(|&id| decoder.text(id)).collect(),
        special: text.special.clone(),
        offsets: (!text.offsets.is_empty()).then(|| text.offsets.clone()),
        span: (!whole).then_some((text.span.start, text.span.end)),
        group: text.group.clone(),
    };
    SavedText { line, ids: text.ids.clone() }
}

/// What the manifest says of a run of stored states.
pub(super) fn describe(spec: &StatesSpec, states: &StoredStates) -> Result<Value> {
    let mut hashes = Map::new();
    for path in states.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = hash::sha256_file(&path).with_context(|| super::open::unreadable(&path))?;
        hashes.insert(name, digest.into());
    }
    let (folder, texts) = (spec.folder.display().to_string(), states.texts().len());
    Ok(json!({"name": spec.name, "states": folder, "states_sha256": hashes, "texts_measured": texts}))
}

/// For each token's range of bytes in `text` the range of characters.
pub(super) fn characters(text: &str, bytes: &[(usize, usize)]) -> Vec<(u64, u64)> {
    let mut before = vec![0_u64; text.len() + 1];
    let mut count = 0;
    for (start, c) in text.char_indices() {
        // A place inside a character belongs to it.
        before.iter_mut().skip(start).take(c.len_utf8()).for_each(|place| *place = count);
        count += 1;
    }
    if let Some(last) = before.last_mut() {
        *last = count;
    }
    let at = |byte: usize| before.get(byte).copied().unwrap_or(count);
    bytes.iter().map(|&(start, end)| (at(start), at(end))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_characters() {
        // é has two bytes, 日 three, 🙂 four.
        let found = characters("aé日🙂b", &[(0, 1), (1, 3), (3, 6), (6, 10), (10, 11), (0, 0), (0, 11), (0, 99)]);
        assert_eq!(found, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 0), (0, 5), (0, 5)]);
        assert_eq!(characters("", &[(0, 0)]), [(0, 0)]);
    }

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
