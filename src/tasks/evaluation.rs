//! A task's items through a model, one batch after another.

use super::training::TEXTS;
use super::{
    Answered, Asked, Continuation, Item, ItemRecord, Journal, Mode, PromptTemplate, Task, TaskError, encode_choice,
    encode_texts, head_outputs, likelihoods,
};
use crate::data::{Encoded, Sequence, Tokenize, encode_text};
use crate::generate::{Decoding, Finish, Generator, Prompt, Silent};
use crate::model::Transformer;
use crate::model::tokenizer::TextTokenizer;
use crate::peft::Peft;
use std::collections::BTreeMap;
use std::time::Instant;

/// Answers items.
pub trait Answerer {
    /// The answers of items that run together, in their order.
    ///
    /// # Errors
    /// The model or the tokenizer fails.
    fn answer(&self, task: &Task, asked: &[&Asked]) -> Result<Vec<Answered>, TaskError>;
}

/// The model that is asked.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// The model, with those of its weights that were trained.
    pub transformer: &'a Transformer,
    /// Its PEFT modules.
    pub peft: Option<&'a Peft>,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
}

/// Answers by the likelihood of each choice.
#[derive(Debug)]
pub struct ByChoices<'a>(pub Model<'a>);

impl Answerer for ByChoices<'_> {
    fn answer(&self, task: &Task, asked: &[&Asked]) -> Result<Vec<Answered>, TaskError> {
        let Model { transformer, peft, tokenizer } = self.0;
        let mut continuations = Vec::new();
        for one in asked {
            for word in &one.item.choices {
                let choice = format!("{}{}", task.answer.delimiter, task.choice_text(word));
                let [prompt, choice] = encode_choice(&one.prompt, &choice, tokenizer)?;
                continuations.push(Continuation { prompt, choice });
            }
        }
        let mut found = likelihoods(transformer, peft, &continuations)?.into_iter();
        Ok(asked.iter().map(|one| Answered::Choices(found.by_ref().take(one.item.choices.len()).collect())).collect())
    }
}

/// Answers by a head for classes, or for a score.
#[derive(Debug)]
pub struct ByHead<'a> {
    /// The model, with the head.
    pub model: Model<'a>,
    /// For each class of the task its place among the head's outputs; of a score nothing.
    pub places: Vec<usize>,
    /// The most tokens of a text; what is longer loses its end.
    pub cutoff: usize,
}

impl Answerer for ByHead<'_> {
    fn answer(&self, _: &Task, asked: &[&Asked]) -> Result<Vec<Answered>, TaskError> {
        let encode = |one: &&Asked| encode_texts(&one.item, self.model.tokenizer, self.cutoff);
        let encoded: Vec<Encoded> = asked.iter().map(encode).collect::<Result<_, _>>()?;
        let texts: Vec<Sequence<'_>> =
            encoded.iter().map(|text| Sequence { ids: &text.ids, types: &text.types, image: None }).collect();
        let outputs = head_outputs(self.model.transformer, self.model.peft, &texts)?;
        let answered = |output: Vec<f64>| match self.places.as_slice() {
            [] => Answered::Score(output.first().copied().unwrap_or(f64::NAN)),
            places => Answered::Classes(places.iter().map(|&i| output.get(i).copied().unwrap_or(f64::NAN)).collect()),
        };
        Ok(outputs.into_iter().map(answered).collect())
    }
}

/// Answers by what the model writes behind the prompt.
#[derive(Debug)]
pub struct ByText<'a> {
    /// The model at work.
    pub generator: Generator<'a>,
    /// How it writes.
    pub decoding: Decoding,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
}

impl Answerer for ByText<'_> {
    fn answer(&self, _: &Task, asked: &[&Asked]) -> Result<Vec<Answered>, TaskError> {
        let prompt = |one: &&Asked| -> Result<Prompt, TaskError> {
            Ok(Prompt { ids: prompt_ids(&one.prompt, self.tokenizer)?, number: one.item.index as u64 })
        };
        let prompts: Vec<Prompt> = asked.iter().map(prompt).collect::<Result<_, _>>()?;
        let generated = self.generator.generate(&prompts, &self.decoding, &mut Silent)?;
        let answered = |one: &crate::generate::Generated| -> Result<Answered, TaskError> {
            Ok(Answered::Text {
                output: one.text(self.tokenizer, &self.decoding)?,
                ended: one.finish != Finish::Length,
                log_probability: one.log_probability,
            })
        };
        generated.iter().map(answered).collect()
    }
}

/// The tokens of a prompt, without what the tokenizer puts at the end of a whole text.
///
/// # Errors
/// The tokenizer refuses the text.
pub fn prompt_ids(prompt: &str, tokenizer: &dyn Tokenize) -> Result<Vec<u32>, TaskError> {
    let mut encoded = encode_text(prompt, true, tokenizer)?;
    let closing = encoded.special.iter().zip(&encoded.offsets).rev();
    let closing = closing.take_while(|&(&special, &offset)| special && offset == (0, 0)).count();
    // A text of nothing but special tokens keeps them: they are all there is to read.
    if closing < encoded.ids.len() {
        encoded.ids.truncate(encoded.ids.len() - closing);
    }
    Ok(encoded.ids)
}

/// The items of a task with what the model reads of each.
///
/// # Errors
/// The template does not fit the task or an item.
pub fn ask(task: &Task, mode: Mode, items: Vec<Item>) -> Result<Vec<Asked>, TaskError> {
    if mode == Mode::Classify {
        let joined = |item: &Item| {
            let texts = TEXTS.iter().filter_map(|field| item.fields.get(*field));
            texts.map(String::as_str).collect::<Vec<_>>().join("\n")
        };
        return Ok(items.into_iter().map(|item| Asked { prompt: joined(&item), item }).collect());
    }
    let template = PromptTemplate::new(task, mode)?;
    items.into_iter().map(|item| Ok(Asked { prompt: template.prompt(&item)?, item })).collect()
}

/// Puts to the model what `known` does not answer, `batch` items together, and writes each to the journal as it comes;
/// `done` hears of items that were known and of each batch. Answers the records of all items, in their order.
///
/// # Errors
/// The model fails, a file cannot be written, or a known item was asked otherwise.
pub fn evaluate(
    task: &Task,
    asked: &[Asked],
    answerer: &dyn Answerer,
    (journal, mut known): (&mut Journal, BTreeMap<String, ItemRecord>),
    batch: usize,
    done: &mut dyn FnMut(Done),
) -> Result<Vec<ItemRecord>, TaskError> {
    let mut open = Vec::new();
    for one in asked {
        match known.get(&one.item.id) {
            Some(record) if record.prompt_sha256 != one.hash() => {
                return Err(TaskError::AskedOtherwise { place: one.item.place.clone() });
            }
            Some(_) => {}
            None => open.push(one),
        }
    }
    done(Done::Known(asked.len() - open.len()));
    for group in open.chunks(batch.max(1)) {
        let started = Instant::now();
        let answers = answerer.answer(task, group)?;
        let seconds = started.elapsed().as_secs_f64() / group.len().max(1) as f64;
        let records = group.iter().zip(answers).map(|(one, answer)| ItemRecord::new(task, one, answer, seconds));
        let records: Vec<ItemRecord> = records.collect::<Result<_, _>>()?;
        journal.append(&records)?;
        done(Done::Now(records.len()));
        known.extend(records.into_iter().map(|record| (record.id.clone(), record)));
    }
    Ok(asked.iter().filter_map(|one| known.remove(&one.item.id)).collect())
}

/// What an evaluation says of its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// So many items were answered before.
    Known(usize),
    /// So many more are answered now.
    Now(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Label, Likelihood, find_tasks};
    use serde_json::json;
    use std::cell::RefCell;

    /// Finds the first choice likeliest, counts what it was asked, and gives up at an item.
    struct First {
        asked: RefCell<Vec<usize>>,
        until: usize,
    }

    impl Answerer for First {
        fn answer(&self, _: &Task, asked: &[&Asked]) -> Result<Vec<Answered>, TaskError> {
            self.asked.borrow_mut().extend(asked.iter().map(|one| one.item.index));
            if asked.iter().any(|one| one.item.index >= self.until) {
                let reason = "stopped".to_owned();
                return Err(TaskError::Unfit { task: String::new(), mode: String::new(), reason });
            }
            let one = |p: f64| Likelihood { log_probability: p, tokens: 1, greedy: false };
            Ok(asked.iter().map(|_| Answered::Choices(vec![one(-1.0), one(-2.0)])).collect())
        }
    }

    #[test]
    fn an_interrupted_evaluation_goes_on_and_asks_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let task = &find_tasks("boolq").unwrap()[0];
        let items = |count: usize| -> Vec<Item> {
            (0..count)
                .map(|index| Item {
                    id: format!("boolq/{index}"),
                    index,
                    place: format!("a.json: record {}", index + 1),
                    fields: [("instruction".to_owned(), format!("q{index}"))].into(),
                    choices: vec!["true".to_owned(), "false".to_owned()],
                    label: Label::Choice(index % 2),
                })
                .collect()
        };
        let run = |count: usize, until: usize| {
            let answerer = First { asked: RefCell::default(), until };
            let asked = ask(task, Mode::LogLikelihood, items(count)).unwrap();
            let (mut journal, known) = Journal::open(&dir.path().join("a.jsonl"), &json!({"m": 1})).unwrap();
            let mut known_items = 0;
            let mut done = |what| {
                if let Done::Known(count) = what {
                    known_items = count;
                }
            };
            let found = evaluate(task, &asked, &answerer, (&mut journal, known), 2, &mut done);
            (found.ok(), answerer.asked.take(), known_items)
        };
        assert_eq!(run(7, 5), (None, vec![0, 1, 2, 3, 4, 5], 0));
        let (records, asked, known) = run(7, 99);
        assert_eq!((asked, known), (vec![4, 5, 6], 4));
        let records = records.unwrap();
        assert_eq!(records.iter().map(|record| record.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert!(records.iter().all(|record| record.right == Some(record.index % 2 == 0)));
        // Fewer items, then the same again: nothing is asked.
        assert_eq!(run(3, 99).1, [0usize; 0]);
        assert_eq!(run(7, 99).1, [0usize; 0]);
        assert_eq!(run(8, 99).1, [7]);
    }
}
