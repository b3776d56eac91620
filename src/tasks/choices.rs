//! How likely a model finds each of a few continuations.

use super::TaskError;
use crate::data::Packed;
use crate::kernels;
use crate::model::{Pass, Transformer};
use crate::peft::Peft;
use crate::probe::Silent;
use candle_core::Tensor;

/// A prompt and one choice behind it, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The prompt; of a text that is longer than the model's context its end is read.
    pub prompt: Vec<u32>,
    /// The choice.
    pub choice: Vec<u32>,
}

/// How likely a choice is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// `Σ ln p` of its tokens behind the prompt, in nats.
    pub log_probability: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Whether each of them has the largest logit.
    pub greedy: bool,
}

/// What the model reads of a continuation: its last token is only predicted.
fn read_and_wanted(continuation: &Continuation, context: usize) -> (Vec<u32>, &[u32]) {
    let mut ids = continuation.prompt.clone();
    ids.extend_from_slice(&continuation.choice);
    ids.pop();
    let cut = ids.len().saturating_sub(context);
    ids.drain(..cut);
    // A choice that fills the context alone is scored by what of it is left.
    let wanted = continuation.choice.len().min(ids.len());
    let behind = continuation.choice.get(continuation.choice.len() - wanted..).unwrap_or_default();
    (ids, behind)
}

/// The likelihoods of continuations that run through the model together; texts that differ in nothing but the token that
/// is predicted last run once.
///
/// # Errors
/// The model cannot be run, or has no head for tokens.
pub fn likelihoods(
    model: &Transformer,
    peft: Option<&Peft>,
    continuations: &[Continuation],
) -> Result<Vec<Likelihood>, TaskError> {
    let context = model.architecture().max_positions;
    let mut texts: Vec<Vec<u32>> = Vec::new();
    let mut places = Vec::with_capacity(continuations.len());
    for continuation in continuations {
        let (ids, wanted) = read_and_wanted(continuation, context);
        let place = texts.iter().position(|known| *known == ids).unwrap_or(texts.len());
        if place == texts.len() {
            texts.push(ids);
        }
        places.push((place, wanted));
    }
    let batch = Packed::from_sequences(&texts);
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (place, wanted) in &places {
        let own = batch.rows(*place);
        rows.extend((own.end - wanted.len().min(own.len())..own.end).map(|row| row as u32));
        targets.extend_from_slice(wanted);
    }
    if rows.is_empty() {
        return Ok(continuations
            .iter()
            .map(|_| Likelihood { log_probability: 0.0, tokens: 0, greedy: true })
            .collect());
    }
    let states = kernels::forget(|| model.hidden_states(&batch, &Pass::inference(peft), &mut Silent))?.detach();
    let states = states.index_select(&Tensor::new(rows, states.device())?, 0)?;
    let (losses, hits) = model.token_losses_and_hits(&states, &targets)?;
    let mut left = losses.iter().zip(&hits);
    let likelihood = |(_, wanted): &(usize, &[u32])| {
        let own: Vec<(&f64, &bool)> = left.by_ref().take(wanted.len()).collect();
        Likelihood {
            log_probability: -own.iter().map(|(loss, _)| **loss).sum::<f64>(),
            tokens: own.len(),
            greedy: own.iter().all(|(_, hit)| **hit),
        }
    };
    Ok(places.iter().map(likelihood).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LoadedModel;
    use candle_core::{D, DType, Device};

    #[test]
    fn likelihoods_are_sums_of_the_logits_softmax() {
        let model = LoadedModel::embedded(DType::F32, &Device::Cpu).unwrap().transformer;
        let of = |prompt: &[u32], choice: &[u32]| Continuation { prompt: prompt.to_vec(), choice: choice.to_vec() };
        let asked = [of(&[5, 6, 7], &[8]), of(&[5, 6, 7], &[9]), of(&[5, 6], &[7, 8]), of(&[30], &[40, 41, 42])];
        let found = likelihoods(&model, None, &asked).unwrap();
        for (asked, found) in asked.iter().zip(&found) {
            let ids = [asked.prompt.clone(), asked.choice.clone()].concat();
            let logits = model.logits(&Packed::from_sequences(std::slice::from_ref(&ids)), &Pass::default()).unwrap();
            let logs = candle_nn::ops::log_softmax(&logits.to_dtype(DType::F64).unwrap(), D::Minus1).unwrap();
            let logs = logs.to_vec2::<f64>().unwrap();
            let tokens = asked.prompt.len()..ids.len();
            let sum: f64 = tokens.clone().map(|t| logs[t - 1][ids[t] as usize]).sum();
            let largest = |t: usize| logs[t - 1].iter().all(|other| *other <= logs[t - 1][ids[t] as usize]);
            assert!((found.log_probability - sum).abs() < 1e-4, "{} {sum}", found.log_probability);
            assert_eq!((found.tokens, found.greedy), (asked.choice.len(), tokens.clone().all(largest)));
        }
    }

    #[test]
    fn what_is_longer_than_the_context_loses_its_beginning() {
        let asked = Continuation { prompt: vec![1, 2, 3, 4], choice: vec![5, 6] };
        assert_eq!(read_and_wanted(&asked, 10), (vec![1, 2, 3, 4, 5], &[5, 6][..]));
        assert_eq!(read_and_wanted(&asked, 3), (vec![3, 4, 5], &[5, 6][..]));
        assert_eq!(read_and_wanted(&asked, 1), (vec![5], &[6][..]));
    }
}
