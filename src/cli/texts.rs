//! The texts or images of a command line as a model reads them.

use super::open;
use crate::analysis::similarity::EncodedText;
use crate::analysis::texts::{FileTexts, Inputs};
use crate::analysis::token_text::TokenTexts;
use crate::data::{ChatTemplate, Content, Span, Template, TextOptions, image_files};
use crate::hash;
use crate::model::{LoadedModel, Processor};
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// Whole texts of a file, cut to the model's context and to `longest` tokens: what `template` makes of a record, or
/// the `field` of a row. For a model that reads images, those of a folder.
///
/// # Errors
/// A template is unknown or broken; the model reads the other kind.
pub(super) fn file_texts<'m>(
    model: &'m LoadedModel,
    path: &Path,
    template: Option<&str>,
    field: Option<&str>,
    longest: Option<usize>,
) -> Result<FileTexts<'m>> {
    let family = model.transformer.architecture().family;
    let content = match template {
        Some(template) => Content::Record(Template::parse(template)?),
        None => Content::Field(field.map(str::to_owned)),
    };
    let (inputs, chat) = match &*model.processor {
        Processor::Texts(tokenizer) => {
            ensure!(!path.is_dir(), "{}: is a folder, and a {family} model reads a file of texts", path.display());
            (
                Inputs::Texts(tokenizer.as_ref()),
                tokenizer.chat_template().map(|_| ChatTemplate::of(tokenizer.as_ref())).transpose()?,
            )
        }
        Processor::Images(processor) => {
            ensure!(path.is_dir(), "{}: is no folder, and a {family} model reads a folder of images", path.display());
            let given =
                [("--template", template.is_some()), ("--field", field.is_some()), ("--max-tokens", longest.is_some())];
            refuse_for_images(family, &given)?;
            (Inputs::Images(processor), None)
        }
    };
    let context = model.transformer.architecture().max_positions;
    Ok(FileTexts {
        path: path.to_owned(),
        options: TextOptions { content, group_by: None, chat },
        span: Span::All,
        longest: longest.map_or(context, |n| n.min(context)),
        exact: None,
        limit: None,
        inputs,
    })
}

/// SHA-256 of a file, or of all images of a folder.
pub(super) fn sha256(path: &Path) -> Result<String> {
    let unreadable = || open::unreadable(path);
    if !path.is_dir() {
        return hash::sha256_file(path).with_context(unreadable);
    }
    let files = image_files(path)?;
    hash::sha256_files(files.iter().map(|file| file.path.as_path())).with_context(unreadable)
}

/// Refuses the options, by name and whether they were given, that say something of texts alone.
pub(super) fn refuse_for_images(family: &str, options: &[(&str, bool)]) -> Result<()> {
    for (option, given) in options {
        ensure!(!given, "{option} is for texts, and a {family} model reads images: leave it out");
    }
    Ok(())
}

/// Says what each token of a text or image is called.
pub(super) type TokenNames<'m> = Box<dyn FnMut(&EncodedText) -> Vec<String> + 'm>;

/// What the tokens of a model's texts or images are called.
pub(super) fn token_names(model: &LoadedModel) -> TokenNames<'_> {
    match &*model.processor {
        Processor::Texts(tokenizer) => {
            let mut decoder = TokenTexts::new(tokenizer);
            Box::new(move |text| text.ids.iter().map(|&id| decoder.text(id)).collect())
        }
        Processor::Images(processor) => {
            Box::new(|image| image.ids.iter().map(|&id| processor.grid().label(id)).collect())
        }
    }
}
