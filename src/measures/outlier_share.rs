//! Outlier dimensions: the share of a text's energy that its largest dimensions carry.
//!
//! `Σ_{k in top K} Σ_i h_ik² / Σ_ik h_ik²`, the K dimensions with the largest `Σ_i h_ik²` of this text (outlier
//! dimensions: Kovaleva et al., *BERT Busters*, ACL Findings 2021; Timkey & van Schijndel, EMNLP 2021). K/d for
//! dimensions of equal energy, 1 where K dimensions carry all. Undefined where all is zero.
//!
//! It reveals that a few dimensions rule every cosine. It does not say whether they differ between tokens.

use super::rows::{Real, Rows, finite};

/// The share of `Σ h²` in the `top` largest dimensions of the rows; O(d) state.
#[must_use]
pub fn outlier_share<T: Real>(rows: Rows<'_, T>, top: usize) -> Option<f64> {
    let mut energy = vec![0.0; rows.width()];
    for row in rows.iter() {
        energy.iter_mut().zip(row).for_each(|(e, &x)| *e += x.into() * x.into());
    }
    outlier_share_of(&mut energy, top)
}

/// As [`outlier_share`], from the energies `Σ_i h_ik²` of every dimension; puts them in descending order.
#[must_use]
pub fn outlier_share_of(energy: &mut [f64], top: usize) -> Option<f64> {
    energy.sort_unstable_by(|a, b| b.total_cmp(a));
    let total: f64 = energy.iter().sum();
    let largest: f64 = energy.iter().take(top).sum();
    if total > 0.0 { finite(largest / total) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // energies 1 + 4, 0 + 9, 1 + 1
        let rows = Rows::new(&[1.0f32, 0.0, 1.0, 2.0, 3.0, -1.0], 3);
        assert_eq!(outlier_share(rows, 1), Some(9.0 / 16.0));
        assert_eq!(outlier_share(rows, 2), Some(14.0 / 16.0));
        assert_eq!(outlier_share(rows, 10), Some(1.0), "more than there are");
        assert_eq!(outlier_share(Rows::new(&[0.0f32; 4], 2), 1), None);
        assert_eq!(outlier_share(Rows::new(&[f64::NAN, 1.0], 2), 1), None);
    }
}
