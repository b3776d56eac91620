//! What is computed of a set's answers: accuracy, Matthews correlation, F1, Pearson, Spearman.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A metric of GLUE or of the reasoning sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Right over all.
    Accuracy,
    /// Matthews correlation of classes (Gorodkin 2004 for more than two).
    Matthews,
    /// F1 of the second of two classes.
    F1,
    /// Linear correlation of scores.
    Pearson,
    /// Correlation of the scores' ranks.
    Spearman,
}

impl Metric {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Matthews => "matthews",
            Self::F1 => "f1",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }

    /// Its name in lm-evaluation-harness's results.
    #[must_use]
    pub fn harness_name(self) -> &'static str {
        match self {
            Self::Accuracy => "acc",
            Self::Matthews => "mcc",
            other => other.name(),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The share of items whose two classes agree; `None` of no item.
#[must_use]
pub fn accuracy(pairs: &[(usize, usize)]) -> Option<f64> {
    let right = pairs.iter().filter(|(predicted, label)| predicted == label).count();
    (!pairs.is_empty()).then(|| right as f64 / pairs.len() as f64)
}

/// Matthews correlation of (predicted, label) over any number of classes, scikit-learn's `matthews_corrcoef`:
/// `(c·s − Σ p_k t_k) / √((s² − Σ p_k²)(s² − Σ t_k²))` with c right of s items, p_k predicted and t_k of class k.
/// 0 where one side has a single class; `None` of no item.
#[must_use]
pub fn matthews(pairs: &[(usize, usize)]) -> Option<f64> {
    if pairs.is_empty() {
        return None;
    }
    let classes = pairs.iter().map(|&(p, t)| p.max(t)).max().unwrap_or(0) + 1;
    let count = |class: usize, of: fn(&(usize, usize)) -> usize| pairs.iter().filter(|pair| of(pair) == class).count();
    let s = pairs.len() as f64;
    let c = pairs.iter().filter(|(p, t)| p == t).count() as f64;
    let (mut both, mut predicted, mut labelled) = (0.0, 0.0, 0.0);
    for class in 0..classes {
        let (p, t) = (count(class, |pair| pair.0) as f64, count(class, |pair| pair.1) as f64);
        both += p * t;
        predicted += p * p;
        labelled += t * t;
    }
    let under = (s * s - predicted) * (s * s - labelled);
    Some(if under > 0.0 { (c * s - both) / under.sqrt() } else { 0.0 })
}

/// F1 of class 1 over (predicted, label): `2TP / (2TP + FP + FN)`; 0 where the class is neither predicted nor there,
/// `None` of no item.
#[must_use]
pub fn f1(pairs: &[(usize, usize)]) -> Option<f64> {
    if pairs.is_empty() {
        return None;
    }
    let (mut twice, mut off) = (0.0, 0.0);
    for &(predicted, label) in pairs {
        match (predicted == 1, label == 1) {
            (true, true) => twice += 2.0,
            (false, false) => {}
            _ => off += 1.0,
        }
    }
    Some(if twice > 0.0 { twice / (twice + off) } else { 0.0 })
}

/// Pearson's correlation of (predicted, label); `None` of fewer than two items, or where one side does not vary.
#[must_use]
pub fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    if pairs.len() < 2 || pairs.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return None;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (mx, my) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        xy += (x - mx) * (y - my);
        xx += (x - mx) * (x - mx);
        yy += (y - my) * (y - my);
    }
    // What is left of a constant side is its rounding.
    let flat = |squares: f64, mean: f64| squares <= n * (f64::EPSILON * mean.abs()).powi(2);
    (!flat(xx, mx) && !flat(yy, my)).then(|| (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

/// Spearman's correlation of (predicted, label): Pearson's of their ranks, equal values sharing their mean rank.
#[must_use]
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return None;
    }
    let xs: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    let ys: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let ranked: Vec<(f64, f64)> = ranks(&xs).into_iter().zip(ranks(&ys)).collect();
    pearson(&ranked)
}

/// Ranks from 1, equal values sharing their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for group in order.chunk_by(|a, b| a.1 == b.1) {
        let rank = before as f64 + (group.len() + 1) as f64 / 2.0;
        for (index, _) in group {
            if let Some(slot) = ranks.get_mut(*index) {
                *slot = rank;
            }
        }
        before += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_cases() {
        // TP 2, FP 1, FN 1, TN 1.
        let pairs = [(1, 1), (1, 1), (1, 0), (0, 1), (0, 0)];
        assert_eq!(accuracy(&pairs), Some(0.6));
        assert!((f1(&pairs).unwrap() - 4.0 / 6.0).abs() < 1e-15);
        assert!((matthews(&pairs).unwrap() - (2.0 - 1.0) / 36.0_f64.sqrt()).abs() < 1e-15);
        assert_eq!((matthews(&[(0, 0), (0, 1)]), f1(&[(0, 0)])), (Some(0.0), Some(0.0)));
        assert_eq!((accuracy(&[]), matthews(&[]), f1(&[]), pearson(&[(1.0, 2.0)])), (None, None, None, None));
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(pearson(&[(1.0, 0.1), (2.0, 0.1), (3.0, 0.1)]), None);
        assert_eq!(pearson(&[(0.1, 1.0); 3]), None);
        assert!((spearman(&[(1.0, 10.0), (2.0, 100.0), (3.0, 1e9)]).unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(spearman(&[(1.0, f64::NAN), (2.0, 1.0)]), None);
    }
}
