//! Corpus mean and deviation of every dimension: what the centred and the standardised forms need.
//!
//! Per dimension Σx, Σx² and the count, in f64: O(d) state. Each token weighs 1.

use super::accumulator::{FileFormError, Reader, Writer};
use super::rows::{Real, Rows};

/// Below this share of the mean square a variance cannot be told from the rounding of its sums and is 0.
const RESOLUTION: f64 = 1e-12;

/// Sums over all tokens of one token set at one point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    count: u64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    /// Empty sums of dimension `width`.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self { count: 0, sum: vec![0.0; width], squares: vec![0.0; width] }
    }

    /// Adds the rows of one text, of this width.
    pub fn add<T: Real>(&mut self, rows: Rows<'_, T>) {
        debug_assert_eq!(rows.width(), self.sum.len());
        for row in rows.iter() {
            for ((sum, square), &x) in self.sum.iter_mut().zip(&mut self.squares).zip(row) {
                let x: f64 = x.into();
                *sum += x;
                *square += x * x;
            }
        }
        self.count += rows.n() as u64;
    }

    /// Adds sums made elsewhere: `count` tokens with Σx and Σx² (`[d]` each).
    pub fn add_sums(&mut self, count: u64, sum: &[f64], squares: &[f64]) {
        debug_assert!(sum.len() == self.sum.len() && squares.len() == self.sum.len());
        self.count += count;
        self.sum.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
        self.squares.iter_mut().zip(squares).for_each(|(a, b)| *a += b);
    }

    /// Adds what another accumulator of the same width saw.
    ///
    /// Sums in floating point are not associative: only chunks folded in index order give the same bits.
    pub fn merge(&mut self, other: &Self) {
        self.add_sums(other.count, &other.sum, &other.squares);
    }

    /// How many tokens entered.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean of every dimension, `[d]`; `None` without tokens or where a sum is not finite.
    #[must_use]
    pub fn mean(&self) -> Option<Vec<f64>> {
        let count = self.count as f64;
        (self.count > 0 && self.finite()).then(|| self.sum.iter().map(|s| s / count).collect())
    }

    /// The deviation of every dimension (divided by the count), `[d]`; 0 where the sums cannot resolve it, that is
    /// below a millionth of the root mean square. `None` as for the mean.
    #[must_use]
    pub fn deviation(&self) -> Option<Vec<f64>> {
        let count = self.count as f64;
        let of = |(sum, square): (&f64, &f64)| {
            let (mean, mean_square) = (sum / count, square / count);
            let variance = mean_square - mean * mean;
            if variance > RESOLUTION * mean_square { variance.sqrt() } else { 0.0 }
        };
        (self.count > 0 && self.finite()).then(|| self.sum.iter().zip(&self.squares).map(of).collect())
    }

    fn finite(&self) -> bool {
        self.sum.iter().chain(&self.squares).all(|x| x.is_finite())
    }

    /// The file form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(*b"moments ");
        out.integer(self.count);
        out.numbers(&self.sum);
        out.numbers(&self.squares);
        out.finish()
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// Bytes that [`Self::to_bytes`] cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileFormError> {
        let mut input = Reader::new(bytes, *b"moments ")?;
        let count = input.integer()?;
        let sum = input.numbers()?;
        let squares = input.numbers_of(sum.len())?;
        if squares.iter().any(|&s| s < 0.0) {
            return Err(input.malformed("a sum of squares is negative"));
        }
        input.finish()?;
        Ok(Self { count, sum, squares })
    }
}
