//! Norms of the tokens: mean and spread of `‖h_i‖` over one text.
//!
//! In the unit of the hidden state, at least 0. They reveal growth over the layers and tokens that stand out (the
//! first token's norm is often a hundred times the others'). They say nothing about direction.

use super::rows::{Real, Rows, finite, norm};

/// The mean norm of the rows; zero rows count. Undefined without rows.
#[must_use]
pub fn norm_mean<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    finite(rows.iter().map(norm).sum::<f64>() / rows.n() as f64)
}

/// The sample deviation (n − 1) of the norms of the rows; undefined for n < 2.
#[must_use]
pub fn norm_std<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    norm_std_of(&rows.iter().map(norm).collect::<Vec<f64>>())
}

/// The sample deviation of norms that are at hand; `None` for fewer than two.
pub(super) fn norm_std_of(norms: &[f64]) -> Option<f64> {
    let n = norms.len();
    if n < 2 {
        return None;
    }
    // Taken off first, so that equal norms have deviation 0 exactly.
    let shift = norms.first().copied()?;
    let mean = norms.iter().map(|x| x - shift).sum::<f64>() / n as f64;
    let squares: f64 = norms.iter().map(|x| (x - shift - mean).powi(2)).sum();
    finite((squares / (n - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        let rows = Rows::new(&[3.0f32, 4.0, 0.0, 0.0, 0.0, 10.0], 2);
        assert_eq!(norm_mean(rows), Some(5.0));
        assert_eq!(norm_std(rows), Some(5.0));
        assert_eq!(norm_mean(Rows::<f32>::new(&[], 2)), None);
        assert_eq!(norm_std(Rows::new(&[3.0f32, 4.0], 2)), None);
        assert_eq!(norm_mean(Rows::new(&[f64::NAN, 4.0], 2)), None);
    }
}
