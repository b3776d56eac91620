//! Dirichlet energy: the squared differences between tokens, over a graph of them.
//!
//! `E = ½ Σ_ij a_ij ‖h_i − h_j‖²` (Cai & Wang, *A Note on Over-Smoothing for Graph Neural Networks*, 2020).
//! With `a_ij = 1/n` it is `Σ_i ‖h_i − m‖²`, m the token mean; over `‖H‖_F²` that is r²/(1 + r²) of the frequency
//! ratio r, and so derived from it. With the layer's own attention (mean over heads, symmetrised) it weighs the
//! pairs that really exchange information. At least 0; undefined for n < 2, where it is 0 whatever the data.
//!
//! It reveals the decay that GNN literature calls over-smoothing. It grows with the square of the norms, so a
//! layer that scales its states up hides a collapse: read it beside the normalised form.

use super::attention::AttentionMaps;
use super::rows::{Real, Rows, finite};

/// The energy over the complete graph, `a_ij = 1/n`; O(d) state, two passes.
#[must_use]
pub fn dirichlet<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    energy(rows)
}

/// `Σ_i ‖h_i − m‖²`; `None` for n < 2.
pub(super) fn energy<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    if rows.n() < 2 {
        return None;
    }
    finite(rows.centred().iter().map(|c| c * c).sum())
}

/// The energy over the layer's attention: `a_ij` the mean over heads of what token i gives to token j, made
/// symmetric as (a_ij + a_ji)/2 (which leaves the sum as it is).
///
/// `positions[k]` is the place in the text of row k: the maps are over all tokens of the text, the rows may be
/// fewer. Weights to tokens outside the rows are not made up for. O(n²·d) time.
#[must_use]
pub fn dirichlet_attention<T: Real, A: Real>(
    rows: Rows<'_, T>,
    positions: &[usize],
    maps: AttentionMaps<'_, A>,
) -> Option<f64> {
    if rows.n() < 2 || positions.len() != rows.n() {
        return None;
    }
    let mut sum = 0.0;
    for (i, (&at, a)) in positions.iter().zip(rows.iter()).enumerate() {
        for (&to, b) in positions.iter().zip(rows.iter()).take(i) {
            let weight = 0.5 * (maps.head_mean(at, to)? + maps.head_mean(to, at)?);
            let distance: f64 = a.iter().zip(b).map(|(&x, &y)| (x.into() - y.into()).powi(2)).sum();
            sum += weight * distance;
        }
    }
    finite(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // pairs: ‖(1,0) − (0,1)‖² = 2, twice 1/2 · 1/2 · 2
        assert_eq!(dirichlet(Rows::new(&[1.0f64, 0.0, 0.0, 1.0], 2)), Some(1.0));
        assert_eq!(dirichlet(Rows::new(&[1.0f64, 0.0], 2)), None);
        let uniform = [0.5f64; 8];
        let maps = AttentionMaps::new(&uniform, 2, 2).unwrap();
        let rows = Rows::new(&[1.0f64, 0.0, 0.0, 1.0], 2);
        assert_eq!(dirichlet_attention(rows, &[0, 1], maps), Some(1.0), "uniform attention is the complete graph");
        let causal = [1.0f64, 0.0, 0.25, 0.75];
        let maps = AttentionMaps::new(&causal, 1, 2).unwrap();
        assert_eq!(dirichlet_attention(rows, &[0, 1], maps), Some(0.25));
        assert_eq!(dirichlet_attention(rows, &[0, 2], maps), None, "a position outside the text");
    }
}
