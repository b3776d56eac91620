//! The corpus: stories, recall and drill texts in three stages, each text a function of its index.

use super::cast::Cast;
use super::drill::drill;
use super::holdout::Split;
use super::page::{Page, Text};
use super::recall::recall;
use super::story::{Rules, Story};
use crate::random::stream;

/// The stages of pre-training, from association alone to the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Two texts of three are recall texts: looking a number up by its name is learned first.
    One,
    /// Two to eight holders, at most one event, the opening recapped twice.
    Two,
    /// Two to four holders, up to three events.
    Three,
}

const ALL_VERBS: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const THREE: Rules = Rules {
    recalls: [1, 12],
    pairs: &[20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30],
    drills: [1, 9],
    drill_lines: &[10, 11, 12, 13, 14, 15, 16],
    drill_to: 40,
    names: 24,
    objects: 12,
    verbs: ALL_VERBS,
    endings: 8,
    holders: &[2, 3, 4],
    largest_start: 20,
    largest_amount: 9,
    cap: 40,
    events: &[0, 1, 2, 3],
    opening_recaps: 1,
    recaps: [1, 0],
    questions: &[3, 4, 5],
    kinds: [3, 3, 2, 0],
};

impl Stage {
    /// All stages in their order.
    pub const ALL: [Self; 3] = [Self::One, Self::Two, Self::Three];

    /// The sizes of the stage's generator.
    #[must_use]
    pub fn rules(self) -> Rules {
        match self {
            Self::One => Rules { recalls: [2, 1], holders: &[2, 3], events: &[0], questions: &[2, 3, 4], ..THREE },
            Self::Two => Rules {
                recalls: [1, 6],
                holders: &[2, 3, 5, 8],
                events: &[0, 1],
                opening_recaps: 2,
                questions: &[4, 5, 6],
                ..THREE
            },
            Self::Three => THREE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Two => "2",
            Self::Three => "3",
        }
    }
}

/// A corpus without end, fixed by its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The seed of every text.
    pub seed: u64,
}

impl Corpus {
    /// The text of this index, independent of every other.
    ///
    /// The training split is the i.i.d. stream. A text of another split is a
    /// story of the stage with a held-out pair of names and, in its events, held-out verb × ending pairs;
    /// it has no price (`nats` is `None`), while `determined` holds as in training.
    #[must_use]
    pub fn text(&self, stage: Stage, split: Split, index: u64) -> Text {
        let mut dice = stream(self.seed, &["corpus", stage.name(), split.name(), &index.to_string()]);
        let mut page = Page::new(&mut dice);
        let rules = stage.rules();
        if split == Split::Train {
            write(&mut page, &rules);
            return page.finish();
        }
        let sizes: Vec<usize> = rules.holders.iter().copied().filter(|&size| size > 1).collect();
        let size = page.one_of(&sizes).unwrap_or(2);
        let cast = Cast::draw(&mut page, split, size);
        Odds::of(&rules).begin_story(&mut page);
        Story::tell(&mut page, &rules, split, Some(&cast)).questions(&mut page);
        Text { nats: None, ..page.finish() }
    }
}

/// Writes a text of the training split.
fn write(page: &mut Page<'_>, rules: &Rules) {
    let odds = Odds::of(rules);
    if page.roll(&rules.recalls) == 0 {
        page.owe(-odds.named().ln(), -(odds.recall / odds.named()).ln());
        recall(page, rules);
    } else if page.roll(&rules.drills) == 0 {
        page.owe(-odds.drill.ln(), 0.0);
        drill(page, rules);
    } else {
        odds.begin_story(page);
        Story::tell(page, rules, Split::Train, None).questions(page);
    }
}

/// The shares of the kinds of text.
struct Odds {
    recall: f64,
    drill: f64,
    story: f64,
}

impl Odds {
    fn of(rules: &Rules) -> Self {
        let first = |[a, b]: [usize; 2]| a as f64 / (a + b) as f64;
        let recall = first(rules.recalls);
        let drill = (1.0 - recall) * first(rules.drills);
        Self { recall, drill, story: 1.0 - recall - drill }
    }

    /// A recall text and a story both begin with a name, any as likely in both: the second word tells them apart.
    fn named(&self) -> f64 {
        self.recall + self.story
    }

    fn begin_story(&self, page: &mut Page<'_>) {
        page.owe(-self.named().ln(), -(self.story / self.named()).ln());
    }
}

/// `n` held-out stories of the last stage, for the similarity of a probe set.
#[must_use]
pub fn probe_texts(n: usize, seed: u64) -> Vec<String> {
    let corpus = Corpus { seed };
    (0..n as u64).map(|index| corpus.text(Stage::Three, Split::Test, index).words()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::page::Dice;
    use super::super::reader::read;
    use super::super::{holdout, vocabulary};
    use super::*;
    use std::collections::{HashMap, HashSet};

    const N: u64 = 3000;

    #[test]
    fn the_reader_agrees_with_every_text() {
        for stage in Stage::ALL {
            for split in [Split::Train, Split::Validation, Split::Test] {
                let (mut drills, mut held_out) = (0, 0);
                for index in 0..N {
                    let text = Corpus { seed: 5 }.text(stage, split, index);
                    assert!(!text.ids.contains(&vocabulary::UNKNOWN));
                    assert!(text.ids.len() <= 256, "{} tokens", text.ids.len());
                    let seen = read(&text.words());
                    assert!(seen.largest <= stage.rules().cap.max(stage.rules().drill_to));
                    drills += usize::from(seen.names.is_empty());
                    let others = |s: Split| usize::from(s != Split::Train && s != split);
                    let mut own = 0;
                    for (i, &a) in seen.names.iter().enumerate() {
                        for &b in &seen.names[i + 1..] {
                            let pair = holdout::split_of_names(a, b);
                            assert_eq!(others(pair), 0, "{}", text.words());
                            own += usize::from(pair != Split::Train);
                        }
                    }
                    assert_eq!(own, usize::from(split != Split::Train));
                    for &(verb, ending) in &seen.verbs {
                        assert_eq!(holdout::split_of_verb(verb, ending), split, "{}", text.words());
                        held_out += 1;
                    }
                }
                assert!(stage == Stage::One || held_out > 1000, "events are rare: {held_out}");
                if split == Split::Train {
                    // A tenth of what is no recall text; the standard deviation is at most 16
                    let [recalls, others] = stage.rules().recalls;
                    let expected = N as usize * others / (recalls + others) / 10;
                    assert!(drills.abs_diff(expected) < 65, "{drills}");
                } else {
                    assert_eq!(drills, 0);
                }
            }
        }
    }

    #[test]
    fn a_text_is_a_function_of_seed_stage_split_and_index() {
        let text = |seed, stage, split, index| Corpus { seed }.text(stage, split, index);
        let one = text(1, Stage::Three, Split::Train, 12);
        assert_eq!(one, text(1, Stage::Three, Split::Train, 12));
        let others = [
            text(2, Stage::Three, Split::Train, 12),
            text(1, Stage::Two, Split::Train, 12),
            text(1, Stage::Three, Split::Test, 12),
            text(1, Stage::Three, Split::Train, 13),
        ];
        assert!(others.iter().all(|other| other.ids != one.ids));
        assert_eq!(probe_texts(3, 1), probe_texts(5, 1)[..3]);
        assert_eq!(others[2].nats, None);
    }

    /// Replays a history of choices and remembers how many outcomes each choice had.
    struct Tape {
        history: Vec<usize>,
        widths: Vec<usize>,
        at: usize,
    }

    impl Dice for Tape {
        fn roll(&mut self, weights: &[usize]) -> usize {
            if self.at == self.history.len() {
                self.history.push(0);
                self.widths.push(0);
            }
            let possible: Vec<usize> = (0..weights.len()).filter(|&outcome| weights[outcome] > 0).collect();
            self.widths[self.at] = possible.len();
            self.at += 1;
            possible[self.history[self.at - 1]]
        }
    }

    /// Every text that a generator can write.
    fn enumerate(rules: &Rules) -> Vec<Text> {
        let mut tape = Tape { history: vec![], widths: vec![], at: 0 };
        let mut texts = Vec::new();
        loop {
            tape.at = 0;
            let mut page = Page::new(&mut tape);
            write(&mut page, rules);
            texts.push(page.finish());
            assert_eq!(tape.at, tape.history.len());
            while tape.history.last().is_some_and(|&last| last + 1 == tape.widths[tape.history.len() - 1]) {
                tape.history.pop();
                tape.widths.pop();
            }
            match tape.history.last_mut() {
                Some(last) => *last += 1,
                None => return texts,
            }
        }
    }

    /// The whole of a small generator: its probabilities sum to 1, no text has two histories, and the
    /// price and the mask of every token are those of the distribution of texts that comes out.
    #[test]
    fn prices_and_mask_are_exact_where_all_texts_can_be_enumerated() {
        let tiny = Rules {
            recalls: [1, 4],
            pairs: &[1, 2],
            drills: [1, 9],
            recaps: [2, 1],
            kinds: [3, 3, 2, 1],
            names: 3,
            objects: 2,
            verbs: &[0, 4, 8, 12],
            endings: 2,
            holders: &[1, 2],
            largest_start: 2,
            largest_amount: 2,
            cap: 3,
            events: &[0],
            opening_recaps: 1,
            questions: &[1, 2],
            drill_lines: &[1, 2],
            drill_to: 2,
        };
        check_exactly(&tiny);
        let eventful = Rules {
            names: 2,
            objects: 1,
            verbs: &[1, 5, 10, 13],
            events: &[0, 1],
            questions: &[1],
            drill_lines: &[1],
            ..tiny
        };
        check_exactly(&eventful);
    }

    fn check_exactly(rules: &Rules) {
        let texts = enumerate(rules);
        let distinct: HashSet<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        assert_eq!(distinct.len(), texts.len(), "a text has two histories");
        // A trie over prefixes: (node, token) → node, and the probability of all texts through a node.
        let (mut next, mut mass, mut children) = (HashMap::new(), vec![0.0f64], vec![0]);
        let p = |text: &Text| (-text.entropy().unwrap()).exp();
        for text in &texts {
            let mut node = 0;
            mass[0] += p(text);
            for &id in &text.ids {
                let fresh = mass.len();
                let child = *next.entry((node, id)).or_insert(fresh);
                if child == fresh {
                    mass.push(0.0);
                    children.push(0);
                    children[node] += 1;
                }
                node = child;
                mass[node] += p(text);
            }
        }
        assert!((mass[0] - 1.0).abs() < 1e-9, "{} texts of mass {}", texts.len(), mass[0]);
        for text in &texts {
            let mut node = 0;
            for (i, &id) in text.ids.iter().enumerate() {
                let child = next[&(node, id)];
                let nats = -(mass[child] / mass[node]).ln();
                assert!((nats - text.nats.as_ref().unwrap()[i]).abs() < 1e-6, "word {i} of {}", text.words());
                if i > 0 {
                    assert_eq!(text.determined[i], children[node] == 1, "word {i} of {}", text.words());
                }
                node = child;
            }
        }
        println!("{} texts enumerated", texts.len());
        assert!(texts.len() > 10_000);
    }

    #[test]
    fn a_first_word_costs_what_the_grammar_says() {
        for index in 0..50 {
            let text = Corpus { seed: 3 }.text(Stage::Three, Split::Train, index);
            let drill = text.words().starts_with(char::is_numeric);
            // 12 of 13 texts are no recall texts, a tenth of them drills
            let drills = 12.0 / 130.0;
            let expected: f64 = if drill { 41.0 / drills } else { 24.0 / (1.0 - drills) };
            assert!((text.nats.unwrap()[1] - expected.ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn every_text_is_in_the_tokenizers_words() {
        let tokenizer = tokenizers::Tokenizer::from_bytes(vocabulary::tokenizer_json()).unwrap();
        for stage in Stage::ALL {
            for index in 0..200 {
                let text = Corpus { seed: 8 }.text(stage, Split::Train, index);
                let encoding = tokenizer.encode(text.words(), true).unwrap();
                assert_eq!(encoding.get_ids(), &text.ids[..text.ids.len() - 1]);
                assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text.words());
            }
        }
    }

    #[test]
    fn what_a_held_out_story_was_made_for_is_not_called_determined() {
        let corpus = Corpus { seed: 4 };
        let share = |split| {
            let texts = (0..1000).map(|index| corpus.text(Stage::Three, split, index));
            let texts: Vec<Text> = texts.filter(|text| text.words().contains(" has ")).collect();
            let flags = || texts.iter().flat_map(|text| &text.determined);
            flags().filter(|&&d| d).count() as f64 / flags().count() as f64
        };
        let (trained, held_out) = (share(Split::Train), share(Split::Validation));
        assert!((trained - held_out).abs() < 0.01, "{trained} and {held_out}");
        let is = |list: &[&str], id| list.contains(&vocabulary::word(id));
        for index in 0..300 {
            let text = corpus.text(Stage::Three, Split::Validation, index);
            for (at, &id) in text.ids.iter().enumerate() {
                let opening = at > 0 && at % 5 == 1 && text.ids[..at].iter().all(|&id| vocabulary::word(id) != ":");
                let noise = is(&vocabulary::VERBS, id) || is(&vocabulary::ENDINGS, id);
                assert!(!(text.determined[at] && (opening && is(&vocabulary::NAMES, id) || noise)));
                assert!(text.determined[at] || !is(&["plus", "minus", "is", "?", "yes", "no"], id));
            }
        }
    }

    /// The share of determined tokens is what makes the floor low; recall texts have fewer than stories.
    #[test]
    fn most_tokens_are_determined() {
        for stage in Stage::ALL {
            let (mut tokens, mut nats, mut determined) = (0usize, 0.0, 0usize);
            for index in 0..N {
                let text = Corpus { seed: 11 }.text(stage, Split::Train, index);
                tokens += text.ids.len() - 1;
                nats += text.entropy().unwrap();
                determined += text.determined.iter().filter(|&&d| d).count();
            }
            let per_text = tokens as f64 / N as f64;
            let share = determined as f64 / tokens as f64;
            println!(
                "stage {}: {per_text:.1} tokens a text, {:.3} nats a text, {:.4} a token, {:.1} % determined",
                stage.name(),
                nats / N as f64,
                nats / tokens as f64,
                100.0 * share
            );
            let least = if stage == Stage::One { 0.4 } else { 0.6 };
            assert!((least..0.85).contains(&share));
            for index in 0..5 {
                println!("  {}", Corpus { seed: 11 }.text(stage, Split::Train, index).words());
            }
        }
        println!("held out:\n  {}", probe_texts(5, 1).join("\n  "));
    }
}
