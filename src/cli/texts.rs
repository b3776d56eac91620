//! The texts of a command line as a model reads them.

use crate::analysis::texts::FileTexts;
use crate::data::{ChatTemplate, Content, Span, Template, TextOptions, Tokenize};
use crate::model::LoadedModel;
use anyhow::Result;
use std::path::Path;

/// Whole texts of a file, cut to the model's context and to `longest` tokens: what `template` makes of a record, or
/// the `field` of a row.
///
/// # Errors
/// A template is unknown or broken.
pub(super) fn file_texts<'m>(
    model: &'m LoadedModel,
    path: &Path,
    template: Option<&str>,
    field: Option<&str>,
    longest: Option<usize>,
) -> Result<FileTexts<'m>> {
    let tokenizer: &dyn Tokenize = &model.tokenizer;
    let content = match template {
        Some(template) => Content::Record(Template::parse(template)?),
        None => Content::Field(field.map(str::to_owned)),
    };
    let chat = tokenizer.chat_template().map(|_| ChatTemplate::of(tokenizer)).transpose()?;
    let context = model.transformer.architecture().max_positions;
    Ok(FileTexts {
        path: path.to_owned(),
        options: TextOptions { content, group_by: None, chat },
        span: Span::All,
        longest: longest.map_or(context, |n| n.min(context)),
        exact: None,
        limit: None,
        tokenizer,
    })
}
