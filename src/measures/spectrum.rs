//! The spectrum of a text's token matrix, made once for every measure that reads it.
//!
//! `λ_i = σ_i²` are the eigenvalues of the f64 Gram matrix of the smaller side (n×n or d×d); those below
//! `max(n, d)·2.2e-16·λ₁` are 0: they are rounding, and an unclamped one gives NaN. An f32 Gram is 4 % off.
//! O(min(n, d)²) state, O(n·d·min(n, d)) time.

use super::rows::{Real, Rows, finite};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par, Side};

/// The squared singular values of one text's token matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// λ_i above the clamp, largest first; never empty.
    eigenvalues: Vec<f64>,
}

impl Spectrum {
    /// Of the rows as they are; `None` without rows, where all is zero, or where a value is not finite.
    #[must_use]
    pub fn uncentred<T: Real>(rows: Rows<'_, T>) -> Option<Self> {
        Self::of(&rows.to_f64(), rows.width())
    }

    /// Of the rows minus the text's own token mean; `None` also for identical tokens and for one token.
    #[must_use]
    pub fn centred<T: Real>(rows: Rows<'_, T>) -> Option<Self> {
        Self::of(&rows.centred(), rows.width())
    }

    /// λ_i = σ_i², largest first, without those that the clamp set to 0.
    #[must_use]
    pub fn eigenvalues(&self) -> &[f64] {
        &self.eigenvalues
    }

    /// `‖H‖_F² = Σ λ_i`.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.eigenvalues.iter().sum()
    }

    /// `λ₁ = σ₁²`.
    #[must_use]
    pub fn largest(&self) -> f64 {
        self.eigenvalues.first().copied().unwrap_or_default()
    }

    fn of(values: &[f64], width: usize) -> Option<Self> {
        let n = values.len().checked_div(width)?;
        if n == 0 || values.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mut eigenvalues = gram(values, n, width).self_adjoint_eigenvalues(Side::Lower).ok()?;
        eigenvalues.sort_unstable_by(|a, b| b.total_cmp(a));
        let largest = finite(eigenvalues.first().copied()?)?;
        let floor = n.max(width) as f64 * 2.2e-16 * largest;
        eigenvalues.retain(|&e| e > floor);
        (largest > 0.0).then_some(Self { eigenvalues })
    }
}

/// The lower triangle of `H Hᵀ` or `Hᵀ H`, whichever is smaller.
fn gram(values: &[f64], n: usize, width: usize) -> Mat<f64> {
    let h = MatRef::from_row_major_slice(values, n, width);
    let (left, right) = if n <= width { (h, h.transpose()) } else { (h.transpose(), h) };
    let side = n.min(width);
    let mut gram = Mat::zeros(side, side);
    matmul(
        &mut gram,
        BlockStructure::TriangularLower,
        Accum::Replace,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    gram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // σ = 3 and 1, tall and wide
        for (values, width) in [([3.0, 0.0, 0.0, 0.0, 1.0, 0.0], 3), ([3.0, 0.0, 0.0, 1.0, 0.0, 0.0], 2)] {
            let spectrum = Spectrum::uncentred(Rows::new(&values, width)).unwrap();
            assert_eq!(spectrum.eigenvalues().len(), 2);
            assert!((spectrum.largest() - 9.0).abs() < 1e-13 && (spectrum.total() - 10.0).abs() < 1e-13);
        }
        // rows ±(1, 1) about the mean (2, 0): λ = 4
        let centred = Spectrum::centred(Rows::new(&[1.0f64, -1.0, 3.0, 1.0], 2)).unwrap();
        assert_eq!(centred.eigenvalues().len(), 1);
        assert!((centred.largest() - 4.0).abs() < 1e-14);
    }

    #[test]
    fn undefined_cases() {
        assert!(Spectrum::uncentred(Rows::<f32>::new(&[], 2)).is_none());
        assert!(Spectrum::uncentred(Rows::new(&[0.0f32; 6], 2)).is_none());
        assert!(Spectrum::uncentred(Rows::new(&[1.0, f64::NAN, 0.0, 1.0], 2)).is_none());
        assert!(Spectrum::uncentred(Rows::new(&[1.0, f64::INFINITY], 2)).is_none());
        assert!(Spectrum::centred(Rows::new(&[0.1f32, 0.7].repeat(4000), 2)).is_none(), "identical tokens");
        assert!(Spectrum::centred(Rows::new(&[1.0f32, 2.0], 2)).is_none(), "one token");
    }
}
