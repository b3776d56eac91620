//! Input retention: how much of a token's direction at the start is left.
//!
//! `mean_i cos(h_i, x_i)` over the tokens of a text, with x_i either the layer-0 row (what the first block
//! received) or h0 (what the initial residual mixes in). −1 to 1. A token where either row is zero does not count;
//! undefined where none counts.
//!
//! It tests the claim that an initial residual keeps at least a share λ of the input. It cannot see a part of the
//! input that was kept but turned by an orthogonal map, and a common offset in both rows passes for retention.

use super::rows::{Real, Rows, dot, finite, norm};

/// The mean cosine of each row with the row of the same token in `reference` (same shape, or undefined).
#[must_use]
pub fn retention<T: Real, R: Real>(rows: Rows<'_, T>, reference: Rows<'_, R>) -> Option<f64> {
    if rows.width() != reference.width() || rows.n() != reference.n() {
        return None;
    }
    let (mut sum, mut count) = (0.0, 0u64);
    for (row, start) in rows.iter().zip(reference.iter()) {
        let (a, b) = (finite(norm(row))?, finite(norm(start))?);
        if a > 0.0 && b > 0.0 {
            sum += dot(row, start) / a / b;
            count += 1;
        }
    }
    if count > 0 { finite(sum / count as f64) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        let rows = Rows::new(&[1.0f64, 0.0, 0.0, 2.0, 0.0, 0.0], 2);
        let start = Rows::new(&[5.0f32, 0.0, 3.0, 4.0, 1.0, 1.0], 2);
        assert_eq!(retention(rows, start), Some(0.9), "1 and 0.8; the zero row does not count");
        assert_eq!(retention(rows, Rows::new(&[1.0f32, 1.0], 2)), None, "another number of tokens");
        assert_eq!(retention(Rows::new(&[0.0f32, 0.0], 2), Rows::new(&[1.0f32, 0.0], 2)), None);
        assert_eq!(retention(Rows::new(&[f64::NAN, 0.0], 2), Rows::new(&[1.0f32, 0.0], 2)), None);
    }
}
