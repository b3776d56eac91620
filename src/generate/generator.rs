//! Many prompts at once.

use super::beams::BeamSearch;
use super::ending::Ending;
use super::single::Single;
use super::text::{Reader, Text};
use super::{Decoding, GenerateError, Generated, Prompt, Strategy};
use crate::model::tokenizer::TextTokenizer;
use crate::model::{Positions, Transformer};
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
        if !decoding.stop.is_empty() && self.tokenizer.is_none() {
            return Err(GenerateError::NoTokenizer);
        }
        // On a thread of the pool: one that stands outside would sleep and be woken for every product.
        rayon::scope(|_| self.run(prompts, decoding, listener))
    }

    fn run(
        &self,
        prompts: &[Prompt],
        decoding: &Decoding,
        listener: &mut dyn Listener,
    ) -> Result<Vec<Generated>, GenerateError> {
        let peft = self.peft.as_ref();
        let cached = self.cached && peft.is_none_or(Peft::reads_on);
        let reader = Reader { model: self.model, peft, cached };
        let mut waiting = prompts.iter().enumerate();
        let mut in_work: Vec<Work<'_>> = Vec::new();
        let mut all: Vec<Option<Generated>> = vec![None; prompts.len()];
        loop {
            while in_work.len() < self.at_once
                && let Some((place, prompt)) = waiting.next()
            {
                let most = self.room(place, prompt, decoding)?;
                let ending = Ending { decoding, tokenizer: self.tokenizer, most };
                let (text, logits) = reader.begin(&prompt.ids)?;
                let search = match decoding.strategy {
                    Strategy::Beams(beams) if beams.beams > 1 => Search::Many(BeamSearch::new(text, beams)),
                    _ => Search::One(Single::new(text, prompt.number)),
                };
                let mut work = Work { place, search, ending };
                // Beams begin alike.
                work.advance(&vec![logits.as_slice(); decoding.width()], listener)?;
                in_work.push(work);
            }
            let mut going_on = Vec::with_capacity(in_work.len());
            for work in in_work {
                match work.search.generated() {
                    None => going_on.push(work),
                    Some(generated) => {
                        listener.done(work.place, &generated)?;
                        if let Some(slot) = all.get_mut(work.place) {
                            *slot = Some(generated);
                        }
                    }
                }
            }
            in_work = going_on;
            if in_work.is_empty() && waiting.len() == 0 {
                return Ok(all.into_iter().flatten().collect());
            }
            let mut texts: Vec<&mut Text> = in_work.iter_mut().flat_map(|work| work.search.texts()).collect();
            let logits = reader.next(&mut texts)?;
            let mut rest = logits.iter().map(Vec::as_slice);
            for work in &mut in_work {
                let own: Vec<&[f64]> = rest.by_ref().take(decoding.width()).collect();
                work.advance(&own, listener)?;
            }
        }
    }

    /// New tokens that a prompt has room for, at most.
    fn room(&self, place: usize, prompt: &Prompt, decoding: &Decoding) -> Result<usize, GenerateError> {
        if prompt.ids.is_empty() {
            return Err(GenerateError::NoTokens { prompt: place + 1 });
        }
        let architecture = self.model.architecture();
        if !matches!(architecture.positions, Positions::Learned { .. }) {
            return Ok(decoding.max_new_tokens);
        }
        let tokens = prompt.ids.len() + self.peft.as_ref().map_or(0, Peft::virtual_tokens);
        let positions = architecture.max_positions;
        // The last token is written and not read.
        match (positions + 1).checked_sub(tokens) {
            None | Some(0) => Err(GenerateError::TooLong { prompt: place + 1, tokens, positions }),
            Some(room) => Ok(room.min(decoding.max_new_tokens)),
        }
    }
}

/// A prompt that is being continued.
struct Work<'d> {
    /// Its place in the list.
    place: usize,
    search: Search,
    ending: Ending<'d>,
}

enum Search {
    One(Single),
    Many(BeamSearch),
}

impl Work<'_> {
    /// Goes on by one token, from the logits behind each of its texts.
    fn advance(&mut self, logits: &[&[f64]], listener: &mut dyn Listener) -> Result<(), GenerateError> {
        let not_finite = || GenerateError::NotFinite { prompt: self.place + 1 };
        match &mut self.search {
            Search::One(single) => {
                let logits = logits.first().copied().unwrap_or_default();
                let id = single.advance(logits, &self.ending)?.ok_or_else(not_finite)?;
                listener.token(self.place, id)
            }
            Search::Many(beams) => match beams.advance(logits, &self.ending)? {
                true => Ok(()),
                false => Err(not_finite()),
            },
        }
    }
}

impl Search {
    /// The texts whose next logits are wanted.
    fn texts(&mut self) -> Vec<&mut Text> {
        match self {
            Self::One(single) => vec![&mut single.text],
            Self::Many(beams) => beams.texts().collect(),
        }
    }

    fn generated(&self) -> Option<Generated> {
        match self {
            Self::One(single) => single.generated(),
            Self::Many(beams) => beams.generated(),
        }
    }
}
