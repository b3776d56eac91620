//! The fine-tuning tasks, none of them asked in pre-training.
//!
//! *Identity* tasks need to keep apart what each token was (an initial residual should help), *pooling*
//! tasks need something of all tokens at once (neutral or hurt), the *capacity* task needs memory alone.
//! Every story names a pair that its split alone names, so no prompt is in two splits; answers are words
//! that pre-training has said.

use super::cast::Cast;
use super::corpus::Stage;
use super::drill::parity;
use super::holdout::Split;
use super::page::Page;
use super::story::{Rules, Story};
use super::vocabulary::{self, ENDINGS, OBJECTS};
use crate::data::{DataError, EncodingOptions, Example, LossOn, Record, Template, Tokenize, encode_records};
use crate::random::stream;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// A fine-tuning task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// "how many more apples has A than B ?" over two or three holders: the headline.
    Difference,
    /// "who has most ?" over four or five holders, one of whom alone has the most.
    Most,
    /// "who is named 3 ?" in the order of the opening; the recap has another.
    Kth,
    /// "how many apples have all ?" over three or four holders with few each.
    Total,
    /// "what have most ?" over five or seven holders of one of two objects.
    Majority,
    /// "events even or odd ?" after one to six events.
    Parity,
    /// "label ?": a random word for each story, so that only training items can be known.
    RandomLabels,
}

/// What a model is tuned on, for the template `{instruction} {output}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskItem {
    /// The story and the question.
    pub instruction: String,
    /// The answer, a single token.
    pub output: String,
}

impl Task {
    /// All tasks, the headline first.
    pub const ALL: [Self; 7] =
        [Self::Difference, Self::Most, Self::Kth, Self::Total, Self::Majority, Self::Parity, Self::RandomLabels];

    /// The group and the name of the task.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Difference => "identity/difference",
            Self::Most => "identity/most",
            Self::Kth => "identity/kth",
            Self::Total => "pooling/total",
            Self::Majority => "pooling/majority",
            Self::Parity => "pooling/parity",
            Self::RandomLabels => "capacity/random_labels",
        }
    }

    /// The items of a split, no prompt twice: 3,000 to train on, 500 to choose by, 2,000 to report.
    #[must_use]
    pub fn items(self, split: Split, seed: u64) -> Vec<TaskItem> {
        let n = match split {
            Split::Train => 3000,
            Split::Validation => 500,
            Split::Test => 2000,
        };
        let mut seen = HashSet::new();
        (0u64..)
            .filter_map(|attempt| self.draw(split, seed, attempt))
            .filter(|item| seen.insert(item.instruction.clone()))
            .take(n)
            .collect()
    }

    /// `None` if the drawn story has no answer.
    fn draw(self, split: Split, seed: u64, attempt: u64) -> Option<TaskItem> {
        let mut dice = stream(seed, &["task", self.name(), split.name(), &attempt.to_string()]);
        let mut page = Page::new(&mut dice);
        let rules = self.rules();
        let size = page.one_of(rules.holders)?;
        let cast = Cast::draw(&mut page, split, size);
        let answer = match self {
            Self::Majority => majority(&mut page, &cast, &rules),
            Self::Parity => {
                let mut story = Story::open(&mut page, &rules, split, Some(&cast));
                for _ in 0..page.one_of(rules.events)? {
                    story.bare_event(&mut page)?;
                }
                page.say("events even or odd ?");
                parity(story.events.len() as u32)
            }
            _ => {
                let story = Story::tell(&mut page, &rules, split, Some(&cast));
                self.ask(&mut page, &story, &cast)?
            }
        };
        Some(TaskItem { instruction: page.words(), output: vocabulary::word(answer).to_owned() })
    }

    fn rules(self) -> Rules {
        let still = Rules { events: &[0], ..Stage::Three.rules() };
        match self {
            Self::Difference => Rules { holders: &[2, 3], ..still },
            Self::Most | Self::Kth => Rules { holders: &[4, 5], ..still },
            Self::Total => Rules { holders: &[3, 4], largest_start: 6, ..still },
            Self::Majority => Rules { holders: &[5, 7], ..still },
            Self::Parity => Rules { holders: &[2, 3], events: &[1, 2, 3, 4, 5, 6], ..still },
            Self::RandomLabels => Rules { holders: &[2], ..still },
        }
    }

    /// Writes the question and gives the answer's id.
    fn ask(self, page: &mut Page<'_>, story: &Story, cast: &Cast) -> Option<u32> {
        let holders = &story.holders;
        match self {
            Self::Difference => {
                let (a, b) = (holders.get(cast.pair.0)?, holders.get(cast.pair.1)?);
                let (more, less) = if a.count > b.count { (a, b) } else { (b, a) };
                page.say("how many more");
                page.word(vocabulary::object(story.object));
                page.say("has");
                page.word(vocabulary::name(more.name));
                page.say("than");
                page.word(vocabulary::name(less.name));
                page.say("?");
                (more.count > less.count).then_some(vocabulary::number(more.count.abs_diff(less.count)))
            }
            Self::Most => {
                page.say("who has most ?");
                let most = holders.iter().map(|holder| holder.count).max()?;
                let mut who = holders.iter().filter(|holder| holder.count == most);
                let first = who.next()?;
                who.next().is_none().then_some(vocabulary::name(first.name))
            }
            Self::Kth => {
                let k = page.pick(holders.len());
                page.say("who is named");
                page.number(k as u32 + 1);
                page.say("?");
                Some(vocabulary::name(holders.get(k)?.name))
            }
            Self::Total => {
                page.say("how many");
                page.word(vocabulary::object(story.object));
                page.say("have all ?");
                Some(vocabulary::number(holders.iter().map(|holder| holder.count).sum()))
            }
            Self::Majority | Self::Parity | Self::RandomLabels => {
                page.say("label ?");
                Some(vocabulary::ending(page.pick(ENDINGS.len())))
            }
        }
    }
}

/// Writes an opening in which each holder has one of two objects; the id of the commoner one.
fn majority(page: &mut Page<'_>, cast: &Cast, rules: &Rules) -> u32 {
    let first = page.pick(OBJECTS.len());
    let second = (first + 1 + page.pick(OBJECTS.len() - 1)) % OBJECTS.len();
    let mut votes = [0usize; 2];
    for &name in &cast.names {
        page.word(vocabulary::name(name));
        page.say("has");
        let count = 1 + page.pick(rules.largest_start as usize) as u32;
        page.number(count);
        let which = page.pick(2);
        votes[which] += 1;
        page.word(vocabulary::object([first, second][which]));
        page.say(".");
    }
    page.say("what have most ?");
    vocabulary::object(if votes[0] > votes[1] { first } else { second })
}

/// The share of the commonest answer: what always saying it would score; 0 for no items.
#[must_use]
pub fn majority_share(items: &[TaskItem]) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for item in items {
        *counts.entry(&item.output).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or_default();
    most as f64 / items.len().max(1) as f64
}

/// The items as examples of the template `{instruction} {output}`.
///
/// With [`LossOn::Answer`] the answer's one token is the only target: the end of the sequence behind it is no
/// part of the question.
///
/// # Errors
/// The tokenizer cannot encode them.
pub fn encode_items(items: &[TaskItem], tokenizer: &dyn Tokenize, loss_on: LossOn) -> Result<Vec<Example>, DataError> {
    let records: Vec<Record> = items
        .iter()
        .map(|item| Record::Instruction {
            instruction: item.instruction.clone(),
            input: String::new(),
            output: item.output.clone(),
        })
        .collect();
    let options = EncodingOptions { cutoff: 256, loss_on };
    let (mut examples, _) = encode_records(&records, &Template::Short, tokenizer, options, Path::new("task"))?;
    if loss_on == LossOn::Answer {
        for example in &mut examples {
            let answer = example.response;
            example.loss.iter_mut().enumerate().for_each(|(i, target)| *target = i == answer);
        }
    }
    Ok(examples)
}

/// The items as JSON, one object a line.
#[must_use]
pub fn to_jsonl(items: &[TaskItem]) -> String {
    items.iter().map(|item| serde_json::json!(item).to_string() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::super::reader::{read, story_of};
    use super::*;

    /// The answer, from the words alone.
    fn solve(task: Task, instruction: &str) -> Option<String> {
        let told = story_of(instruction);
        let question: Vec<&str> = instruction.rsplit(" . ").next().unwrap().split(' ').collect();
        Some(match (task, question.as_slice()) {
            (Task::Difference, ["how", "many", "more", _, "has", a, "than", b, "?"]) => {
                (told.count(a) - told.count(b)).to_string()
            }
            (Task::Most, ["who", "has", "most", "?"]) => {
                told.holders.iter().max_by_key(|(_, count)| *count).unwrap().0.clone()
            }
            (Task::Kth, ["who", "is", "named", k, "?"]) => told.holders[k.parse::<usize>().unwrap() - 1].0.clone(),
            (Task::Total, ["how", "many", _, "have", "all", "?"]) => {
                told.holders.iter().map(|(_, count)| count).sum::<i64>().to_string()
            }
            (Task::Majority, ["what", "have", "most", "?"]) => {
                let times = |object: &&String| told.objects.iter().filter(|other| other == object).count();
                told.objects.iter().max_by_key(times).unwrap().clone()
            }
            (Task::Parity, ["events", "even", "or", "odd", "?"]) => ["even", "odd"][told.events % 2].to_owned(),
            (Task::RandomLabels, ["label", "?"]) => return None,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_answers_are_those_of_the_words() {
        for task in Task::ALL {
            let mut prompts = HashSet::new();
            for (split, n) in [(Split::Train, 3000), (Split::Validation, 500), (Split::Test, 2000)] {
                let items = task.items(split, 7);
                assert_eq!(items.len(), n);
                for item in &items {
                    assert!(prompts.insert(item.instruction.clone()), "twice: {}", item.instruction);
                    if let Some(answer) = solve(task, &item.instruction) {
                        assert_eq!(item.output, answer, "{}", item.instruction);
                    }
                    let all = format!("{} {}", item.instruction, item.output);
                    assert!(all.split(' ').all(|word| vocabulary::id(word) != vocabulary::UNKNOWN), "{all}");
                    assert!(!item.output.contains(' '));
                }
                let tokens: usize = items.iter().map(|item| item.instruction.split(' ').count() + 2).sum();
                let mean = tokens as f64 / n as f64;
                let longest = items.iter().map(|item| item.instruction.split(' ').count() + 2).max().unwrap();
                let share = majority_share(&items);
                println!("{} {}: {mean:.1} tokens (longest {longest}), majority {share:.3}", task.name(), split.name());
                assert!(mean <= 60.0);
                let limit = match task {
                    Task::Parity => 0.56,
                    Task::RandomLabels => 0.18,
                    _ => 0.15,
                };
                assert!(share < limit, "{share}");
            }
            for item in task.items(Split::Train, 7).iter().take(5) {
                println!("  {} -> {}", item.instruction, item.output);
            }
        }
    }

    #[test]
    fn items_name_a_pair_of_their_split_and_of_no_other() {
        for task in Task::ALL {
            for split in [Split::Train, Split::Validation, Split::Test] {
                for item in task.items(split, 1).iter().take(300) {
                    let names = story_of(&item.instruction).indices();
                    let mut own = 0;
                    for (i, &a) in names.iter().enumerate() {
                        for &b in &names[i + 1..] {
                            let pair = super::super::holdout::split_of_names(a, b);
                            assert!(pair == Split::Train || pair == split);
                            own += usize::from(pair == split && split != Split::Train);
                        }
                    }
                    assert_eq!(own, usize::from(split != Split::Train), "{}", item.instruction);
                }
            }
        }
    }

    #[test]
    fn items_are_seeded_and_written_a_line_each() {
        let items = Task::Difference.items(Split::Validation, 1);
        assert_eq!(items, Task::Difference.items(Split::Validation, 1));
        assert_ne!(items, Task::Difference.items(Split::Validation, 2));
        let lines = to_jsonl(&items[..2]);
        let read: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1]["instruction"], items[1].instruction.as_str());
        assert_eq!(read[1]["output"], items[1].output.as_str());
    }

    #[test]
    fn the_majority_share_is_that_of_the_commonest_answer() {
        let item = |output: &str| TaskItem { instruction: String::new(), output: output.to_owned() };
        assert_eq!(majority_share(&[item("a"), item("b"), item("a"), item("c")]), 0.5);
        assert_eq!(majority_share(&[]), 0.0);
    }

    #[test]
    fn a_task_is_never_asked_in_pre_training() {
        let corpus = super::super::corpus::Corpus { seed: 1 };
        for stage in Stage::ALL {
            for index in 0..500 {
                let words = corpus.text(stage, Split::Train, index).words();
                read(&words);
                for phrase in ["how many more", "most", "named", "have all", "events", "label"] {
                    assert!(!words.contains(phrase), "{words}");
                }
            }
        }
    }
}
