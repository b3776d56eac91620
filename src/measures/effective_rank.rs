//! Effective rank: how many dimensions a text's token vectors really use.
//!
//! `exp(−Σ p_i ln p_i)` with `p = σ/Σσ` over the singular values of the n×d matrix of token vectors
//! (Roy & Vetterli, *The effective rank*, EUSIPCO 2007). 1 for a matrix of rank one, at most min(n, d), so texts
//! of unlike length do not compare. Matrix class: see [`Spectrum`].
//!
//! It reveals a collapse of dimension, which no mean cosine sees. Uncentred, a common offset of the tokens takes
//! up one dimension and hides the rest: read it beside the token-centred form.

use super::rows::{Real, Rows};
use super::spectrum::Spectrum;

impl Spectrum {
    /// The effective rank, 1 to min(n, d).
    #[must_use]
    pub fn effective_rank(&self) -> f64 {
        let singular = || self.eigenvalues().iter().map(|e| e.sqrt());
        let total: f64 = singular().sum();
        singular().map(|s| s / total).map(|p| -p * p.ln()).sum::<f64>().exp()
    }
}

/// The effective rank of `rows` (row-major, `width` wide), uncentred; `None` where it is undefined: no
/// rows, all zero, or a value that is not finite.
#[must_use]
pub fn effective_rank<T: Real>(rows: &[T], width: usize) -> Option<f64> {
    Spectrum::uncentred(Rows::new(rows, width)).map(|spectrum| spectrum.effective_rank())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        let identity: Vec<f64> = (0..9).map(|i| if i % 4 == 0 { 2.0 } else { 0.0 }).collect();
        assert!((effective_rank(&identity, 3).unwrap() - 3.0).abs() < 1e-12);
        let same: Vec<f32> = [1.0, 2.0, 3.0].repeat(7);
        assert!((effective_rank(&same, 3).unwrap() - 1.0).abs() < 1e-12, "identical tokens span one dimension");
        // σ = 3 and 1: p = .75 and .25
        let two = effective_rank(&[3.0, 0.0, 0.0, 0.0, 1.0, 0.0], 3).unwrap();
        let expected = (-(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
        assert!((two - expected).abs() < 1e-12);
        assert_eq!(effective_rank(&[0.0, 0.0], 2), None);
        assert_eq!(effective_rank::<f64>(&[], 2), None);
        assert_eq!(effective_rank(&[f64::NAN, 1.0], 2), None);
    }

    #[test]
    fn tall_and_wide_agree() {
        let tall: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7)).collect();
        let wide: Vec<f64> =
            (0..3).flat_map(|j| (0..4).map(move |i| f64::from((i * 3 + j) * (i * 3 + j) % 7))).collect();
        assert!((effective_rank(&tall, 3).unwrap() - effective_rank(&wide, 4).unwrap()).abs() < 1e-9);
    }
}
