//! Training records: JSON arrays, JSON lines, plain text.

use super::DataError;
use super::json::{JsonObjects, Object, keys, kind};
use super::lines::Lines;
use serde_json::Value;
use std::path::Path;

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, …
    pub role: String,
    /// What is said.
    pub content: String,
}

/// One training record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An instruction, its input (often empty) and the wanted output.
    Instruction {
        /// What is asked.
        instruction: String,
        /// Context of the instruction; empty if there is none.
        input: String,
        /// The answer.
        output: String,
    },
    /// A chat.
    Chat {
        /// Its turns, oldest first.
        messages: Vec<Message>,
    },
    /// A text without question and answer.
    Text {
        /// The text.
        text: String,
    },
}

/// Reads the training records of `path`: `.json` and `.jsonl` (an array of objects or an object a line,
/// whichever it holds) or `.txt` (a text a line, blank lines skipped).
///
/// An object is read by the first of these key sets that it has, and its other keys are ignored: `messages`;
/// `instruction` and `output`, with `input` if any; `question` and `answer`; `prompt` and `completion`; `text`.
///
/// # Errors
/// The file cannot be read, is not UTF-8 or holds no records; a line or the array is broken JSON; a record has
/// none of the key sets, or a value that is no string.
pub fn read_records(path: &Path) -> Result<Vec<Record>, DataError> {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let records: Vec<Record> = match extension.as_deref() {
        Some("txt") => {
            Lines::open(path)?.map(|line| line.map(|(_, text)| Record::Text { text })).collect::<Result<_, _>>()?
        }
        Some("json" | "jsonl") => JsonObjects::open(path)?
            .map(|item| item.and_then(|(place, object)| record_from(&object, &place)))
            .collect::<Result<_, _>>()?,
        _ => {
            let path = path.display().to_string();
            return Err(DataError::UnknownFormat { path, known: ".json, .jsonl or .txt" });
        }
    };
    if records.is_empty() {
        return Err(DataError::Empty { path: path.display().to_string(), wanted: "records" });
    }
    Ok(records)
}

/// The record that an object states.
pub(super) fn record_from(object: &Object, place: &str) -> Result<Record, DataError> {
    if let Some(messages) = object.get("messages") {
        return Ok(Record::Chat { messages: messages_from(messages, place)? });
    }
    for (question, answer) in [("instruction", "output"), ("question", "answer"), ("prompt", "completion")] {
        if object.contains_key(question) && object.contains_key(answer) {
            let has_input = question == "instruction" && object.contains_key("input");
            return Ok(Record::Instruction {
                instruction: string(object, question, place)?,
                input: if has_input { string(object, "input", place)? } else { String::new() },
                output: string(object, answer, place)?,
            });
        }
    }
    if object.contains_key("text") {
        return Ok(Record::Text { text: string(object, "text", place)? });
    }
    Err(DataError::UnknownKeys { place: place.to_owned(), found: keys(object) })
}

/// The record that an object asks for: as [`record_from`] reads it, but its answer may be missing, and is not read.
pub(super) fn prompt_from(object: &Object, place: &str) -> Result<Record, DataError> {
    let asked = [("instruction", "output"), ("question", "answer"), ("prompt", "completion")];
    let Some((question, answer)) = asked.into_iter().find(|(question, _)| object.contains_key(*question)) else {
        return record_from(object, place);
    };
    if object.contains_key("messages") {
        return record_from(object, place);
    }
    let mut whole = object.clone();
    whole.insert(answer.to_owned(), Value::String(String::new()));
    // Keys of another question would be read first.
    asked.iter().filter(|(other, _)| *other != question).for_each(|(other, _)| drop(whole.remove(*other)));
    record_from(&whole, place)
}

fn messages_from(value: &Value, place: &str) -> Result<Vec<Message>, DataError> {
    let wrong = |found: &Value| DataError::WrongType {
        place: place.to_owned(),
        key: "messages".to_owned(),
        found: if found.is_array() { "an empty array" } else { kind(found) },
        wanted: "an array of objects, each with role and content",
    };
    let items = value.as_array().filter(|items| !items.is_empty()).ok_or_else(|| wrong(value))?;
    let mut messages = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let object = item.as_object().ok_or_else(|| wrong(item))?;
        let place = format!("{place}: message {}", index + 1);
        messages.push(Message { role: string(object, "role", &place)?, content: string(object, "content", &place)? });
    }
    Ok(messages)
}

fn string(object: &Object, key: &str, place: &str) -> Result<String, DataError> {
    let found = match object.get(key) {
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(other) => kind(other),
        None => "nothing",
    };
    Err(DataError::WrongType { place: place.to_owned(), key: key.to_owned(), found, wanted: "a string" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::{instruction, shared};

    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Record>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let name = format!("{}/", folder.path().display());
        read_records(&path).map_err(|e| e.to_string().replace(&name, ""))
    }

    #[test]
    fn every_key_set_is_read() {
        let lines = r#"{"instruction": "a", "input": "b", "output": "c", "answer": 7, "text": "x"}
{"question": "q", "answer": "r"}

{"prompt": "p", "completion": "s"}
{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]}
{"text": "t"}"#;
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let wanted = vec![
            instruction("a", "b", "c"),
            instruction("q", "", "r"),
            instruction("p", "", "s"),
            Record::Chat { messages: vec![message("user", "u"), message("assistant", "v")] },
            Record::Text { text: "t".into() },
        ];
        assert_eq!(read("a.jsonl", lines).unwrap(), wanted);
        // The content decides, not the ending.
        assert_eq!(read("a.json", lines).unwrap(), wanted);
        let array = format!("[{}]", lines.replace("\n\n", "\n").replace('\n', ",\n"));
        assert_eq!(read("a.json", &array).unwrap(), wanted);
        assert_eq!(read("a.jsonl", &array).unwrap(), wanted);
    }

    #[test]
    fn a_text_file_is_a_text_a_line() {
        let texts = read("a.txt", "one two\n\nthree\r\n").unwrap();
        assert_eq!(texts, [Record::Text { text: "one two".into() }, Record::Text { text: "three".into() }]);
    }

    #[test]
    fn errors_name_the_place_the_key_and_the_remedy() {
        let good = "{\"text\": \"t\"}\n";
        let cases: [(&str, String, &str); 12] = [
            (
                "a.jsonl",
                format!("{good}\n{{\"text\": \"t"),
                "a.jsonl:3: broken JSON at column 11: EOF while parsing a \
                string; write one whole JSON object a line, or one array of objects",
            ),
            (
                "a.json",
                "[{\"text\": \"t\"},\n{\"text\" 1}]".into(),
                "a.json:2: broken JSON at column 9: expected `:`; \
                write one whole JSON object a line, or one array of objects",
            ),
            (
                "a.jsonl",
                format!("{good}7"),
                "a.jsonl:2: a number, where an object is wanted; write one whole JSON \
                object a line, or one array of objects",
            ),
            (
                "a.json",
                "[{\"text\": \"t\"}, {\"text\": 3}]".into(),
                "a.json: record 2: the key \"text\" holds a number; it must hold a string",
            ),
            (
                "a.jsonl",
                "{\"question\": \"q\", \"answer\": null}".into(),
                "a.jsonl:1: the key \"answer\" holds null; it must hold a string",
            ),
            (
                "a.jsonl",
                "{\"instruction\": \"q\", \"target\": \"r\"}".into(),
                "a.jsonl:1: no known record in the keys [\"instruction\", \"target\"]; wanted are instruction and output \
                 (input if any), question and answer, prompt and completion, messages, or text",
            ),
            (
                "a.jsonl",
                "{\"messages\": []}".into(),
                "a.jsonl:1: the key \"messages\" holds an empty array; it must \
                hold an array of objects, each with role and content",
            ),
            (
                "a.jsonl",
                "{\"messages\": [{\"role\": \"user\"}]}".into(),
                "a.jsonl:1: message 1: the key \"content\" holds nothing; it must hold a string",
            ),
            ("a.txt", " \n\n".into(), "a.txt: holds no records; give a file that does"),
            ("a.json", "[]".into(), "a.json: holds no records; give a file that does"),
            ("a.jsonl", String::new(), "a.jsonl: holds no records; give a file that does"),
            ("a.parquet", good.into(), "a.parquet: the kind of file is unknown; end its name in .json, .jsonl or .txt"),
        ];
        for (name, content, wanted) in cases {
            assert_eq!(read(name, content).unwrap_err(), wanted);
        }
        let wrong = read("a.jsonl", b"{\"text\": \"\xe4\"}").unwrap_err();
        assert_eq!(wrong, "a.jsonl:1: not UTF-8 at byte 10 of the file; convert the file to UTF-8");
        let error = read_records(Path::new("no/such.jsonl")).unwrap_err().to_string();
        assert!(error.starts_with("no/such.jsonl: cannot be read: "), "{error}");
    }

    #[test]
    fn the_real_files_are_read() {
        let Some(shared) = shared() else { return };
        let gsm8k = read_records(&shared.join("data/gsm8k/train.jsonl")).unwrap();
        assert_eq!(gsm8k.len(), 7473);
        let Some(Record::Instruction { instruction, input, output }) = gsm8k.first() else { panic!("an instruction") };
        assert!(instruction.starts_with("Natalia sold clips to 48 of her friends"));
        assert_eq!(input, "");
        assert!(output.ends_with("altogether in April and May.\n#### 72"));

        let adapters = shared.join("data/llm-adapters");
        for (set, items) in [("AQuA/test", 254), ("SVAMP/test", 1000), ("boolq/test", 3270), ("train/math_data", 3260)]
        {
            let records = read_records(&adapters.join(format!("{set}.json"))).unwrap();
            assert_eq!(records.len(), items, "{set}");
            assert!(
                records.iter().all(|r| matches!(r, Record::Instruction { input, .. } if input.is_empty())),
                "{set}"
            );
        }
        let error = read_records(&adapters.join("train/mawps_trainset.json")).unwrap_err().to_string();
        assert!(
            error.contains("mawps_trainset.json: record 1: no known record in the keys [\"id\", \"original_text\"")
        );
    }
}
