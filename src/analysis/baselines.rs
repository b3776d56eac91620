//! Null baselines: what a measure gives where there is nothing to see.
//!
//! - `texts`: each text's rows are taken from other texts, so its tokens never met. Rows come in turn from the other
//!   texts of the same chunk of 32 (so with k texts in a chunk about one pair in k − 1 still shares a text); a first
//!   row stands in for a first row, a special token for a special token.
//! - `untrained`: the same architecture with random weights, as transformers initialises them.
//! - `shuffled`: the ordinary tokens of the span in random order; special tokens keep their places.

use super::chunks::TextSupply;
use super::similarity::{EncodedText, SimilarityError};
use crate::random::{permutation, stream};
use crate::report::BASELINE_SUFFIXES;
use rand::Rng;
use std::str::FromStr;
use std::sync::Arc;

/// A null baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Baseline {
    /// Tokens of different texts.
    Texts,
    /// Untrained weights.
    Untrained,
    /// Shuffled token order.
    Shuffled,
}

impl Baseline {
    /// Every baseline.
    pub const ALL: [Self; 3] = [Self::Texts, Self::Untrained, Self::Shuffled];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Texts => "texts",
            Self::Untrained => "untrained",
            Self::Shuffled => "shuffled",
        }
    }

    /// What follows the run's name in tables and figures.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        let [texts, untrained, shuffled] = BASELINE_SUFFIXES;
        match self {
            Self::Texts => texts,
            Self::Untrained => untrained,
            Self::Shuffled => shuffled,
        }
    }
}

impl FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|baseline| baseline.name() == text)
            .ok_or_else(|| format!("\"{text}\" is no baseline; choose among texts, untrained, shuffled"))
    }
}

/// Texts whose ordinary tokens stand in random order.
pub struct Shuffled<'s> {
    /// The texts as they are.
    pub texts: &'s dyn TextSupply,
    /// Seeds the order; each text has its own by its index.
    pub seed: u64,
}

impl TextSupply for Shuffled<'_> {
    fn open(&self) -> Result<Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + '_>, SimilarityError> {
        Ok(Box::new(self.texts.open()?.map(|text| text.map(|text| shuffled(text, self.seed)))))
    }
}

fn shuffled(mut text: EncodedText, seed: u64) -> EncodedText {
    let special = |place: &usize| text.special.get(*place).copied().unwrap_or(false);
    let places: Vec<usize> = text.span.clone().filter(|place| !special(place)).collect();
    let ordinary: Vec<u32> = places.iter().filter_map(|&place| text.ids.get(place).copied()).collect();
    let order = permutation(ordinary.len(), &mut stream(seed, &["shuffled", &text.index.to_string()]));
    for (place, from) in places.into_iter().zip(order) {
        if let (Some(slot), Some(&id)) = (text.ids.get_mut(place), ordinary.get(from)) {
            *slot = id;
        }
    }
    text
}

/// For each row of a chunk's texts, packed in `order`, the row of another text that stands in for it; `None` for
/// fewer than two texts. A row for which no other text has one of its kind stays.
#[must_use]
pub fn stand_ins(chunk: &[EncodedText], order: &[usize], seed: u64) -> Option<Arc<[u32]>> {
    let texts: Vec<&EncodedText> = order.iter().filter_map(|&place| chunk.get(place)).collect();
    if texts.len() < 2 {
        return None;
    }
    let mut start = 0;
    let rows: Vec<[Vec<usize>; 3]> = texts
        .iter()
        .map(|text| {
            let mut kinds: [Vec<usize>; 3] = Default::default();
            for position in text.span.clone().filter(|&p| p < text.ids.len()) {
                if let Some(rows) = kinds.get_mut(kind(text, position)) {
                    rows.push(start + position);
                }
            }
            start += text.ids.len();
            kinds
        })
        .collect();
    let mut found = Vec::with_capacity(start);
    for (own, text) in texts.iter().enumerate() {
        let mut rng = stream(seed, &["other texts", &text.index.to_string()]);
        let others: Vec<usize> = permutation(texts.len(), &mut rng).into_iter().filter(|&other| other != own).collect();
        let first = found.len();
        for position in 0..text.ids.len() {
            let turn = (0..others.len()).map(|k| others.get((position + k) % others.len()).copied().unwrap_or(own));
            let of_kind =
                |other: usize| rows.get(other).and_then(|r| r.get(kind(text, position))).filter(|r| !r.is_empty());
            let row = match turn.filter_map(of_kind).next() {
                Some(rows) => rows.get(rng.random_range(0..rows.len())).copied().unwrap_or(first + position),
                None => first + position,
            };
            found.push(row as u32);
        }
    }
    Some(found.into())
}

/// First, special, ordinary.
fn kind(text: &EncodedText, position: usize) -> usize {
    match (position, text.special.get(position)) {
        (0, _) => 0,
        (_, Some(true)) => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(index: u64, n: usize) -> EncodedText {
        let ids = (0..n as u32).map(|i| 100 * index as u32 + i).collect();
        EncodedText {
            index,
            group: None,
            ids,
            special: (0..n).map(|i| i == 0 || i + 1 == n).collect(),
            span: 0..n,
            ..EncodedText::default()
        }
    }

    #[test]
    fn a_shuffle_keeps_the_tokens_and_the_special_places() {
        let mut before = text(3, 20);
        before.span = 0..15;
        let after = shuffled(before.clone(), 7);
        assert_ne!(after.ids, before.ids);
        assert_eq!((after.ids[0], &after.ids[15..]), (before.ids[0], &before.ids[15..]));
        let sorted = |ids: &[u32]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        assert_eq!(sorted(&after.ids), before.ids);
        assert_eq!(after, shuffled(before.clone(), 7), "a function of the seed and the index");
        assert_ne!(after.ids, shuffled(before, 8).ids);
    }

    #[test]
    fn stand_ins_are_rows_of_other_texts_and_of_the_same_kind() {
        let chunk = [text(0, 9), text(1, 12), text(2, 5)];
        let order = [1, 0, 2];
        let rows = stand_ins(&chunk, &order, 5).unwrap();
        assert_eq!(rows.len(), 26);
        // Packed: text 1 in rows 0..12, text 0 in 12..21, text 2 in 21..26.
        let bounds = [0..12, 12..21, 21..26];
        for (own, range) in bounds.iter().enumerate() {
            for row in range.clone() {
                let from = rows[row] as usize;
                let other = bounds.iter().position(|b| b.contains(&from)).unwrap();
                assert_ne!(other, own);
                assert_eq!(row == range.start, from == bounds[other].start, "first for first");
                assert_eq!(row + 1 == range.end, from + 1 == bounds[other].end, "special for special");
            }
        }
        assert_eq!(stand_ins(&chunk, &order, 5).unwrap(), rows);
        assert_eq!(stand_ins(&chunk[..1], &[0], 5), None);
    }
}
