//! What makes a model's tokens: of texts or of images.

use super::tokenizer::TextTokenizer;
use crate::data::ImageProcessor;

/// What makes a model's tokens.
#[derive(Debug)]
pub enum Processor {
    /// Of texts.
    Texts(Box<TextTokenizer>),
    /// Of images.
    Images(Box<ImageProcessor>),
}

impl Processor {
    /// SHA-256 of the file that it was read from.
    #[must_use]
    pub fn sha256(&self) -> &str {
        match self {
            Self::Texts(tokenizer) => tokenizer.sha256(),
            Self::Images(processor) => processor.sha256(),
        }
    }
}
