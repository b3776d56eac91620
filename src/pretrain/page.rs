//! A text being written, with the exact price of every word.
//!
//! A text is a sequence of choices made in the order of its words. A choice adds −ln p of its outcome to
//! what is owed, and the next word written pays: `nats[i] = −ln p(word i | words before i)`. That holds
//! exactly as long as different outcomes of a choice write different next words, which the test that
//! enumerates a whole small generator checks.

use super::vocabulary::{self, BOS, EOS};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Where the outcomes of choices come from.
pub trait Dice {
    /// An index of `weights`, drawn in proportion to them; they are not empty and sum to at least 1.
    fn roll(&mut self, weights: &[usize]) -> usize;
}

impl Dice for ChaCha8Rng {
    fn roll(&mut self, weights: &[usize]) -> usize {
        // u64 so that the draw is the same on every platform
        let total: u64 = weights.iter().map(|&weight| weight as u64).sum();
        let mut left = self.random_range(0..total.max(1));
        for (index, &weight) in weights.iter().enumerate() {
            match left.checked_sub(weight as u64) {
                Some(rest) => left = rest,
                None => return index,
            }
        }
        0
    }
}

/// A finished text: three columns of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Token ids, `<s>` first and `</s>` last.
    pub ids: Vec<u32>,
    /// −ln p(token | tokens before) in nats under the generator of the training split; 0 for `<s>`, which
    /// is never a target. `None` for a text of another split, which that generator never writes.
    pub nats: Option<Vec<f64>>,
    /// Whether the token is a function of what stands before it; false for `<s>`.
    pub determined: Vec<bool>,
}

impl Text {
    /// −ln p(text) in nats: its mean over texts is the least mean loss that any model can have. `None`
    /// for a held-out text.
    #[must_use]
    pub fn entropy(&self) -> Option<f64> {
        self.nats.as_ref().map(|nats| nats.iter().sum())
    }

    /// The words without the special tokens, a space between two.
    #[must_use]
    pub fn words(&self) -> String {
        vocabulary::sentence(&self.ids)
    }
}

/// A text being written.
pub struct Page<'a> {
    dice: &'a mut dyn Dice,
    ids: Vec<u32>,
    nats: Vec<f64>,
    determined: Vec<bool>,
    owed: f64,
    owed_later: f64,
    free: bool,
}

impl<'a> Page<'a> {
    /// A page that holds `<s>`.
    pub fn new(dice: &'a mut dyn Dice) -> Self {
        Self { dice, ids: vec![BOS], nats: vec![0.0], determined: vec![false], owed: 0.0, owed_later: 0.0, free: false }
    }

    /// A choice at no price: who makes it says what it costs with [`Self::owe`].
    pub fn roll(&mut self, weights: &[usize]) -> usize {
        self.dice.roll(weights)
    }

    /// Adds `next` nats to the price of the next word, and `after` to that of the word after it: for a choice
    /// that the next word does not tell yet.
    pub fn owe(&mut self, next: f64, after: f64) {
        self.owed += next;
        self.owed_later += after;
    }

    /// A choice of probability `weights[i] / sum`; the next word pays for it.
    pub fn weigh(&mut self, weights: &[usize]) -> usize {
        let index = self.roll(weights);
        let total: usize = weights.iter().sum();
        let weight = weights.get(index).copied().unwrap_or(total);
        self.owed += (total as f64 / weight as f64).ln();
        index
    }

    /// A uniform choice of `0..n`, `n` at least 1.
    pub fn pick(&mut self, n: usize) -> usize {
        self.weigh(&vec![1; n])
    }

    /// A uniform choice of the options; `None`, at no price, if there is none.
    pub fn one_of<T: Copy>(&mut self, options: &[T]) -> Option<T> {
        if options.is_empty() { None } else { options.get(self.pick(options.len())).copied() }
    }

    /// Whether a count that is uniform over `counts` ends at `reached`, given that it is at least that.
    pub fn stops(&mut self, reached: usize, counts: &[usize]) -> bool {
        let later = counts.iter().filter(|&&count| count > reached).count();
        match (counts.contains(&reached), later) {
            (true, 0) => true,
            (true, _) => self.weigh(&[1, later]) == 0,
            (false, _) => later == 0,
        }
    }

    /// Marks the next word as not determined, whatever is owed: it was chosen elsewhere.
    pub fn mark_free(&mut self) {
        self.free = true;
    }

    /// Writes a word, which pays what is owed.
    pub fn word(&mut self, id: u32) {
        self.ids.push(id);
        self.nats.push(self.owed);
        self.determined.push(self.owed == 0.0 && !self.free);
        self.owed = std::mem::take(&mut self.owed_later);
        self.free = false;
    }

    /// Writes a number.
    pub fn number(&mut self, n: u32) {
        self.word(vocabulary::number(n));
    }

    /// Writes words that white space parts; the first pays what is owed.
    pub fn say(&mut self, words: &str) {
        for word in words.split_whitespace() {
            self.word(vocabulary::id(word));
        }
    }

    /// The words so far.
    #[must_use]
    pub fn words(&self) -> String {
        vocabulary::sentence(&self.ids)
    }

    /// The finished text, `</s>` behind it.
    #[must_use]
    pub fn finish(mut self) -> Text {
        self.word(EOS);
        Text { ids: self.ids, nats: Some(self.nats), determined: self.determined }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    #[test]
    fn the_next_word_pays_for_the_choices_before_it() {
        let mut dice = stream(1, &["page"]);
        let mut page = Page::new(&mut dice);
        page.pick(4);
        page.pick(3);
        page.say("lily has");
        page.pick(1);
        page.number(7);
        page.mark_free();
        page.say(".");
        let text = page.finish();
        assert_eq!(text.words(), "lily has 7 .");
        assert!((text.nats.as_ref().unwrap()[1] - 12f64.ln()).abs() < 1e-12);
        assert!((text.entropy().unwrap() - 12f64.ln()).abs() < 1e-12);
        assert_eq!(text.determined, [false, false, true, true, false, true]);
        assert_eq!((text.ids[0], text.ids[5]), (BOS, EOS));
    }

    #[test]
    fn counts_are_uniform_and_their_price_is_that_of_the_count() {
        let mut seen = [0usize; 9];
        for seed in 0..4000 {
            let mut dice = stream(seed, &["count"]);
            let mut page = Page::new(&mut dice);
            let counts = [2, 3, 5, 8];
            let reached = (0..).find(|&reached| page.stops(reached, &counts)).unwrap();
            assert!((page.owed - 4f64.ln()).abs() < 1e-12, "{reached}");
            seen[reached] += 1;
        }
        for count in [2, 3, 5, 8] {
            // 1000 expected, standard deviation 27
            assert!(seen[count].abs_diff(1000) < 110, "{seen:?}");
        }
        assert_eq!(seen.iter().sum::<usize>(), 4000);
    }

    #[test]
    fn weights_are_respected() {
        let mut dice = stream(3, &["weights"]);
        let drawn = (0..10_000).filter(|_| dice.roll(&[1, 0, 9]) == 0).count();
        assert!(drawn.abs_diff(1000) < 120, "{drawn}");
        assert!((0..1000).all(|_| dice.roll(&[1, 0, 9]) != 1));
    }
}
