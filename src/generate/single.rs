//! One continuation of a prompt, token by token.

use super::chances::{draw, largest, normaliser};
use super::ending::Ending;
use super::text::Text;
use super::{Finish, GenerateError, Generated, Strategy};

/// A prompt that is continued greedily or by draws.
#[derive(Debug)]
pub(super) struct Single {
    pub(super) text: Text,
    /// Names its draws.
    pub(super) number: u64,
    log_probability: f64,
    finish: Option<Finish>,
}

impl Single {
    pub(super) fn new(text: Text, number: u64) -> Self {
        Self { text, number, log_probability: 0.0, finish: None }
    }

    /// Adds the token that the logits behind the text choose, and answers it; `None` if a logit is not a number.
    pub(super) fn advance(&mut self, logits: &[f64], ending: &Ending<'_>) -> Result<Option<u32>, GenerateError> {
        let place = self.text.new_ids().len();
        let chosen = match &ending.decoding.strategy {
            Strategy::Sample(sampling) => draw(logits, sampling, self.number, place),
            Strategy::Greedy | Strategy::Beams(_) => largest(logits),
        };
        let chance = |id: usize| Some(logits.get(id)? - normaliser(logits)?);
        let Some((id, log_probability)) = chosen.and_then(|id| Some((id, chance(id)?))) else { return Ok(None) };
        self.log_probability += log_probability;
        self.text.ids.push(id as u32);
        self.finish = ending.of(self.text.new_ids())?;
        Ok(Some(id as u32))
    }

    /// The text, if it has ended.
    pub(super) fn generated(&self) -> Option<Generated> {
        let ids = self.text.new_ids().to_vec();
        Some(Generated { ids, log_probability: self.log_probability, finish: self.finish? })
    }
}
