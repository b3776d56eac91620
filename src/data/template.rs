//! Prompt templates: a record becomes one text that knows where its response begins.

use super::chat::ChatTemplate;
use super::lines::read_text;
use super::{DataError, Record};
use std::ops::Range;
use std::path::Path;

/// What a rendered text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Training or measuring: prompt and output.
    Train,
    /// Generating: the prompt alone.
    Test,
}

/// A record as one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The byte ranges of the responses, in order: one for an instruction, one for each assistant turn of a
    /// chat, none for a plain text. In [`Phase::Test`] the one range is empty and at the text's end.
    pub responses: Vec<Range<usize>>,
    /// Whether the tokenizer's special tokens go around the text. A chat template has written its own.
    pub add_special: bool,
}

impl Rendered {
    /// The byte offset where the first response begins.
    #[must_use]
    pub fn response_start(&self) -> Option<usize> {
        self.responses.first().map(|range| range.start)
    }

    fn instruction(prompt: String, output: &str, phase: Phase) -> Self {
        let start = prompt.len();
        let text = if phase == Phase::Train { prompt + output } else { prompt };
        let response = start..text.len();
        Self { text, responses: vec![response], add_special: true }
    }
}

/// How an instruction record becomes a text. Chats go through the tokenizer's own template and plain texts
/// stay as they are, whichever is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Stanford Alpaca's prompt, with or without its input section.
    Alpaca,
    /// The same words as SIBO's released scripts really send them, with Python's indentation inside the string.
    Released,
    /// Instruction, input if any, and output with a single space between.
    Short,
    /// A text file with placeholders.
    File(FileTemplate),
}

impl Template {
    /// The template of a name (`alpaca`, `released`, `short`) or of a file.
    ///
    /// # Errors
    /// Neither a known name nor a readable UTF-8 file whose placeholders are whole.
    pub fn parse(name_or_path: &str) -> Result<Self, DataError> {
        match name_or_path {
            "alpaca" => Ok(Self::Alpaca),
            "released" => Ok(Self::Released),
            "short" => Ok(Self::Short),
            path => {
                let wrong = |e: DataError| DataError::Template { name: path.to_owned(), reason: e.to_string() };
                FileTemplate::parse(path, &read_text(Path::new(path)).map_err(wrong)?).map(Self::File)
            }
        }
    }

    /// The text of a record; `chat` is the tokenizer's chat template, which only chats need.
    ///
    /// # Errors
    /// A chat without a chat template or one that the template refuses; an input where a file template has no
    /// place for it.
    pub fn render(&self, record: &Record, phase: Phase, chat: Option<&ChatTemplate>) -> Result<Rendered, DataError> {
        match record {
            Record::Text { text } => Ok(Rendered { text: text.clone(), responses: Vec::new(), add_special: true }),
            Record::Chat { messages } => chat.ok_or(DataError::NoChatTemplate)?.rendered(messages, phase),
            Record::Instruction { instruction, input, output } => {
                let prompt = match self {
                    Self::Alpaca => alpaca(instruction, input),
                    Self::Released => released(instruction, input, phase),
                    Self::Short => short(instruction, input, phase),
                    Self::File(file) => file.prompt(instruction, input)?,
                };
                Ok(Rendered::instruction(prompt, output, phase))
            }
        }
    }
}

const PREAMBLE: &str = "Below is an instruction that describes a task. \
    Write a response that appropriately completes the request.";
const PREAMBLE_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that \
    provides further context. Write a response that appropriately completes the request.";

fn alpaca(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        format!("{PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Response:\n")
    } else {
        format!("{PREAMBLE_WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
    }
}

/// The prompt of SIBO's released `finetune.py` (training) and `evaluate.py` (testing). Their two forms differ
/// in the spaces behind the preamble and on the separating lines, and a value's own lines are not indented.
fn released(instruction: &str, input: &str, phase: Phase) -> String {
    const INDENT: &str = "                ";
    let (preamble, spaces) = match (input.is_empty(), phase) {
        (true, Phase::Train) => (PREAMBLE, "  "),
        (true, Phase::Test) => (PREAMBLE, " "),
        (false, Phase::Train) => (PREAMBLE_WITH_INPUT, " "),
        (false, Phase::Test) => (PREAMBLE_WITH_INPUT, ""),
    };
    let separator = if phase == Phase::Train { INDENT } else { "" };
    let mut prompt =
        format!("{preamble}{spaces}\n\n{INDENT}### Instruction:\n{INDENT}{instruction}\n{separator}\n{INDENT}");
    if !input.is_empty() {
        prompt += &format!("### Input:\n{INDENT}{input}\n{separator}\n{INDENT}");
    }
    prompt + "### Response:\n" + INDENT
}

/// In testing without the space before the output: most tokenizers put it into the output's first token.
fn short(instruction: &str, input: &str, phase: Phase) -> String {
    let parts: Vec<&str> = [instruction, input].into_iter().filter(|part| !part.is_empty()).collect();
    let end = if phase == Phase::Train && !parts.is_empty() { " " } else { "" };
    parts.join(" ") + end
}

/// A template read from a file: text with `{instruction}`, perhaps `{input}`, and `{output}` at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTemplate {
    name: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Instruction,
    Input,
}

impl FileTemplate {
    /// Parses a template's text; `name` is for messages. Line ends behind `{output}` are the editor's and are
    /// dropped; other words in braces stay as they are.
    ///
    /// # Errors
    /// `{output}` is missing, comes twice or is not last; `{instruction}` is missing.
    pub fn parse(name: &str, text: &str) -> Result<Self, DataError> {
        let wrong = |reason: &str| DataError::Template { name: name.to_owned(), reason: reason.to_owned() };
        let (prompt, rest) = text.split_once("{output}").ok_or_else(|| wrong("it has no {output}"))?;
        if rest.contains("{output}") {
            return Err(wrong("it has {output} more than once"));
        }
        if !rest.trim_matches(['\r', '\n']).is_empty() {
            return Err(wrong("something follows {output}"));
        }
        let mut parts = Vec::new();
        let mut rest = prompt;
        loop {
            let placeholders = [("{instruction}", Part::Instruction), ("{input}", Part::Input)];
            let found = placeholders.into_iter().filter_map(|(key, part)| Some((rest.split_once(key)?, part)));
            let Some(((before, after), part)) = found.min_by_key(|((before, _), _)| before.len()) else { break };
            parts.push(Part::Literal(before.to_owned()));
            parts.push(part);
            rest = after;
        }
        parts.push(Part::Literal(rest.to_owned()));
        if !parts.contains(&Part::Instruction) {
            return Err(wrong("it has no {instruction}"));
        }
        Ok(Self { name: name.to_owned(), parts })
    }

    fn prompt(&self, instruction: &str, input: &str) -> Result<String, DataError> {
        // An input that silently vanished would change the task.
        if !input.is_empty() && !self.parts.contains(&Part::Input) {
            return Err(DataError::NoPlaceForInput { name: self.name.clone() });
        }
        let text = |part: &Part| match part {
            Part::Literal(text) => text.clone(),
            Part::Instruction => instruction.to_owned(),
            Part::Input => input.to_owned(),
        };
        Ok(self.parts.iter().map(text).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::instruction;

    fn render(template: &Template, record: &Record, phase: Phase) -> (String, String) {
        let rendered = template.render(record, phase, None).unwrap();
        let (prompt, output) = rendered.text.split_at(rendered.response_start().unwrap());
        let response = prompt.len()..rendered.text.len();
        assert_eq!(rendered.responses, [response]);
        assert!(rendered.add_special);
        (prompt.to_owned(), output.to_owned())
    }

    #[test]
    fn alpaca_to_the_letter() {
        let plain = "Below is an instruction that describes a task. Write a response that appropriately completes \
                     the request.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:\n";
        let (prompt, output) = render(&Template::Alpaca, &instruction("Add 1 and 2.", "", "3"), Phase::Train);
        assert_eq!((prompt.as_str(), output.as_str()), (plain, "3"));
        let (prompt, output) = render(&Template::Alpaca, &instruction("Add 1 and 2.", "", "3"), Phase::Test);
        assert_eq!((prompt.as_str(), output.as_str()), (plain, ""));
        let (prompt, _) = render(&Template::Alpaca, &instruction("Add.", "1 2", "3"), Phase::Train);
        assert_eq!(
            prompt,
            "Below is an instruction that describes a task, paired with an input that provides further context. Write \
             a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n\
             ### Response:\n"
        );
    }

    #[test]
    fn released_keeps_the_indentation_of_the_scripts() {
        let record = instruction("Add\n1 and 2.", "", "3");
        let (prompt, output) = render(&Template::Released, &record, Phase::Train);
        let s = " ".repeat(16);
        let preamble = "Below is an instruction that describes a task. Write a response that appropriately completes \
                        the request.";
        assert_eq!(
            prompt,
            format!("{preamble}  \n\n{s}### Instruction:\n{s}Add\n1 and 2.\n{s}\n{s}### Response:\n{s}")
        );
        assert_eq!(output, "3");
        let (prompt, output) = render(&Template::Released, &record, Phase::Test);
        assert_eq!(prompt, format!("{preamble} \n\n{s}### Instruction:\n{s}Add\n1 and 2.\n\n{s}### Response:\n{s}"));
        assert_eq!(output, "");
    }

    #[test]
    fn released_with_an_input() {
        let record = instruction("Add.", "1 2", "3");
        let s = " ".repeat(16);
        let (prompt, _) = render(&Template::Released, &record, Phase::Train);
        assert!(prompt.ends_with(&format!(
            "context. Write a response that appropriately completes the request. \n\n\
             {s}### Instruction:\n{s}Add.\n{s}\n{s}### Input:\n{s}1 2\n{s}\n{s}### Response:\n{s}"
        )));
        let (prompt, _) = render(&Template::Released, &record, Phase::Test);
        assert!(prompt.ends_with(&format!(
            "completes the request.\n\n{s}### Instruction:\n{s}Add.\n\n{s}### Input:\n{s}1 2\n\n{s}### Response:\n{s}"
        )));
    }

    #[test]
    fn short_puts_single_spaces() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            render(&Template::Short, &instruction("how many ?", "", "4"), Phase::Train),
            pair("how many ? ", "4")
        );
        assert_eq!(render(&Template::Short, &instruction("sum", "1 2", "3"), Phase::Train), pair("sum 1 2 ", "3"));
        assert_eq!(render(&Template::Short, &instruction("sum", "1 2", "3"), Phase::Test), pair("sum 1 2", ""));
    }

    #[test]
    fn a_file_is_filled_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.txt");
        std::fs::write(&path, "Q{n}: {instruction} [{input}] {instruction}\nA: {output}\n").unwrap();
        let template = Template::parse(path.to_str().unwrap()).unwrap();
        let (prompt, output) = render(&template, &instruction("is {input} {output}?", "x", "y"), Phase::Train);
        assert_eq!(prompt, "Q{n}: is {input} {output}? [x] is {input} {output}?\nA: ");
        assert_eq!(output, "y");
        assert_eq!(render(&template, &instruction("q", "", "y"), Phase::Test).0, "Q{n}: q [] q\nA: ");
    }

    #[test]
    fn wrong_templates_are_refused() {
        let reason = |text: &str| FileTemplate::parse("t.txt", text).unwrap_err().to_string();
        let remedy = "; give alpaca, released, short, or a text file with {instruction}, {input} if inputs occur, and \
                      {output} once, at the end";
        assert_eq!(reason("{instruction}"), format!("template \"t.txt\": it has no {{output}}{remedy}"));
        assert_eq!(reason("{output}"), format!("template \"t.txt\": it has no {{instruction}}{remedy}"));
        assert!(reason("{instruction}{output}{output}").contains("it has {output} more than once"));
        assert!(reason("{instruction}{output} end").contains("something follows {output}"));
        assert!(reason("{output} {instruction}").contains("something follows {output}"));
        let error = Template::parse("alpaka").unwrap_err().to_string();
        assert!(error.starts_with("template \"alpaka\": alpaka: cannot be read: "), "{error}");
        let file = Template::File(FileTemplate::parse("t.txt", "{instruction} {output}").unwrap());
        let error = file.render(&instruction("a", "b", "c"), Phase::Train, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "the record has an input, but template \"t.txt\" has no {input}; add it, or use --template alpaca"
        );
    }

    #[test]
    fn plain_text_has_no_response_and_chats_need_a_chat_template() {
        let rendered = Template::Alpaca.render(&Record::Text { text: "hi".into() }, Phase::Train, None).unwrap();
        assert_eq!((rendered.text.as_str(), rendered.response_start()), ("hi", None));
        let error = Template::Alpaca.render(&Record::Chat { messages: vec![] }, Phase::Train, None).unwrap_err();
        assert!(error.to_string().starts_with("messages need the tokenizer's chat template and it has none; add"));
    }
}
