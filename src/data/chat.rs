//! Chats through the tokenizer's own Jinja template, as transformers' `apply_chat_template` renders them.

use super::{DataError, Message, Phase, Rendered, Tokenize};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use std::ops::Range;

const NAME: &str = "chat";

/// A tokenizer's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The chat template of a tokenizer.
    ///
    /// # Errors
    /// It has none, or one that does not parse.
    pub fn of(tokenizer: &dyn Tokenize) -> Result<Self, DataError> {
        let source = tokenizer.chat_template().ok_or(DataError::NoChatTemplate)?;
        let special = |name| tokenizer.special_token_text(name).unwrap_or_default();
        Self::new(source, special("bos_token"), special("eos_token"))
    }

    /// A template from its Jinja source and the texts of the special tokens that it may name.
    ///
    /// # Errors
    /// The source does not parse.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(|_, value, name, args| python_method(value, name, args));
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source).map_err(|e| wrong(&e))?;
        Ok(Self { environment, bos, eos })
    }

    /// The messages as text; with `add_generation_prompt` the template opens the assistant's next turn.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        let template = self.environment.get_template(NAME).map_err(|e| wrong(&e))?;
        let (bos_token, eos_token) = (&self.bos, &self.eos);
        template.render(context! { messages, add_generation_prompt, bos_token, eos_token }).map_err(|e| wrong(&e))
    }

    /// A whole chat with the ranges of the assistant's turns, or for [`Phase::Test`] the chat up to where the
    /// assistant's last turn begins.
    ///
    /// A turn's range is all that it adds behind the generation prompt: its content and the template's end of
    /// turn, which the model must learn in order to stop.
    ///
    /// # Errors
    /// The template refuses the messages, or shows an assistant's turn differently once others follow.
    pub(super) fn rendered(&self, messages: &[Message], phase: Phase) -> Result<Rendered, DataError> {
        if phase == Phase::Test {
            let asked = match messages.split_last() {
                Some((last, before)) if is_assistant(last) => before,
                _ => messages,
            };
            let text = self.render(asked, true)?;
            let response = text.len()..text.len();
            return Ok(Rendered { text, responses: vec![response], add_special: false });
        }
        let text = self.render(messages, false)?;
        let mut responses = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if is_assistant(message) {
                let (before, rest) = messages.split_at(index);
                let range = self.turn(&text, before, rest).ok_or_else(|| DataError::ChatTemplate {
                    reason: format!("it gives no place to the assistant's content of message {}", index + 1),
                })?;
                responses.push(range);
            }
        }
        Ok(Rendered { text, responses, add_special: false })
    }

    /// Where the first message of `rest` stands in `text`, the rendering of `before` and `rest`.
    fn turn(&self, text: &str, before: &[Message], rest: &[Message]) -> Option<Range<usize>> {
        let message = rest.first()?;
        let upto: Vec<Message> = before.iter().chain([message]).cloned().collect();
        let prompt = self.render(before, true).ok()?;
        let turn = self.render(&upto, false).ok();
        if let Some(turn) = turn
            && text.starts_with(&turn)
            && turn.starts_with(&prompt)
        {
            return Some(prompt.len()..turn.len());
        }
        // Templates that open a turn otherwise than they write it (a thinking block, say): the content alone,
        // looked for from where the two part, so that neither the role's name nor an earlier turn is taken for it.
        let common = prompt.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        let content = message.content.trim();
        let start = common + text.get(common..)?.find(content)?;
        Some(start..start + content.len())
    }
}

fn is_assistant(message: &Message) -> bool {
    message.role == "assistant"
}

fn wrong(error: &Error) -> DataError {
    let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned).replace('\n', " ");
    let line = error.line().map(|line| format!(" (its line {line})")).unwrap_or_default();
    DataError::ChatTemplate { reason: format!("{reason}{line}") }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps` as transformers calls it: a space behind `,` and `:`, nothing escaped for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = vec![b' '; width];
            let format = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormat)),
    };
    let failed = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"));
    written.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(out).map(Value::from).map_err(|e| failed(e.to_string()))
}

struct PythonFormat;

impl serde_json::ser::Formatter for PythonFormat {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The methods of Python's strings and dictionaries that chat templates call.
fn python_method(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let argument = |index: usize| args.get(index).and_then(Value::as_str);
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("the method {name} is not known here"));
    if let Some(text) = value.as_str() {
        let strips = |c: char| argument(0).map_or(c.is_whitespace(), |set| set.contains(c));
        return Ok(match (name, argument(0), argument(1)) {
            ("strip", ..) => text.trim_matches(strips).into(),
            ("lstrip", ..) => text.trim_start_matches(strips).into(),
            ("rstrip", ..) => text.trim_end_matches(strips).into(),
            ("startswith", Some(prefix), _) => text.starts_with(prefix).into(),
            ("endswith", Some(suffix), _) => text.ends_with(suffix).into(),
            ("split", Some(separator), _) if args.len() == 1 && !separator.is_empty() => {
                text.split(separator).collect()
            }
            ("split", None, _) if args.is_empty() => text.split_whitespace().collect(),
            ("replace", Some(from), Some(to)) => text.replace(from, to).into(),
            ("upper", ..) => text.to_uppercase().into(),
            ("lower", ..) => text.to_lowercase().into(),
            _ => return Err(unknown()),
        });
    }
    if value.kind() == ValueKind::Map {
        let pairs = || -> Result<Vec<(Value, Value)>, Error> {
            value.try_iter()?.map(|key| Ok((key.clone(), value.get_item(&key)?))).collect()
        };
        return Ok(match (name, args.first()) {
            ("get", Some(key)) => {
                let found = value.get_item(key)?;
                let default = || args.get(1).cloned().unwrap_or_else(|| Value::from(()));
                if found.is_undefined() { default() } else { found }
            }
            ("items", None) => pairs()?.into_iter().map(|(key, item)| Value::from(vec![key, item])).collect(),
            ("keys", None) => pairs()?.into_iter().map(|(key, _)| key).collect(),
            ("values", None) => pairs()?.into_iter().map(|(_, item)| item).collect(),
            _ => return Err(unknown()),
        });
    }
    Err(unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::Words;

    /// ChatML as SmolLM2-Instruct has it, default system prompt included.
    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
        message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\n' }}{% endif %}";
    /// Llama 2's form: blocks on lines of their own, Python methods, BOS and EOS, a check of the roles.
    const LLAMA2: &str = "{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
    {% elif message.get('role') == 'assistant' %}
        {{- ' '  + message['content'].strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}";

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message { role: (*role).into(), content: (*content).into() }).collect()
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::of(&Words { template: Some(source.into()), ..Words::default() }).unwrap()
    }

    fn turns(rendered: &Rendered) -> Vec<&str> {
        rendered.responses.iter().map(|range| &rendered.text[range.clone()]).collect()
    }

    #[test]
    fn chatml_with_the_assistants_turns() {
        let chat = messages(&[("user", "one?"), ("assistant", "1"), ("user", "1"), ("assistant", "ok")]);
        let rendered = template(CHATML).rendered(&chat, Phase::Train).unwrap();
        assert_eq!(
            rendered.text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1\
             <|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n"
        );
        assert_eq!(turns(&rendered), ["1<|im_end|>\n", "ok<|im_end|>\n"]);
        assert_eq!(rendered.response_start(), rendered.text.find("1<|im_end|>"));
        assert!(!rendered.add_special);
        let prompt = template(CHATML).rendered(&chat, Phase::Test).unwrap();
        assert!(prompt.text.ends_with("<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"));
        let end = prompt.text.len()..prompt.text.len();
        assert_eq!(prompt.responses, [end]);
    }

    #[test]
    fn llama2_with_blocks_methods_and_special_tokens() {
        let chat = messages(&[("user", " hi "), ("assistant", "yo"), ("user", "bye"), ("assistant", "so long ")]);
        let rendered = template(LLAMA2).rendered(&chat, Phase::Train).unwrap();
        assert_eq!(rendered.text, "<s>[INST] hi [/INST]\n yo </s>\n<s>[INST] bye [/INST]\n so long </s>\n");
        assert_eq!(turns(&rendered), [" yo </s>\n", " so long </s>\n"]);
        let error = template(LLAMA2).rendered(&messages(&[("assistant", "x")]), Phase::Train).unwrap_err().to_string();
        assert_eq!(
            error,
            "the tokenizer's chat template: Conversation roles must alternate user/assistant/user/assistant/... (its \
             line 3); correct the messages or the chat_template in tokenizer_config.json"
        );
    }

    #[test]
    fn a_turn_that_the_generation_prompt_opens_otherwise_is_found_by_its_content() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}\
                      {% if add_generation_prompt %}[assistant]<think>{% endif %}";
        let chat = messages(&[("user", "a"), ("assistant", "a")]);
        let rendered = template(source).rendered(&chat, Phase::Train).unwrap();
        assert_eq!(rendered.text, "[user]a;[assistant]a;");
        assert_eq!(turns(&rendered), ["a"]);
        assert_eq!(rendered.response_start(), Some(19));
        let shout =
            "{% for m in messages %}{{ m.content | upper }};{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        let error = template(shout).rendered(&chat, Phase::Train).unwrap_err().to_string();
        assert!(error.contains("it gives no place to the assistant's content of message 2; correct"), "{error}");
    }

    #[test]
    fn tojson_and_methods_are_pythons() {
        let render = |source: &str| template(source).render(&messages(&[("user", "<a> & 'b'")]), false).unwrap();
        assert_eq!(render("{{ messages[0] | tojson }}"), r#"{"role": "user", "content": "<a> & 'b'"}"#);
        assert_eq!(render("{{ [1, 2] | tojson }}"), "[1, 2]");
        assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
        assert_eq!(render("{{ 'x</t>\n y'.split('</t>')[-1].lstrip('\n') }}"), " y");
        assert_eq!(render("{{ 'aXb'.upper().replace('X', '-').startswith('A-') }}"), "True");
        assert_eq!(render("{{ messages[0].get('name', 'none') }} {{ messages[0].get('name') is none }}"), "none True");
        assert_eq!(
            render("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"),
            "role=user;content=<a> & 'b';"
        );
    }

    #[test]
    fn wrong_templates_name_their_line() {
        let error =
            |source: &str| ChatTemplate::new(source.into(), String::new(), String::new()).unwrap_err().to_string();
        let broken = error("{{ a }}\n{% if %}");
        assert!(broken.starts_with("the tokenizer's chat template: ") && broken.contains("(its line 2)"), "{broken}");
        let unknown = template("{{ 'a'.swapcase() }}").render(&[], false).unwrap_err().to_string();
        assert!(unknown.contains("the method swapcase is not known here (its line 1)"), "{unknown}");
        let none = ChatTemplate::of(&Words::default()).unwrap_err().to_string();
        assert!(none.starts_with("messages need the tokenizer's chat template and it has none"), "{none}");
    }
}
