//! One cell of the study: an arm and a seed, tuned, probed and tested.

use crate::data::{Example, LossOn};
use crate::model::{LoadedModel, Pass};
use crate::peft::{self, Peft, Policy};
use crate::pretrain::holdout::Split;
use crate::pretrain::run::{Geometry, geometry};
use crate::pretrain::tasks::{Task, encode_items, majority_share};
use crate::train::{
    MethodName, Observer, ProbeSet, Schedule, StepEvent, Subject, TrainConfig, TrainData, Trainer, evaluate,
};
use anyhow::{Result, anyhow};
use candle_core::{DType, Device};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// What all cells share: `analyses/headline.toml`, fixed before the first of them ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StudyConfig {
    /// The page's title.
    pub title: String,
    /// What is asked.
    pub question: String,
    /// What was expected.
    pub hypothesis: String,
    /// The model; `embedded`.
    pub model: String,
    /// The task's name.
    pub task: String,
    /// Optimizer steps of a cell.
    pub steps: u64,
    /// Sequences of a step.
    pub batch_size: usize,
    /// The peak learning rates that every arm may choose from, by its validation loss.
    pub lr_candidates: Vec<f64>,
    /// What each arm chose in `reproduce --search`, before the first test item was read.
    pub lr: BTreeMap<Arm, f64>,
    /// Steps of the full fine-tuning that shows the task's headroom.
    pub full_steps: u64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// LoRA's rank; α is twice that.
    pub rank: usize,
    /// The adapter's inner width.
    pub bottleneck: usize,
    /// The linears that have an adapter in front.
    pub adapter_targets: Vec<String>,
    /// λ.
    pub lambda: f64,
    /// Steps between validations and similarity measurements.
    pub eval_every: u64,
    /// Validation items read at each.
    pub validation_items: usize,
    /// Texts of the similarity measurement at the end of a cell.
    pub probe_texts: usize,
    /// Items of the test.
    pub test_items: usize,
    /// Differences of accuracy below this do not matter.
    pub accuracy_margin: f64,
    /// Differences of similarity below this do not matter.
    pub similarity_margin: f64,
}

impl StudyConfig {
    /// The study that is compiled in.
    ///
    /// # Errors
    /// The file was damaged; a test reads it.
    pub fn headline() -> Result<Self> {
        Ok(toml::from_str(include_str!("../../../analyses/headline.toml"))?)
    }
}

/// An arm of the study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The model as it was pretrained.
    Base,
    /// LoRA.
    LoraVanilla,
    /// LoRA whose input is shrunken as SIBO's: the scale control.
    LoraNone,
    /// LoRA with the initial residual, policy `all`.
    LoraSibo,
    /// Series adapters in front of q, k, v, gate and up.
    AdapterVanilla,
    /// Those adapters with a shrunken input.
    AdapterNone,
    /// Those adapters with the initial residual.
    AdapterSibo,
    /// Every weight: what the task allows.
    Full,
}

impl Arm {
    /// The arms that are compared.
    pub const TUNED: [Self; 6] =
        [Self::LoraVanilla, Self::LoraNone, Self::LoraSibo, Self::AdapterVanilla, Self::AdapterNone, Self::AdapterSibo];

    /// Every arm in the order of tables.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Base).chain(Self::TUNED).chain([Self::Full])
    }

    /// The arm's name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::LoraVanilla => "lora-vanilla",
            Self::LoraNone => "lora-none",
            Self::LoraSibo => "lora-sibo",
            Self::AdapterVanilla => "adapter-vanilla",
            Self::AdapterNone => "adapter-none",
            Self::AdapterSibo => "adapter-sibo",
            Self::Full => "full",
        }
    }

    fn settings(self, study: &StudyConfig, seed: u64, lr: f64) -> TrainConfig {
        let (method, residual) = match self {
            Self::Full => (MethodName::Full, None),
            Self::Base | Self::LoraVanilla => (MethodName::Lora, None),
            Self::LoraNone => (MethodName::Lora, Some(peft::Arm::None)),
            Self::LoraSibo => (MethodName::Lora, Some(peft::Arm::H0)),
            Self::AdapterVanilla => (MethodName::Adapter, None),
            Self::AdapterNone => (MethodName::Adapter, Some(peft::Arm::None)),
            Self::AdapterSibo => (MethodName::Adapter, Some(peft::Arm::H0)),
        };
        TrainConfig {
            method,
            targets: if method == MethodName::Adapter { study.adapter_targets.clone() } else { Vec::new() },
            rank: study.rank,
            dropout: 0.0,
            bottleneck: study.bottleneck,
            sibo_lambda: if residual.is_some() { study.lambda } else { 0.0 },
            sibo_policy: Policy::All,
            residual: residual.unwrap_or(peft::Arm::H0),
            lr,
            schedule: Schedule::Linear,
            warmup_steps: study.warmup_steps,
            batch_size: study.batch_size,
            accumulate: 1,
            steps: Some(if self == Self::Full { study.full_steps } else { study.steps }),
            eval_every: study.eval_every,
            probe_every: study.eval_every,
            loss_on: LossOn::Answer,
            template: "short".to_owned(),
            seed,
            ..TrainConfig::default()
        }
    }
}

/// What a cell gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The arm.
    pub arm: Arm,
    /// The seed.
    pub seed: u64,
    /// Peak learning rate; 0 where nothing is tuned.
    pub lr: f64,
    /// Trained numbers.
    pub trainable: usize,
    /// Share of test items answered right.
    pub accuracy: f64,
    /// Mean loss of the answer token over the test items, in nats.
    pub loss: f64,
    /// Always giving the commonest answer would score this.
    pub majority: f64,
    /// Token similarity of the probe texts: layers 0 to L, then after the final norm.
    pub similarity: Vec<Option<f64>>,
    /// Effective rank of the same states.
    pub effective_rank: Vec<Option<f64>>,
    /// While training: step, validation loss, similarity of the last block.
    pub course: Vec<CoursePoint>,
    /// Wall time, in seconds.
    pub seconds: f64,
}

/// A moment of training: step, validation loss, similarity of the last block.
pub type CoursePoint = (u64, f64, Option<f64>);

#[derive(Default)]
struct Course(Vec<CoursePoint>);

impl Observer for Course {
    fn step(&mut self, event: &StepEvent, _total: u64) {
        if let Some(loss) = event.val_loss {
            let last = event.similarity.as_ref().and_then(|s| s.get(s.len().checked_sub(2)?).copied().flatten());
            self.0.push((event.step, loss, last));
        }
    }
}

/// Runs a cell, or reads it from `folder` if it was finished there under the same settings.
///
/// # Errors
/// Training fails or a file cannot be written.
pub fn run_cell(arm: Arm, seed: u64, study: &StudyConfig, folder: &Path) -> Result<CellResult> {
    let lr = study.lr.get(&arm).copied().unwrap_or_default();
    kept(folder, &format!("{}-{seed}", arm.name()), &(study, lr), || compute(arm, seed, study, lr))
}

/// What one learning rate gave an arm on the validation items of the seed that is kept for the choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// The arm.
    pub arm: Arm,
    /// The peak learning rate.
    pub lr: f64,
    /// Validation loss after the last step, in nats.
    pub validation_loss: f64,
}

/// The seed of the learning-rate search: none of the study's own.
const SEARCH_SEED: u64 = 0;

/// Trains an arm with a learning rate and answers its validation loss; no test item is read.
///
/// # Errors
/// As [`run_cell`].
pub fn search_cell(arm: Arm, lr: f64, study: &StudyConfig, folder: &Path) -> Result<SearchResult> {
    let shared = StudyConfig { lr: BTreeMap::new(), ..study.clone() };
    kept(folder, &format!("search-{}-{lr}", arm.name()), &shared, || {
        let items = Items::new(study, SEARCH_SEED)?;
        let (_, course) = tune(arm, SEARCH_SEED, study, lr, items)?;
        let validation_loss = course.last().map_or(f64::NAN, |&(_, loss, _)| loss);
        Ok(SearchResult { arm, lr, validation_loss })
    })
}

/// Reads `name` from `folder` if it was made there from the same settings and model, or makes it.
fn kept<T: Serialize + DeserializeOwned>(
    folder: &Path,
    name: &str,
    settings: &impl Serialize,
    make: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let path = folder.join(format!("{name}.json"));
    let hashes = LoadedModel::embedded(DType::F32, &Device::Cpu)?.hashes()?;
    let identity = crate::hash::sha256_bytes(serde_json::to_string(&(settings, hashes))?.as_bytes());
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok((made, result)) = serde_json::from_str::<(String, T)>(&text)
        && made == identity
    {
        return Ok(result);
    }
    let result = make()?;
    crate::persist::write_file(&path, serde_json::to_string_pretty(&(identity, &result))?.as_bytes())?;
    Ok(result)
}

/// The model and the task's items, all functions of the seed.
struct Items {
    model: LoadedModel,
    train: Vec<Example>,
    validation: Vec<Example>,
    task: Task,
}

impl Items {
    fn new(study: &StudyConfig, seed: u64) -> Result<Self> {
        let task = Task::ALL.into_iter().find(|task| task.name() == study.task);
        let task = task.ok_or_else(|| anyhow!("analyses/headline.toml: task {} is unknown", study.task))?;
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
        let encode = |split: Split, n: usize| -> Result<Vec<Example>> {
            let mut items = task.items(split, seed);
            items.truncate(n);
            Ok(encode_items(&items, model.tokenizer()?, LossOn::Answer)?)
        };
        let train = encode(Split::Train, usize::MAX)?;
        let validation = encode(Split::Validation, study.validation_items)?;
        Ok(Self { train, validation, task, model })
    }
}

/// An arm after training, and its course: step, validation loss, similarity of the last block.
fn tune(arm: Arm, seed: u64, study: &StudyConfig, lr: f64, items: Items) -> Result<(Subject, Vec<CoursePoint>)> {
    let watched = items.validation.iter().take(32).cloned().collect();
    let data = TrainData { train: items.train, validation: items.validation, probe: ProbeSet { texts: watched } };
    let config = arm.settings(study, seed, lr);
    let transformer = items.model.transformer;
    let mut course = Course::default();
    let subject = match config.peft(transformer.architecture()).filter(|_| arm != Arm::Base) {
        Some(peft) => {
            let peft = Peft::initial(&transformer, peft, seed)?;
            Subject::adapter(transformer, peft)?
        }
        None => Subject::full(transformer)?,
    };
    if arm != Arm::Base {
        Trainer::new(&config, &subject, &data, None)?.run(false, "", &mut course)?;
    }
    Ok((subject, course.0))
}

fn compute(arm: Arm, seed: u64, study: &StudyConfig, lr: f64) -> Result<CellResult> {
    let started = Instant::now();
    let items = Items::new(study, seed)?;
    let mut test = items.task.items(Split::Test, seed);
    test.truncate(study.test_items);
    let majority = majority_share(&test);
    let test = encode_items(&test, items.model.tokenizer()?, LossOn::Answer)?;
    let probe: Vec<Vec<u32>> = test.iter().take(study.probe_texts).map(|e| e.ids.clone()).collect();
    let (subject, course) = tune(arm, seed, study, lr, items)?;
    let examples: Vec<&Example> = test.iter().collect();
    let (loss, accuracy) = evaluate(&subject, &examples, 32)?;
    let frozen = subject.peft().map(Peft::frozen);
    let Geometry { similarity, effective_rank } = geometry(subject.model(), &Pass::inference(frozen.as_ref()), &probe)?;
    Ok(CellResult {
        arm,
        seed,
        lr,
        trainable: if arm == Arm::Base { 0 } else { subject.trainable() },
        accuracy,
        loss,
        majority,
        similarity,
        effective_rank,
        course,
        seconds: started.elapsed().as_secs_f64(),
    })
}
