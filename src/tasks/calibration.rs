//! Whether stated probabilities come true: ECE over bins of equal mass, Brier score, negative log-likelihood.

use serde::{Deserialize, Serialize};

/// Bins of a reliability diagram.
pub const BINS: usize = 15;

/// An item's probabilities over its choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Stated {
    /// They sum to 1.
    pub probabilities: Vec<f64>,
    /// The right choice.
    pub label: usize,
}

/// A bin of a reliability diagram: items of neighbouring confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Items in it.
    pub items: usize,
    /// Lowest confidence, the probability of the likeliest choice.
    pub low: f64,
    /// Highest confidence.
    pub high: f64,
    /// Mean confidence.
    pub confidence: f64,
    /// Share of right items.
    pub accuracy: f64,
}

/// What a set's probabilities are worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Items that entered.
    pub items: usize,
    /// Expected calibration error: `Σ (items of the bin / items)·|accuracy − confidence|` over bins of equal mass.
    pub ece: f64,
    /// Mean over items of `Σ_k (p_k − [k is right])²`, from 0 to 2 (Brier 1950).
    pub brier: f64,
    /// Mean over items of `−ln p` of the right choice, in nats.
    pub nll: f64,
    /// The reliability diagram.
    pub bins: Vec<ReliabilityBin>,
}

/// The softmax of log-probabilities; `None` of none, or where one is NaN or all are −∞.
#[must_use]
pub fn softmax(log_probabilities: &[f64]) -> Option<Vec<f64>> {
    let largest = log_probabilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() || log_probabilities.iter().any(|value| value.is_nan()) {
        return None;
    }
    let weights: Vec<f64> = log_probabilities.iter().map(|value| (value - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| weight / total).collect())
}

/// The calibration of items, with up to `bins` bins of equal mass: items in the order of their confidence, equal ones in
/// their own, in pieces whose sizes differ by one at most. `None` of no item.
#[must_use]
pub fn calibration(items: &[Stated], bins: usize) -> Option<Calibration> {
    if items.is_empty() || items.iter().any(|item| item.label >= item.probabilities.len()) {
        return None;
    }
    let n = items.len();
    let mut answered: Vec<(f64, bool)> = items.iter().map(answer).collect();
    answered.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bins = bins.clamp(1, n);
    let mut found = Vec::with_capacity(bins);
    for bin in 0..bins {
        let piece = answered.get(bin * n / bins..(bin + 1) * n / bins).unwrap_or_default();
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else { continue };
        let size = piece.len() as f64;
        found.push(ReliabilityBin {
            items: piece.len(),
            low: first.0,
            high: last.0,
            confidence: piece.iter().map(|(confidence, _)| confidence).sum::<f64>() / size,
            accuracy: piece.iter().filter(|(_, right)| *right).count() as f64 / size,
        });
    }
    let off = |bin: &ReliabilityBin| bin.items as f64 * (bin.accuracy - bin.confidence).abs();
    let brier = |item: &Stated| {
        let off = |(k, p): (usize, &f64)| (p - if k == item.label { 1.0 } else { 0.0 }).powi(2);
        item.probabilities.iter().enumerate().map(off).sum::<f64>()
    };
    let nll = |item: &Stated| -item.probabilities.get(item.label).map_or(f64::NAN, |p| p.ln());
    Some(Calibration {
        items: n,
        ece: found.iter().map(off).sum::<f64>() / n as f64,
        brier: items.iter().map(brier).sum::<f64>() / n as f64,
        nll: items.iter().map(nll).sum::<f64>() / n as f64,
        bins: found,
    })
}

/// The confidence of the likeliest choice, the first of equal ones, and whether it is right.
fn answer(item: &Stated) -> (f64, bool) {
    let mut best = (f64::NEG_INFINITY, 0);
    for (index, &p) in item.probabilities.iter().enumerate() {
        if p > best.0 {
            best = (p, index);
        }
    }
    (best.0, best.1 == item.label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(probabilities: &[f64], label: usize) -> Stated {
        Stated { probabilities: probabilities.to_vec(), label }
    }

    #[test]
    fn a_hand_case() {
        let items = [stated(&[0.6, 0.4], 0), stated(&[0.3, 0.7], 0), stated(&[0.1, 0.9], 1), stated(&[0.2, 0.8], 1)];
        let found = calibration(&items, 2).unwrap();
        // By confidence: .6 right, .7 wrong | .8 right, .9 right.
        assert_eq!(found.bins.iter().map(|bin| bin.items).collect::<Vec<_>>(), [2, 2]);
        assert!((found.ece - (2.0 * 0.15 + 2.0 * 0.15) / 4.0).abs() < 1e-15, "{found:?}");
        assert!((found.brier - (0.32 + 0.98 + 0.02 + 0.08) / 4.0).abs() < 1e-15);
        let nll = -(0.6_f64.ln() + 0.3_f64.ln() + 0.9_f64.ln() + 0.8_f64.ln()) / 4.0;
        assert!((found.nll - nll).abs() < 1e-15);
        assert_eq!((found.bins[1].low, found.bins[1].high, found.bins[1].accuracy), (0.8, 0.9, 1.0));
        // More bins than items: one each.
        assert_eq!(calibration(&items, 15).unwrap().bins.len(), 4);
        assert_eq!(calibration(&[], 15), None);
    }

    #[test]
    fn bins_have_equal_mass_and_hold_every_item() {
        let items: Vec<Stated> =
            (0..100).map(|i| stated(&[f64::from(i) / 100.0, 1.0 - f64::from(i) / 100.0], 1)).collect();
        let found = calibration(&items, BINS).unwrap();
        let sizes: Vec<usize> = found.bins.iter().map(|bin| bin.items).collect();
        assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (15, 100));
        assert!(sizes.iter().all(|&size| size == 6 || size == 7), "{sizes:?}");
        assert!(found.bins.windows(2).all(|pair| pair[0].high <= pair[1].low));
    }

    #[test]
    fn softmax_of_likelihoods() {
        let found = softmax(&[-1000.0, -1000.0 + 3.0_f64.ln()]).unwrap();
        assert!((found[0] - 0.25).abs() < 1e-12 && (found[1] - 0.75).abs() < 1e-12);
        assert_eq!(softmax(&[f64::NEG_INFINITY, 0.0]).unwrap(), [0.0, 1.0]);
        assert_eq!((softmax(&[]), softmax(&[f64::NAN, 0.0]), softmax(&[f64::NEG_INFINITY])), (None, None, None));
    }
}
