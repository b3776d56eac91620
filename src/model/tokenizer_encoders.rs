//! The tokenizers of BERT and RoBERTa from their pieces, put together as the JSON of a `tokenizer.json`.

use super::tokenizer_build::{bpe, byte_decoder, byte_words, content, merge_pairs, special, whole};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// BERT's WordPiece from its `vocab.txt`: a token a line, its id the line's number from 0 (transformers,
/// `BertTokenizer`).
pub(super) fn word_piece(lines: &str, settings: &Json, map: &Json) -> Result<Json, String> {
    let mut vocab = Map::new();
    for (id, token) in lines.lines().enumerate() {
        vocab.insert(token.to_owned(), json!(id));
    }
    let names = Named::new(&vocab, settings, map);
    let unknown = names.required("unk_token", "[UNK]")?;
    let (first, last) = (names.required("cls_token", "[CLS]")?, names.required("sep_token", "[SEP]")?);
    let others = [names.optional("pad_token", "[PAD]"), names.optional("mask_token", "[MASK]")];
    let added = added([Some(unknown.clone()), Some(first.clone()), Some(last.clone())].into_iter().chain(others));
    let flag = |key: &str| settings.get(key).and_then(Json::as_bool);
    let lowercase = flag("do_lower_case").unwrap_or(true);
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": flag("tokenize_chinese_chars").unwrap_or(true),
        "strip_accents": flag("strip_accents"), "lowercase": lowercase,
    });
    let model = json!({
        "type": "WordPiece", "unk_token": unknown.0, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab,
    });
    let around = pairs(&[(&first, 0)], &[(&last, 0)], &[], &[(&last, 1)], 1);
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    Ok(whole(added, normalizer, json!({"type": "BertPreTokenizer"}), around, decoder, model))
}

/// RoBERTa's byte-level BPE from its vocabulary and merges: `<s> A </s>` and `<s> A </s></s> B </s>`, all of type 0
/// (transformers, `RobertaTokenizer`).
pub(super) fn roberta(vocab: Json, merges: &str, settings: &Json, map: &Json) -> Result<Json, String> {
    let vocab = vocab.as_object().cloned().unwrap_or_default();
    let names = Named::new(&vocab, settings, map);
    let (first, last) = (names.required("cls_token", "<s>")?, names.required("sep_token", "</s>")?);
    let others = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];
    let others = others.map(|(key, usual)| names.optional(key, usual));
    let mut added = added([Some(first.clone()), Some(last.clone())].into_iter().chain(others));
    if let Some((text, id)) = names.optional("mask_token", "<mask>") {
        // The mask takes the space before it along.
        let mut mask = special(id, &text, true);
        if let Some(lstrip) = mask.get_mut("lstrip") {
            *lstrip = json!(true);
        }
        added.push(mask);
    }
    let spaced = settings.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(false);
    let around = pairs(&[(&first, 0)], &[(&last, 0)], &[(&last, 0)], &[(&last, 0)], 0);
    let model = bpe(vocab.clone(), merge_pairs(merges)?);
    Ok(whole(added, Json::Null, byte_words(spaced, true), around, byte_decoder(), model))
}

/// A token and its id.
type Token = (String, u64);

/// The special tokens by their names in the configuration.
struct Named<'a> {
    vocab: &'a Map<String, Json>,
    sources: [&'a Json; 2],
}

impl<'a> Named<'a> {
    fn new(vocab: &'a Map<String, Json>, settings: &'a Json, map: &'a Json) -> Self {
        Self { vocab, sources: [settings, map] }
    }

    fn text(&self, key: &str, usual: &str) -> String {
        let named = self.sources.iter().find_map(|source| source.get(key).and_then(content));
        named.unwrap_or(usual).to_owned()
    }

    fn optional(&self, key: &str, usual: &str) -> Option<Token> {
        let text = self.text(key, usual);
        let id = self.vocab.get(&text)?.as_u64()?;
        Some((text, id))
    }

    fn required(&self, key: &str, usual: &str) -> Result<Token, String> {
        self.optional(key, usual).ok_or_else(|| format!("has no {:?}, which is the {key}", self.text(key, usual)))
    }
}

/// The special tokens in the order of their ids, each once.
fn added(tokens: impl Iterator<Item = Option<Token>>) -> Vec<Json> {
    let by_id: BTreeMap<u64, String> = tokens.flatten().map(|(text, id)| (id, text)).collect();
    by_id.iter().map(|(&id, text)| special(id, text, true)).collect()
}

/// `front A back`, and with a second text `front A back between B end`, each with its token type.
fn pairs(
    front: &[(&Token, u64)],
    back: &[(&Token, u64)],
    between: &[(&Token, u64)],
    end: &[(&Token, u64)],
    second: u64,
) -> Json {
    let pieces = |tokens: &[(&Token, u64)]| -> Vec<Json> {
        tokens.iter().map(|((text, _), kind)| json!({"SpecialToken": {"id": text, "type_id": kind}})).collect()
    };
    let text = |name: &str, kind: u64| vec![json!({"Sequence": {"id": name, "type_id": kind}})];
    let single = [pieces(front), text("A", 0), pieces(back)].concat();
    let pair = [single.clone(), pieces(between), text("B", second), pieces(end)].concat();
    let mut defined = Map::new();
    for ((text, id), _) in [front, back, between, end].concat() {
        defined.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": defined})
}
