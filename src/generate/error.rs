//! Why a text cannot be continued.

use crate::model::ModelError;
use crate::model::tokenizer::TokenizerError;

/// Why a text cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer cannot write the tokens as text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A value that means nothing.
    #[error("{name} is {value}; it must be {range}")]
    OutOfRange {
        /// What it is.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        range: &'static str,
    },
    /// An encoder predicts no next token.
    #[error("a {family} model sees the whole text and predicts no next token; generate with a decoder")]
    SeesAll {
        /// The family.
        family: &'static str,
    },
    /// A model that tells classes apart writes no text.
    #[error("this {family} model tells {classes} classes apart and writes no text")]
    Classifies {
        /// The family.
        family: &'static str,
        /// The classes.
        classes: usize,
    },
    /// A prompt without tokens.
    #[error("prompt {prompt} has no tokens; a model continues at least one")]
    NoTokens {
        /// The prompt, counted from 1.
        prompt: usize,
    },
    /// A prompt that leaves no learned position for a new token.
    #[error("prompt {prompt} has {tokens} tokens and the model {positions} learned positions; shorten it")]
    TooLong {
        /// The prompt, counted from 1.
        prompt: usize,
        /// Its tokens, virtual ones included.
        tokens: usize,
        /// What the table has.
        positions: usize,
    },
    /// Stop texts without a tokenizer.
    #[error("stop texts need a tokenizer that writes tokens as text")]
    NoTokenizer,
    /// A logit is not a number.
    #[error("prompt {prompt}: a logit is not finite; the weights are damaged or overflow their type")]
    NotFinite {
        /// The prompt, counted from 1.
        prompt: usize,
    },
    /// The listener wants no more.
    #[error("{0}")]
    Listener(String),
}
