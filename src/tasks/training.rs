//! A task's items as training data.

use super::{AnswerKind, Item, Label, Task, TaskError};
use crate::data::{Encoded, Example, Labelled, ProbeText, Record, Tokenize, clip};

/// The fields that a text, or a pair of texts, to be classified stands in.
pub(super) const TEXTS: [&str; 3] = ["sentence", "sentence1", "sentence2"];

/// The tokens of the text, or the pair of texts, that a head reads; what is longer than `cutoff` tokens loses its end.
///
/// # Errors
/// The tokenizer refuses the text.
pub fn encode_texts(item: &Item, tokenizer: &dyn Tokenize, cutoff: usize) -> Result<Encoded, TaskError> {
    let [text, first, second] = TEXTS.map(|field| item.fields.get(field).cloned());
    let text = ProbeText {
        index: item.index,
        text: text.or(first).unwrap_or_default(),
        pair: second,
        group: None,
        response_start: None,
        add_special: true,
    };
    Ok(clip(text.encode(tokenizer)?, Some(cutoff), None).unwrap_or_default())
}

/// What the one output of a head for scores is called.
const SCORE: &str = "score";

/// Items with their classes, in the order of the task's, or with their scores.
///
/// # Errors
/// The tokenizer refuses a text.
pub fn labelled_items(
    task: &Task,
    items: &[Item],
    tokenizer: &dyn Tokenize,
    cutoff: usize,
) -> Result<Labelled, TaskError> {
    let example = |item: &Item| -> Result<Example, TaskError> {
        let encoded = encode_texts(item, tokenizer, cutoff)?;
        Ok(Example {
            loss: vec![false; encoded.ids.len()],
            response: encoded.ids.len(),
            special: encoded.special,
            types: encoded.types,
            class: match item.label {
                Label::Choice(index) => Some(index as u32),
                Label::Number(_) => None,
            },
            score: match item.label {
                Label::Choice(_) => None,
                Label::Number(score) => Some(score as f32),
            },
            ids: encoded.ids,
            image: None,
        })
    };
    let examples = items.iter().map(example).collect::<Result<_, _>>()?;
    let classes = match task.answer.kind {
        AnswerKind::Score => vec![SCORE.to_owned()],
        _ => task.answer.classes.clone(),
    };
    Ok(Labelled { examples, classes })
}

/// Items as records of a prompt and the right choice behind it, for a task whose template is a text of its own: the
/// record's instruction is the whole prompt.
#[must_use]
pub fn choice_records(task: &Task, asked: &[super::Asked]) -> Vec<Record> {
    let record = |one: &super::Asked| Record::Instruction {
        instruction: one.prompt.clone(),
        input: String::new(),
        output: format!("{}{}", task.answer.delimiter, task.choice_text(&one.item.label_text())),
    };
    asked.iter().map(record).collect()
}
