//! The items of a task, read from its files.

use super::definition::LABEL;
use super::extract::parse_number;
use super::{AnswerKind, Task, TaskError};
use crate::data::{Row, read_rows};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An item of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The task's name and the item's number in its file, from 0.
    pub id: String,
    /// The item's number in its file, from 0.
    pub index: usize,
    /// File and row, for messages.
    pub place: String,
    /// Its fields by their names in the task, as texts.
    pub fields: BTreeMap<String, String>,
    /// What it can be answered with: label words or classes of the task, or the item's own choices. Empty of numbers and
    /// scores.
    pub choices: Vec<String>,
    /// The right answer.
    pub label: Label,
}

/// The right answer of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Label {
    /// A number or a score.
    Number(f64),
    /// The place of a choice among [`Item::choices`].
    Choice(usize),
}

impl Item {
    /// A field's text; empty where the item has none.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// The right answer as a text.
    #[must_use]
    pub fn label_text(&self) -> String {
        match self.label {
            Label::Number(value) => value.to_string(),
            Label::Choice(index) => self.choices.get(index).cloned().unwrap_or_default(),
        }
    }
}

/// Where the items of `task` lie: `data` itself if it is a file, else the first of the task's files that is in it.
///
/// # Errors
/// The folder holds none of them.
pub fn task_file(task: &Task, data: &Path, train: bool) -> Result<PathBuf, TaskError> {
    if data.is_file() {
        return Ok(data.to_owned());
    }
    let names = if train { &task.files.train } else { &task.files.test };
    let found = names.iter().map(|name| data.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| TaskError::NoFile {
        task: task.name.clone(),
        folder: data.display().to_string(),
        wanted: if names.is_empty() { "none: give the file itself".to_owned() } else { names.join(", ") },
    })
}

/// The items of a file, in its order, of which the first `limit` alone are looked at.
///
/// # Errors
/// The file cannot be read, or a row lacks a field or holds what the task does not know.
pub fn read_items(task: &Task, path: &Path, limit: Option<usize>) -> Result<Vec<Item>, TaskError> {
    let rows = read_rows(path, &task.files.columns)?;
    let rows = rows.into_iter().take(limit.unwrap_or(usize::MAX)).enumerate();
    rows.map(|(index, (place, row))| item(task, index, place, &row)).collect()
}

fn item(task: &Task, index: usize, place: String, row: &Row) -> Result<Item, TaskError> {
    let mut fields = BTreeMap::new();
    let mut choices = task.names().to_vec();
    let mut label = None;
    for (field, names) in &task.fields {
        let found = names.iter().find_map(|name| Some((name, row.get(name)?)));
        let optional = ["input", "output"].contains(&field.as_str());
        let Some((name, value)) = found else {
            if optional {
                continue;
            }
            return Err(TaskError::MissingField {
                place,
                field: field.clone(),
                task: task.name.clone(),
                found: row.keys().cloned().collect::<Vec<_>>().join(", "),
                wanted: names.join(", "),
            });
        };
        let wrong = |wanted: &str| TaskError::Value {
            place: place.clone(),
            field: name.clone(),
            task: task.name.clone(),
            value: shortened(&value.to_string()),
            wanted: wanted.to_owned(),
        };
        if task.answer.kind == AnswerKind::Choice && task.answer.choices.as_ref() == Some(field) {
            let list = value.as_array().ok_or_else(|| wrong("a list of choices"))?;
            choices = list.iter().map(|v| text(v).ok_or_else(|| wrong("a list of texts"))).collect::<Result<_, _>>()?;
            if choices.len() < 2 {
                return Err(wrong("a list of at least two choices"));
            }
        } else if field == LABEL {
            label = Some((name.clone(), value.clone()));
        } else {
            fields.insert(field.clone(), text(value).ok_or_else(|| wrong("a text"))?);
        }
    }
    // Checked with the task: it has a label.
    let (name, value) = label.unwrap_or_default();
    let label = label_of(task, &choices, &value).map_err(|wanted| TaskError::Value {
        place: place.clone(),
        field: name,
        task: task.name.clone(),
        value: shortened(&text(&value).unwrap_or_else(|| value.to_string())),
        wanted,
    })?;
    let mut item = Item { id: format!("{}/{index}", task.name), index, place, fields, choices, label };
    offer(task, &mut item);
    Ok(item)
}

/// Leaves of an item's choices those that its prompt offers: some sets have items of three, four and five.
fn offer(task: &Task, item: &mut Item) {
    let prompt = format!("{}\n{}", item.field("instruction"), item.field("input")).to_lowercase();
    let offered =
        |word: &String| task.answer.offered_form(word).is_none_or(|form| prompt.contains(&form.to_lowercase()));
    let Label::Choice(label) = item.label else { return };
    let kept: Vec<usize> = (0..item.choices.len()).filter(|&i| item.choices.get(i).is_some_and(offered)).collect();
    // A prompt that does not offer the right one, or no two, says nothing of what it offers.
    if let Some(place) = kept.iter().position(|&i| i == label)
        && kept.len() >= 2
    {
        item.choices = kept.iter().filter_map(|&i| item.choices.get(i).cloned()).collect();
        item.label = Label::Choice(place);
    }
}

/// The label, or what it must be.
fn label_of(task: &Task, choices: &[String], value: &Value) -> Result<Label, String> {
    let stated = text(value).ok_or("a text or a number")?;
    let stated = match &task.answer.after {
        Some(mark) => stated.rsplit_once(mark.as_str()).map_or(stated.as_str(), |(_, behind)| behind),
        None => &stated,
    };
    let stated = stated.trim();
    match task.answer.kind {
        AnswerKind::Number | AnswerKind::Score => {
            parse_number(stated).map(Label::Number).ok_or_else(|| "a number".to_owned())
        }
        AnswerKind::Letter | AnswerKind::Word => choices
            .iter()
            .position(|choice| choice == stated)
            .map(Label::Choice)
            .ok_or_else(|| format!("one of {}", choices.join(", "))),
        AnswerKind::Class | AnswerKind::Choice => {
            // A class may be named, or numbered as the Hugging Face hub's copies are; -1 is theirs for no label.
            let named = choices.iter().position(|choice| choice == stated);
            let numbered = stated.parse::<usize>().ok().filter(|&index| index < choices.len());
            named.or(numbered).map(Label::Choice).ok_or_else(|| match stated {
                "-1" => "a class; the test set has no labels, take the one for validation".to_owned(),
                _ => format!("one of {}, or its number from 0", choices.join(", ")),
            })
        }
    }
}

/// A field's value as a text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::shared;
    use crate::tasks::find_tasks;

    fn task(name: &str) -> Task {
        find_tasks(name).unwrap().remove(0)
    }

    fn read(name: &str, file: &str, content: &str) -> Result<Vec<Item>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, content).unwrap();
        let front = format!("{}/", dir.path().display());
        read_items(&task(name), &path, None).map_err(|e| e.to_string().replace(&front, ""))
    }

    #[test]
    fn labels_of_every_kind() {
        let labels = |name: &str, file: &str, content: &str| -> Vec<(Label, String)> {
            read(name, file, content).unwrap().iter().map(|item| (item.label, item.label_text())).collect()
        };
        let row = |label: Label, text: &str| (label, text.to_owned());
        let gsm8k = r#"{"question": "q", "answer": "6 + 6 = <<6+6=12>>12.\n#### 1,200"}"#;
        assert_eq!(labels("gsm8k", "a.jsonl", gsm8k), [row(Label::Number(1200.0), "1200")]);
        let aqua = r#"[{"instruction": "what? (A) 1 (B) 2 (C) 3", "input": "", "output": "", "answer": "C"}]"#;
        assert_eq!(labels("aqua", "a.json", aqua), [row(Label::Choice(2), "C")]);
        assert_eq!(read("aqua", "a.json", aqua).unwrap()[0].choices, ["A", "B", "C"]);
        let cola = "gj04\t1\t\tOne more.\nx\t0\t*\tMore one \"is.\n";
        assert_eq!(
            labels("glue/cola", "dev.tsv", cola),
            [row(Label::Choice(1), "acceptable"), row(Label::Choice(0), "unacceptable")]
        );
        let rte = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n";
        assert_eq!(labels("glue/rte", "dev.tsv", rte), [row(Label::Choice(1), "not_entailment")]);
        assert_eq!(labels("glue/rte", "val.tsv", "7\ta\tb\tentailment\n"), [row(Label::Choice(0), "entailment")]);
        let mrpc = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta b\tc\n";
        let items = read("glue/mrpc", "dev.tsv", mrpc).unwrap();
        assert_eq!((items[0].field("sentence1"), items[0].label), ("a b", Label::Choice(1)));
        let stsb = "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.8\n";
        assert_eq!(labels("glue/stsb", "dev.tsv", stsb), [row(Label::Number(3.8), "3.8")]);
    }

    #[test]
    fn an_item_offers_what_its_prompt_lists() {
        let row = |list: &str, answer: &str| {
            format!(r#"{{"instruction": "q Answer1: a Answer2: b {list}", "answer": "{answer}"}}"#)
        };
        let choices = |list: &str, answer: &str| read("arc-easy", "a.jsonl", &row(list, answer)).unwrap().remove(0);
        let three = choices("Answer format: answer1/answer2/answer3", "answer3");
        assert_eq!((three.choices.len(), three.label), (3, Label::Choice(2)));
        // One that offers another than the right one is not believed.
        assert_eq!(choices("", "answer4").choices.len(), 5);
    }

    #[test]
    fn what_is_wrong_is_named_by_place_and_field() {
        let error = read("gsm8k", "a.jsonl", r#"{"question": "q", "answer": "many"}"#).unwrap_err();
        assert_eq!(error, "a.jsonl:1: the field answer of the task gsm8k is \"many\"; it must be a number");
        let error = read("boolq", "a.jsonl", r#"{"instruction": "q", "answer": "maybe"}"#).unwrap_err();
        assert_eq!(error, "a.jsonl:1: the field answer of the task boolq is \"maybe\"; it must be one of true, false");
        let error = read("boolq", "a.jsonl", r#"{"question": "q", "answer": "true"}"#).unwrap_err();
        assert_eq!(
            error,
            "a.jsonl:1: no field instruction for the task boolq among question, answer; wanted is one of instruction"
        );
        let error = read("glue/rte", "a.jsonl", r#"{"sentence1": "a", "sentence2": "b", "label": -1}"#).unwrap_err();
        assert!(
            error.ends_with("is \"-1\"; it must be a class; the test set has no labels, take the one for validation")
        );
        let error = task_file(&task("boolq"), Path::new("no/such"), false).unwrap_err().to_string();
        assert_eq!(
            error,
            "boolq: no file of it in no/such; wanted is one of boolq/test.json, llm-adapters/boolq/test.json"
        );
    }

    #[test]
    fn the_real_sets_have_as_many_items_as_the_paper_says() {
        let Some(shared) = shared() else { return };
        let data = shared.join("data");
        for task in crate::tasks::all_tasks().unwrap() {
            let Ok(path) = task_file(&task, &data, false) else {
                println!("SKIPPED: {} is not there", task.name);
                continue;
            };
            let items = read_items(&task, &path, None).unwrap();
            if let Some(wanted) = task.items {
                assert_eq!(items.len(), wanted, "{}", task.name);
            }
            assert!(items.iter().all(|item| item.choices.len() != 1));
            if ["arc-easy", "arc-challenge"].contains(&task.name.as_str()) {
                assert!(items.iter().any(|item| item.choices.len() == 4), "{}", task.name);
            }
        }
        let cola = read_items(&task("glue/cola"), &data.join("glue/CoLA/dev.tsv"), None).unwrap();
        assert_eq!((cola.len(), cola.iter().filter(|item| item.label == Label::Choice(1)).count()), (1043, 721));
    }
}
