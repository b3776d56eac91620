//! Held-out items for the gates that a pre-trained model must pass.
//!
//! An item is a story of the last stage that holds a held-out pair of names, told up to its last recap,
//! with one question about that pair.

use super::cast::Cast;
use super::corpus::Stage;
use super::holdout::Split;
use super::page::Page;
use super::question::QuestionKind;
use super::story::Story;
use super::vocabulary;
use crate::random::stream;
use std::collections::HashSet;

/// The seed of all gate items: a gate that moves is none.
const SEED: u64 = 2024;

/// A prompt and the one word that continues it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateItem {
    /// The words up to the answer.
    pub prompt: String,
    /// The answer, a single token.
    pub answer: &'static str,
    /// Which gate the item belongs to.
    pub kind: QuestionKind,
}

/// The first `n` items of a gate, no prompt twice. With [`Split::Train`] they are new stories of trained
/// pairs: the difference to the other splits is what holding pairs out costs.
#[must_use]
pub fn gate_items(kind: QuestionKind, split: Split, n: usize) -> Vec<GateItem> {
    let mut seen = HashSet::new();
    (0u64..)
        .filter_map(|attempt| draw(kind, split, attempt))
        .filter(|item| seen.insert(item.prompt.clone()))
        .take(n)
        .collect()
}

/// `None` if the drawn story does not allow the question.
fn draw(kind: QuestionKind, split: Split, attempt: u64) -> Option<GateItem> {
    let mut dice = stream(SEED, &["gate", kind.name(), split.name(), &attempt.to_string()]);
    let mut page = Page::new(&mut dice);
    let rules = Stage::Three.rules();
    let size = page.one_of(rules.holders)?;
    let cast = Cast::draw(&mut page, split, size);
    let story = Story::tell(&mut page, &rules, split, Some(&cast));
    if !story.can_ask(kind, cast.pair.0) {
        return None;
    }
    let answer = story.ask(&mut page, kind, Some(cast.pair));
    Some(GateItem { prompt: page.words(), answer: vocabulary::word(answer), kind })
}

#[cfg(test)]
mod tests {
    use super::super::reader::read;
    use super::*;

    #[test]
    fn the_reader_agrees_with_every_answer_and_the_pair_is_held_out() {
        for kind in QuestionKind::ALL {
            for split in [Split::Train, Split::Validation, Split::Test] {
                let items = gate_items(kind, split, 400);
                assert_eq!(items.len(), 400);
                for item in &items {
                    let seen = read(&format!("{} {} .", item.prompt, item.answer));
                    assert_eq!(seen.questions, 1, "{item:?}");
                    assert_ne!(vocabulary::id(item.answer), vocabulary::UNKNOWN);
                    for pair in &seen.asked {
                        assert_eq!(super::super::holdout::split_of_names(pair.0, pair.1), split, "{item:?}");
                    }
                }
                let mut shares = std::collections::BTreeMap::new();
                for item in &items {
                    *shares.entry(item.answer).or_insert(0) += 1;
                }
                println!(
                    "{kind:?} {split:?}: {} answers, e.g. {} → {}",
                    shares.len(),
                    items[0].prompt,
                    items[0].answer
                );
                if kind == QuestionKind::YesNo {
                    // Ties are "no", so a little under half
                    assert!((150..230).contains(&shares["yes"]), "{shares:?}");
                }
                assert_eq!(items[..10], gate_items(kind, split, 10));
            }
        }
    }
}
