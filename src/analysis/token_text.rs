//! The text that a token stands for, as a reader sees it.

use crate::model::tokenizer::TextTokenizer;
use std::collections::BTreeMap;

/// Decodes single tokens of one tokenizer.
///
/// Decoders drop the space in front of a text's first token, so each token is decoded behind another one, whose
/// text is then taken off: ` the`, `ing`, a line break. A part of a character decodes to U+FFFD. A special token
/// is spelled as in the vocabulary.
#[derive(Debug)]
pub struct TokenTexts<'t> {
    tokenizer: &'t TextTokenizer,
    /// A token to stand in front, with its own text.
    anchor: Option<(u32, String)>,
    known: BTreeMap<u32, String>,
}

impl<'t> TokenTexts<'t> {
    /// Looks for a token of plain letters to stand in front.
    #[must_use]
    pub fn new(tokenizer: &'t TextTokenizer) -> Self {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let letters = |id: &u32| {
            let spelled = tokenizer.token(*id).unwrap_or_default();
            !spelled.is_empty() && spelled.bytes().all(|b| b.is_ascii_alphabetic()) && !tokenizer.is_special(*id)
        };
        let anchor = ids.into_iter().find(letters).and_then(|id| Some((id, tokenizer.decode(&[id], false).ok()?)));
        Self { tokenizer, anchor, known: BTreeMap::new() }
    }

    /// The text of a token; empty for an id that the tokenizer does not have.
    pub fn text(&mut self, id: u32) -> String {
        if let Some(text) = self.known.get(&id) {
            return text.clone();
        }
        let text = self.decode(id);
        self.known.insert(id, text.clone());
        text
    }

    fn decode(&self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return self.tokenizer.token(id).unwrap_or_default();
        }
        let behind = self.anchor.as_ref().and_then(|(anchor, text)| {
            let both = self.tokenizer.decode(&[*anchor, id], false).ok()?;
            both.strip_prefix(text.as_str()).map(str::to_owned)
        });
        behind.or_else(|| self.tokenizer.decode(&[id], false).ok()).unwrap_or_default()
    }
}

/// A token's text with white space and control characters made visible, never empty: `␣the`, `⏎`, `⇥`, `\x07`.
#[must_use]
pub fn visible(text: &str) -> String {
    if text.is_empty() {
        return "∅".to_owned();
    }
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            ' ' => shown.push('␣'),
            '\n' => shown.push('⏎'),
            '\t' => shown.push('⇥'),
            c if c.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
            // Other spaces, marks that turn the direction of writing, and what has no width.
            c if c.is_whitespace()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}') =>
            {
                shown.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn tokenizer(vocab: &[&str], decoder: &Value) -> TextTokenizer {
        let words: serde_json::Map<String, Value> =
            vocab.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
        let special = json!({"id": 0, "content": vocab[0], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": vocab[0]}});
        TextTokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap()
    }

    fn texts(tokenizer: &TextTokenizer) -> Vec<String> {
        let mut texts = TokenTexts::new(tokenizer);
        (0..tokenizer.vocab_size() as u32 + 1).map(|id| texts.text(id)).collect()
    }

    #[test]
    fn a_token_keeps_the_space_in_front_of_it() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let found = texts(&tokenizer(&["<s>", "▁the", "ing", "a", "<0x0A>", "<0xF0>", ".", "▁"], &llama));
        assert_eq!(found, ["<s>", " the", "ing", "a", "\n", "\u{fffd}", ".", " ", ""]);
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let found = texts(&tokenizer(&["<s>", "Ġthe", "ing", "Ċ", "Ã©", "Ã", "a"], &bytes));
        assert_eq!(found, ["<s>", " the", "ing", "\n", "é", "\u{fffd}", "a", ""]);
        let pieces = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let found = texts(&tokenizer(&["[CLS]", "the", "##ing", ".", "##7"], &pieces));
        assert_eq!(found, ["[CLS]", " the", "ing", ".", "7", ""]);
        let found = texts(&tokenizer(&["<s>", ".", "7"], &pieces));
        assert_eq!(found, ["<s>", ".", "7", ""], "no word to stand in front");
    }

    #[test]
    fn white_space_and_control_characters_are_seen() {
        for (text, wanted) in [
            (" the", "␣the"),
            ("\n\n", "⏎⏎"),
            ("a\tb", "a⇥b"),
            ("\r\u{7}", "\\x0d\\x07"),
            ("\u{a0}\u{202e}", "\\u00a0\\u202e"),
            ("", "∅"),
            ("日本", "日本"),
        ] {
            assert_eq!(visible(text), wanted);
        }
    }
}
