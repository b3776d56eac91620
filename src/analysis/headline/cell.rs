//! One cell of the study: an arm and a seed, tuned, probed and tested.

use crate::data::{EncodingOptions, Example, LossOn, Record, Template, Tokenize, encode_records};
use crate::model::{LoadedModel, Pass};
use crate::peft::{self, Peft, Policy};
use crate::pretrain::holdout::Split;
use crate::pretrain::run::{Geometry, geometry};
use crate::pretrain::tasks::{Task, TaskItem, majority_share};
use crate::train::{
    MethodName, Observer, ProbeSet, Schedule, StepEvent, Subject, TrainConfig, TrainData, Trainer, evaluate,
};
use anyhow::{Result, anyhow};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
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
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// LoRA's rank; α is twice that.
    pub rank: usize,
    /// The adapter's inner width.
    pub bottleneck: usize,
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
    /// Series adapters at gate and up.
    AdapterVanilla,
    /// Those adapters with the initial residual.
    AdapterSibo,
}

impl Arm {
    /// The arms that are tuned.
    pub const TUNED: [Self; 5] =
        [Self::LoraVanilla, Self::LoraNone, Self::LoraSibo, Self::AdapterVanilla, Self::AdapterSibo];

    /// The arm's name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::LoraVanilla => "lora-vanilla",
            Self::LoraNone => "lora-none",
            Self::LoraSibo => "lora-sibo",
            Self::AdapterVanilla => "adapter-vanilla",
            Self::AdapterSibo => "adapter-sibo",
        }
    }

    fn settings(self, study: &StudyConfig, seed: u64) -> TrainConfig {
        let (method, residual) = match self {
            Self::Base | Self::LoraVanilla => (MethodName::Lora, None),
            Self::LoraNone => (MethodName::Lora, Some(peft::Arm::None)),
            Self::LoraSibo => (MethodName::Lora, Some(peft::Arm::H0)),
            Self::AdapterVanilla => (MethodName::Adapter, None),
            Self::AdapterSibo => (MethodName::Adapter, Some(peft::Arm::H0)),
        };
        TrainConfig {
            method,
            rank: study.rank,
            dropout: 0.0,
            bottleneck: study.bottleneck,
            sibo_lambda: if residual.is_some() { study.lambda } else { 0.0 },
            sibo_policy: Policy::All,
            residual: residual.unwrap_or(peft::Arm::H0),
            lr: study.lr,
            schedule: Schedule::Linear,
            warmup_steps: study.warmup_steps,
            batch_size: study.batch_size,
            accumulate: 1,
            steps: Some(study.steps),
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
    pub course: Vec<(u64, f64, Option<f64>)>,
    /// Wall time, in seconds.
    pub seconds: f64,
}

#[derive(Default)]
struct Course(Vec<(u64, f64, Option<f64>)>);

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
    let path = folder.join(format!("{}-{seed}.json", arm.name()));
    let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
    let identity = crate::hash::sha256_bytes(serde_json::to_string(&(study, model.hashes()?))?.as_bytes());
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok((made, result)) = serde_json::from_str::<(String, CellResult)>(&text)
        && made == identity
    {
        return Ok(result);
    }
    let result = compute(arm, seed, study, model)?;
    crate::persist::write_file(&path, serde_json::to_string_pretty(&(identity, &result))?.as_bytes())?;
    Ok(result)
}

fn compute(arm: Arm, seed: u64, study: &StudyConfig, model: LoadedModel) -> Result<CellResult> {
    let started = Instant::now();
    let task = Task::ALL.into_iter().find(|task| task.name() == study.task);
    let task = task.ok_or_else(|| anyhow!("analyses/headline.toml: task {} is unknown", study.task))?;
    let encode = |split: Split, n: usize| -> Result<(Vec<Example>, f64)> {
        let mut items = task.items(split, seed);
        items.truncate(n);
        let (examples, _) = encode_items(&items, &model.tokenizer)?;
        Ok((examples, majority_share(&items)))
    };
    let (train, _) = encode(Split::Train, usize::MAX)?;
    let (validation, _) = encode(Split::Validation, study.validation_items)?;
    let (test, majority) = encode(Split::Test, study.test_items)?;
    let probe: Vec<Vec<u32>> = test.iter().take(study.probe_texts).map(|e| e.ids.clone()).collect();
    let watched = validation.iter().take(32).map(|e| (e.ids.clone(), e.special.clone())).collect();
    let data = TrainData { train, validation, probe: ProbeSet { texts: watched } };

    let config = arm.settings(study, seed);
    let transformer = model.transformer;
    let mut course = Course::default();
    let subject = match (arm, config.peft(transformer.architecture())) {
        (Arm::Base, _) | (_, None) => Subject::full(transformer)?,
        (_, Some(peft)) => {
            let peft = Peft::initial(&transformer, peft, seed)?;
            let subject = Subject::adapter(transformer, peft)?;
            Trainer::new(&config, &subject, &data, None)?.run(false, "", &mut course)?;
            subject
        }
    };
    let examples: Vec<&Example> = test.iter().collect();
    let (loss, accuracy) = evaluate(&subject, &examples, 32)?;
    let frozen = subject.peft().map(Peft::frozen);
    let Geometry { similarity, effective_rank } = geometry(subject.model(), &Pass::inference(frozen.as_ref()), &probe)?;
    Ok(CellResult {
        arm,
        seed,
        trainable: if arm == Arm::Base { 0 } else { subject.trainable() },
        accuracy,
        loss,
        majority,
        similarity,
        effective_rank,
        course: course.0,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn encode_items(items: &[TaskItem], tokenizer: &dyn Tokenize) -> Result<(Vec<Example>, usize)> {
    let records: Vec<Record> = items
        .iter()
        .map(|item| Record::Instruction {
            instruction: item.instruction.clone(),
            input: String::new(),
            output: item.output.clone(),
        })
        .collect();
    let options = EncodingOptions { cutoff: 256, loss_on: LossOn::Answer };
    let (mut examples, report) = encode_records(&records, &Template::Short, tokenizer, options, Path::new("task"))?;
    // The answer is one token; the end of the sequence behind it is no part of the question.
    for example in &mut examples {
        let answer = example.response;
        example.loss.iter_mut().enumerate().for_each(|(i, target)| *target = i == answer);
    }
    Ok((examples, report.dropped))
}
