//! Texts in chunks of 32 by input index: the unit that is computed alone and folded in order.
//!
//! A chunk's texts pass in order of length, so that a batch holds texts of like length and its peak is small; what
//! they give is stored by index and folded in that fixed order, whatever the batch size.

use super::similarity::{EncodedText, SimilarityError};
use crate::data::Packed;

/// Texts of a chunk: those whose index in the input lies in the same 32.
pub const CHUNK: u64 = 32;

/// Where the texts of a run come from. They are read once a pass, so that a file need not be held.
pub trait TextSupply: Sync {
    /// The texts in the order of their index, from the first.
    ///
    /// # Errors
    /// The source cannot be opened.
    fn open(&self) -> Result<Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + '_>, SimilarityError>;
}

impl TextSupply for [EncodedText] {
    fn open(&self) -> Result<Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + '_>, SimilarityError> {
        Ok(Box::new(self.iter().cloned().map(Ok)))
    }
}

impl TextSupply for Vec<EncodedText> {
    fn open(&self) -> Result<Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + '_>, SimilarityError> {
        self.as_slice().open()
    }
}

/// The chunks of a supply, one after another; at most one is held.
pub struct Chunks<'s> {
    texts: Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + 's>,
    next: Option<EncodedText>,
}

impl<'s> Chunks<'s> {
    /// The chunks of a supply.
    ///
    /// # Errors
    /// The supply cannot be opened.
    pub fn open(supply: &'s dyn TextSupply) -> Result<Self, SimilarityError> {
        Ok(Self { texts: supply.open()?, next: None })
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<Vec<EncodedText>, SimilarityError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = match self.next.take() {
            Some(text) => text,
            None => match self.texts.next()? {
                Ok(text) => text,
                Err(e) => return Some(Err(e)),
            },
        };
        let number = first.index / CHUNK;
        let mut chunk = vec![first];
        for text in self.texts.by_ref() {
            match text {
                Ok(text) if text.index / CHUNK == number => chunk.push(text),
                Ok(text) => {
                    self.next = Some(text);
                    break;
                }
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(chunk))
    }
}

/// The places of a chunk's texts in order of length, the longest first, cut into batches of at most `size`.
#[must_use]
pub fn batches(chunk: &[EncodedText], size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..chunk.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(chunk.get(place).map_or(0, |text| text.ids.len())));
    order.chunks(size.max(1)).map(<[usize]>::to_vec).collect()
}

/// The texts of a batch, packed.
#[must_use]
pub fn pack(chunk: &[EncodedText], batch: &[usize]) -> Packed {
    Packed::pack(batch.iter().filter_map(|&place| chunk.get(place)).map(EncodedText::sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(index: u64, length: usize) -> EncodedText {
        EncodedText {
            index,
            group: None,
            ids: vec![1; length],
            special: vec![false; length],
            span: 0..length,
            ..EncodedText::default()
        }
    }

    #[test]
    fn chunks_are_cut_by_the_input_index() {
        let texts: Vec<EncodedText> = [0, 5, 31, 32, 40, 100, 127, 128].map(|i| text(i, 3)).to_vec();
        let chunks: Vec<Vec<u64>> =
            Chunks::open(&texts).unwrap().map(|c| c.unwrap().iter().map(|t| t.index).collect()).collect();
        assert_eq!(chunks, [vec![0, 5, 31], vec![32, 40], vec![100, 127], vec![128]]);
        let none: Vec<EncodedText> = Vec::new();
        assert_eq!(Chunks::open(&none).unwrap().count(), 0);
    }

    #[test]
    fn batches_hold_like_lengths_and_keep_one_order() {
        let chunk: Vec<EncodedText> = [4, 9, 4, 7].into_iter().zip(0..).map(|(n, i)| text(i, n)).collect();
        assert_eq!(batches(&chunk, 3), [vec![1, 3, 0], vec![2]]);
        assert_eq!(batches(&chunk, 1).concat(), batches(&chunk, 9).concat());
        assert_eq!(pack(&chunk, &[1, 3]).offsets.to_vec(), [0, 9, 16]);
    }
}
