//! One cell of a study: an arm and a seed, tuned, probed and tested.

use super::course::{Course, CoursePoint, Pause};
use super::file::{Arm, Study};
use super::identity::{Digests, Identity, changed_settings};
use super::{StudyError, missing};
use crate::data::{Example, LossOn};
use crate::model::{LoadedModel, Pass, Transformer};
use crate::peft::Peft;
use crate::pretrain::holdout::Split;
use crate::pretrain::run::{Geometry, geometry};
use crate::pretrain::tasks::{Task, encode_items, majority_share};
use crate::train::{ProbeSet, RunFiles, Subject, TrainConfig, TrainData, TrainError, Trainer, evaluate};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The seed of the learning-rate search: none of a study's own.
const SEARCH_SEED: u64 = 0;

/// What a cell gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CellResult {
    /// Trained numbers.
    pub trainable: usize,
    /// Share of test items answered right.
    pub accuracy: f64,
    /// Mean loss of the answer token over the test items, in nats.
    pub loss: f64,
    /// Always giving the commonest answer would score this.
    pub majority: f64,
    /// Token similarity of the probe texts: layers 0 to L, then after the final norm.
    #[serde(with = "missing")]
    pub similarity: Vec<Option<f64>>,
    /// Effective rank of the same states.
    #[serde(with = "missing")]
    pub effective_rank: Vec<Option<f64>>,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// CPU time of the median training step, in seconds; `None` where nothing is trained or the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_cpu_seconds: Option<f64>,
    /// While training.
    #[serde(default)]
    pub course: Vec<CoursePoint>,
}

/// What one learning rate gave an arm on the validation items of the seed that is kept for the choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SearchResult {
    /// Trained numbers.
    pub trainable: usize,
    /// Validation loss after the last step, in nats; infinite where the run diverged.
    pub validation_loss: f64,
    /// Wall time, in seconds.
    pub seconds: f64,
}

/// A cell that a study asks for.
#[derive(Debug, Clone)]
pub struct Job {
    /// The arm's name.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// The task.
    pub task: Task,
    /// Peak learning rate; 0 where nothing is tuned.
    pub lr: f64,
    /// What decides its result.
    pub identity: Identity,
    training: Option<TrainConfig>,
}

/// A finished cell of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell<R = CellResult> {
    /// The arm's name.
    pub arm: String,
    /// The seed.
    pub seed: u64,
    /// Peak learning rate; 0 where nothing is tuned.
    pub lr: f64,
    /// What it gave.
    pub result: R,
}

impl Job {
    /// The folder in a store's in which the cell lies while it is asked to stop.
    pub(super) fn paused_at(&self, store: &Path) -> PathBuf {
        store.join(format!("{}.paused", self.identity.name()))
    }

    /// Whether it was begun and asked to stop.
    pub(super) fn is_paused(&self, store: &Path) -> bool {
        Course::lies_in(&self.paused_at(store))
    }

    /// The finished cell.
    #[must_use]
    pub fn finished<R>(&self, result: R) -> Cell<R> {
        Cell { arm: self.arm.clone(), seed: self.seed, lr: self.lr, result }
    }
}

/// The study's cells in the order in which they are to be run: what has fewer seeds than the study first, for it is what
/// takes longest, then seed by seed, so that an interrupted study has whole pairs.
///
/// # Errors
/// An arm has no learning rate yet.
pub fn plan(study: &Study, digests: &mut Digests) -> Result<Vec<Job>, StudyError> {
    let few = study.arms.iter().filter(|arm| arm.seeds < study.seeds);
    let first = few.flat_map(|arm| (1..=arm.seeds).map(move |seed| (arm, seed)));
    let rest = (1..=study.seeds)
        .flat_map(|seed| study.arms.iter().filter(|arm| arm.seeds == study.seeds).map(move |arm| (arm, seed)));
    first.chain(rest).map(|(arm, seed)| job(study, arm, seed, digests)).collect()
}

fn job(study: &Study, arm: &Arm, seed: u64, digests: &mut Digests) -> Result<Job, StudyError> {
    let mut entries = digests.of(arm.task, seed);
    let measurement = &study.measurement;
    let mut counts = vec![("probe-texts", measurement.probe_texts), ("test-items", measurement.test_items)];
    let training = match arm.settings(seed, arm.lr.unwrap_or_default()) {
        Some(_) if arm.lr.is_none() => {
            return Err(StudyError::NoRate { study: study.name.clone(), arm: arm.name.clone() });
        }
        Some(training) => {
            counts.push(("validation-items", measurement.validation_items));
            counts.push(("watched-texts", measurement.watched_texts));
            entries.extend(changed_settings(&training)?);
            Some(training)
        }
        None => None,
    };
    entries.extend(counts.iter().map(|(name, count)| ((*name).to_owned(), count.to_string())));
    entries.insert("measured".to_owned(), "test".to_owned());
    let lr = training.as_ref().map_or(0.0, |config| config.lr);
    Ok(Job { arm: arm.name.clone(), seed, task: arm.task, lr, identity: Identity::new(entries), training })
}

/// The cells of the learning-rate search: every arm with every candidate, on a seed that is not the study's.
///
/// # Errors
/// An arm's settings have no TOML form.
pub fn search_plan(study: &Study, digests: &mut Digests) -> Result<Vec<Job>, StudyError> {
    let candidates = study.arms.iter().flat_map(|arm| arm.lr_candidates.iter().map(move |&lr| (arm, lr)));
    let jobs = candidates.filter_map(|(arm, lr)| Some((arm, lr, arm.settings(SEARCH_SEED, lr)?)));
    jobs.map(|(arm, lr, training)| {
        // The similarity that is watched changes no weight, and the search does not look at it.
        let training = TrainConfig { probe_every: 0, ..training };
        let mut entries = digests.of(arm.task, SEARCH_SEED);
        entries.extend(changed_settings(&training)?);
        entries.insert("validation-items".to_owned(), study.measurement.validation_items.to_string());
        entries.insert("measured".to_owned(), "validation".to_owned());
        let identity = Identity::new(entries);
        Ok(Job { arm: arm.name.clone(), seed: SEARCH_SEED, task: arm.task, lr, identity, training: Some(training) })
    })
    .collect()
}

/// The model and the task's items, all functions of the seed.
struct Items {
    model: LoadedModel,
    train: Vec<Example>,
    validation: Vec<Example>,
}

impl Items {
    fn new(study: &Study, job: &Job) -> Result<Self, StudyError> {
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
        let encode = |split: Split, n: usize| -> Result<Vec<Example>, StudyError> {
            let mut items = job.task.items(split, job.seed);
            items.truncate(n);
            Ok(encode_items(&items, model.tokenizer()?, study.loss_on)?)
        };
        let train = encode(Split::Train, usize::MAX)?;
        let validation = encode(Split::Validation, study.measurement.validation_items)?;
        Ok(Self { train, validation, model })
    }
}

/// What settings train of a model.
fn subject_of(training: &TrainConfig, transformer: Transformer) -> Result<Subject, StudyError> {
    let subject = match training.peft(transformer.architecture()) {
        Some(peft) => {
            let peft = Peft::initial(&transformer, peft, training.seed).map_err(TrainError::from)?;
            Subject::adapter(transformer, peft)?
        }
        None => Subject::full(transformer)?,
    };
    Ok(subject.configured(training))
}

/// Trains, from where it was asked to stop if it was, and answers the model after training and what was seen on the way.
fn tune(
    job: &Job,
    training: &TrainConfig,
    watched: usize,
    items: Items,
    pause: &Pause,
) -> Result<(Subject, Course), StudyError> {
    let begun = Instant::now();
    let texts = items.validation.iter().take(watched).cloned().collect();
    let data = TrainData { train: items.train, validation: items.validation, probe: ProbeSet { texts } };
    let subject = subject_of(training, items.model.transformer)?;
    let folder = job.paused_at(pause.folder);
    let paused = Course::take(&folder);
    let resume = paused.is_some();
    let mut course = paused.unwrap_or_default();
    let files = RunFiles::checkpoint_alone(&folder);
    let trainer = Trainer::new(training, &subject, &data, Some(&files))?.stop_when(pause.stop);
    if trainer.run(resume, &job.identity.digest, &mut course)?.interrupted {
        course.lay_down(&folder, begun)?;
        return Err(StudyError::Interrupted);
    }
    // What cannot be removed is in no one's way.
    let _ = std::fs::remove_dir_all(&folder);
    Ok((subject, course))
}

/// How many numbers a cell trains; 0 where it trains nothing.
///
/// # Errors
/// The modules cannot be made.
pub fn trainable(job: &Job) -> Result<usize, StudyError> {
    let Some(training) = &job.training else { return Ok(0) };
    let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
    Ok(subject_of(training, model.transformer)?.trainable())
}

/// Runs a cell of [`plan`], from where it was asked to stop if it was.
///
/// # Errors
/// Training fails, or is asked to stop.
pub fn run_cell(study: &Study, job: &Job, pause: &Pause) -> Result<CellResult, StudyError> {
    let started = Instant::now();
    let items = Items::new(study, job)?;
    let mut test = job.task.items(Split::Test, job.seed);
    test.truncate(study.measurement.test_items);
    let majority = majority_share(&test);
    let test = encode_items(&test, items.model.tokenizer()?, LossOn::Answer)?;
    let probe: Vec<Vec<u32>> = test.iter().take(study.measurement.probe_texts).map(|e| e.ids.clone()).collect();
    let examples: Vec<&Example> = test.iter().collect();
    let (subject, course) = match &job.training {
        Some(training) => tune(job, training, study.measurement.watched_texts, items, pause)?,
        None => (Subject::full(items.model.transformer)?, Course::default()),
    };
    let (loss, accuracy) = evaluate(&subject, &examples, 32)?;
    let frozen = subject.peft().map(Peft::frozen);
    let Geometry { similarity, effective_rank } = geometry(subject.model(), &Pass::inference(frozen.as_ref()), &probe)?;
    Ok(CellResult {
        trainable: if job.training.is_some() { subject.trainable() } else { 0 },
        accuracy,
        loss,
        majority,
        similarity,
        effective_rank,
        seconds: course.seconds + started.elapsed().as_secs_f64(),
        step_cpu_seconds: course.clock.median(),
        course: course.points,
    })
}

/// Runs a cell of [`search_plan`]; no test item is read.
///
/// # Errors
/// Training fails for another reason than that it diverged, or is asked to stop.
pub fn run_search(study: &Study, job: &Job, pause: &Pause) -> Result<SearchResult, StudyError> {
    let started = Instant::now();
    let Some(training) = &job.training else {
        return Err(StudyError::NoRate { study: study.name.clone(), arm: job.arm.clone() });
    };
    let trainable = trainable(job)?;
    let mut before = 0.0;
    let validation_loss = match tune(job, training, 0, Items::new(study, job)?, pause) {
        Ok((_, course)) => {
            before = course.seconds;
            course.points.last().map_or(f64::INFINITY, |point| point.loss)
        }
        // Too large a rate is an answer, not a failure.
        Err(StudyError::Train(TrainError::Diverged { .. } | TrainError::NotFinite { .. })) => f64::INFINITY,
        Err(error) => return Err(error),
    };
    Ok(SearchResult { trainable, validation_loss, seconds: before + started.elapsed().as_secs_f64() })
}
