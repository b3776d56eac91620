//! Effective rank: how many dimensions a text's token vectors really use.
//!
//! `exp(−Σ p_i ln p_i)` with `p = σ/Σσ` over the singular values of the n×d matrix of token vectors
//! (Roy & Vetterli, *The effective rank*, EUSIPCO 2007). Singular values come from the f64 Gram matrix of
//! the smaller side; eigenvalues below `max(n, d)·2.2e-16·λ₁` are set to 0.

use faer::{Mat, Side};

/// The effective rank of `rows` (row-major, `width` wide), uncentred; `None` where it is undefined: no
/// rows, all zero, or a value that is not finite.
#[must_use]
pub fn effective_rank<T: Copy + Into<f64>>(rows: &[T], width: usize) -> Option<f64> {
    let n = rows.len().checked_div(width)?;
    let at = |i: usize, j: usize| rows.get(i * width + j).map_or(0.0, |&x| x.into());
    let gram = if n <= width {
        Mat::from_fn(n, n, |i, j| (0..width).map(|k| at(i, k) * at(j, k)).sum::<f64>())
    } else {
        Mat::from_fn(width, width, |i, j| (0..n).map(|k| at(k, i) * at(k, j)).sum::<f64>())
    };
    let eigenvalues = gram.self_adjoint_eigenvalues(Side::Lower).ok()?;
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    if !(largest.is_finite() && largest > 0.0) {
        return None;
    }
    let floor = n.max(width) as f64 * 2.2e-16 * largest;
    let singular: Vec<f64> = eigenvalues.iter().filter(|&&e| e > floor).map(|e| e.sqrt()).collect();
    let total: f64 = singular.iter().sum();
    let entropy: f64 = singular.iter().map(|s| s / total).map(|p| -p * p.ln()).sum();
    Some(entropy.exp())
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
