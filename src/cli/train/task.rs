//! `train --task`: the training data of a task or a group, and which test items they hold too.

use crate::cli::open;
use crate::data::{FileTemplate, Labelled, LossOn, Record, Template, read_records};
use crate::hash;
use crate::model::{LoadedModel, Processor};
use crate::tasks::{
    Item, Mode, Overlap, Task, TaskError, all_tasks, ask, asked_text, choice_records, find_tasks, labelled_items,
    normalised, overlaps, read_items, task_file,
};
use crate::train::TrainConfig;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The training data of a task or a group.
pub(super) struct TaskData {
    name: String,
    content: Content,
    files: Vec<PathBuf>,
    missing: Vec<String>,
    overlaps: Vec<Overlap>,
    /// Records that were left out because they are test items; `None` where none were to be.
    dropped: Option<usize>,
}

enum Content {
    /// Instructions and outputs.
    Records(Vec<Record>),
    /// A prompt of the task's own and the right choice behind it.
    Choices(Vec<Record>),
    /// Texts and their classes or scores.
    Classes(Box<Task>, Vec<Item>),
}

/// The data that the settings' task names; `None` where none is named.
pub(super) fn read(config: &TrainConfig) -> Result<Option<TaskData>> {
    let Some(name) = &config.task else { return Ok(None) };
    let tasks = find_tasks(name)?;
    let alone = tasks.len() == 1;
    let (mut files, mut missing): (Vec<PathBuf>, Vec<String>) = (Vec::new(), Vec::new());
    for task in &tasks {
        match task_file(task, &config.data, true) {
            // The sets of a group may share their training file.
            Ok(path) if !files.contains(&path) => files.push(path),
            Ok(_) => {}
            Err(error @ TaskError::NoFile { .. }) if !alone => missing.push(format!("left out of training: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(!files.is_empty(), "--task {name}: {}", missing.join("; "));
    let (mut content, texts): (Content, Vec<String>) = match (tasks.as_slice(), files.as_slice()) {
        ([task], [file]) if task.modes.contains(&Mode::Classify) => {
            refuse_for_classes(name, config)?;
            let items = read_items(task, file, None)?;
            let texts = items.iter().map(asked_text).collect();
            (Content::Classes(Box::new(task.clone()), items), texts)
        }
        ([task], [file]) if is_own_template(task) => {
            ensure!(
                config.template == TrainConfig::default().template,
                "--template: the task {name} has its own; leave it out"
            );
            let items = read_items(task, file, None)?;
            let texts = items.iter().map(asked_text).collect();
            (Content::Choices(choice_records(task, &ask(task, Mode::LogLikelihood, items)?)), texts)
        }
        _ => {
            if let Some(task) = tasks.iter().find(|task| is_own_template(task)) {
                bail!("--task {name}: its sets are trained one by one; give one of them, such as {}", task.name);
            }
            let mut records = Vec::new();
            for file in &files {
                records.extend(read_records(file)?);
            }
            let texts = records.iter().map(instruction).collect();
            (Content::Records(records), texts)
        }
    };
    let tests = test_items(&config.data)?;
    let overlaps = overlaps(&texts.iter().cloned().collect(), &tests);
    let mut dropped = None;
    if config.drop_overlap {
        let known: HashSet<String> = tests.iter().flat_map(|(_, items)| items).map(asked_text).collect();
        let kept: Vec<bool> = texts.iter().map(|text| !known.contains(text)).collect();
        content.keep(&kept);
        dropped = Some(kept.iter().filter(|kept| !**kept).count());
        ensure!(kept.contains(&true), "--drop-overlap: every record of --task {name} is a test item; none is left");
    }
    Ok(Some(TaskData { name: name.clone(), content, files, missing, overlaps, dropped }))
}

impl Content {
    /// Drops the records or items that are not to be kept.
    fn keep(&mut self, kept: &[bool]) {
        let mut flags = kept.iter();
        let mut next = || flags.next().copied().unwrap_or(true);
        match self {
            Self::Records(records) | Self::Choices(records) => records.retain(|_| next()),
            Self::Classes(_, items) => items.retain(|_| next()),
        }
    }
}

/// Whether a task's prompt is a text with fields, and not an instruction's.
fn is_own_template(task: &Task) -> bool {
    !["alpaca", "released", "short"].contains(&task.template.as_str())
}

/// What an instruction asks, normalised.
fn instruction(record: &Record) -> String {
    match record {
        Record::Instruction { instruction, input, .. } => normalised(&format!("{input} {instruction}")),
        Record::Text { text } => normalised(text),
        Record::Chat { messages } => {
            normalised(&messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join(" "))
        }
    }
}

/// The items of every test set that lies in the data folder.
fn test_items(data: &Path) -> Result<Vec<(Task, Vec<Item>)>> {
    if data.is_file() {
        return Ok(Vec::new());
    }
    let mut tests = Vec::new();
    for task in all_tasks()? {
        if let Ok(path) = task_file(&task, data, false) {
            let items = read_items(&task, &path, None)?;
            tests.push((task, items));
        }
    }
    Ok(tests)
}

/// Refuses settings that say something of tokens where classes are learned.
fn refuse_for_classes(name: &str, config: &TrainConfig) -> Result<()> {
    let default = TrainConfig::default();
    let given = [
        ("--template", config.template != default.template),
        ("--loss-on", config.loss_on != LossOn::All),
        ("--mask-share", config.mask_share.is_some()),
        ("--init-adapter", config.init_adapter.is_some()),
    ];
    for (option, given) in given {
        ensure!(!given, "{option}: the task {name} learns classes of texts; leave it out");
    }
    Ok(())
}

impl TaskData {
    /// The texts with their classes, if it is classes that are learned; gives the model its head for them.
    pub(super) fn labelled(
        &self,
        config: &TrainConfig,
        model: &mut LoadedModel,
        place: &Device,
    ) -> Result<Option<Labelled>> {
        let family = model.transformer.architecture().family;
        let Processor::Texts(tokenizer) = &*model.processor else {
            bail!("--task {}: a {family} model reads images, and tasks are texts", self.name)
        };
        let Content::Classes(task, items) = &self.content else { return Ok(None) };
        let cutoff = config.cutoff.min(model.transformer.architecture().max_positions);
        let labelled = labelled_items(task, items, tokenizer.as_ref(), cutoff)?;
        let files = open::files(&config.model, config.revision.as_deref())?;
        model.transformer = model.classifying(labelled.classes.len(), files.as_deref(), config.precision(), place)?;
        Ok(Some(labelled))
    }

    /// The records and how they become text.
    pub(super) fn records(&self, config: &TrainConfig) -> Result<(Vec<Record>, Template)> {
        match &self.content {
            Content::Records(records) => Ok((records.clone(), Template::parse(&config.template)?)),
            Content::Choices(records) => {
                Ok((records.clone(), Template::File(FileTemplate::parse(&self.name, "{instruction}{output}")?)))
            }
            Content::Classes(..) => bail!("--task {}: its texts are classified", self.name),
        }
    }

    /// SHA-256 of the files.
    pub(super) fn sha256(&self) -> Result<String> {
        hash::sha256_files(self.files.iter().map(PathBuf::as_path)).context("--data")
    }

    /// What the user should know of the data.
    pub(super) fn notes(&self) -> Vec<String> {
        let shared = self.overlaps.iter().filter(|one| one.shared > 0);
        let shared = shared.map(|one| format!("{} {} of {}", one.task, one.shared, one.items)).collect::<Vec<_>>();
        let mut notes = self.missing.clone();
        if !shared.is_empty() {
            let what = match self.dropped {
                Some(count) => format!("; the {count} records are left out"),
                None => "; on those a score says nothing, --drop-overlap leaves them out".to_owned(),
            };
            notes.push(format!("test items that the training data hold too: {}{what}", shared.join(", ")));
        }
        notes
    }

    /// The task for the manifest.
    pub(super) fn described(&self) -> Value {
        let names: Vec<String> = self.files.iter().map(|path| path.display().to_string()).collect();
        json!({"name": self.name, "dropped": self.dropped, "files": names, "left_out": self.missing, "overlap_with_test_items": self.overlaps})
    }
}
