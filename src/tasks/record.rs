//! What is kept of an item: a line of a run's file.

use super::{AnswerKind, Extractor, Found, Item, Label, Likelihood, Task, TaskError, same_number, softmax};
use crate::hash;
use serde::{Deserialize, Serialize};

/// An item with its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The item.
    pub item: Item,
    /// What the model reads; of a pair of texts both, a line each.
    pub prompt: String,
}

impl Asked {
    /// SHA-256 of the prompt.
    #[must_use]
    pub fn hash(&self) -> String {
        hash::sha256_bytes(self.prompt.as_bytes())
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// A generated text.
    Text {
        /// The text behind the prompt.
        output: String,
        /// Whether the model ended it.
        ended: bool,
        /// `Σ ln p` of its tokens, in nats.
        log_probability: f64,
    },
    /// The likelihood of each of the item's choices.
    Choices(Vec<Likelihood>),
    /// The logits of a head for classes, in the order of the item's choices.
    Classes(Vec<f64>),
    /// A score.
    Score(f64),
}

/// An item's line: what was asked, answered and made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemRecord {
    /// Task and number of the item.
    pub id: String,
    /// The item's number in its file, from 0.
    pub index: usize,
    /// SHA-256 of the prompt.
    pub prompt_sha256: String,
    /// The prompt.
    pub prompt: String,
    /// The right answer.
    pub label: String,
    /// The generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Whether the model ended it, and not the limit of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<bool>,
    /// What counts of it: by our rules, the likeliest choice, or the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extracted: Option<String>,
    /// Whether that is the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<bool>,
    /// What counts of a generated text by the released rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extracted_released: Option<String>,
    /// Whether that is the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_released: Option<bool>,
    /// Whether the choice of the largest likelihood a character is right (lm-evaluation-harness's `acc_norm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_normalised: Option<bool>,
    /// The same a byte (`acc_bytes`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right_bytes: Option<bool>,
    /// What a head for scores says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Of a generated text `Σ ln p` of its tokens, else that of the right choice or class, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_probability: Option<f64>,
    /// Every choice or class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoiceRecord>,
    /// Time that it took, its share of what ran with it.
    pub seconds: f64,
}

/// A choice or class of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceRecord {
    /// The word or class.
    pub name: String,
    /// The text whose likelihood was taken; of a class none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// `ln p` in nats: of the text behind the prompt, or of the class among all.
    pub log_probability: f64,
    /// The share among the item's choices.
    pub probability: f64,
    /// Tokens of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Whether each of them was the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub greedy: Option<bool>,
}

impl ItemRecord {
    /// The record of an answered item.
    ///
    /// # Errors
    /// An answer is not finite, or the words cannot be looked for.
    pub fn new(task: &Task, asked: &Asked, answered: Answered, seconds: f64) -> Result<Self, TaskError> {
        let Asked { item, prompt } = asked;
        let mut record = Self {
            id: item.id.clone(),
            index: item.index,
            prompt_sha256: asked.hash(),
            prompt: prompt.clone(),
            label: item.label_text(),
            output: None,
            ended: None,
            extracted: None,
            right: None,
            extracted_released: None,
            right_released: None,
            right_normalised: None,
            right_bytes: None,
            score: None,
            log_probability: None,
            choices: Vec::new(),
            seconds,
        };
        let not_finite = || TaskError::NotFinite { place: item.place.clone() };
        match answered {
            Answered::Text { output, ended, log_probability } => {
                let extractor = Extractor::new(&task.answer, &item.choices)?;
                let right = |found: &Option<Found>| found.as_ref().is_some_and(|found| is_label(found, item.label));
                let ours = extractor.ours(&output);
                (record.right, record.extracted) = (Some(right(&ours)), ours.map(|found| extractor.text(&found)));
                if task.answer.kind != AnswerKind::Choice {
                    let released = Extractor::new(&task.answer, task.names())?;
                    let found = released.released(&output);
                    let same = found.as_ref().is_some_and(|found| match found {
                        Found::Number(..) => is_label(found, item.label),
                        Found::Word(_) => released.text(found) == record.label,
                    });
                    record.right_released = Some(same);
                    record.extracted_released = found.map(|found| released.text(&found));
                }
                (record.output, record.ended) = (Some(output), Some(ended));
                record.log_probability = Some(log_probability).filter(|value| value.is_finite());
            }
            Answered::Choices(likelihoods) => {
                let raw: Vec<f64> = likelihoods.iter().map(|one| one.log_probability).collect();
                let probabilities = softmax(&raw).ok_or_else(not_finite)?;
                let texts: Vec<String> = item.choices.iter().map(|word| task.choice_text(word)).collect();
                let each = item.choices.iter().zip(&texts).zip(likelihoods.iter().zip(&probabilities));
                let choice =
                    |((name, text), (one, &probability)): ((&String, &String), (&Likelihood, &f64))| ChoiceRecord {
                        name: name.clone(),
                        text: text.clone(),
                        log_probability: one.log_probability,
                        probability,
                        tokens: Some(one.tokens),
                        greedy: Some(one.greedy),
                    };
                record.choices = each.map(choice).collect();
                let a = |length: &dyn Fn(&str) -> usize| -> Vec<f64> {
                    raw.iter().zip(&texts).map(|(value, text)| value / length(text).max(1) as f64).collect()
                };
                let is_right = |values: &[f64]| Some(largest(values) == place(item.label));
                record.right_normalised = is_right(&a(&|text| text.chars().count()));
                record.right_bytes = is_right(&a(&str::len));
                record.choose(item, &raw);
            }
            Answered::Classes(logits) => {
                let probabilities = softmax(&logits).ok_or_else(not_finite)?;
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total = largest + logits.iter().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
                let logs: Vec<f64> = logits.iter().map(|logit| logit - total).collect();
                let each = item.choices.iter().zip(logs.iter().zip(&probabilities));
                let class = |(name, (&log_probability, &probability)): (&String, (&f64, &f64))| ChoiceRecord {
                    name: name.clone(),
                    text: String::new(),
                    log_probability,
                    probability,
                    tokens: None,
                    greedy: None,
                };
                record.choices = each.map(class).collect();
                record.choose(item, &logs);
            }
            Answered::Score(score) => {
                record.score = Some(score).filter(|score| score.is_finite());
                record.score.ok_or_else(not_finite)?;
            }
        }
        Ok(record)
    }

    fn choose(&mut self, item: &Item, values: &[f64]) {
        let best = largest(values);
        self.extracted = best.and_then(|best| item.choices.get(best).cloned());
        self.right = Some(best == place(item.label));
        self.log_probability = place(item.label).and_then(|label| values.get(label).copied());
    }
}

fn is_label(found: &Found, label: Label) -> bool {
    match (found, label) {
        (Found::Number(_, value), Label::Number(label)) => same_number(*value, label),
        (Found::Word(index), Label::Choice(label)) => *index == label,
        _ => false,
    }
}

fn place(label: Label) -> Option<usize> {
    match label {
        Label::Choice(index) => Some(index),
        Label::Number(_) => None,
    }
}

/// The place of the largest value, the first of equal ones; `None` of no value, or of NaN.
fn largest(values: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, known)| value > known) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;

    fn asked(choices: &[&str], label: Label) -> Asked {
        let item = Item {
            id: "t/3".to_owned(),
            index: 3,
            place: "a.json: record 4".to_owned(),
            fields: [].into(),
            choices: choices.iter().map(|choice| (*choice).to_owned()).collect(),
            label,
        };
        Asked { item, prompt: "p".to_owned() }
    }

    #[test]
    fn likelihoods_are_normalised_by_the_choice_alone() {
        let task = Task::parse(
            "t.toml",
            "name = \"t\"\nversion = 1\ntitle = \"T\"\nsource = \"us\"\n\
            modes = [\"loglikelihood\"]\nmetrics = [\"accuracy\"]\ntemplate = \"{q}\"\n[fields]\nq = [\"q\"]\n\
            c = [\"c\"]\nlabel = [\"a\"]\n[answer]\nkind = \"choice\"\nchoices = \"c\"\ndelimiter = \" \"\n",
        )
        .unwrap();
        let one = |log_probability: f64| Likelihood { log_probability, tokens: 2, greedy: false };
        let asked = asked(&["a", "éé", "cccc"], Label::Choice(1));
        // Raw the first, a character the second (−1.5 against −2 and −1.75), a byte the second no more.
        let record =
            ItemRecord::new(&task, &asked, Answered::Choices(vec![one(-2.0), one(-3.0), one(-7.0)]), 0.5).unwrap();
        assert_eq!((record.right, record.right_normalised, record.right_bytes), (Some(false), Some(true), Some(true)));
        let record =
            ItemRecord::new(&task, &asked, Answered::Choices(vec![one(-2.0), one(-3.0), one(-2.5)]), 0.5).unwrap();
        assert_eq!((record.right_normalised, record.right_bytes), (Some(false), Some(false)));
        assert_eq!((record.extracted.as_deref(), record.log_probability), (Some("a"), Some(-3.0)));
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<ItemRecord>(&line).unwrap(), record);
        let error = ItemRecord::new(&task, &asked, Answered::Choices(vec![one(f64::NAN); 3]), 0.0).unwrap_err();
        assert!(error.to_string().starts_with("a.json: record 4: the answer is not finite"));
    }

    #[test]
    fn a_text_is_read_by_both_rules() {
        let task = &find_tasks("arc-easy").unwrap()[0];
        let text = |output: &str| Answered::Text { output: output.to_owned(), ended: true, log_probability: -1.0 };
        // An item of three choices: the released rule looks for all five words.
        let item = asked(&["answer1", "answer2", "answer3"], Label::Choice(2));
        let record = ItemRecord::new(task, &item, text("not answer1: the correct answer is Answer3"), 0.0).unwrap();
        assert_eq!((record.extracted.as_deref(), record.right), (Some("answer3"), Some(true)));
        assert_eq!((record.extracted_released.as_deref(), record.right_released), (Some("answer1"), Some(false)));
        let record = ItemRecord::new(task, &item, text("answer5"), 0.0).unwrap();
        assert_eq!((record.extracted, record.extracted_released.as_deref()), (None, Some("answer5")));
    }

    #[test]
    fn classes_have_probabilities() {
        let task = &find_tasks("glue/cola").unwrap()[0];
        let item = asked(&["unacceptable", "acceptable"], Label::Choice(1));
        let record = ItemRecord::new(task, &item, Answered::Classes(vec![1.0, 1.0 + 3.0_f64.ln()]), 0.0).unwrap();
        assert_eq!((record.right, record.extracted.as_deref()), (Some(true), Some("acceptable")));
        assert!((record.choices[1].probability - 0.75).abs() < 1e-12);
        assert!((record.log_probability.unwrap() - 0.75_f64.ln()).abs() < 1e-12);
    }
}
