//! One cell of a study: an arm and a seed, tuned, probed and tested.

use super::cpu_time::CpuClock;
use super::file::{Arm, Study};
use super::identity::{Digests, Identity, changed_settings};
use super::{StudyError, missing};
use crate::data::{Example, LossOn};
use crate::model::{LoadedModel, Pass, Transformer};
use crate::peft::Peft;
use crate::pretrain::holdout::Split;
use crate::pretrain::run::{Geometry, geometry};
use crate::pretrain::tasks::{Task, encode_items, majority_share};
use crate::train::{Observer, ProbeSet, StepEvent, Subject, TrainConfig, TrainData, TrainError, Trainer, evaluate};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
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

/// A moment of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CoursePoint {
    /// Steps done.
    pub step: u64,
    /// Validation loss, in nats.
    pub loss: f64,
    /// Token similarity of the last block over the watched texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
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
    let mut entries = digests.of(study.task, seed);
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
    Ok(Job { arm: arm.name.clone(), seed, lr, identity: Identity::new(entries), training })
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
        let mut entries = digests.of(study.task, SEARCH_SEED);
        entries.extend(changed_settings(&training)?);
        entries.insert("validation-items".to_owned(), study.measurement.validation_items.to_string());
        entries.insert("measured".to_owned(), "validation".to_owned());
        let identity = Identity::new(entries);
        Ok(Job { arm: arm.name.clone(), seed: SEARCH_SEED, lr, identity, training: Some(training) })
    })
    .collect()
}

#[derive(Default)]
struct Course {
    points: Vec<CoursePoint>,
    clock: CpuClock,
}

impl Observer for Course {
    fn step(&mut self, event: &StepEvent, _total: u64) {
        // What was validated or probed after the step is no part of its time.
        let alone = event.val_loss.is_none() && event.similarity.is_none() && event.similarity_before.is_none();
        self.clock.lap(alone);
        if let Some(loss) = event.val_loss {
            let last = event.similarity.as_ref().and_then(|s| s.get(s.len().checked_sub(2)?).copied().flatten());
            self.points.push(CoursePoint { step: event.step, loss, similarity: last });
        }
    }
}

/// The model and the task's items, all functions of the seed.
struct Items {
    model: LoadedModel,
    train: Vec<Example>,
    validation: Vec<Example>,
}

impl Items {
    fn new(study: &Study, seed: u64) -> Result<Self, StudyError> {
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
        let encode = |split: Split, n: usize| -> Result<Vec<Example>, StudyError> {
            let mut items = study.task.items(split, seed);
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
    Ok(subject.checkpointing(training.checkpointing).dropping_depth(training.stochastic_depth))
}

/// Trains, and answers the model after training and what was seen on the way.
fn tune(training: &TrainConfig, watched: usize, items: Items) -> Result<(Subject, Course), StudyError> {
    let texts = items.validation.iter().take(watched).cloned().collect();
    let data = TrainData { train: items.train, validation: items.validation, probe: ProbeSet { texts } };
    let subject = subject_of(training, items.model.transformer)?;
    let mut course = Course::default();
    Trainer::new(training, &subject, &data, None)?.run(false, "", &mut course)?;
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

/// Runs a cell of [`plan`].
///
/// # Errors
/// Training fails.
pub fn run_cell(study: &Study, job: &Job) -> Result<CellResult, StudyError> {
    let started = Instant::now();
    let items = Items::new(study, job.seed)?;
    let task: Task = study.task;
    let mut test = task.items(Split::Test, job.seed);
    test.truncate(study.measurement.test_items);
    let majority = majority_share(&test);
    let test = encode_items(&test, items.model.tokenizer()?, LossOn::Answer)?;
    let probe: Vec<Vec<u32>> = test.iter().take(study.measurement.probe_texts).map(|e| e.ids.clone()).collect();
    let examples: Vec<&Example> = test.iter().collect();
    let (subject, course) = match &job.training {
        Some(training) => tune(training, study.measurement.watched_texts, items)?,
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
        seconds: started.elapsed().as_secs_f64(),
        step_cpu_seconds: course.clock.median(),
        course: course.points,
    })
}

/// Runs a cell of [`search_plan`]; no test item is read.
///
/// # Errors
/// Training fails for another reason than that it diverged.
pub fn run_search(study: &Study, job: &Job) -> Result<SearchResult, StudyError> {
    let started = Instant::now();
    let Some(training) = &job.training else {
        return Err(StudyError::NoRate { study: study.name.clone(), arm: job.arm.clone() });
    };
    let trainable = trainable(job)?;
    let validation_loss = match tune(training, 0, Items::new(study, job.seed)?) {
        Ok((_, course)) => course.points.last().map_or(f64::INFINITY, |point| point.loss),
        // Too large a rate is an answer, not a failure.
        Err(StudyError::Train(TrainError::Diverged { .. } | TrainError::NotFinite { .. })) => f64::INFINITY,
        Err(error) => return Err(error),
    };
    Ok(SearchResult { trainable, validation_loss, seconds: started.elapsed().as_secs_f64() })
}
