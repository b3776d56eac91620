//! One optimizer step, and the loss over held-out examples.

use super::objective::{Objective, Occasion, Prepared};
use super::optimizer::{AdamW, Moments, clip_factor, gradient_norm};
use super::{Subject, TrainError};
use crate::data::Example;
use crate::kernels::{self, Gradients};
use crate::model::{Backward, Pass, Transformer};
use crate::peft::{DropoutKey, Peft};
use crate::probe::Silent;
use crate::profile::{self, Phase};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// What one optimizer step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss over all target tokens of the batch, before the update, in nats.
    pub loss: f64,
    /// Mean over the texts of how alike their tokens are behind the last block, where the cosine regulariser is on; not part of
    /// the loss.
    pub penalty: Option<f64>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Target tokens.
    pub targets: usize,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
}

/// The gradients of the mean loss over all target tokens of the micro-batches, and that loss.
///
/// # Errors
/// A trainable tensor receives no gradient, or loss or gradient is not finite.
pub fn gradients(
    subject: &Subject,
    micro_batches: &[Vec<&Example>],
    dropout: Option<(u64, u64)>,
    step: u64,
) -> Result<(BTreeMap<String, Tensor>, StepReport), TrainError> {
    subject.objective().check(subject.model())?;
    let prepared = profile::timed(Phase::Data, || {
        let mut first = 0;
        let prepare = |examples: &Vec<&Example>| {
            let prepared = subject.objective().prepare(examples, Occasion::Step(step), first);
            first += examples.len();
            prepared
        };
        micro_batches.iter().map(prepare).collect::<Vec<_>>()
    });
    let targets = prepared.iter().flat_map(|p| &p.weights).filter(|&&weight| weight > 0.0).count();
    let (mut total, mut penalty, mut tokens) = (0.0, 0.0, 0);
    let mut sums = Gradients::default();
    let texts = prepared.iter().map(|p| p.batch.sequences()).sum::<usize>().max(1) as f64;
    let gamma = subject.cosine_regulariser();
    let how = Backward {
        scale: 1.0 / targets.max(1) as f64,
        checkpointing: subject.is_checkpointing(),
        penalty: gamma / texts,
    };
    for (index, one) in prepared.iter().enumerate() {
        let (Prepared { batch, weights, .. }, wanted) = (one, one.wanted());
        let key = dropout.map(|(seed, step)| DropoutKey { seed, step, micro_batch: index as u64 });
        let found = subject.model().loss_gradients(batch, (wanted, weights), &subject.pass(key), how, &mut sums)?;
        (total, penalty) = (total + found.loss, penalty + found.penalty);
        tokens += batch.ids.len();
    }
    let mut summed: BTreeMap<String, Tensor> = BTreeMap::new();
    profile::timed(Phase::Backward, || profile::settle(subject.model().device()))?;
    for (name, variable) in subject.variables() {
        let Some(gradient) = sums.take(variable.as_tensor()) else {
            return Err(TrainError::NoGradient { tensor: name.clone() });
        };
        summed.insert(name.clone(), gradient);
    }
    let loss = total / targets.max(1) as f64;
    if !loss.is_finite() {
        return Err(TrainError::Diverged { step, loss });
    }
    let norm = gradient_norm(&summed)?;
    if !norm.is_finite() {
        let sum = |g: &Tensor| g.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>();
        let culprit = summed.iter().find(|(_, g)| !sum(g).is_ok_and(f64::is_finite));
        let tensor = culprit.map_or_else(|| "all tensors together".to_owned(), |(name, _)| name.clone());
        return Err(TrainError::NotFinite { step, tensor });
    }
    let penalty = (gamma != 0.0).then_some(penalty / texts);
    Ok((summed, StepReport { loss, penalty, tokens, targets, gradient_norm: norm }))
}

/// One optimizer step: gradients, clipping at `max_norm` (0 is off), AdamW at `rate`.
///
/// # Errors
/// As [`gradients`].
#[expect(clippy::too_many_arguments, reason = "a step is made of these, and nothing else shares the bundle")]
pub fn train_step(
    subject: &Subject,
    moments: &mut Moments,
    settings: &AdamW,
    rate: f64,
    max_norm: f64,
    micro_batches: &[Vec<&Example>],
    dropout: Option<(u64, u64)>,
    step: u64,
) -> Result<StepReport, TrainError> {
    let (gradients, report) = gradients(subject, micro_batches, dropout, step)?;
    profile::timed(Phase::Optimizer, || {
        let clip = clip_factor(report.gradient_norm, max_norm);
        moments.update(settings, rate, clip, subject.variables(), &gradients)?;
        Ok::<_, TrainError>(profile::settle(subject.model().device())?)
    })?;
    Ok(report)
}

/// Mean loss over the targets of `examples`, in nats or squared units of a score, and the share of them predicted exactly;
/// of scores within half a unit.
///
/// # Errors
/// The model cannot be run.
pub fn evaluate(subject: &Subject, examples: &[&Example], batch_size: usize) -> Result<(f64, f64), TrainError> {
    let found = evaluate_examples(subject.model(), subject.peft(), subject.objective(), examples, batch_size)?;
    Ok((found.loss, found.accuracy))
}

/// What one example adds to an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ExampleLoss {
    /// Loss in nats, summed over its target tokens.
    pub sum: f64,
    /// Target tokens.
    pub targets: usize,
    /// Those of them with the largest logit.
    pub hits: usize,
}

/// What [`evaluate_examples`] gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Evaluation {
    /// Mean loss in nats over the target tokens of all examples.
    pub loss: f64,
    /// The share of them predicted exactly.
    pub accuracy: f64,
    /// Every example, in order.
    pub examples: Vec<ExampleLoss>,
}

/// As [`evaluate`], of a model and its PEFT modules that nothing trains, with the loss of every example.
///
/// # Errors
/// The model cannot be run.
pub fn evaluate_examples(
    model: &Transformer,
    peft: Option<&Peft>,
    objective: &Objective,
    examples: &[&Example],
    batch_size: usize,
) -> Result<Evaluation, TrainError> {
    objective.check(model)?;
    let frozen = peft.map(Peft::frozen);
    let pass = Pass::inference(frozen.as_ref());
    let (mut loss, mut hits, mut count) = (0.0, 0usize, 0usize);
    let mut each = Vec::with_capacity(examples.len());
    for group in examples.chunks(batch_size.max(1)) {
        let Prepared { batch, targets, weights, scores } = objective.prepare(group, Occasion::Evaluation, each.len());
        // Weights under training are tracked; what is only evaluated builds no graph.
        let states = kernels::forget(|| model.hidden_states(&batch, &pass, &mut Silent))?.detach();
        let rows: Vec<u32> = (0u32..).zip(&weights).filter(|(_, w)| **w > 0.0).map(|(row, _)| row).collect();
        let wanted: Vec<u32> = targets.iter().zip(&weights).filter(|(_, w)| **w > 0.0).map(|(t, _)| *t).collect();
        let counted = |rows: std::ops::Range<usize>| {
            weights.get(rows).unwrap_or_default().iter().filter(|&&weight| weight > 0.0).count()
        };
        let own: Vec<usize> = (0..batch.sequences()).map(|index| counted(batch.rows(index))).collect();
        let first = each.len();
        each.extend(own.into_iter().map(|targets| ExampleLoss { sum: 0.0, targets, hits: 0 }));
        if rows.is_empty() {
            continue;
        }
        let states = states.index_select(&Tensor::new(rows, states.device())?, 0)?;
        let (losses, right) = match scores.is_empty() {
            true => model.token_losses_and_hits(&states, &wanted)?,
            false => {
                let wanted = scores.iter().zip(&weights).filter(|(_, w)| **w > 0.0).map(|(s, _)| f64::from(*s));
                let errors = model.head_outputs(&states)?.into_iter().zip(wanted);
                errors
                    .map(|(output, score)| output.first().map_or(f64::NAN, |output| output - score))
                    .map(|error| (error * error, error.abs() <= 0.5))
                    .unzip()
            }
        };
        loss += losses.iter().sum::<f64>();
        let (mut left, mut right_left) = (losses.as_slice(), right.as_slice());
        for example in each.iter_mut().skip(first) {
            let (own, rest) = left.split_at_checked(example.targets).unwrap_or((left, &[]));
            (example.sum, left) = (own.iter().sum(), rest);
            let (own, rest) = right_left.split_at_checked(example.targets).unwrap_or((right_left, &[]));
            (example.hits, right_left) = (own.iter().filter(|&&hit| hit).count(), rest);
        }
        hits += right.iter().filter(|&&r| r).count();
        count += wanted.len();
    }
    let count = count.max(1) as f64;
    Ok(Evaluation { loss: loss / count, accuracy: hits as f64 / count, examples: each })
}
