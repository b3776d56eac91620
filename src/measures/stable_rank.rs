//! Stable rank: the energy of a text's token matrix over that of its strongest direction.
//!
//! `‖H‖_F²/σ₁²` (Rudelson & Vershynin, *Sampling from large matrices*, 2007). 1 for rank one, at most min(n, d).
//! Its inverse, uncentred, is the maximum explained variance (Ethayarajh, EMNLP 2019), shown as derived. Matrix
//! class: see [`Spectrum`].
//!
//! It reveals one direction that dominates, and is steady under noise. It sees nothing of the directions after
//! the first.

use super::spectrum::Spectrum;

impl Spectrum {
    /// The stable rank, 1 to min(n, d).
    #[must_use]
    pub fn stable_rank(&self) -> f64 {
        self.total() / self.largest()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Rows;
    use super::*;

    #[test]
    fn known_cases() {
        // σ² = 9 and 1
        let spectrum = Spectrum::uncentred(Rows::new(&[3.0f64, 0.0, 0.0, 1.0], 2)).unwrap();
        assert!((spectrum.stable_rank() - 10.0 / 9.0).abs() < 1e-14);
        let same = Spectrum::uncentred(Rows::new(&[0.5f32, 2.0].repeat(9), 2)).unwrap();
        assert_eq!(same.stable_rank(), 1.0);
    }
}
