//! The ratio of high to low frequency in a text.
//!
//! `r = ‖H − 1mᵀ‖_F / (√n ‖m‖)`, m the token mean: the part of the signal that changes from token to token over
//! its constant part (Wang et al., *Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain
//! Analysis*, ICLR 2022). 0 for identical tokens, no upper bound. Undefined for n < 2, where it is 0 whatever
//! the data, and for m = 0.
//!
//! It reveals how much of the tokens' energy they share. A large common offset hides what happens around it.

use super::dirichlet::energy;
use super::rows::{Real, Rows, finite, norm};

/// The high/low frequency ratio of the rows; O(d) state, two passes.
#[must_use]
pub fn frequency_ratio<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    let low = (rows.n() as f64).sqrt() * norm(&rows.mean());
    let high = energy(rows)?.sqrt();
    if low > 0.0 { finite(high / low) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // mean (2, 0), differences ±(1, 1): √4 / (√2 · 2)
        let value = frequency_ratio(Rows::new(&[1.0f64, -1.0, 3.0, 1.0], 2)).unwrap();
        assert!((value - 2.0 / (2f64.sqrt() * 2.0)).abs() < 1e-15);
        assert_eq!(frequency_ratio(Rows::new(&[0.3f32, 0.1, 0.3, 0.1], 2)), Some(0.0), "identical tokens");
        assert_eq!(frequency_ratio(Rows::new(&[1.0f32, -1.0], 1)), None, "no constant part");
        assert_eq!(frequency_ratio(Rows::new(&[1.0f32, 1.0], 2)), None, "one token");
        assert_eq!(frequency_ratio(Rows::new(&[1.0f64, f64::INFINITY], 1)), None);
    }
}
