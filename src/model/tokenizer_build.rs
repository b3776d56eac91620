//! Tokenizers that come in pieces, put together as the JSON of a `tokenizer.json`.

use crate::model::gguf::Gguf;
use crate::model::gguf_header::Value;
use crate::model::weights::one_line;
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashMap};

/// LLaMA 3's way to split words (transformers' and llama.cpp's `llama-bpe`).
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen 2's and 3's way to split words, which takes digits one by one (transformers' and llama.cpp's `qwen2`).
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// ggml's kinds of tokens that are matched before anything else, and which of them are special.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A longer piece is no token of a SentencePiece model, in bytes.
const MAX_PIECE: usize = 1024;

/// The text of a token that is written as a string or as an object with `content`.
pub(crate) fn content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Json::as_str))
}

/// Refuses what the tokenizer library accepts and would panic on later: a template that names a special
/// token which it does not define.
pub(crate) fn check(json: &[u8]) -> Result<(), String> {
    let json: Json = serde_json::from_slice(json).map_err(|e| format!("is not JSON: {e}"))?;
    match json.get("post_processor") {
        Some(processor) => check_processor(processor),
        None => Ok(()),
    }
}

fn check_processor(processor: &Json) -> Result<(), String> {
    if let Some(parts) = processor.get("processors").and_then(Json::as_array) {
        return parts.iter().try_for_each(check_processor);
    }
    let defined = processor.get("special_tokens");
    for template in ["single", "pair"] {
        for piece in processor.get(template).and_then(Json::as_array).into_iter().flatten() {
            let Some(id) = piece.get("SpecialToken").and_then(|t| t.get("id")).and_then(Json::as_str) else { continue };
            if defined.and_then(|d| d.get(id)).is_none() {
                return Err(format!("post_processor.{template} names {id:?}, which special_tokens does not define"));
            }
        }
    }
    Ok(())
}

/// GPT-2's tokenizer from its vocabulary and merges.
pub(crate) fn byte_level(vocab: Json, merges: &str, settings: &Json, map: &Json) -> Result<Json, String> {
    let vocab = vocab.as_object().cloned().unwrap_or_default();
    let mut added = BTreeMap::<u64, Json>::new();
    for (id, token) in settings.get("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten() {
        let (Ok(id), Some(text)) = (id.parse(), content(token)) else {
            return Err(format!("added_tokens_decoder has a broken entry {:?}", one_line(id)));
        };
        let flag = |key: &str| token.get(key).and_then(Json::as_bool).unwrap_or(false);
        added.insert(
            id,
            json!({
                "id": id, "content": text, "special": flag("special"), "normalized": flag("normalized"),
                "single_word": flag("single_word"), "lstrip": flag("lstrip"), "rstrip": flag("rstrip"),
            }),
        );
    }
    let named = ["bos_token", "eos_token", "unk_token", "pad_token"];
    for source in [settings, map] {
        for text in named.iter().filter_map(|key| source.get(*key)).filter_map(content) {
            if let Some(id) = vocab.get(text).and_then(Json::as_u64) {
                added.entry(id).or_insert_with(|| special(id, text, true));
            }
        }
    }
    let pairs = merge_pairs(merges)?;
    let spaced = settings.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(false);
    let bos = settings.get("bos_token").or_else(|| map.get("bos_token")).and_then(content);
    let bos = bos.filter(|_| settings.get("add_bos_token").and_then(Json::as_bool) == Some(true));
    let front = bos.and_then(|text| Some((text.to_string(), vocab.get(text)?.as_u64()?)));
    let words = byte_words(spaced, true);
    Ok(whole(added.into_values().collect(), Json::Null, words, around(front, None), byte_decoder(), bpe(vocab, pairs)))
}

/// The pairs of a `merges.txt`.
pub(super) fn merge_pairs(merges: &str) -> Result<Vec<Json>, String> {
    let mut pairs = Vec::new();
    for (number, line) in merges.lines().enumerate() {
        if line.trim().is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.contains(' '));
        let (left, right) = pair.ok_or_else(|| format!("line {} of merges.txt is no pair of tokens", number + 1))?;
        pairs.push(json!([left, right]));
    }
    Ok(pairs)
}

/// The tokenizer that a GGUF file carries.
pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Json, String> {
    let Some(Value::Texts(tokens)) = gguf.value("tokenizer.ggml.tokens") else {
        return Err("carries no tokenizer (key tokenizer.ggml.tokens)".to_string());
    };
    let kinds = match gguf.value("tokenizer.ggml.token_type") {
        Some(Value::Wholes(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
        None => &[],
        Some(_) => return Err("key tokenizer.ggml.token_type: is no list of one number per token".to_string()),
    };
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(format!("key tokenizer.ggml.tokens: {:?} appears twice", one_line(token)));
        }
        match kinds.get(id) {
            Some(&CONTROL) => added.push(special(id as u64, token, true)),
            Some(&USER_DEFINED) => added.push(special(id as u64, token, false)),
            _ => {}
        }
    }
    match gguf.text("tokenizer.ggml.model") {
        Some("gpt2") => gguf_byte_level(gguf, tokens, vocab, added),
        Some("llama") => gguf_pieces(gguf, tokens, vocab, added),
        other => {
            let other = other.map_or("missing".to_string(), one_line);
            Err(format!("key tokenizer.ggml.model: {other}; only gpt2 and llama are read"))
        }
    }
}

fn gguf_byte_level(gguf: &Gguf, tokens: &[String], vocab: Map<String, Json>, added: Vec<Json>) -> Result<Json, String> {
    let Some(Value::Texts(merges)) = gguf.value("tokenizer.ggml.merges") else {
        return Err("key tokenizer.ggml.merges: is missing or no list of texts".to_string());
    };
    let pair = |merge: &String| merge.split_once(' ').map(|(left, right)| json!([left, right]));
    let pairs = merges.iter().map(pair).collect::<Option<Vec<_>>>();
    let pairs = pairs.ok_or("key tokenizer.ggml.merges: has an entry that is no pair of tokens")?;
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let words = match pre {
        "default" | "gpt-2" => byte_words(false, true),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_words(false, true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => split_words(LLAMA3_WORDS),
        "qwen2" => split_words(QWEN2_WORDS),
        other => {
            let known = "default, gpt-2, smollm, llama-bpe and qwen2";
            return Err(format!("key tokenizer.ggml.pre: {}; only {known} are read", one_line(other)));
        }
    };
    let llama3 = pre.starts_with("llama");
    let mut model = bpe(vocab, pairs);
    if let Some(ignore) = model.get_mut("ignore_merges") {
        *ignore = json!(llama3);
    }
    let (front, back) = gguf_around(gguf, tokens, llama3)?;
    // No key says so: Qwen's tokenizers compose characters first (transformers, `Qwen2Tokenizer`).
    let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Json::Null };
    Ok(whole(added, normalizer, words, around(front, back), byte_decoder(), model))
}

/// SentencePiece's BPE. Its merges are not stored: every pair of pieces that makes a piece is one, and
/// the better the score of what it makes, the earlier it comes (transformers, `generate_merges`).
fn gguf_pieces(gguf: &Gguf, tokens: &[String], vocab: Map<String, Json>, added: Vec<Json>) -> Result<Json, String> {
    let scores = match gguf.value("tokenizer.ggml.scores") {
        Some(Value::Reals(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err("key tokenizer.ggml.scores: is missing or no list of one number per token".to_string()),
    };
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        if token.len() > MAX_PIECE {
            return Err(format!("key tokenizer.ggml.tokens: has a piece of {} bytes", token.len()));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, left.chars().count(), right.chars().count(), (a, b), left, right));
            }
        }
    }
    // Among pieces of one score, the longer left part first; then by the parts' own order.
    merges.sort_by(|x, y| {
        let by_ids = || x.3.cmp(&y.3);
        y.0.total_cmp(&x.0).then(y.1.cmp(&x.1)).then(y.2.cmp(&x.2)).then_with(by_ids)
    });
    let pairs = merges.iter().map(|merge| json!([merge.4, merge.5])).collect();
    let mut model = bpe(vocab, pairs);
    let unknown = gguf.optional("tokenizer.ggml.unknown_token_id").map_err(|e| e.to_string())?.unwrap_or(0);
    if let (Some(model), Some(unknown)) =
        (model.as_object_mut(), usize::try_from(unknown).ok().and_then(|id| tokens.get(id)))
    {
        model.insert("unk_token".to_string(), json!(unknown));
        model.insert("fuse_unk".to_string(), json!(true));
        model.insert("byte_fallback".to_string(), json!(true));
    }
    let prefix = gguf.value("tokenizer.ggml.add_space_prefix") != Some(&Value::Truth(false));
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let (front, back) = gguf_around(gguf, tokens, true)?;
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    Ok(whole(added, normalizer, Json::Null, around(front, back), decoder, model))
}

type Named = Option<(String, u64)>;

/// BOS and EOS, if the file says that a text gets them.
fn gguf_around(gguf: &Gguf, tokens: &[String], bos_by_default: bool) -> Result<(Named, Named), String> {
    let end = |flag: &str, key: &str, default: bool| -> Result<Named, String> {
        let wanted = match gguf.value(flag) {
            Some(Value::Truth(wanted)) => *wanted,
            _ => default,
        };
        let id = gguf.optional(key).map_err(|e| e.to_string())?.filter(|_| wanted);
        let Some(id) = id else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        token.map(|token| Some((token.clone(), id))).ok_or_else(|| format!("key {key}: there is no token {id}"))
    };
    Ok((
        end("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", bos_by_default)?,
        end("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", false)?,
    ))
}

pub(super) fn special(id: u64, text: &str, special: bool) -> Json {
    json!({
        "id": id, "content": text, "special": special, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

pub(super) fn byte_words(add_prefix_space: bool, use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": false, "use_regex": use_regex})
}

/// Words by an expression, then as bytes.
fn split_words(expression: &str) -> Json {
    let split = json!({
        "type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false,
    });
    json!({"type": "Sequence", "pretokenizers": [split, byte_words(false, false)]})
}

pub(super) fn byte_decoder() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true})
}

pub(super) fn bpe(vocab: Map<String, Json>, merges: Vec<Json>) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    })
}

/// What goes around a text: nothing, or BOS in front and EOS behind.
fn around(front: Named, back: Named) -> Json {
    if front.is_none() && back.is_none() {
        return Json::Null;
    }
    let mut special_tokens = Map::new();
    for (text, id) in front.iter().chain(&back) {
        special_tokens.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let piece = |sequence: &str, kind: u64| {
        let special =
            |named: &Named| named.as_ref().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": kind}}));
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        special(&front).into_iter().chain([text]).chain(special(&back)).collect::<Vec<_>>()
    };
    let pair = piece("A", 0).into_iter().chain(piece("B", 1)).collect::<Vec<_>>();
    json!({"type": "TemplateProcessing", "single": piece("A", 0), "pair": pair, "special_tokens": special_tokens})
}

pub(super) fn whole(added: Vec<Json>, normalizer: Json, words: Json, around: Json, decoder: Json, model: Json) -> Json {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": words, "post_processor": around, "decoder": decoder, "model": model,
    })
}
