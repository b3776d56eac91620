//! Token-wise cosine similarity as a pure function: plain, corpus-centred, corpus-standardised.
//!
//! `CosSim = 1/(n(n−1)) · Σ_{i≠j} cos(h_i, h_j)` (Shi et al., *Revisiting Over-smoothing in BERT from the
//! Perspective of Graph*, ICLR 2022), computed as `(‖Σ ĥ_i‖² − n)/(n(n−1))`: one pass, O(d) state.
//! Range −1/(n−1) to 1. A zero row has no direction and does not count towards n; n < 2 is undefined.
//!
//! It reveals that the tokens of a text point the same way. It hides a collapse of dimension, and a few
//! outlier dimensions or a common offset can rule it: hence the two other forms.

use super::rows::{Real, Rows, dot, finite};
use super::streaming::mean_rounding;

/// The mean pairwise cosine of the rows.
#[must_use]
pub fn cosine<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    pairwise(rows, 0.0, |_, x| x)
}

/// The mean pairwise cosine after the corpus mean `mean` (`[d]`) is taken off every row.
///
/// The mean is that of the run, layer, site and token set over all texts, each token weighing 1: never the
/// text's own, which forces the result near −1/(n−1) whatever the data. A row that is off the mean by no more than
/// rounding is a zero row: what is left of it has no direction.
#[must_use]
pub fn cosine_centred<T: Real>(rows: Rows<'_, T>, mean: &[f64]) -> Option<f64> {
    if mean.len() != rows.width() {
        return None;
    }
    pairwise(rows, mean_rounding(mean), |k, x| x - mean.get(k).copied().unwrap_or(0.0))
}

/// The mean pairwise cosine after every dimension is standardised by the corpus mean and deviation (`[d]` each).
///
/// No dimension outweighs another then (Timkey & van Schijndel, *All Bark and No Bite*, EMNLP 2021). A dimension
/// of deviation 0 tells no token from another and is left out.
#[must_use]
pub fn cosine_standardised<T: Real>(rows: Rows<'_, T>, mean: &[f64], deviation: &[f64]) -> Option<f64> {
    if mean.len() != rows.width() || deviation.len() != rows.width() {
        return None;
    }
    pairwise(rows, 0.0, |k, x| match (mean.get(k), deviation.get(k)) {
        (Some(m), Some(&s)) if s > 0.0 => (x - m) / s,
        // Not plainly 0: a dimension that is left out does not hide a NaN.
        _ => 0.0 * x,
    })
}

fn pairwise<T: Real>(rows: Rows<'_, T>, zero: f64, form: impl Fn(usize, f64) -> f64) -> Option<f64> {
    let mut sum = vec![0.0; rows.width()];
    let mut shaped = vec![0.0; rows.width()];
    let mut count = 0.0;
    for row in rows.iter() {
        shaped.iter_mut().zip(row).enumerate().for_each(|(k, (s, &x))| *s = form(k, x.into()));
        let norm = finite(dot(&shaped, &shaped).sqrt())?;
        if norm > zero {
            sum.iter_mut().zip(&shaped).for_each(|(s, x)| *s += x / norm);
            count += 1.0;
        }
    }
    (count >= 2.0).then(|| (dot(&sum, &sum) - count) / (count * (count - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        let plain = |values: &[f64]| cosine(Rows::new(values, 2));
        assert_eq!(plain(&[1.0, 0.0, 0.0, 2.0]), Some(0.0), "orthogonal");
        assert_eq!(plain(&[1.0, 0.0, -3.0, 0.0]), Some(-1.0), "opposite");
        assert_eq!(plain(&[1.0, 2.0]), None, "one token");
        assert_eq!(plain(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), Some(1.0), "a zero row does not count");
        assert_eq!(plain(&[1.0, 0.0, f64::NAN, 0.0, 1.0, 0.0]), None, "a NaN is not a zero row");
    }

    #[test]
    fn centred_and_standardised() {
        let rows = Rows::new(&[3.0f64, 1.0, 1.0, 3.0], 2);
        // (2, 0) and (0, 2)
        assert_eq!(cosine_centred(rows, &[1.0, 1.0]), Some(0.0));
        // (1, −1) and (−1, 1) without and with a scale
        assert!((cosine_centred(rows, &[2.0, 2.0]).unwrap() + 1.0).abs() < 1e-15);
        // (4, −1), (0, 1): −1/√17
        let scaled = cosine_standardised(rows, &[1.0, 2.0], &[0.5, 1.0]).unwrap();
        assert!((scaled + 1.0 / 17f64.sqrt()).abs() < 1e-15);
        assert_eq!(cosine_standardised(rows, &[0.0, 0.0], &[1.0, 0.0]), Some(1.0), "one dimension is left");
        assert_eq!(cosine_centred(rows, &[1.0]), None);
    }
}
