//! Participation ratio: how many dimensions carry a text's variance.
//!
//! `(Σλ)²/Σλ²` over the eigenvalues of the token-centred Gram matrix (Gao et al., *A theory of multineuronal
//! dimensionality*, 2017). 1 where one direction carries all variance, at most min(n − 1, d). Matrix class: see
//! [`Spectrum`].
//!
//! It reveals a collapse of the differences between tokens into few directions. It weighs by variance, so weak
//! directions hardly count, however many.

use super::spectrum::Spectrum;

impl Spectrum {
    /// The participation ratio of this spectrum; the measure is stated for the token-centred one.
    #[must_use]
    pub fn participation_ratio(&self) -> f64 {
        // Over λ₁, so that no square overflows.
        let share = || self.eigenvalues().iter().map(|e| e / self.largest());
        share().sum::<f64>().powi(2) / share().map(|s| s * s).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Rows;
    use super::*;

    #[test]
    fn known_cases() {
        // λ = 9 and 1: 100 / 82
        let spectrum = Spectrum::uncentred(Rows::new(&[3.0f64, 0.0, 0.0, 1.0], 2)).unwrap();
        assert!((spectrum.participation_ratio() - 100.0 / 82.0).abs() < 1e-14);
        // Two tokens differ in one direction, whatever they are.
        let pair = Spectrum::centred(Rows::new(&[3.0f32, -1.0, 0.5, 0.0, 1.0, 7.0], 3)).unwrap();
        assert!((pair.participation_ratio() - 1.0).abs() < 1e-14);
    }
}
