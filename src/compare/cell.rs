//! One cell: an arm at a seed, trained and read on items.

use super::CompareError;
use super::design::{Arm, Design, Kind};
use crate::data::Example;
use crate::model::{Pass, Transformer};
use crate::peft::Peft;
use crate::pretrain::run::geometry;
use crate::train::{
    Evaluation, Objective, Observer, ProbeSet, StepEvent, Subject, TrainData, TrainError, Trainer, evaluate_examples,
};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Texts whose similarity is measured.
const PROBED: usize = 100;

/// The examples, encoded.
#[derive(Debug, Clone)]
pub struct Data {
    /// Those that are trained on.
    pub train: Vec<Example>,
    /// Those that learning rates and λ are chosen by.
    pub validation: Vec<Example>,
    /// Those that the verdict is made of.
    pub test: Vec<Example>,
}

/// How a model reads items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Found {
    /// Mean loss of a target token, in nats.
    pub loss: f64,
    /// Share of target tokens that have the largest logit.
    pub tokens: f64,
    /// Share of items all of whose target tokens have: greedy decoding would write them.
    pub items: f64,
}

impl Found {
    fn of(read: &Evaluation) -> Self {
        let counted: Vec<_> = read.examples.iter().filter(|example| example.targets > 0).collect();
        let whole = counted.iter().filter(|example| example.hits == example.targets).count();
        Self { loss: read.loss, tokens: read.accuracy, items: whole as f64 / counted.len().max(1) as f64 }
    }
}

/// What a cell gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CellResult {
    /// Trained numbers.
    pub trainable: usize,
    /// On the validation items.
    pub validation: Found,
    /// On the test items; the search reads none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Found>,
    /// Token similarity behind the last block, over the first test items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// Wall time of the cell, in seconds.
    pub seconds: f64,
    /// Wall time of its median step, in seconds; 0 where nothing is trained.
    pub step_seconds: f64,
}

/// The time of every step.
#[derive(Default)]
struct Steps(Vec<f64>);

impl Observer for Steps {
    fn step(&mut self, event: &StepEvent, _total: u64) {
        self.0.push(event.seconds);
    }
}

impl Steps {
    fn median(mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }
}

/// Trains an arm at a seed, or in the search where that is `None`, and reads the items.
///
/// # Errors
/// Training diverges or the model cannot be run.
pub(super) fn run_cell(
    model: &Transformer,
    data: &Data,
    design: &Design,
    arm: Arm,
    seed: Option<u64>,
) -> Result<CellResult, CompareError> {
    let started = Instant::now();
    let config = design.settings(arm, seed);
    let mut steps = Steps::default();
    let subject = match config.peft(model.architecture()).filter(|_| arm.kind != Kind::Base) {
        None => None,
        Some(peft) => {
            let peft = Peft::initial(model, peft, config.seed).map_err(TrainError::from)?;
            let subject = Subject::adapter(model.clone(), peft)?.configured(&config);
            let data =
                TrainData { train: data.train.clone(), validation: Vec::new(), probe: ProbeSet { texts: Vec::new() } };
            Trainer::new(&config, &subject, &data, None)?.run(false, "", &mut steps)?;
            Some(subject)
        }
    };
    let tuned = subject.as_ref().map_or(model, Subject::model);
    let peft = subject.as_ref().and_then(Subject::peft).map(Peft::frozen);
    let read = |examples: &[Example]| -> Result<Found, CompareError> {
        let examples: Vec<&Example> = examples.iter().collect();
        let objective = Objective::NextToken;
        Ok(Found::of(&evaluate_examples(tuned, peft.as_ref(), &objective, &examples, config.batch_size)?))
    };
    let validation = read(&data.validation)?;
    let (mut test, mut similarity) = (None, None);
    if seed.is_some() {
        test = Some(read(&data.test)?);
        let texts: Vec<Vec<u32>> = data.test.iter().take(PROBED).map(|example| example.ids.clone()).collect();
        let curve = geometry(tuned, &Pass::inference(peft.as_ref()), &texts)?.similarity;
        similarity = curve.get(model.architecture().layers).copied().flatten();
    }
    Ok(CellResult {
        trainable: subject.as_ref().map_or(0, Subject::trainable),
        validation,
        test,
        similarity,
        seconds: started.elapsed().as_secs_f64(),
        step_seconds: steps.median(),
    })
}
