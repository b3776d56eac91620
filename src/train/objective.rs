//! What a model learns to predict: the next token, or tokens that were hidden from it.

use super::TrainError;
use crate::data::{Example, Packed, targets_and_weights};
use crate::model::{Transformer, Wanted};
use crate::random::stream;
use rand::Rng;

/// What the loss asks for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Objective {
    /// The token behind each token: for decoders.
    #[default]
    NextToken,
    /// Tokens that were hidden: for encoders.
    MaskedTokens(Masking),
    /// The class of each text, by its first token or its last.
    Classes {
        /// Whether the last token answers, as in decoders.
        last: bool,
    },
    /// The score of each text, by its first token or its last: the squared error of a head of one output.
    Scores {
        /// Whether the last token answers.
        last: bool,
    },
}

/// How tokens are hidden (Devlin et al., 2019, drawn anew every step as in RoBERTa and transformers'
/// `DataCollatorForLanguageModeling`): of those chosen, 80 % become the mask, 10 % a random token, 10 % stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Masking {
    /// The tokenizer's mask.
    pub mask: u32,
    /// Random tokens are drawn below this id.
    pub vocab: u32,
    /// The share of tokens that are chosen, each by itself; where a text's draws choose none, one is.
    pub share: f64,
    /// The seed of all draws.
    pub seed: u64,
}

/// Examples as a model reads them, with what the loss asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What the model reads.
    pub batch: Packed,
    /// What each row is to predict, `[tokens]`.
    pub targets: Vec<u32>,
    /// 1 where the row counts, else 0, `[tokens]`.
    pub weights: Vec<f32>,
    /// The score that each row is to have, `[tokens]`; empty where it is not scores that are learned.
    pub scores: Vec<f32>,
}

impl Prepared {
    /// What the rows are to predict.
    #[must_use]
    pub fn wanted(&self) -> Wanted<'_> {
        if self.scores.is_empty() { Wanted::Ids(&self.targets) } else { Wanted::Scores(&self.scores) }
    }
}

/// When examples are read, which decides what is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// In this optimizer step.
    Step(u64),
    /// Held out: the same tokens every time.
    Evaluation,
}

impl Objective {
    /// Whether `model` can learn this.
    ///
    /// # Errors
    /// It cannot: an encoder sees the next token.
    pub(super) fn check(&self, model: &Transformer) -> Result<(), TrainError> {
        match self {
            Self::NextToken if !model.architecture().causal => {
                Err(TrainError::SeesTheAnswer { family: model.architecture().family })
            }
            _ => Ok(()),
        }
    }

    /// Prepares examples, of which the first is number `first` of the occasion: however a step is cut into
    /// micro-batches, the same tokens are hidden.
    #[must_use]
    pub fn prepare(&self, examples: &[&Example], occasion: Occasion, first: usize) -> Prepared {
        match self {
            Self::NextToken => {
                let sequences: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
                let (targets, weights) = targets_and_weights(examples);
                Prepared { batch: Packed::from_sequences(&sequences), targets, weights, scores: Vec::new() }
            }
            Self::Classes { last } | Self::Scores { last } => {
                let batch = Packed::pack(examples.iter().map(|example| example.sequence()));
                let (mut targets, mut weights) = (vec![0; batch.ids.len()], vec![0.0; batch.ids.len()]);
                let mut scores = if matches!(self, Self::Scores { .. }) { weights.clone() } else { Vec::new() };
                for (index, example) in examples.iter().enumerate() {
                    let rows = batch.rows(index);
                    let row = if *last { rows.end.saturating_sub(1) } else { rows.start };
                    let Some(weight) = weights.get_mut(row).filter(|_| !rows.is_empty()) else { continue };
                    match (example.class, example.score, targets.get_mut(row), scores.get_mut(row)) {
                        (_, Some(score), _, Some(place)) => (*place, *weight) = (score, 1.0),
                        (Some(class), _, Some(target), None) => (*target, *weight) = (class, 1.0),
                        _ => {}
                    }
                }
                Prepared { batch, targets, weights, scores }
            }
            Self::MaskedTokens(masking) => {
                let hidden = (first..).zip(examples).map(|(index, example)| masking.hide(example, occasion, index));
                let (read, chosen): (Vec<Vec<u32>>, Vec<Vec<bool>>) = hidden.unzip();
                Prepared {
                    batch: Packed::from_sequences(&read),
                    targets: examples.iter().flat_map(|example| example.ids.iter().copied()).collect(),
                    scores: Vec::new(),
                    weights: chosen.into_iter().flatten().map(|chosen| if chosen { 1.0 } else { 0.0 }).collect(),
                }
            }
        }
    }
}

impl Masking {
    /// The ids that the model reads, and which of them are to be predicted: targets of the example's loss that are not
    /// special.
    fn hide(&self, example: &Example, occasion: Occasion, index: usize) -> (Vec<u32>, Vec<bool>) {
        let occasion = match occasion {
            Occasion::Step(step) => step.to_string(),
            Occasion::Evaluation => "evaluation".to_owned(),
        };
        let mut random = stream(self.seed, &["mask", &occasion, &index.to_string()]);
        let candidates: Vec<usize> = (0..example.ids.len())
            .filter(|&i| example.loss.get(i) == Some(&true) && example.special.get(i) != Some(&true))
            .collect();
        let mut chosen = vec![false; example.ids.len()];
        let share = self.share.clamp(0.0, 1.0);
        let mut drawn: Vec<usize> = candidates.iter().copied().filter(|_| random.random_bool(share)).collect();
        if drawn.is_empty() && !candidates.is_empty() {
            drawn.extend(candidates.get(random.random_range(0..candidates.len())));
        }
        for i in drawn {
            if let Some(chosen) = chosen.get_mut(i) {
                *chosen = true;
            }
        }
        let read = example.ids.iter().zip(&chosen).map(|(&id, &chosen)| {
            if !chosen {
                return id;
            }
            match random.random_range(0..10) {
                0..8 => self.mask,
                8 => random.random_range(0..self.vocab.max(1)),
                _ => id,
            }
        });
        (read.collect(), chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASKING: Masking = Masking { mask: 99, vocab: 50, share: 0.15, seed: 7 };

    fn example(length: usize) -> Example {
        Example {
            ids: (0..length as u32).map(|i| 100 + i).collect(),
            loss: (0..length).map(|i| i > 0).collect(),
            response: 0,
            special: (0..length).map(|i| i == 0 || i + 1 == length).collect(),
            ..Example::default()
        }
    }

    #[test]
    fn fifteen_of_a_hundred_are_chosen_and_eight_of_ten_masked() {
        let long = example(40_002);
        let (read, chosen) = MASKING.hide(&long, Occasion::Step(3), 0);
        let count = |f: &dyn Fn(u32, u32) -> bool| {
            read.iter().zip(&long.ids).zip(&chosen).filter(|((read, id), chosen)| **chosen && f(**read, **id)).count()
        };
        let share = |n: usize, of: usize| n as f64 / of as f64;
        let total = count(&|_, _| true);
        // Four standard deviations.
        assert!((share(total, 40_000) - 0.15).abs() < 0.008, "{total}");
        assert!((share(count(&|read, _| read == 99), total) - 0.8).abs() < 0.021);
        assert!((share(count(&|read, _| read < 50), total) - 0.1).abs() < 0.016);
        assert!((share(count(&|read, id| read == id), total) - 0.1).abs() < 0.016);
        assert!(read.iter().zip(&long.ids).zip(&chosen).all(|((read, id), chosen)| *chosen || read == id));
        assert!(!chosen[0] && !chosen[40_001]);
    }

    #[test]
    fn draws_follow_step_and_place_and_not_the_micro_batch() {
        let (a, b) = (example(30), example(50));
        let objective = Objective::MaskedTokens(MASKING);
        let whole = objective.prepare(&[&a, &b], Occasion::Step(5), 0);
        let apart = objective.prepare(&[&b], Occasion::Step(5), 1);
        assert_eq!(whole.batch.sequence(1), apart.batch.sequence(0));
        assert_eq!(whole.weights[30..], apart.weights);
        assert_eq!(whole.targets[..30], a.ids);
        assert_ne!(
            objective.prepare(&[&a], Occasion::Step(6), 0).batch,
            objective.prepare(&[&a], Occasion::Step(5), 0).batch
        );
        let evaluation = || objective.prepare(&[&a], Occasion::Evaluation, 0);
        assert_eq!(evaluation(), evaluation());
    }

    #[test]
    fn a_short_text_has_one_target_and_a_text_of_specials_none() {
        for seed in 0..50 {
            let masking = Masking { seed, ..MASKING };
            assert!(masking.hide(&example(4), Occasion::Step(0), 0).1.contains(&true));
            assert!(!masking.hide(&example(2), Occasion::Step(0), 0).1.contains(&true));
        }
    }
}
