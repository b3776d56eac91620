//! How a text is continued, and what came of it.

use super::GenerateError;
use crate::model::tokenizer::TextTokenizer;

/// How the next tokens are chosen, and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoding {
    /// New tokens at most, the one that ends included.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Texts behind which nothing more is wanted; looked for in what is written, not in the prompt. They need a tokenizer.
    pub stop: Vec<String>,
    /// Tokens that end a text; empty: only [`Self::stop`] and [`Self::max_new_tokens`] do.
    pub end: Vec<u32>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// The token with the largest logit; of equal ones that with the lowest id.
    Greedy,
    /// A token drawn by its probability.
    Sample(Sampling),
    /// The best of several continuations that are followed at once, as transformers 5 does it.
    Beams(Beams),
}

/// How tokens are drawn: logits over temperature, then the `top_k` largest, then the fewest that reach `top_p` together,
/// in transformers' order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; greater than 0.
    pub temperature: f64,
    /// Only so many of the largest logits, and what equals the smallest of them; `None`: all.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together reach this probability, in (0, 1]; 1: all.
    pub top_p: f64,
    /// The seed; a draw is a function of it, of [`Prompt::number`] and of the token's place behind the prompt.
    pub seed: u64,
}

/// A beam search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beams {
    /// Continuations that are followed; 1 is [`Strategy::Greedy`].
    pub beams: usize,
    /// A finished text counts `log p / tokens^length_penalty`: above 0 longer texts gain.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
}

/// When a beam search ends, beside at the last new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// When the best running text, were it to end at its present length, is no better than the worst finished one
    /// (transformers' `False`).
    #[default]
    No,
    /// As soon as there are as many finished texts as beams (`True`).
    Yes,
    /// When no running text can become better than the worst finished one (`"never"`).
    Never,
}

/// A text to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens, at least one.
    pub ids: Vec<u32>,
    /// Names its random numbers: its place in a file, say. Prompts of the same number, tokens and seed become the same text.
    pub number: u64,
}

/// What a prompt became.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new tokens, with the one that ended the text if one did.
    pub ids: Vec<u32>,
    /// `Σ ln p` of the new tokens under the model, in nats; without temperature, `top_k`, `top_p` or a length penalty.
    pub log_probability: f64,
    /// Why it ends.
    pub finish: Finish,
}

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By a token of [`Decoding::end`].
    End,
    /// By a text of [`Decoding::stop`].
    Stop,
    /// After [`Decoding::max_new_tokens`], or where the model's learned positions end.
    Length,
}

impl Generated {
    /// The new tokens without the one that ended the text.
    #[must_use]
    pub fn text_ids(&self) -> &[u32] {
        match self.ids.split_last() {
            Some((_, before)) if self.finish == Finish::End => before,
            _ => &self.ids,
        }
    }
}

impl Generated {
    /// The new text, without special tokens; up to the first of the stop texts where one ended it.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn text(&self, tokenizer: &TextTokenizer, decoding: &Decoding) -> Result<String, GenerateError> {
        let mut text = tokenizer.decode(self.text_ids(), true)?;
        if self.finish == Finish::Stop
            && let Some(end) = decoding.stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
        {
            text.truncate(end);
        }
        Ok(text)
    }
}

impl Decoding {
    /// Greedy decoding of so many tokens at most, which nothing else ends.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, strategy: Strategy::Greedy, stop: Vec::new(), end: Vec::new() }
    }

    /// How many continuations of a prompt are followed at once.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.strategy {
            Strategy::Greedy | Strategy::Sample(_) => 1,
            Strategy::Beams(Beams { beams, .. }) => beams,
        }
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<(), GenerateError> {
        let out_of_range = |name: &'static str, value: String, range: &'static str| {
            Err(GenerateError::OutOfRange { name, value, range })
        };
        if self.max_new_tokens == 0 {
            return out_of_range("the number of new tokens", "0".to_owned(), "at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return out_of_range("a stop text", "empty".to_owned(), "at least one character");
        }
        match self.strategy {
            Strategy::Greedy => Ok(()),
            Strategy::Sample(Sampling { temperature, .. }) if !temperature.is_finite() || temperature <= 0.0 => {
                out_of_range("temperature", temperature.to_string(), "greater than 0; use greedy decoding instead of 0")
            }
            Strategy::Sample(Sampling { top_k: Some(0), .. }) => {
                out_of_range("top-k", "0".to_owned(), "at least 1; leave it out for all tokens")
            }
            Strategy::Sample(Sampling { top_p, .. }) if !(top_p > 0.0 && top_p <= 1.0) => {
                out_of_range("top-p", top_p.to_string(), "in (0, 1]")
            }
            Strategy::Sample(_) => Ok(()),
            Strategy::Beams(Beams { beams, .. }) if !(1..=MOST_BEAMS).contains(&beams) => {
                out_of_range("the number of beams", beams.to_string(), "from 1 to 64")
            }
            Strategy::Beams(Beams { length_penalty, .. }) if !length_penalty.is_finite() => {
                out_of_range("the length penalty", length_penalty.to_string(), "a finite number")
            }
            Strategy::Beams(_) => Ok(()),
        }
    }
}

/// More beams than this are no search.
const MOST_BEAMS: usize = 64;
