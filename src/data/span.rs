//! Which part of a text is measured, and how much of it there is.

use super::encode::{first_response_token, truncate};
use super::{DataError, Encoded, ProbeText};
use std::ops::Range;

/// Which part of a text is measured. The whole text goes through the model; the span chooses rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Span {
    /// All tokens before the response.
    Instruction,
    /// The response, to the end of the text.
    Response,
    /// Everything.
    All,
}

impl Span {
    /// The rows of the span among the tokens of `text`, as [`encode_text`](super::encode_text) gave them. A
    /// response that was cut off leaves an empty range.
    ///
    /// # Errors
    /// A part is wanted of a text that has no response.
    pub fn rows(self, text: &ProbeText, encoded: &Encoded) -> Result<Range<usize>, DataError> {
        let n = encoded.ids.len();
        if self == Self::All {
            return Ok(0..n);
        }
        let start = text.response_start.ok_or_else(|| {
            let remedy = "use --span all, or give records with instruction and output, or messages";
            DataError::NoAnswer { what: "response to divide it at", remedy }.at(format!("text {}", text.index))
        })?;
        let first = first_response_token(encoded, &text.text, start).unwrap_or(n);
        Ok(if self == Self::Instruction { 0..first } else { first..n })
    }
}

/// Shortens a text to at most `max_tokens`, or to `exact` tokens; none if it has fewer than `exact`, so that all
/// texts that are left are equally long. What the tokenizer puts at the end, such as BERT's `[SEP]`, is kept.
#[must_use]
pub fn clip(mut encoded: Encoded, max_tokens: Option<usize>, exact: Option<usize>) -> Option<Encoded> {
    if let Some(max_tokens) = max_tokens {
        cut(&mut encoded, max_tokens);
    }
    if let Some(exact) = exact {
        if encoded.ids.len() < exact {
            return None;
        }
        cut(&mut encoded, exact);
    }
    Some(encoded)
}

/// Takes tokens out in front of the special ones that end the text until `length` are left.
fn cut(encoded: &mut Encoded, length: usize) {
    let n = encoded.ids.len();
    if n <= length {
        return;
    }
    let flags = encoded.special.iter().zip(&encoded.offsets).rev();
    let end = flags.take_while(|&(&special, &offset)| special && offset == (0, 0)).count();
    let Some(kept) = length.checked_sub(end) else { return truncate(encoded, length) };
    let gone = kept..n - end;
    encoded.ids.drain(gone.clone());
    encoded.special.drain(gone.clone());
    encoded.offsets.drain(gone.clone());
    if !encoded.types.is_empty() {
        encoded.types.drain(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_clipped_to_a_length() {
        let encoded = |n: u32| Encoded {
            ids: (0..n).collect(),
            special: vec![false; n as usize],
            offsets: vec![(0, 1); n as usize],
            ..Encoded::default()
        };
        assert_eq!(clip(encoded(5), None, None), Some(encoded(5)));
        assert_eq!(clip(encoded(5), Some(3), None), Some(encoded(3)));
        assert_eq!(clip(encoded(2), Some(3), None), Some(encoded(2)));
        assert_eq!(clip(encoded(5), None, Some(4)), Some(encoded(4)));
        assert_eq!(clip(encoded(3), None, Some(4)), None);
        assert_eq!(clip(encoded(4), None, Some(4)), Some(encoded(4)));
        // The end that the tokenizer put there stays, a special token of the text's own does not.
        let ended = |ids: &[u32], types: &[u32]| Encoded {
            ids: ids.to_vec(),
            special: ids.iter().map(|&id| id > 7).collect(),
            offsets: ids.iter().map(|&id| if id == 9 { (0, 0) } else { (id as usize, id as usize + 1) }).collect(),
            types: types.to_vec(),
            image: None,
        };
        let pair = ended(&[9, 1, 2, 9, 3, 8, 9], &[0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(clip(pair.clone(), Some(5), None), Some(ended(&[9, 1, 2, 9, 9], &[0, 0, 0, 0, 1])));
        assert_eq!(clip(pair.clone(), Some(7), None), Some(pair.clone()));
        assert_eq!(clip(pair, None, Some(1)), Some(ended(&[9], &[1])));
        assert_eq!(clip(ended(&[1, 2, 8], &[]), Some(2), None), Some(ended(&[1, 2], &[])));
    }
}
