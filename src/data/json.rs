//! JSON objects of a file, one by one: JSON lines are streamed, an array is read whole.

use super::DataError;
use super::lines::{Lines, read_text};
use serde_json::{Map, Value};
use std::iter::Peekable;
use std::path::Path;

/// A JSON object as it stands in a file.
pub type Object = Map<String, Value>;

/// The objects of a `.json` or `.jsonl` file with their places; which of the two it is, its content says.
#[derive(Debug)]
pub(super) enum JsonObjects {
    Array { path: String, items: std::iter::Enumerate<std::vec::IntoIter<Value>> },
    Lines { path: String, lines: Box<Peekable<Lines>> },
}

impl JsonObjects {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let name = path.display().to_string();
        let mut lines = Lines::open(path)?.peekable();
        let array = matches!(lines.peek(), Some(Ok((_, text))) if text.trim_start().starts_with('['));
        if !array {
            return Ok(Self::Lines { path: name, lines: Box::new(lines) });
        }
        let items: Vec<Value> = serde_json::from_str(&read_text(path)?)
            .map_err(|e| DataError::Json { place: format!("{name}:{}", e.line()), reason: reason(&e) })?;
        Ok(Self::Array { path: name, items: items.into_iter().enumerate() })
    }
}

impl Iterator for JsonObjects {
    /// The place (`file:line` or `file: record n`, both from 1) and the object there.
    type Item = Result<(String, Object), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Array { path, items } => {
                let (index, value) = items.next()?;
                Some(object(format!("{path}: record {}", index + 1), value))
            }
            Self::Lines { path, lines } => {
                let (line, text) = match lines.next()? {
                    Ok(line) => line,
                    Err(e) => return Some(Err(e)),
                };
                let place = format!("{path}:{line}");
                Some(match serde_json::from_str(&text) {
                    Ok(value) => object(place, value),
                    Err(e) => Err(DataError::Json { place, reason: reason(&e) }),
                })
            }
        }
    }
}

fn object(place: String, value: Value) -> Result<(String, Object), DataError> {
    match value {
        Value::Object(object) => Ok((place, object)),
        other => Err(DataError::Json { place, reason: format!("{}, where an object is wanted", kind(&other)) }),
    }
}

/// serde_json's message with the column alone: the line is already in the place, and in JSON lines it would
/// be 1 for every line of the file.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    format!("broken JSON at column {}: {message}", error.column())
}

/// The name of a value's type.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The keys of an object for a message.
pub(super) fn keys(object: &Object) -> String {
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    format!("{keys:?}")
}
