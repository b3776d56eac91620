//! Where a text ends.

use super::{Decoding, Finish, GenerateError};
use crate::model::tokenizer::TextTokenizer;

/// What ends the texts of one prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending<'a> {
    pub(super) decoding: &'a Decoding,
    pub(super) tokenizer: Option<&'a TextTokenizer>,
    /// New tokens at most.
    pub(super) most: usize,
}

impl Ending<'_> {
    /// Why the text with these new tokens ends here, if it does.
    pub(super) fn of(&self, new_ids: &[u32]) -> Result<Option<Finish>, GenerateError> {
        if new_ids.last().is_some_and(|id| self.decoding.end.contains(id)) {
            return Ok(Some(Finish::End));
        }
        if !self.decoding.stop.is_empty() {
            let text = self.tokenizer.ok_or(GenerateError::NoTokenizer)?.decode(new_ids, true)?;
            if self.decoding.stop.iter().any(|stop| text.contains(stop)) {
                return Ok(Some(Finish::Stop));
            }
        }
        Ok((new_ids.len() >= self.most).then_some(Finish::Length))
    }
}
