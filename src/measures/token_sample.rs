//! A seeded sample of the pooled tokens, the same whatever the order in which texts come.
//!
//! Every token has a priority, a hash of (seed, text, position); the sample is the tokens of lowest priority. That
//! makes `add` and `merge` free of order, to the bit. State: at most `capacity` rows in f32, 9 MB for 4,000 rows
//! at d = 576.

use super::accumulator::{FileFormError, Reader, Writer};
use super::intrinsic_dimension::two_nn;
use super::rows::{Real, Rows};
use std::collections::BTreeMap;

/// The most tokens that the intrinsic dimension is estimated from.
pub const MAX_TOKENS: usize = 4000;

/// Priority, text, position: the order of the sample.
type Key = (u64, u64, u64);

/// A sample of tokens with their rows.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenSample {
    seed: u64,
    capacity: usize,
    width: usize,
    /// How many tokens were offered.
    offered: u64,
    rows: BTreeMap<Key, Vec<f32>>,
}

impl TokenSample {
    /// An empty sample of at most `capacity` rows of `width` values; [`MAX_TOKENS`] for the intrinsic dimension.
    #[must_use]
    pub fn new(seed: u64, capacity: usize, width: usize) -> Self {
        Self { seed, capacity, width, offered: 0, rows: BTreeMap::new() }
    }

    /// Offers the rows of text `text` (its index in the corpus); `positions[k]` is the place in the text of row k.
    ///
    /// Rows are kept in f32; a value beyond its range makes the result undefined.
    pub fn add<T: Real>(&mut self, text: u64, positions: &[usize], rows: Rows<'_, T>) {
        debug_assert!(positions.len() == rows.n() && rows.width() == self.width);
        for (&position, row) in positions.iter().zip(rows.iter()) {
            self.offered += 1;
            let key = self.key(text, position as u64);
            if self.admits(key) {
                self.insert(key, row.iter().map(|&x| x.into() as f32).collect());
            }
        }
    }

    /// Takes in what another sample with the same seed, capacity and width saw, of other texts; any order of merges
    /// gives the same bits.
    pub fn merge(&mut self, other: &Self) {
        debug_assert!((other.seed, other.capacity, other.width) == (self.seed, self.capacity, self.width));
        self.offered += other.offered;
        for (&key, row) in &other.rows {
            if !self.admits(key) {
                break;
            }
            self.insert(key, row.clone());
        }
    }

    /// How many tokens are in the sample.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no token is in the sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many tokens were offered.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The sampled rows, row by row, in order of priority.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.rows.values().flatten().copied().collect()
    }

    /// The intrinsic dimension of the sample, exact duplicates removed: see [`two_nn`].
    #[must_use]
    pub fn finish(&self) -> Option<f64> {
        two_nn(Rows::new(&self.values(), self.width))
    }

    fn key(&self, text: u64, position: u64) -> Key {
        (mix(mix(mix(self.seed) ^ text) ^ position), text, position)
    }

    fn admits(&self, key: Key) -> bool {
        self.rows.len() < self.capacity || self.rows.last_key_value().is_some_and(|(&last, _)| key < last)
    }

    fn insert(&mut self, key: Key, row: Vec<f32>) {
        self.rows.insert(key, row);
        if self.rows.len() > self.capacity {
            self.rows.pop_last();
        }
    }

    /// The file form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(*b"tokens  ");
        for value in [self.seed, self.capacity as u64, self.width as u64, self.offered, self.rows.len() as u64] {
            out.integer(value);
        }
        for (&(_, text, position), row) in &self.rows {
            out.integer(text);
            out.integer(position);
            out.singles(row);
        }
        out.finish()
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// Bytes that [`Self::to_bytes`] cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FileFormError> {
        let mut input = Reader::new(bytes, *b"tokens  ")?;
        let seed = input.integer()?;
        let (capacity, width) = (input.integer()?, input.integer()?);
        let (offered, rows) = (input.integer()?, input.integer()?);
        let (Ok(capacity), Ok(width)) = (usize::try_from(capacity), usize::try_from(width)) else {
            return Err(input.malformed("its size is past this machine's"));
        };
        if rows > capacity as u64 || rows > offered {
            return Err(input.malformed(format!("{rows} rows of {offered} tokens in a sample of {capacity}")));
        }
        let mut sample = Self { offered, ..Self::new(seed, capacity, width) };
        for _ in 0..rows {
            let key = sample.key(input.integer()?, input.integer()?);
            let row = input.singles_of(width)?;
            if sample.rows.last_key_value().is_some_and(|(&last, _)| key <= last) {
                return Err(input.malformed("its tokens are not in order"));
            }
            sample.rows.insert(key, row);
        }
        input.finish()?;
        Ok(sample)
    }
}

/// The finaliser of splitmix64: a bijection that scatters neighbours.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
