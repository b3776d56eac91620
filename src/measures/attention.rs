//! Attention entropy: how widely a token looks.
//!
//! `−Σ_j a_ij ln a_ij` in nats, the mean over heads and rows (Clark et al., *What Does BERT Look At?*, 2019). 0 for
//! a row that looks at one token, `ln` of the visible tokens for uniform attention, which makes every token the
//! same average. A causal row i (from 0) sees i + 1 tokens, so entropies of short and long texts do not compare:
//! the normalised form divides each row by `ln` of what it sees and leaves out rows that see one token.
//!
//! It reveals the averaging that smooths. It cannot say what the values carry: uniform attention over like values
//! and over unlike ones are the same to it.

use super::rows::{Real, finite};

/// The attention maps of one text at one layer: `[heads, n, n]`, row by row, each row summing to 1.
#[derive(Debug, Clone, Copy)]
pub struct AttentionMaps<'a, A> {
    values: &'a [A],
    heads: usize,
    n: usize,
}

impl<'a, A: Real> AttentionMaps<'a, A> {
    /// Maps of `heads` heads over a text of `n` tokens; `None` unless `values` holds exactly heads·n·n > 0 numbers.
    #[must_use]
    pub fn new(values: &'a [A], heads: usize, n: usize) -> Option<Self> {
        let wanted = heads.checked_mul(n)?.checked_mul(n)?;
        (wanted > 0 && wanted == values.len()).then_some(Self { values, heads, n })
    }

    /// The mean over heads of what token `from` gives to token `to`; `None` outside the text.
    #[must_use]
    pub fn head_mean(&self, from: usize, to: usize) -> Option<f64> {
        if from >= self.n || to >= self.n {
            return None;
        }
        let at = |head: usize| self.values.get((head * self.n + from) * self.n + to).map(|&a| a.into());
        let sum: f64 = (0..self.heads).filter_map(at).sum();
        Some(sum / self.heads as f64)
    }

    /// Row `from` of every head.
    fn rows(&self, from: usize) -> impl Iterator<Item = &'a [A]> + '_ {
        let all = self.values.chunks_exact(self.n).skip(from.min(self.n)).step_by(self.n);
        all.take(if from < self.n { self.heads } else { 0 })
    }
}

/// The mean entropy of the attention rows at `positions` (places in the text, from 0), in nats.
///
/// `None` without positions, for a position outside the text, or where an entry is negative or not finite.
#[must_use]
pub fn attention_entropy<A: Real>(maps: AttentionMaps<'_, A>, positions: &[usize]) -> Option<f64> {
    mean_entropy(maps, positions, |_| Some(1.0))
}

/// The mean of each row's entropy over `ln` of the tokens that it sees: `i + 1` if `causal`, else n. 0 to 1.
///
/// Rows that see one token are left out; `None` where none is left.
#[must_use]
pub fn attention_entropy_normalised<A: Real>(
    maps: AttentionMaps<'_, A>,
    positions: &[usize],
    causal: bool,
) -> Option<f64> {
    mean_entropy(maps, positions, |position| {
        let visible = if causal { position + 1 } else { maps.n };
        (visible > 1).then(|| (visible as f64).ln())
    })
}

/// The mean over heads and positions of entropy / `scale(position)`; positions without a scale are left out.
fn mean_entropy<A: Real>(
    maps: AttentionMaps<'_, A>,
    positions: &[usize],
    scale: impl Fn(usize) -> Option<f64>,
) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0u64);
    for &position in positions {
        if position >= maps.n {
            return None;
        }
        let Some(scale) = scale(position) else { continue };
        for row in maps.rows(position) {
            sum += entropy(row)? / scale;
            count += 1;
        }
    }
    if count > 0 { finite(sum / count as f64) } else { None }
}

fn entropy<A: Real>(row: &[A]) -> Option<f64> {
    let mut sum = 0.0;
    for &a in row {
        let a: f64 = a.into();
        if !(0.0..=f64::MAX).contains(&a) {
            return None;
        }
        if a > 0.0 {
            sum -= a * a.ln();
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_cases() {
        // Head 0 uniform and causal, head 1 looks at itself.
        let third = 1.0 / 3.0;
        #[rustfmt::skip]
        let values = [1.0, 0.0, 0.0,  0.5, 0.5, 0.0,  third, third, third,
                      1.0, 0.0, 0.0,  0.0, 1.0, 0.0,  0.0, 0.0, 1.0f64];
        let maps = AttentionMaps::new(&values, 2, 3).unwrap();
        let mean = attention_entropy(maps, &[0, 1, 2]).unwrap();
        assert!((mean - (2f64.ln() + 3f64.ln()) / 6.0).abs() < 1e-15);
        let causal = attention_entropy_normalised(maps, &[0, 1, 2], true).unwrap();
        assert!((causal - 0.5).abs() < 1e-15, "uniform 1, itself 0; row 0 is left out");
        let both = attention_entropy_normalised(maps, &[1, 2], false).unwrap();
        assert!((both - (2f64.ln() / 3f64.ln() + 1.0) / 4.0).abs() < 1e-15);
        assert_eq!(attention_entropy_normalised(maps, &[0], true), None);
        assert_eq!(attention_entropy(maps, &[3]), None);
        assert_eq!(attention_entropy(maps, &[]), None);
        assert!((maps.head_mean(1, 0).unwrap() - 0.25).abs() < 1e-15);
    }

    #[test]
    fn malformed_maps() {
        assert!(AttentionMaps::new(&[0.5f32; 7], 2, 2).is_none());
        assert!(AttentionMaps::new(&[] as &[f32], 0, 2).is_none());
        assert!(AttentionMaps::new(&[0.5f32; 4], usize::MAX, 2).is_none());
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            let values = [bad, 1.0, 0.5, 0.5];
            assert_eq!(attention_entropy(AttentionMaps::new(&values, 1, 2).unwrap(), &[0, 1]), None);
        }
    }
}
