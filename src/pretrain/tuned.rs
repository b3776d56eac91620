//! What fine-tuning does to the geometry of the embedded model: the last lines of its log.
//!
//! Vanilla LoRA on the headline task, once with the loss on the answer alone and once on all tokens: which of
//! the two is chosen decides how much alike the tokens grow.

use super::holdout::Split;
use super::run::{Geometry, geometry};
use super::tasks::{Task, encode_items};
use crate::data::{LossOn, Tokenize};
use crate::model::{LoadError, LoadedModel, Pass};
use crate::peft::Peft;
use crate::train::{
    Observer, ProbeSet, Schedule, StepEvent, Subject, TrainConfig, TrainData, TrainError, Trainer, evaluate,
};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Test items that are scored and, of those, texts whose geometry is measured.
const ITEMS: (usize, usize) = (500, 50);

/// The state of the model after tuning, as the log has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunedEvent {
    /// The task's name.
    pub tuned: String,
    /// The tokens whose loss was trained on.
    pub loss_on: LossOn,
    /// Steps of 16 sequences.
    pub steps: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Share of test items answered right.
    pub accuracy: f64,
    /// Token similarity of the test items: layers 0 to L, then after the final norm.
    pub similarity: Vec<Option<f64>>,
    /// Effective rank of the same states, mean over texts.
    pub effective_rank: Vec<Option<f64>>,
}

/// Why a model cannot be tuned.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The run failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The adapter cannot be made.
    #[error(transparent)]
    Adapter(#[from] crate::peft::AdapterError),
    /// The items cannot be encoded.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
}

struct Unwatched;

impl Observer for Unwatched {
    fn step(&mut self, _: &StepEvent, _: u64) {}
}

/// Tunes the model in `folder` for `steps` steps with vanilla LoRA (r = 8 on q, k, v, up, down) and measures it.
///
/// # Errors
/// The model cannot be loaded or the run diverges.
pub fn tune(folder: &Path, loss_on: LossOn, steps: u64) -> Result<TunedEvent, TuningError> {
    let model = LoadedModel::from_folder(folder, "embedded", DType::F32, &Device::Cpu)?;
    let tokenizer: &dyn Tokenize = model.tokenizer().map_err(LoadError::from)?;
    let task = Task::Difference;
    let encode = |split, n: usize, loss_on| {
        let mut items = task.items(split, 1);
        items.truncate(n);
        encode_items(&items, tokenizer, loss_on)
    };
    let config = TrainConfig {
        rank: 8,
        dropout: 0.0,
        lr: 5e-3,
        schedule: Schedule::Linear,
        warmup_steps: 20.min(steps),
        batch_size: 16,
        accumulate: 1,
        steps: Some(steps),
        eval_every: steps,
        probe_every: 0,
        loss_on,
        template: "short".to_owned(),
        seed: 1,
        ..TrainConfig::default()
    };
    let data = TrainData {
        train: encode(Split::Train, usize::MAX, loss_on)?,
        validation: encode(Split::Validation, 100, loss_on)?,
        probe: ProbeSet::default(),
    };
    let test = encode(Split::Test, ITEMS.0, LossOn::Answer)?;
    let subject = match config.peft(model.transformer.architecture()) {
        Some(peft) => {
            let peft = Peft::initial(&model.transformer, peft, config.seed)?;
            Subject::adapter(model.transformer, peft)?
        }
        None => Subject::full(model.transformer)?,
    };
    Trainer::new(&config, &subject, &data, None)?.run(false, "", &mut Unwatched)?;
    let (_, accuracy) = evaluate(&subject, &test.iter().collect::<Vec<_>>(), 32)?;
    let texts: Vec<Vec<u32>> = test.iter().take(ITEMS.1).map(|example| example.ids.clone()).collect();
    let frozen = subject.peft().map(Peft::frozen);
    let measured = geometry(subject.model(), &Pass::inference(frozen.as_ref()), &texts).map_err(TrainError::from)?;
    let Geometry { similarity, effective_rank } = measured;
    let tuned = task.name().to_owned();
    Ok(TunedEvent { tuned, loss_on, steps, lr: config.lr, accuracy, similarity, effective_rank })
}
