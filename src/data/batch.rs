//! Packed batches and the order in which examples enter them.

use super::{DataError, Example, Image};
use crate::random::{permutation, stream};
use std::ops::Range;
use std::sync::Arc;

/// What a model reads of one text or image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequence<'a> {
    /// The token ids; of an image 0 for its class token and else the number of a patch, from 1.
    pub ids: &'a [u32],
    /// The token types; an empty list stands for zeros.
    pub types: &'a [u32],
    /// The image whose patches the ids are.
    pub image: Option<&'a Image>,
}

/// Token sequences one after another, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// The ids of all sequences, `[tokens]`.
    pub ids: Arc<[u32]>,
    /// Where each sequence begins, `[sequences + 1]`: the first is 0, the last `ids.len()`.
    pub offsets: Arc<[usize]>,
    /// The token types (which sentence of a pair), `[tokens]`; empty where all are 0.
    pub types: Arc<[u32]>,
    /// The image of each sequence; empty where they are texts.
    pub images: Arc<[Image]>,
    /// Where each sequence goes on with a text that was read before, the position of its first token; empty where all
    /// begin at 0.
    pub first: Arc<[usize]>,
}

impl Packed {
    /// Packs sequences of token ids in their order.
    #[must_use]
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        Self::pack(sequences.iter().map(|ids| Sequence { ids: ids.as_ref(), types: &[], image: None }))
    }

    /// Packs sequences in their order.
    #[must_use]
    pub fn pack<'a>(sequences: impl IntoIterator<Item = Sequence<'a>>) -> Self {
        let (mut ids, mut types, mut images) = (Vec::new(), Vec::new(), Vec::new());
        let mut offsets = vec![0];
        for sequence in sequences {
            if !sequence.types.is_empty() {
                types.resize(ids.len(), 0);
                types.extend(sequence.types.iter().take(sequence.ids.len()));
            }
            ids.extend_from_slice(sequence.ids);
            images.extend(sequence.image.cloned());
            offsets.push(ids.len());
        }
        if !types.is_empty() {
            types.resize(ids.len(), 0);
        }
        Self {
            ids: ids.into(),
            offsets: offsets.into(),
            types: types.into(),
            images: images.into(),
            first: Arc::default(),
        }
    }

    /// The same where sequence `i` goes on behind `first[i]` tokens that were read before.
    #[must_use]
    pub fn after(self, first: Vec<usize>) -> Self {
        let all_begin = first.iter().all(|&tokens| tokens == 0);
        Self { first: if all_begin { Arc::default() } else { first.into() }, ..self }
    }

    /// The same with `count` virtual tokens in front of every sequence, whose ids (0) stand for nothing.
    #[must_use]
    pub fn behind_virtual(&self, count: usize) -> Self {
        let with = |values: &[u32]| -> Vec<u32> {
            let of = |index: usize| values.get(self.rows(index)).unwrap_or_default().iter().copied();
            (0..self.sequences()).flat_map(|index| std::iter::repeat_n(0, count).chain(of(index))).collect()
        };
        Self {
            ids: with(&self.ids).into(),
            offsets: self.offsets.iter().enumerate().map(|(index, offset)| offset + index * count).collect(),
            types: if self.types.is_empty() { Arc::default() } else { with(&self.types).into() },
            images: Arc::clone(&self.images),
            first: Arc::clone(&self.first),
        }
    }

    /// The position of the first token of sequence `index`.
    #[must_use]
    pub fn first(&self, index: usize) -> usize {
        self.first.get(index).copied().unwrap_or(0)
    }

    /// The number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The rows of sequence `index`; empty if there is no such sequence.
    #[must_use]
    pub fn rows(&self, index: usize) -> Range<usize> {
        match (self.offsets.get(index), self.offsets.get(index.saturating_add(1))) {
            (Some(&start), Some(&end)) => start..end,
            _ => 0..0,
        }
    }

    /// The ids of sequence `index`; empty if there is no such sequence.
    #[must_use]
    pub fn sequence(&self, index: usize) -> &[u32] {
        self.ids.get(self.rows(index)).unwrap_or_default()
    }

    /// The position of every token in its own text, `[tokens]`, from 0.
    #[must_use]
    pub fn positions(&self) -> Arc<[u32]> {
        let of = |index: usize| {
            let first = self.first(index) as u32;
            first..first + self.rows(index).len() as u32
        };
        (0..self.sequences()).flat_map(of).collect()
    }

    /// One more than the largest position.
    #[must_use]
    pub fn span(&self) -> usize {
        (0..self.sequences()).map(|index| self.first(index) + self.rows(index).len()).max().unwrap_or(0)
    }

    /// The length of the longest sequence.
    #[must_use]
    pub fn longest(&self) -> usize {
        (0..self.sequences()).map(|index| self.rows(index).len()).max().unwrap_or(0)
    }
}

/// The next-token targets of the examples' packed rows and their weights, both `[tokens]`.
///
/// Row t is to predict token t + 1 of its own sequence; its weight is 1 where that token is a target of the
/// loss and 0 elsewhere. The last row of a sequence has nothing to predict: id 0, weight 0.
#[must_use]
pub fn targets_and_weights(examples: &[&Example]) -> (Vec<u32>, Vec<f32>) {
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for example in examples {
        if example.ids.is_empty() {
            continue;
        }
        targets.extend(example.ids.iter().skip(1));
        weights.extend(example.loss.iter().skip(1).map(|&target| if target { 1.0 } else { 0.0 }));
        targets.push(0);
        weights.push(0.0);
    }
    (targets, weights)
}

/// The order of the examples: a pure function of the seed and the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochOrder {
    /// The run's seed.
    pub seed: u64,
    /// Whether each epoch is shuffled; without it every epoch keeps the file's order.
    pub shuffle: bool,
}

impl EpochOrder {
    /// The order of `n` examples in an epoch (from 0).
    #[must_use]
    pub fn epoch(&self, epoch: usize, n: usize) -> Vec<usize> {
        if self.shuffle {
            permutation(n, &mut stream(self.seed, &["shuffle", &epoch.to_string()]))
        } else {
            (0..n).collect()
        }
    }

    /// The steps of one epoch over `n` examples: the last batch may be short.
    #[must_use]
    pub fn steps_per_epoch(batch_size: usize, n: usize) -> usize {
        n.div_ceil(batch_size.max(1))
    }

    /// The examples of a step (from 0, counted over all epochs). The last batch of an epoch is kept short
    /// rather than filled from the next one, as the Hugging Face Trainer does. Empty if `n` is 0.
    #[must_use]
    pub fn batch_indices(&self, step: usize, batch_size: usize, n: usize) -> Vec<usize> {
        let batch_size = batch_size.max(1);
        let steps = Self::steps_per_epoch(batch_size, n).max(1);
        let order = self.epoch(step / steps, n);
        order.into_iter().skip((step % steps) * batch_size).take(batch_size).collect()
    }

    /// The examples of a step (from 0) where a batch holds consecutive examples of up to `limit` tokens together, and
    /// how many epochs are done after it. An example that is longer stands alone. `lengths` are the examples' tokens.
    #[must_use]
    pub fn token_batch(&self, mut step: usize, limit: usize, lengths: &[usize]) -> (Vec<usize>, f64) {
        for epoch in 0.. {
            let mut batches = token_batches(self.epoch(epoch, lengths.len()), limit, lengths);
            if batches.is_empty() {
                break;
            }
            if step < batches.len() {
                let done = epoch as f64 + (step + 1) as f64 / batches.len() as f64;
                return (batches.swap_remove(step), done);
            }
            step -= batches.len();
        }
        (Vec::new(), 0.0)
    }

    /// The steps of the first `epochs` epochs in batches of up to `limit` tokens.
    #[must_use]
    pub fn token_steps(&self, epochs: u64, limit: usize, lengths: &[usize]) -> u64 {
        let steps = |epoch: u64| token_batches(self.epoch(epoch as usize, lengths.len()), limit, lengths).len() as u64;
        (0..epochs).map(steps).fold(0, u64::saturating_add)
    }
}

/// Consecutive examples of up to `limit` tokens together; one that is longer stands alone.
fn token_batches(order: Vec<usize>, limit: usize, lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in order {
        let length = lengths.get(index).copied().unwrap_or_default();
        match batches.last_mut() {
            Some(batch) if length <= room => batch.push(index),
            _ => {
                batches.push(vec![index]);
                room = limit;
            }
        }
        room = room.saturating_sub(length);
    }
    batches
}

/// A seeded split of `0..n` into training and validation indices, both in the file's order.
///
/// # Errors
/// The validation set would leave nothing to train on.
pub fn split_validation(n: usize, val_size: usize, seed: u64) -> Result<(Vec<usize>, Vec<usize>), DataError> {
    if val_size >= n {
        return Err(DataError::ValidationSize { val_size, examples: n });
    }
    let mut validation = permutation(n, &mut stream(seed, &["split"]));
    let mut training = validation.split_off(val_size);
    validation.sort_unstable();
    training.sort_unstable();
    Ok((training, validation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], loss: &[bool]) -> Example {
        Example {
            ids: ids.to_vec(),
            loss: loss.to_vec(),
            response: 0,
            special: vec![false; ids.len()],
            ..Example::default()
        }
    }

    #[test]
    fn sequences_are_packed_and_found_again() {
        let packed = Packed::from_sequences(&[vec![5, 6, 7], vec![], vec![8, 9]]);
        assert_eq!(&*packed.ids, [5, 6, 7, 8, 9]);
        assert_eq!(&*packed.offsets, [0, 3, 3, 5]);
        assert_eq!((packed.sequences(), packed.longest()), (3, 3));
        assert_eq!(&*packed.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(packed.sequence(0), [5, 6, 7]);
        assert_eq!(packed.sequence(1), [0u32; 0]);
        assert_eq!(packed.sequence(2), [8, 9]);
        assert_eq!(packed.rows(2), 3..5);
        assert_eq!(packed.sequence(3), [0u32; 0]);
        let of = |ids, types| Sequence { ids, types, image: None };
        let typed = Packed::pack([of(&[5, 6], &[]), of(&[7, 8, 9], &[0, 1]), of(&[4], &[])]);
        assert_eq!((&*typed.types, &*typed.offsets), (&[0, 0, 0, 1, 0, 0][..], &[0, 2, 5, 6][..]));
        let empty = Packed::from_sequences::<Vec<u32>>(&[]);
        assert_eq!((empty.sequences(), empty.longest(), empty.positions().len()), (0, 0, 0));
    }

    #[test]
    fn every_row_predicts_the_next_token_of_its_own_sequence() {
        let a = example(&[1, 20, 21, 2], &[false, false, true, true]);
        let b = example(&[1, 30], &[false, true]);
        let (targets, weights) = targets_and_weights(&[&a, &b]);
        assert_eq!(targets, [20, 21, 2, 0, 30, 0]);
        assert_eq!(weights, [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn an_epoch_holds_every_example_once_and_ends_short() {
        let order = EpochOrder { seed: 3, shuffle: true };
        assert_eq!(EpochOrder::steps_per_epoch(4, 10), 3);
        let epoch = |e: usize| -> Vec<usize> { (0..3).flat_map(|s| order.batch_indices(3 * e + s, 4, 10)).collect() };
        for e in 0..3 {
            let mut seen = epoch(e);
            assert_eq!(seen, order.epoch(e, 10));
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
            assert_eq!(order.batch_indices(3 * e + 2, 4, 10).len(), 2);
        }
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(epoch(0), EpochOrder { seed: 4, shuffle: true }.epoch(0, 10));
    }

    #[test]
    fn batches_by_tokens_hold_every_example_once_and_as_many_as_fit() {
        let lengths: Vec<usize> = (0..40).map(|i| [3, 10, 25, 7, 1][i % 5]).collect();
        let order = EpochOrder { seed: 3, shuffle: true };
        let (mut step, limit) = (0, 20);
        for epoch in 0..2 {
            let mut seen = Vec::new();
            let mut done = 0.0;
            let mut before: Option<usize> = None;
            while done < (epoch + 1) as f64 {
                let (batch, after) = order.token_batch(step, limit, &lengths);
                let tokens: usize = batch.iter().map(|&i| lengths[i]).sum();
                assert!(tokens <= limit || batch.len() == 1);
                // The first of a batch did not fit into the one before.
                assert!(before.is_none_or(|tokens| tokens + lengths[batch[0]] > limit));
                before = Some(tokens);
                seen.extend(batch);
                (done, step) = (after, step + 1);
            }
            assert_eq!(seen, order.epoch(epoch, 40));
            assert_eq!(order.token_steps(epoch as u64 + 1, limit, &lengths), step as u64);
        }
        assert_eq!(order.token_batch(0, 5, &[]), (Vec::new(), 0.0));
    }

    #[test]
    fn without_shuffling_the_file_keeps_its_order() {
        let order = EpochOrder { seed: 3, shuffle: false };
        let batches: Vec<_> = (0..4).map(|s| order.batch_indices(s, 2, 3)).collect();
        assert_eq!(batches, [vec![0, 1], vec![2], vec![0, 1], vec![2]]);
        assert_eq!(order.batch_indices(5, 2, 0), [0usize; 0]);
    }

    #[test]
    fn the_split_is_seeded_whole_and_in_order() {
        let (training, validation) = split_validation(50, 12, 42).unwrap();
        assert_eq!((training.len(), validation.len()), (38, 12));
        assert!(training.is_sorted() && validation.is_sorted());
        let mut all = [training.clone(), validation.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert_eq!(split_validation(50, 12, 42).unwrap().1, validation);
        assert_ne!(split_validation(50, 12, 43).unwrap().1, validation);
        assert_eq!(split_validation(3, 0, 1).unwrap(), (vec![0, 1, 2], vec![]));
        let error = split_validation(12, 12, 1).unwrap_err().to_string();
        assert_eq!(error, "--val-size 12: the data hold 12 examples and none is left to train on; give a smaller one");
    }
}
