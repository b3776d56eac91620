//! Rank-collapse residual: how far the token matrix is from one row repeated.
//!
//! `‖H − 1mᵀ‖ / ‖H‖` in the composite norm `‖A‖ = √(‖A‖₁ ‖A‖_∞)`, with `‖A‖₁` the largest column sum and `‖A‖_∞`
//! the largest row sum of absolute values (Dong et al., *Attention is not all you need*, ICML 2021). `m` is the
//! token mean, which minimises the Frobenius norm, not this one. 0 for identical tokens; of order 1 otherwise
//! (it may pass 1). Undefined for n < 2, where it is 0 whatever the data, and for H = 0.
//!
//! It reveals the decay to rank one that pure attention shows. The largest row and column sums rule it: one
//! outlier token or dimension is enough.

use super::rows::{Real, Rows, finite};

/// The rank-collapse residual of the rows; O(n + d) state, two passes.
#[must_use]
pub fn rank_residual<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    if rows.n() < 2 {
        return None;
    }
    let whole = composite(rows)?;
    let centred = rows.centred();
    let residual = composite(Rows::new(&centred, rows.width()))?;
    if whole > 0.0 { finite(residual / whole) } else { None }
}

/// `√(largest column sum · largest row sum)` of absolute values.
fn composite<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    let mut columns = vec![0.0; rows.width()];
    let mut largest_row = 0.0f64;
    for row in rows.iter() {
        let mut sum = 0.0;
        for (column, &x) in columns.iter_mut().zip(row) {
            let x: f64 = x.into().abs();
            sum += x;
            *column += x;
        }
        largest_row = largest_row.max(finite(sum)?);
    }
    let largest_column = columns.into_iter().fold(0.0, f64::max);
    finite(largest_column.sqrt() * largest_row.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // H = (1 2; 3 −4): columns 4, 6, rows 3, 7 → √42. Mean (2, −1): (−1 3; 1 −3): columns 2, 6, rows 4, 4 → √24.
        let value = rank_residual(Rows::new(&[1.0f64, 2.0, 3.0, -4.0], 2)).unwrap();
        assert!((value - (24.0f64 / 42.0).sqrt()).abs() < 1e-15);
        assert_eq!(rank_residual(Rows::new(&[0.1f32, 0.2, 0.1, 0.2, 0.1, 0.2], 2)), Some(0.0), "identical tokens");
        assert_eq!(rank_residual(Rows::new(&[0.0f32; 4], 2)), None);
        assert_eq!(rank_residual(Rows::new(&[1.0f32, 2.0], 2)), None);
        assert_eq!(rank_residual(Rows::new(&[1.0f64, f64::NAN, 1.0, 1.0], 2)), None);
    }
}
