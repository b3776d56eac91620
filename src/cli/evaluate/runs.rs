//! The models that tasks are put to: a base model with an adapter or without, and with a head for classes where one is
//! asked.

use super::{EvaluateArgs, Prepared};
use crate::analysis::runs::RunSpec;
use crate::cli::open;
use crate::cli::similarity::identity::identity;
use crate::generate::{Beams, Decoding, EarlyStopping, Generator, Strategy};
use crate::model::{LoadedModel, Processor, Transformer};
use crate::peft::{Peft, load_adapter};
use crate::tasks::{
    AnswerKind, Answerer, ByChoices, ByHead, ByText, Generation, Mode, Model, Task, TaskError, class_places,
    head_classes,
};
use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A run: a name in tables, and what is run.
pub(super) type Run = RunSpec;

/// The runs of a command line.
pub(super) fn runs(args: &EvaluateArgs) -> Result<Vec<Run>> {
    let adapters: Vec<(String, PathBuf)> = args.adapter.iter().map(|text| named(text)).collect();
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let mut bases = Vec::new();
            for (_, folder) in &adapters {
                bases.push(open::base_of(folder, None)?);
            }
            let first = bases.first().cloned().unwrap_or_default();
            ensure!(
                bases.iter().all(|base| *base == first),
                "the adapters were trained on several models: {}; give --model",
                bases.join(", ")
            );
            first
        }
    };
    let revision = args.revision.clone();
    let base = RunSpec { name: "base".to_owned(), model: model.clone(), revision: revision.clone(), adapter: None };
    let mut runs: Vec<Run> = Vec::new();
    if args.base || adapters.is_empty() {
        runs.push(base.clone());
    }
    runs.extend(adapters.into_iter().map(|(name, folder)| RunSpec { name, adapter: Some(folder), ..base.clone() }));
    for (index, run) in runs.iter().enumerate() {
        let twice = runs.iter().take(index).any(|known| known.name == run.name);
        ensure!(!twice, "two runs are called {}; name the adapters, as --adapter NAME=DIR", run.name);
    }
    Ok(runs)
}

/// The name and folder of `NAME=DIR`, or of a folder alone, which is called like the run that it lies in.
fn named(text: &str) -> (String, PathBuf) {
    if let Some((name, folder)) = text.split_once('=').filter(|(name, _)| !name.is_empty() && !Path::new(text).exists())
    {
        return (name.to_owned(), PathBuf::from(folder));
    }
    let folder = Path::new(text);
    let own = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = match own(folder) {
        Some(name) if ["adapter", "best", "last"].contains(&name.as_str()) => {
            folder.parent().and_then(own).or(Some(name))
        }
        name => name,
    };
    (name.unwrap_or_else(|| text.to_owned()), folder.to_owned())
}

/// Opens models, the base once.
pub(super) struct Opened<'a> {
    args: &'a EvaluateArgs,
    device: &'a Device,
    base: Option<Rc<LoadedModel>>,
    /// The subject opened last, which mostly serves the next task too.
    last: Option<(String, Rc<Subject>)>,
}

/// A model as a task is put to it.
pub(super) struct Subject {
    base: Rc<LoadedModel>,
    transformer: Transformer,
    peft: Option<Peft>,
    /// For each class of the task its place among the head's outputs.
    places: Vec<usize>,
    cutoff: usize,
    at_once: usize,
    pub(super) identity: Value,
}

impl<'a> Opened<'a> {
    pub(super) fn new(args: &'a EvaluateArgs, device: &'a Device) -> Self {
        Self { args, device, base: None, last: None }
    }

    /// The model of a run for a task.
    pub(super) fn subject(&mut self, run: &Run, prepared: &Prepared) -> Result<Rc<Subject>> {
        let classes = (prepared.mode == Mode::Classify).then_some(&prepared.task);
        let key = format!("{}\n{}", run.name, classes.map(|task| task.name.as_str()).unwrap_or_default());
        if let Some((_, subject)) = self.last.as_ref().filter(|(known, _)| *known == key) {
            return Ok(Rc::clone(subject));
        }
        let base = match &self.base {
            Some(base) => Rc::clone(base),
            None => {
                let precision = self.args.precision();
                let model = open::model(&run.model, run.revision.as_deref(), precision, self.device)?;
                if run.adapter.is_none() {
                    model.refuse_partial()?;
                }
                Rc::clone(self.base.insert(Rc::new(model)))
            }
        };
        let family = base.transformer.architecture().family;
        ensure!(
            matches!(&*base.processor, Processor::Texts(_)),
            "--model {}: a {family} model reads images, and tasks are texts",
            run.model
        );
        let (transformer, places) = match classes {
            None => (base.transformer.clone(), Vec::new()),
            Some(task) => self.with_head(run, &base, task)?,
        };
        let loaded = run.adapter.as_deref().map(|folder| load_adapter(folder, &transformer));
        let peft = loaded.transpose().with_context(|| format!("--adapter {}", run.name))?;
        let tuned = peft.as_ref().and_then(|peft| peft.tuned(&transformer)).unwrap_or(transformer);
        let transformer = match (classes, &peft) {
            (Some(_), Some(peft)) => with_trained_head(tuned, peft, &run.name)?,
            _ => tuned,
        };
        let identity = identity(run, &base)?;
        let cutoff = self.args.cutoff.min(transformer.architecture().max_positions);
        let at_once = self.args.batch_size;
        let subject = Rc::new(Subject { base, transformer, peft, places, cutoff, at_once, identity });
        self.last = Some((key, Rc::clone(&subject)));
        Ok(subject)
    }

    /// The model with a head for the task's classes, and where each stands in it.
    fn with_head(&self, run: &Run, base: &LoadedModel, task: &Task) -> Result<(Transformer, Vec<usize>)> {
        let files = open::files(&run.model, run.revision.as_deref())?;
        let unfit =
            |reason: String| anyhow!(TaskError::Unfit { task: task.name.clone(), mode: "classify".to_owned(), reason });
        let stated = match (&run.adapter, &files) {
            (Some(adapter), _) => head_classes(adapter)?,
            (None, Some(folder)) => head_classes(folder)?,
            (None, None) => None,
        };
        let remedy = format!("train one with train --task {}", task.name);
        let head =
            stated.ok_or_else(|| unfit(format!("nothing names the classes of a head of {}; {remedy}", run.name)))?;
        let places = class_places(task, &head)?;
        let transformer = base.classifying(head.len(), files.as_deref(), self.args.precision(), self.device)?;
        if run.adapter.is_none() && !transformer.fresh_head().is_empty() {
            return Err(unfit(format!("{} has no trained head for classes; {remedy}", run.name)));
        }
        Ok((transformer, places))
    }
}

/// The model with the head that was trained beside the modules.
fn with_trained_head(mut model: Transformer, peft: &Peft, run: &str) -> Result<Transformer> {
    let head = peft.class_head();
    ensure!(!head.is_empty(), "--adapter {run}: has no head for classes; train one with train --task or --label-field");
    let own = model.tensors();
    for (name, tensor) in head {
        let wanted = own.get(name).map(|known| known.dims().to_vec());
        ensure!(
            wanted.as_deref() == Some(tensor.dims()),
            "--adapter {run}: its {name} has the shape {:?}, the task needs {wanted:?}; was it trained for this task?",
            tensor.dims()
        );
    }
    let (dtype, device) = (model.precision().trained(), model.device().clone());
    let moved = head.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?.to_device(&device)?)));
    Ok(model.with_tensors(&moved.collect::<candle_core::Result<_>>()?))
}

impl Subject {
    pub(super) fn model(&self) -> Result<Model<'_>> {
        let tokenizer = self.base.tokenizer()?;
        Ok(Model { transformer: &self.transformer, peft: self.peft.as_ref(), tokenizer })
    }

    /// What answers a task in a mode.
    pub(super) fn answerer(&self, task: &Task, mode: Mode, how: Generation) -> Result<Box<dyn Answerer + '_>> {
        let model = self.model()?;
        let architecture = model.transformer.architecture();
        match mode {
            Mode::Classify => {
                let places = if task.answer.kind == AnswerKind::Score { Vec::new() } else { self.places.clone() };
                Ok(Box::new(ByHead { model, places, cutoff: self.cutoff }))
            }
            Mode::LogLikelihood => {
                ensure!(
                    architecture.causal,
                    "--mode loglikelihood: a {} model sees the text that is to be scored; give a decoder",
                    architecture.family
                );
                model.transformer.head().context("--mode loglikelihood")?;
                Ok(Box::new(ByChoices(model)))
            }
            Mode::Alpaca | Mode::Released | Mode::Template => {
                let strategy = match how.beams {
                    1 => Strategy::Greedy,
                    beams => Strategy::Beams(Beams { beams, length_penalty: 1.0, early_stopping: EarlyStopping::No }),
                };
                let decoding = Decoding {
                    max_new_tokens: how.max_new_tokens,
                    strategy,
                    stop: Vec::new(),
                    end: self.base.end_tokens(),
                };
                decoding.check()?;
                let generator = Generator::new(model.transformer, model.peft)?.at_once(self.at_once);
                let tokenizer = model.tokenizer;
                Ok(Box::new(ByText { generator: generator.with_tokenizer(tokenizer), decoding, tokenizer }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_called_like_its_run() {
        let of = |text: &str| named(text);
        assert_eq!(of("runs/sibo/adapter"), ("sibo".to_owned(), PathBuf::from("runs/sibo/adapter")));
        assert_eq!(of("runs/sibo/best/"), ("sibo".to_owned(), PathBuf::from("runs/sibo/best/")));
        assert_eq!(of("runs/mine"), ("mine".to_owned(), PathBuf::from("runs/mine")));
        assert_eq!(of("a=runs/x=y/adapter"), ("a".to_owned(), PathBuf::from("runs/x=y/adapter")));
        assert_eq!(of("adapter").0, "adapter");
    }
}
