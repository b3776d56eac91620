//! What of a generated text counts as its answer: by our rules, and by those of the released scripts.
//!
//! The released rules are a search for the last number, the first capital letter or the first lower-case word, wherever
//! it stands. Ours keep them and repair what they misread; `docs/tasks.md` shows where the two differ. Both are stored
//! with every item.

use super::{Answer, AnswerKind, TaskError};
use regex::{Regex, RegexBuilder};

/// Where the model begins another record, its answer ends.
const MARKER: &str = "### Response:";
/// How far a number may be off.
const TOLERANCE: f64 = 0.001;

/// Finds answers in generated texts by both rules.
#[derive(Debug, Clone)]
pub struct Extractor {
    kind: AnswerKind,
    words: Vec<String>,
    /// The released rule's matches.
    released: Option<Regex>,
    /// Ours, in the order in which they are tried; the answer is group 1 of the match.
    ours: Vec<(Regex, Which)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Last,
}

/// An answer as it was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A number, as it stands in the text and its value.
    Number(String, f64),
    /// A word by its place in the answer's words.
    Word(usize),
}

impl Extractor {
    /// For a task's answers; `words` are the item's own choices where it lists them.
    ///
    /// # Errors
    /// The words are too many or too long to be looked for.
    pub fn new(answer: &Answer, words: &[String]) -> Result<Self, TaskError> {
        let any = alternatives(words);
        let plain = |text: &str| pattern(text, false);
        let folded = |text: &str| pattern(text, true);
        let (released, ours) = match answer.kind {
            AnswerKind::Number => (Some(plain(r"-?\d+\.?\d*")?), vec![(plain(NUMBER)?, Which::Last)]),
            AnswerKind::Letter => {
                let said = r"(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*[(\[]?";
                let ours = vec![
                    (plain(&format!(r"{said}({any})(?:[)\].,;:!]|\s|$)"))?, Which::Last),
                    (plain(&format!(r"\(({any})\)"))?, Which::First),
                    // Alone, and not the article of a noun.
                    (plain(&format!(r"(?:^|[^\w'’])({any})(?:[)\].,;:!?]|\s*$|\s+is\b)"))?, Which::First),
                ];
                (Some(plain(&any)?), ours)
            }
            AnswerKind::Word | AnswerKind::Choice => {
                let said = r"\banswer(?:\s+is)?\s*:?\s*\W?";
                let ours = vec![
                    (folded(&format!(r"{said}({any})(?:\W|$)"))?, Which::First),
                    (folded(&format!(r"(?:^|\W)({any})(?:\W|$)"))?, Which::First),
                ];
                (if answer.kind == AnswerKind::Word { Some(plain(&any)?) } else { None }, ours)
            }
            AnswerKind::Class | AnswerKind::Score => (None, Vec::new()),
        };
        Ok(Self { kind: answer.kind, words: words.to_vec(), released, ours })
    }

    /// The answer by our rules; `None` where there is none.
    #[must_use]
    pub fn ours(&self, output: &str) -> Option<Found> {
        let output = own_part(output);
        if self.kind == AnswerKind::Number {
            return self.ours.iter().find_map(|(pattern, _)| last_number(pattern, output));
        }
        self.ours.iter().find_map(|(pattern, which)| {
            let mut matches = pattern.captures_iter(output);
            let found = match which {
                Which::First => matches.next(),
                Which::Last => matches.last(),
            };
            self.word(found?.get(1)?.as_str(), true)
        })
    }

    /// The answer by the released rules; `None` where there is none, or where they have no such kind of answer.
    #[must_use]
    pub fn released(&self, output: &str) -> Option<Found> {
        let (output, pattern) = (own_part(output), self.released.as_ref()?);
        if self.kind == AnswerKind::Number {
            let text = output.replace(',', "");
            let last = pattern.find_iter(&text).last()?.as_str();
            return last.parse().ok().map(|value| Found::Number(last.to_owned(), value));
        }
        self.word(pattern.find(output.trim())?.as_str(), false)
    }

    /// The found answer as a text.
    #[must_use]
    pub fn text(&self, found: &Found) -> String {
        match found {
            Found::Number(text, _) => text.clone(),
            Found::Word(index) => self.words.get(*index).cloned().unwrap_or_default(),
        }
    }

    fn word(&self, text: &str, any_case: bool) -> Option<Found> {
        let folded = text.to_lowercase();
        let exact = self.words.iter().position(|word| word == text);
        let index = exact.or_else(|| self.words.iter().position(|word| any_case && word.to_lowercase() == folded));
        index.map(Found::Word)
    }
}

/// Whether a number is the label's.
#[must_use]
pub fn same_number(value: f64, label: f64) -> bool {
    (value - label).abs() <= TOLERANCE
}

/// The value of a number as files and texts write it: with commas between thousands, a sign, an exponent.
#[must_use]
pub fn parse_number(text: &str) -> Option<f64> {
    let plain: String = text.trim().chars().filter(|&c| c != ',').map(|c| if c == '−' { '-' } else { c }).collect();
    plain.parse::<f64>().ok().filter(|value| value.is_finite())
}

/// What stands in front of a second response belongs to the answer.
fn own_part(output: &str) -> &str {
    output.split_once(MARKER).map_or(output, |(own, _)| own)
}

/// What may be a number: digits with commas, decimals, a decimal point without a digit in front, an exponent.
const NUMBER: &str = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?";

/// The last number of a text that is no part of a word, with its sign.
fn last_number(pattern: &Regex, text: &str) -> Option<Found> {
    let numbers = pattern.find_iter(text).filter_map(|found| {
        let mut before = text.get(..found.start())?.chars().rev();
        let previous = before.next();
        let found = found.as_str();
        // A letter in front: part of a word such as x2. A digit in front of a point: part of a date or a version.
        if previous.is_some_and(|c| c.is_alphabetic() || c == '_' || (c.is_ascii_digit() && found.starts_with('.'))) {
            return None;
        }
        let (mut number, whole) = last_of_list(found);
        let stroke = |c: Option<char>| matches!(c, Some('-' | '−'));
        // The sign stands in front of a currency.
        let sign = if matches!(previous, Some('$' | '€' | '£')) { before.next() } else { previous };
        // Behind a number, a bracket or a word the stroke is a minus between two, or a hyphen.
        let between = before.next().is_some_and(|c| c.is_alphanumeric() || c == ')' || c == '%');
        let signed = stroke(sign) && !between;
        if signed && whole {
            number.insert(0, '-');
        }
        let value = parse_number(&number)?;
        Some(Found::Number(number, value))
    });
    numbers.last()
}

/// The number itself if its commas stand between thousands, else what is behind the last of them; and which of the two.
fn last_of_list(found: &str) -> (String, bool) {
    let found = found.trim_end_matches(',');
    let Some((first, rest)) = found.split_once(',') else { return (found.to_owned(), true) };
    let integers = |text: &str| text.split(['.', 'e', 'E']).next().unwrap_or_default().len();
    let in_threes = (1..=3).contains(&first.len()) && rest.split(',').all(|part| integers(part) == 3);
    if in_threes {
        return (found.to_owned(), true);
    }
    (rest.rsplit(',').next().unwrap_or(rest).to_owned(), false)
}

/// One of the words, the longer first, so that none hides behind its beginning.
fn alternatives(words: &[String]) -> String {
    let mut sorted: Vec<&String> = words.iter().filter(|word| !word.is_empty()).collect();
    sorted.sort_by_key(|word| std::cmp::Reverse(word.len()));
    sorted.into_iter().map(|word| regex::escape(word)).collect::<Vec<_>>().join("|")
}

/// Words come escaped, so that only their number can be too much for the engine.
fn pattern(text: &str, any_case: bool) -> Result<Regex, TaskError> {
    RegexBuilder::new(text).case_insensitive(any_case).build().map_err(|error| TaskError::Definition {
        place: "answer.words".to_owned(),
        reason: error.to_string().lines().last().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        task: String,
        output: String,
        ours: Option<String>,
        released: Option<String>,
    }

    /// `tests/golden/extraction.json`: hand-written outputs and our answers; the released rule's by Python's own `re`.
    #[test]
    fn outputs_through_both_rules() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/golden/extraction.json")).unwrap();
        assert!(cases.len() >= 60);
        for Case { task, output, ours, released } in &cases {
            let task = &find_tasks(task).unwrap()[0];
            let extractor = Extractor::new(&task.answer, task.names()).unwrap();
            let number = |text: &Option<String>| text.as_ref().map(|text| text.parse::<f64>().unwrap());
            let found = [extractor.ours(output), extractor.released(output)];
            if task.answer.kind == AnswerKind::Number {
                let value = |found: &Option<Found>| match found {
                    Some(Found::Number(_, value)) => Some(*value),
                    _ => None,
                };
                assert_eq!(found.each_ref().map(value), [number(ours), number(released)], "{output:?}");
            } else {
                let text = |found: &Option<Found>| found.as_ref().map(|found| extractor.text(found));
                assert_eq!(found.each_ref().map(text), [ours.clone(), released.clone()], "{output:?}");
            }
        }
        let differ = cases.iter().filter(|case| case.ours != case.released).count();
        assert!(differ >= 15 && cases.len() - differ >= 25, "{differ} of {}", cases.len());
    }

    #[test]
    fn numbers_are_right_within_a_thousandth() {
        assert!(same_number(0.333, 1.0 / 3.0) && same_number(5.0, 5.0009) && !same_number(5.0, 5.0011));
        assert_eq!(parse_number(" 1,234.50 "), Some(1234.5));
        assert_eq!((parse_number("−3"), parse_number("3 apples"), parse_number("inf")), (Some(-3.0), None, None));
    }
}
