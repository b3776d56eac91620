//! From logits to chances: what may come next, and how likely.

use super::Sampling;
use crate::kernels;
use crate::random::stream;
use rand::Rng;

/// The largest logit's token; of equal ones the lowest. `None` if there is none or one is not a number.
pub(super) fn largest(logits: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((id, logit));
        }
    }
    best.filter(|(_, largest)| largest.is_finite()).map(|(id, _)| id)
}

/// `ln Σ exp(logit)`: what logits lose to become log-probabilities. `None` if it is not finite.
pub(super) fn normaliser(logits: &[f64]) -> Option<f64> {
    Some(kernels::log_sum_exp(logits)).filter(|normaliser| normaliser.is_finite())
}

/// A token drawn by `sampling`: the draw of the new token at `place` of the prompt that `number` names. `None` if a logit is
/// not a number.
pub(super) fn draw(logits: &[f64], sampling: &Sampling, number: u64, place: usize) -> Option<usize> {
    let weights = weights(logits, sampling)?;
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut rng = stream(sampling.seed, &["sample", &number.to_string(), &place.to_string()]);
    let mut left = rng.random::<f64>() * total;
    for &(id, weight) in &weights {
        left -= weight;
        if left < 0.0 {
            return Some(id);
        }
    }
    // Rounding alone can leave something over.
    weights.iter().rev().find(|(_, weight)| *weight > 0.0).map(|(id, _)| *id)
}

/// The tokens that may be drawn, in the order of their ids, with weights in proportion to their probabilities.
fn weights(logits: &[f64], sampling: &Sampling) -> Option<Vec<(usize, f64)>> {
    let top = largest(logits)?;
    let highest = logits.get(top).copied()?;
    let weight = |logit: f64| ((logit - highest) / sampling.temperature).exp();
    let mut kept: Vec<(usize, f64)> = match sampling.top_k.filter(|&k| k < logits.len()) {
        None => logits.iter().enumerate().map(|(id, &logit)| (id, weight(logit))).collect(),
        Some(k) => {
            let mut sorted = logits.to_vec();
            let (_, &mut least, _) = sorted.select_nth_unstable_by(k.saturating_sub(1), |a, b| b.total_cmp(a));
            let kept = logits.iter().enumerate().filter(|&(_, &logit)| logit >= least);
            kept.map(|(id, &logit)| (id, weight(logit))).collect()
        }
    };
    if sampling.top_p < 1.0 {
        nucleus(&mut kept, sampling.top_p);
        kept.sort_unstable_by_key(|(id, _)| *id);
    }
    Some(kept)
}

/// Leaves the heaviest that together reach the share `top_p`: all in front of which less than that share stands.
fn nucleus(all: &mut Vec<(usize, f64)>, top_p: f64) {
    let heavier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let wanted = top_p * all.iter().map(|(_, weight)| weight).sum::<f64>();
    // Mostly few suffice: sorting all of a large vocabulary would cost more than the model.
    let mut sorted = 256;
    loop {
        if sorted < all.len() {
            all.select_nth_unstable_by(sorted, heavier);
        }
        let front = sorted.min(all.len());
        let Some(heaviest) = all.get_mut(..front) else { return };
        heaviest.sort_unstable_by(heavier);
        let mut before = 0.0;
        let mut count = 0;
        for (_, weight) in heaviest.iter() {
            if before >= wanted {
                break;
            }
            before += weight;
            count += 1;
        }
        if count < front || front == all.len() {
            all.truncate(count.max(1));
            return;
        }
        sorted *= 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 5 }
    }

    fn probabilities(logits: &[f64], sampling: &Sampling) -> Vec<(usize, f64)> {
        let weights = weights(logits, sampling).unwrap();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights.into_iter().map(|(id, weight)| (id, weight / total)).collect()
    }

    #[test]
    fn filters_leave_what_they_promise() {
        let logits = [0.1_f64, 0.4, 0.2, 0.3].map(f64::ln);
        let close = |found: Vec<(usize, f64)>, wanted: &[(usize, f64)]| {
            assert_eq!(found.len(), wanted.len(), "{found:?}");
            for (found, wanted) in found.iter().zip(wanted) {
                assert!(found.0 == wanted.0 && (found.1 - wanted.1).abs() < 1e-12, "{found:?} {wanted:?}");
            }
        };
        close(probabilities(&logits, &sampling(1.0, None, 1.0)), &[(0, 0.1), (1, 0.4), (2, 0.2), (3, 0.3)]);
        close(probabilities(&logits, &sampling(1.0, Some(2), 1.0)), &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
        close(probabilities(&logits, &sampling(1.0, None, 0.71)), &[(1, 4.0 / 9.0), (2, 2.0 / 9.0), (3, 3.0 / 9.0)]);
        close(probabilities(&logits, &sampling(1.0, None, 0.69)), &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
        close(probabilities(&logits, &sampling(1.0, None, 1e-9)), &[(1, 1.0)]);
        // Half the temperature squares the odds; top-p then looks at what top-k left.
        close(probabilities(&logits, &sampling(0.5, Some(3), 0.8)), &[(1, 16.0 / 25.0), (3, 9.0 / 25.0)]);
        // Equals of the smallest that is kept stay.
        close(
            probabilities(&[0.0, 1.0, 0.0], &sampling(1.0, Some(2), 1.0))[..1].to_vec(),
            &[(0, 1.0 / (2.0 + 1f64.exp()))],
        );
        assert!(weights(&[0.0, f64::NAN], &sampling(1.0, None, 1.0)).is_none());
    }

    #[test]
    fn probabilities_are_those_that_transformers_leaves() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/generation.json")).unwrap();
        let list = |value: &serde_json::Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let logits = list(&golden["chances"]["logits"]);
        let cases = golden["chances"]["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 6);
        for case in cases {
            let top_k = case["top_k"].as_u64().map(|k| k as usize);
            let sampling = sampling(case["temperature"].as_f64().unwrap(), top_k, case["top_p"].as_f64().unwrap());
            let mut found = vec![0.0; logits.len()];
            for (id, probability) in probabilities(&logits, &sampling) {
                found[id] = probability;
            }
            for (found, wanted) in found.iter().zip(list(&case["probabilities"])) {
                assert!((found - wanted).abs() < 1e-12, "{sampling:?}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn a_nucleus_of_many_is_found_too() {
        // 1,000 tokens of falling weight: the one of the greatest id weighs most.
        let logits: Vec<f64> = (0..1000).map(|id| f64::from(id) / 400.0).collect();
        let all = probabilities(&logits, &sampling(1.0, None, 1.0));
        let kept = probabilities(&logits, &sampling(1.0, None, 0.9));
        let share: f64 = all.iter().rev().take(kept.len()).map(|(_, p)| p).sum();
        let without_last: f64 = all.iter().rev().take(kept.len() - 1).map(|(_, p)| p).sum();
        assert!(share >= 0.9 && without_last < 0.9, "{share} {without_last}");
        assert!(kept.len() > 256 && kept.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    }

    #[test]
    fn draws_follow_the_probabilities_and_depend_on_their_name_alone() {
        let logits = [0.1_f64, 0.4, 0.2, 0.3].map(f64::ln);
        let sampling = sampling(1.0, None, 1.0);
        let mut counts = [0.0_f64; 4];
        for number in 0..100 {
            for place in 0..100 {
                counts[draw(&logits, &sampling, number, place).unwrap()] += 1e-4;
            }
        }
        for (count, wanted) in counts.iter().zip([0.1, 0.4, 0.2, 0.3]) {
            assert!((count - wanted).abs() < 0.015, "{counts:?}");
        }
        let many =
            |seed| (0..50).map(|place| draw(&logits, &Sampling { seed, ..sampling }, 3, place)).collect::<Vec<_>>();
        assert_eq!(many(1), many(1));
        assert_ne!(many(1), many(2));
    }

    #[test]
    fn the_largest_is_the_first_of_equals() {
        assert_eq!(largest(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(largest(&[1.0, f64::NAN]), None);
        assert_eq!((largest(&[]), largest(&[f64::NEG_INFINITY])), (None, None));
        let logits = [0.3, -2.0, 700.0];
        assert!((normaliser(&logits).unwrap() - 700.0).abs() < 1e-6);
        assert!((normaliser(&[0.0; 4]).unwrap() - 4f64.ln()).abs() < 1e-6);
    }
}
