//! The prompts of a command line as tokens.

use super::GenerateArgs;
use crate::data::{ChatTemplate, Content, Phase, ProbeText, Record, Template, TextOptions, TextSource, encode_prompt};
use crate::generate::Prompt;
use crate::model::tokenizer::TextTokenizer;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A prompt as it is written and as the model reads it.
#[derive(Debug)]
pub(super) struct Asked {
    /// The text, as a template rendered it.
    pub(super) text: String,
    pub(super) prompt: Prompt,
}

pub(super) fn read(args: &GenerateArgs, tokenizer: &TextTokenizer) -> Result<Vec<Asked>> {
    let template = args.template.as_deref().map(Template::parse).transpose()?;
    let texts = match (&args.prompts, &args.prompt) {
        (Some(path), _) => from_file(args, path, template, tokenizer)?,
        (None, text) => {
            let text = text.clone().context("--prompt is missing")?;
            let (text, add_special) = match template {
                None => (text, true),
                Some(template) => {
                    let record = Record::Instruction { instruction: text, input: String::new(), output: String::new() };
                    let rendered = template.render(&record, Phase::Test, None)?;
                    (rendered.text, rendered.add_special)
                }
            };
            vec![(text, add_special)]
        }
    };
    let asked = |(number, (text, add_special)): (usize, (String, bool))| {
        let ids = encode_prompt(&text, add_special, tokenizer)?;
        Ok(Asked { text, prompt: Prompt { ids, number: number as u64 } })
    };
    texts.into_iter().enumerate().map(asked).collect()
}

/// The texts of a file, and whether special tokens go around each.
fn from_file(
    args: &GenerateArgs,
    path: &Path,
    template: Option<Template>,
    tokenizer: &TextTokenizer,
) -> Result<Vec<(String, bool)>> {
    let content = match template {
        Some(template) => Content::Prompt(template),
        None => Content::Field(args.field.clone()),
    };
    let chat = tokenizer.chat_template().map(|_| ChatTemplate::of(tokenizer)).transpose()?;
    let source = TextSource::open(path, TextOptions { content, group_by: None, chat })?;
    let text = |row: Result<ProbeText, _>| {
        let ProbeText { index, text, pair, add_special, .. } = row?;
        ensure!(
            pair.is_none(),
            "{}: row {} is a pair of texts; name the prompt's key by --field",
            path.display(),
            index + 1
        );
        Ok((text, add_special))
    };
    source.take(args.limit.unwrap_or(usize::MAX)).map(text).collect()
}
