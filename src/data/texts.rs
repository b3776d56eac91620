//! The texts of a probe, streamed from a file.

use super::encode::encode_text;
use super::json::{JsonObjects, Object, keys, kind};
use super::lines::Lines;
use super::records::{prompt_from, record_from};
use super::table::TableRows;
use super::{ChatTemplate, DataError, Encoded, Phase, Template, Tokenize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What of a row is its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A field; without a name `text`, or the only column of a CSV file. Without a name, a row that also has
    /// `text_pair`, or `sentence1` and `sentence2` in the place of `text`, is a pair of texts. A plain text file
    /// has no fields: its lines are the texts.
    Field(Option<String>),
    /// The record that the row states, rendered with prompt and response.
    Record(Template),
    /// The prompt of the record that the row states, which needs no answer.
    Prompt(Template),
}

/// How texts are read.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// What of a row is its text.
    pub content: Content,
    /// The field whose value names the text's group.
    pub group_by: Option<String>,
    /// The tokenizer's chat template, which only chats need.
    pub chat: Option<ChatTemplate>,
}

impl Default for TextOptions {
    /// The field `text`, ungrouped.
    fn default() -> Self {
        Self { content: Content::Field(None), group_by: None, chat: None }
    }
}

/// A text of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeText {
    /// Its number among the texts of the source, from 0.
    pub index: usize,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// Its group, where grouping is wanted.
    pub group: Option<String>,
    /// The byte offset where its response begins, if it has one.
    pub response_start: Option<usize>,
    /// Whether the tokenizer's special tokens go around it: see [`encode_text`](super::encode_text).
    pub add_special: bool,
}

impl ProbeText {
    /// The tokens of the text, or of both texts of a pair, as [`encode_text`](super::encode_text) gives them.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, tokenizer: &dyn Tokenize) -> Result<Encoded, DataError> {
        match &self.pair {
            Some(pair) => tokenizer.encode_pair(&self.text, pair),
            None => encode_text(&self.text, self.add_special, tokenizer),
        }
    }
}

/// The texts of a `.txt` (a text a line, blank lines skipped), `.csv`, `.tsv`, `.json` or `.jsonl` file, in its
/// order.
/// All but a JSON array are streamed. After an error the source ends.
#[derive(Debug)]
pub struct TextSource {
    path: PathBuf,
    options: TextOptions,
    rows: Rows,
    texts: usize,
    ended: bool,
}

#[derive(Debug)]
enum Rows {
    Text(Lines),
    Json(JsonObjects),
    Table(TableRows),
}

impl TextSource {
    /// Opens a source.
    ///
    /// # Errors
    /// The file cannot be read or its name's ending is unknown; a field or group is asked of a plain text.
    pub fn open(path: &Path, options: TextOptions) -> Result<Self, DataError> {
        let name = || path.display().to_string();
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let rows = match extension.as_deref() {
            Some("txt") => {
                let no_fields = |option| Err(DataError::NoFields { path: name(), option });
                if matches!(options.content, Content::Field(Some(_))) {
                    return no_fields("--field");
                }
                if options.group_by.is_some() {
                    return no_fields("--group-by");
                }
                Rows::Text(Lines::open(path)?)
            }
            Some("json" | "jsonl") => Rows::Json(JsonObjects::open(path)?),
            Some("csv") => Rows::Table(TableRows::csv(path)?),
            Some("tsv") => Rows::Table(TableRows::tsv(path)?),
            _ => return Err(DataError::UnknownFormat { path: name(), known: ".txt, .csv, .tsv, .json or .jsonl" }),
        };
        Ok(Self { path: path.to_owned(), options, rows, texts: 0, ended: false })
    }

    fn read(&mut self) -> Result<Option<ProbeText>, DataError> {
        let row = match &mut self.rows {
            Rows::Text(lines) => {
                let line = lines.next().transpose()?;
                return Ok(line.map(|(_, text)| self.text((text, None), None, None, true)));
            }
            Rows::Json(objects) => objects.next().transpose()?,
            Rows::Table(rows) => rows.next().transpose()?,
        };
        let Some((place, row)) = row else { return Ok(None) };
        let group = self.options.group_by.as_ref().map(|field| group(&row, field, &place)).transpose()?;
        let (text, start, add_special) = match &self.options.content {
            Content::Field(field) => (self.field(&row, field.as_deref(), &place)?, None, true),
            Content::Record(template) | Content::Prompt(template) => {
                let (record, phase) = match self.options.content {
                    Content::Prompt(_) => (prompt_from(&row, &place)?, Phase::Test),
                    _ => (record_from(&row, &place)?, Phase::Train),
                };
                let chat = self.options.chat.as_ref();
                let rendered = template.render(&record, phase, chat).map_err(|e| e.at(place))?;
                let start = rendered.response_start();
                ((rendered.text, None), start, rendered.add_special)
            }
        };
        Ok(Some(self.text(text, group, start, add_special)))
    }

    fn text(
        &mut self,
        (text, pair): (String, Option<String>),
        group: Option<String>,
        response_start: Option<usize>,
        add_special: bool,
    ) -> ProbeText {
        let index = self.texts;
        self.texts += 1;
        ProbeText { index, text, pair, group, response_start, add_special }
    }

    /// The text of a row, and the second one of a pair.
    fn field(&self, row: &Object, name: Option<&str>, place: &str) -> Result<(String, Option<String>), DataError> {
        let only = || match &self.rows {
            Rows::Table(rows) => rows.only_column(),
            _ => None,
        };
        let has = |key: &str| name.is_none() && row.get(key).is_some_and(|value| !value.is_null());
        let (field, second) = match name.or_else(only).unwrap_or("text") {
            "text" if has("text_pair") => ("text", Some("text_pair")),
            "text" if !has("text") && has("sentence1") && has("sentence2") => ("sentence1", Some("sentence2")),
            field => (field, None),
        };
        let string = |key: &str, value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(DataError::WrongType {
                place: place.to_owned(),
                key: key.to_owned(),
                found: kind(other),
                wanted: "a string",
            }),
        };
        match row.get(field) {
            Some(text) => {
                let pair = second.and_then(|key| Some(string(key, row.get(key)?)));
                Ok((string(field, text)?, pair.transpose()?))
            }
            None => {
                let record = record_from(row, place).is_ok();
                let hint = if record { ", or render the records with --template alpaca" } else { "" };
                Err(missing(row, field, place, "--field", hint))
            }
        }
    }
}

impl Iterator for TextSource {
    type Item = Result<ProbeText, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = match self.read() {
            Ok(None) if self.texts == 0 => {
                Err(DataError::Empty { path: self.path.display().to_string(), wanted: "texts" })
            }
            Ok(None) => {
                self.ended = true;
                return None;
            }
            Ok(Some(text)) => Ok(text),
            Err(e) => Err(e),
        };
        self.ended = item.is_err();
        Some(item)
    }
}

fn group(row: &Object, field: &str, place: &str) -> Result<String, DataError> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(other) => Err(DataError::WrongType {
            place: place.to_owned(),
            key: field.to_owned(),
            found: kind(other),
            wanted: "a string or a number, the group's name",
        }),
        None => Err(missing(row, field, place, "--group-by", "")),
    }
}

fn missing(row: &Object, field: &str, place: &str, option: &'static str, hint: &'static str) -> DataError {
    DataError::MissingField { place: place.to_owned(), field: field.to_owned(), found: keys(row), option, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::{Words, shared};
    use crate::data::{Span, clip};

    fn options(content: Content, group_by: Option<&str>) -> TextOptions {
        TextOptions { content, group_by: group_by.map(str::to_owned), chat: None }
    }

    fn field(name: Option<&str>) -> TextOptions {
        options(Content::Field(name.map(str::to_owned)), None)
    }

    fn read(name: &str, content: impl AsRef<[u8]>, options: TextOptions) -> Result<Vec<ProbeText>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let texts = TextSource::open(&path, options).and_then(Iterator::collect);
        texts.map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    fn texts(name: &str, content: impl AsRef<[u8]>, options: TextOptions) -> Vec<String> {
        let texts = read(name, content, options).unwrap();
        assert!(texts.iter().enumerate().all(|(i, t)| t.index == i && t.response_start.is_none() && t.add_special));
        texts.into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn every_kind_of_file_gives_its_texts() {
        assert_eq!(texts("a.txt", "one\n\ntwo\n", field(None)), ["one", "two"]);
        assert_eq!(texts("a.csv", "sentence\n\"one, \"\"1\"\"\"\ntwo\n", field(None)), ["one, \"1\"", "two"]);
        assert_eq!(texts("a.csv", "\u{feff}text,label\none,1\n\"two\nlines\",2\n", field(None)), ["one", "two\nlines"]);
        assert_eq!(texts("a.csv", "a,b\none,1\n", field(Some("b"))), ["1"]);
        // GLUE's quotes are part of the text, paired or not.
        let glue = "sentence\tlabel\r\na \"b\" , c\t1\r\n\"d e\t0\r\n";
        assert_eq!(texts("a.tsv", glue, field(Some("sentence"))), ["a \"b\" , c", "\"d e"]);
        assert_eq!(texts("a.tsv", "q\none\n", field(None)), ["one"]);
        assert_eq!(texts("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\", \"n\": 2}", field(None)), ["one", "two"]);
        assert_eq!(texts("a.json", "[{\"q\": \"one\"}]", field(Some("q"))), ["one"]);
    }

    #[test]
    fn pairs_are_read_where_a_row_states_one() {
        let pairs = |content: &str, options: TextOptions| -> Vec<(String, Option<String>)> {
            read("a.jsonl", content, options).unwrap().into_iter().map(|t| (t.text, t.pair)).collect()
        };
        let pair = |a: &str, b: Option<&str>| (a.to_owned(), b.map(str::to_owned));
        let lines = "{\"text\": \"a\", \"text_pair\": \"b\"}\n{\"sentence1\": \"c\", \"sentence2\": \"d\"}\n\
                     {\"text\": \"e\", \"text_pair\": null}\n{\"text\": \"f\", \"sentence1\": \"g\", \"sentence2\": \"h\"}";
        let expected = [pair("a", Some("b")), pair("c", Some("d")), pair("e", None), pair("f", None)];
        assert_eq!(pairs(lines, field(None)), expected);
        let one = "{\"sentence1\": \"c\", \"sentence2\": \"d\"}";
        assert_eq!(pairs(one, field(Some("sentence2"))), [pair("d", None)]);
        let wrong = read("a.jsonl", "{\"text\": \"a\", \"text_pair\": 4}", field(None)).unwrap_err();
        assert_eq!(wrong, "a.jsonl:1: the key \"text_pair\" holds a number; it must hold a string");
        let text = &read("a.jsonl", one, field(None)).unwrap()[0];
        assert!(text.encode(&Words::default()).unwrap_err().to_string().contains("knows no pairs"));
    }

    #[test]
    fn groups_are_read_beside_the_text() {
        let groups = |name: &str, content: &str| -> Vec<Option<String>> {
            let texts = read(name, content, options(Content::Field(None), Some("g"))).unwrap();
            texts.into_iter().map(|t| t.group).collect()
        };
        let some = |group: &str| Some(group.to_owned());
        assert_eq!(groups("a.csv", "text,g\none,x\ntwo,y\n"), [some("x"), some("y")]);
        let lines = "{\"text\": \"a\", \"g\": \"x\"}\n{\"text\": \"b\", \"g\": 2}\n{\"text\": \"c\", \"g\": true}";
        assert_eq!(groups("a.jsonl", lines), [some("x"), some("2"), some("true")]);
    }

    #[test]
    fn a_record_is_divided_at_its_response() {
        let content = Content::Record(Template::Short);
        let line = "{\"question\": \"how many ?\", \"answer\": \"4 apples\", \"set\": \"s\"}";
        let texts = read("a.jsonl", line, options(content.clone(), Some("set"))).unwrap();
        let text = &texts[0];
        assert_eq!((text.text.as_str(), text.response_start), ("how many ? 4 apples", Some(11)));
        assert_eq!(text.group.as_deref(), Some("s"));
        let encoded = encode_text(&text.text, text.add_special, &Words::default()).unwrap();
        assert_eq!(encoded.ids, [1, 10, 11, 12, 13, 14]);
        assert_eq!(Span::All.rows(text, &encoded).unwrap(), 0..6);
        assert_eq!(Span::Instruction.rows(text, &encoded).unwrap(), 0..4);
        assert_eq!(Span::Response.rows(text, &encoded).unwrap(), 4..6);
        let cut = clip(encoded, Some(3), None).unwrap();
        assert_eq!(Span::Response.rows(text, &cut).unwrap(), 3..3);
        // A CSV row states a record as well.
        let rows = read("a.csv", "instruction,output\n\"a, b\",c\n", options(content.clone(), None)).unwrap();
        assert_eq!((rows[0].text.as_str(), rows[0].response_start), ("a, b c", Some(5)));
        // A plain text has no response.
        let plain = &read("a.txt", "a b", options(content, None)).unwrap()[0];
        let encoded = encode_text(&plain.text, true, &Words::default()).unwrap();
        assert_eq!(
            Span::Response.rows(plain, &encoded).unwrap_err().to_string(),
            "text 0: there is no response to divide it at; use --span all, or give records with instruction and \
             output, or messages"
        );
    }

    #[test]
    fn chats_are_rendered_by_the_chat_template() {
        let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                      {% if add_generation_prompt %}assistant: {% endif %}";
        let chat = ChatTemplate::new(source.into(), String::new(), String::new()).unwrap();
        let options = TextOptions { content: Content::Record(Template::Alpaca), group_by: None, chat: Some(chat) };
        let line =
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}";
        let text = read("a.jsonl", line, options).unwrap().remove(0);
        assert_eq!(
            (text.text.as_str(), text.response_start, text.add_special),
            ("user: a\nassistant: b\n", Some(19), false)
        );
    }

    #[test]
    fn errors_name_the_place_the_field_and_the_remedy() {
        let record = "{\"question\": \"q\", \"answer\": \"r\"}";
        let by_group = |group| options(Content::Field(None), Some(group));
        let cases: [(&str, &str, TextOptions, &str); 10] = [
            (
                "a.csv",
                "x,y\n1,2\n",
                field(None),
                "a.csv:2: no field \"text\" among [\"x\", \"y\"]; name one of them with --field",
            ),
            (
                "a.jsonl",
                record,
                field(None),
                "a.jsonl:1: no field \"text\" among [\"question\", \"answer\"]; name one \
                of them with --field, or render the records with --template alpaca",
            ),
            (
                "a.jsonl",
                "{\"text\": 4}",
                field(None),
                "a.jsonl:1: the key \"text\" holds a number; it must hold a string",
            ),
            (
                "a.jsonl",
                "{\"text\": \"a\"}",
                by_group("g"),
                "a.jsonl:1: no field \"g\" among [\"text\"]; name one of them with --group-by",
            ),
            (
                "a.txt",
                "a",
                by_group("g"),
                "a.txt: a .txt file has no fields; leave --group-by out, or give a .csv or .jsonl file",
            ),
            (
                "a.txt",
                "a",
                field(Some("f")),
                "a.txt: a .txt file has no fields; leave --field out, or give a .csv or .jsonl file",
            ),
            ("a.txt", "\n", field(None), "a.txt: holds no texts; give a file that does"),
            ("a.csv", "text\n", field(None), "a.csv: holds no texts; give a file that does"),
            ("a.csv", "", field(None), "a.csv: holds no texts; give a file that does"),
            (
                "a.xlsx",
                "a",
                field(None),
                "a.xlsx: the kind of file is unknown; end its name in .txt, .csv, .tsv, .json or .jsonl",
            ),
        ];
        for (name, content, options, wanted) in cases {
            assert_eq!(read(name, content, options).unwrap_err(), wanted);
        }
        let ragged = read("a.csv", "text,b\na,1\nb\n", field(None)).unwrap_err();
        assert!(ragged.starts_with("a.csv: CSV error: record 2 (line: 3, byte: 11): found record with 1"), "{ragged}");
        let ragged = read("a.tsv", "text\tb\na\t1\nb\n", field(None)).unwrap_err();
        assert!(ragged.starts_with("a.tsv: CSV error: record 2"), "{ragged}");
        let wrong = read("a.csv", b"text,b\na,1\nb\xe4,2\n", field(None)).unwrap_err();
        assert_eq!(wrong, "a.csv:3: not UTF-8 at byte 12 of the file; convert the file to UTF-8");
        let wrong = read("a.csv", b"te\xe4xt,b\na,1\n", field(None)).unwrap_err();
        assert_eq!(wrong, "a.csv:1: not UTF-8 at byte 2 of the file; convert the file to UTF-8");
    }

    #[test]
    fn an_error_ends_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"a\"}\n{\n{\"text\": \"b\"}\n").unwrap();
        let items: Vec<bool> = TextSource::open(&path, field(None)).unwrap().map(|item| item.is_ok()).collect();
        assert_eq!(items, [true, false]);
    }

    #[test]
    fn the_real_test_problems_are_read() {
        let Some(shared) = shared() else { return };
        let path = shared.join("data/llm-adapters/gsm8k/test.json");
        let read = |options| TextSource::open(&path, options).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let questions = read(field(Some("instruction")));
        assert_eq!(questions.len(), 1319);
        assert!(questions[0].text.starts_with("Mr Boarden is remodeling his bathroom."));
        let rendered = read(options(Content::Record(Template::Alpaca), None));
        assert_eq!(rendered.len(), 1319);
        let (prompt, response) = rendered[0].text.split_at(rendered[0].response_start.unwrap());
        assert!(prompt.ends_with(&format!("{}\n\n### Response:\n", questions[0].text)));
        assert!(response.starts_with("\nA: He needs 24 tiles"));
    }
}
