//! An item as the text that a model reads.

use super::{Item, Mode, Task, TaskError};
use crate::data::{Encoded, Phase, Record, Template, Tokenize, encode_text};
use std::collections::BTreeSet;

/// What makes prompts of a task's items in a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptTemplate {
    /// A template of instructions.
    Instruction(Template),
    /// A text with fields in braces.
    Fields(Vec<Part>),
}

/// A piece of a text with fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Literal(String),
    /// A field's text.
    Field(String),
    /// A field's text, trimmed and with a full stop if it has none.
    Sentence(String),
}

impl PromptTemplate {
    /// The template of `task` in `mode`.
    ///
    /// # Errors
    /// A text names a field that the task does not have.
    pub fn new(task: &Task, mode: Mode) -> Result<Self, TaskError> {
        match (mode, task.template.as_str()) {
            (Mode::Alpaca, _) | (_, "alpaca") if mode != Mode::Released => Ok(Self::Instruction(Template::Alpaca)),
            (Mode::Released, _) | (_, "released") => Ok(Self::Instruction(Template::Released)),
            (_, "short") => Ok(Self::Instruction(Template::Short)),
            (_, text) => {
                let known: BTreeSet<&str> = task.fields.keys().map(String::as_str).collect();
                parts(text, &known).map(Self::Fields).map_err(|field| TaskError::Definition {
                    place: task.name.clone(),
                    reason: format!("template: {{{field}}} is no field of fields"),
                })
            }
        }
    }

    /// The prompt of an item.
    ///
    /// # Errors
    /// The template has no place for the item's input.
    pub fn prompt(&self, item: &Item) -> Result<String, TaskError> {
        match self {
            Self::Instruction(template) => {
                let record = Record::Instruction {
                    instruction: item.field("instruction").to_owned(),
                    input: item.field("input").to_owned(),
                    output: String::new(),
                };
                let rendered = template.render(&record, Phase::Test, None);
                Ok(rendered.map_err(|e| e.at(item.place.clone()))?.text)
            }
            Self::Fields(parts) => Ok(parts.iter().map(|part| part.text(item)).collect()),
        }
    }
}

impl Part {
    fn text(&self, item: &Item) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::Field(name) => item.field(name).to_owned(),
            Self::Sentence(name) => {
                let text = item.field(name).trim();
                format!("{text}{}", if text.ends_with('.') { "" } else { "." })
            }
        }
    }
}

/// The pieces of a text with `{field}` and `{field|sentence}`; other words in braces stay, a lower-case one that is no
/// field is an error.
fn parts(text: &str, known: &BTreeSet<&str>) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('{') {
        literal.push_str(before);
        let Some((inside, after)) = behind.split_once('}') else {
            literal.push('{');
            rest = behind;
            continue;
        };
        let (name, filter) = inside.split_once('|').unwrap_or((inside, ""));
        let is_name =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        match (is_name, known.contains(name), filter) {
            (true, true, "") => {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
                parts.push(Part::Field(name.to_owned()));
                rest = after;
            }
            (true, true, "sentence") => {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
                parts.push(Part::Sentence(name.to_owned()));
                rest = after;
            }
            (true, _, _) => return Err(inside.to_owned()),
            (false, _, _) => {
                literal.push('{');
                rest = behind;
            }
        }
    }
    literal.push_str(rest);
    parts.push(Part::Literal(literal));
    Ok(parts)
}

/// A prompt and a choice as tokens: `[prompt, choice]`.
///
/// As lm-evaluation-harness does it: white space at the prompt's end goes over to the choice, both together are encoded,
/// and what is longer than the prompt alone is the choice's.
///
/// # Errors
/// The tokenizer refuses the texts.
pub fn encode_choice(prompt: &str, choice: &str, tokenizer: &dyn Tokenize) -> Result<[Vec<u32>; 2], TaskError> {
    let kept = prompt.trim_end();
    if kept.is_empty() {
        // Nothing to read: the token that begins or ends a text stands for it.
        let start: Vec<u32> = tokenizer.bos().or_else(|| tokenizer.eos()).into_iter().collect();
        let mut ids = encode_text(&format!("{prompt}{choice}"), true, tokenizer)?.ids;
        if start.first() == ids.first() && tokenizer.adds_bos() && !ids.is_empty() {
            ids.remove(0);
        }
        return Ok([start, ids]);
    }
    let whole = encode_text(&format!("{prompt}{choice}"), true, tokenizer)?;
    let alone = encode_text(kept, true, tokenizer)?;
    // What the tokenizer puts at the end of a text is not part of what is continued.
    let end = |encoded: &Encoded| {
        let closing = encoded.special.iter().zip(&encoded.offsets).rev();
        closing.take_while(|&(&special, &offset)| special && offset == (0, 0)).count()
    };
    let mut ids = whole.ids.clone();
    ids.truncate(ids.len().saturating_sub(end(&whole)));
    let length = alone.ids.len().saturating_sub(if alone.ids.len() > end(&alone) { end(&alone) } else { 0 });
    let behind = ids.split_off(length.min(ids.len()));
    Ok([ids, behind])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::Words;
    use crate::tasks::{Label, find_tasks};

    fn item(fields: &[(&str, &str)]) -> Item {
        Item {
            id: "t/0".to_owned(),
            index: 0,
            place: "a.json: record 1".to_owned(),
            fields: fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            choices: Vec::new(),
            label: Label::Choice(0),
        }
    }

    #[test]
    fn prompts_by_mode() {
        let boolq = &find_tasks("boolq").unwrap()[0];
        let asked = item(&[("instruction", "true?"), ("input", "")]);
        let prompt =
            |task: &Task, mode: Mode, item: &Item| PromptTemplate::new(task, mode).unwrap().prompt(item).unwrap();
        let alpaca = prompt(boolq, Mode::Alpaca, &asked);
        assert!(alpaca.ends_with("request.\n\n### Instruction:\ntrue?\n\n### Response:\n"), "{alpaca:?}");
        assert_eq!(prompt(boolq, Mode::LogLikelihood, &asked), alpaca);
        let s = " ".repeat(16);
        let released = prompt(boolq, Mode::Released, &asked);
        let wanted = format!("request. \n\n{s}### Instruction:\n{s}true?\n\n{s}### Response:\n{s}");
        assert!(released.ends_with(&wanted), "{released:?}");
        let mnli = &find_tasks("glue/mnli").unwrap()[0];
        let pair = item(&[("sentence1", "It rains."), ("sentence2", "It is {wet} ")]);
        let wanted = "It rains.\nQuestion: It is {wet}. True, False or Neither?\nAnswer:";
        assert_eq!(prompt(mnli, Mode::LogLikelihood, &pair), wanted);
        let wrong = Task { template: "{premise} {A} {".to_owned(), ..mnli.clone() };
        let error = PromptTemplate::new(&wrong, Mode::LogLikelihood).unwrap_err().to_string();
        assert!(error.starts_with("glue/mnli: template: {premise} is no field of fields"), "{error}");
        let literal = Task { template: "{A} { {sentence1}{".to_owned(), ..mnli.clone() };
        assert_eq!(prompt(&literal, Mode::LogLikelihood, &pair), "{A} { It rains.{");
    }

    #[test]
    fn a_choice_is_what_is_behind_the_prompt() {
        let words = Words::default();
        let encode = |prompt: &str, choice: &str| encode_choice(prompt, choice, &words).unwrap();
        assert_eq!(encode("a b", " c d"), [vec![1, 10, 11], vec![12, 13]]);
        assert_eq!(encode("a b \n", "c"), [vec![1, 10, 11], vec![12]]);
        // A choice that melts into the prompt's last word still has tokens of its own only behind it.
        assert_eq!(encode("a b", " b a"), [vec![1, 10, 11], vec![11, 10]]);
        assert_eq!(encode("", "a"), [vec![1], vec![10]]);
    }
}
