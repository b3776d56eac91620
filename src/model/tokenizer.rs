//! A model's tokenizer: from its folder or its GGUF file, with its special tokens and chat template.

use crate::data::{DataError, Encoded, Tokenize};
use crate::hash;
use crate::model::gguf::Gguf;
use crate::model::weights::one_line;
use crate::model::{tokenizer_build as build, tokenizer_encoders as encoders};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use tokenizers::{Encoding, Tokenizer};

const FETCH_AGAIN: &str = "download the tokenizer again";

/// The classes whose `vocab.json` and `merges.txt` are read.
const BYTE_LEVEL: [&str; 5] =
    ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast"];

/// The classes whose `vocab.txt` is read.
const WORD_PIECE: [&str; 3] = ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"];

/// A larger file is no tokenizer, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// A tokenizer that cannot be had or used; each message is one line with the file, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The system refused to open or read the file.
    #[error("{file}: cannot read the tokenizer: {source}; check the path and its permissions")]
    Read {
        /// The file's path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A folder without a tokenizer.
    #[error("{folder}: no tokenizer here; expected tokenizer.json, vocab.json and merges.txt, or vocab.txt")]
    NoTokenizer {
        /// The folder's path.
        folder: String,
    },
    /// A folder with a tokenizer in a form that is converted by one line of Python.
    #[error(
        "{folder}: the tokenizer is {found} only; convert it: python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )]
    NeedsConversion {
        /// The folder's path.
        folder: String,
        /// What was found.
        found: String,
    },
    /// A file that is not what it should be.
    #[error("{file}: {problem}; {remedy}")]
    Broken {
        /// The file's path.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A text that the tokenizer cannot turn into tokens, or tokens that it cannot turn into text.
    #[error("{file}: the tokenizer failed: {problem}; check the text and the tokenizer")]
    Use {
        /// The tokenizer's file.
        file: String,
        /// What it said.
        problem: String,
    },
}

impl TokenizerError {
    pub(crate) fn broken(file: &str, problem: impl ToString) -> Self {
        Self::Broken { file: file.to_string(), problem: one_line(problem), remedy: FETCH_AGAIN }
    }
}

/// A tokenizer without padding or truncation, and what belongs to it.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    file: String,
    sha256: String,
    special: BTreeSet<u32>,
    size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    mask: Option<u32>,
    adds_bos: bool,
    chat_template: Option<String>,
}

impl TextTokenizer {
    /// Loads the tokenizer of a Hugging Face folder: `tokenizer.json`, else `vocab.json` and `merges.txt`
    /// (byte-level BPE, GPT-2's or RoBERTa's), else `vocab.txt` (BERT's WordPiece). BOS and EOS are those of
    /// `tokenizer_config.json`, else
    /// `special_tokens_map.json`, else `config.json`, else `generation_config.json`.
    ///
    /// # Errors
    /// There is no tokenizer, only one that needs conversion, or a file is broken.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let settings = json_file(&folder.join("tokenizer_config.json"))?;
        let map = json_file(&folder.join("special_tokens_map.json"))?;
        let path = folder.join("tokenizer.json");
        let shown = path.display().to_string();
        let model = json_file(&folder.join("config.json"))?;
        let generation = json_file(&folder.join("generation_config.json"))?;
        let mut tokenizer = if path.exists() {
            Self::assemble(&read(&path)?, &shown)?
        } else if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
            check_class(folder, &settings, "vocab.json and merges.txt", &BYTE_LEVEL)?;
            let vocab = json_file(&folder.join("vocab.json"))?;
            let merges = text(&folder.join("merges.txt"))?;
            let roberta = is_roberta(&settings, &model);
            let made = match roberta {
                true => encoders::roberta(vocab, &merges, &settings, &map),
                false => build::byte_level(vocab, &merges, &settings, &map),
            };
            Self::built(made, &folder.join("vocab.json"))?
        } else if folder.join("vocab.txt").exists() {
            check_class(folder, &settings, "vocab.txt", &WORD_PIECE)?;
            let path = folder.join("vocab.txt");
            Self::built(encoders::word_piece(&text(&path)?, &settings, &map), &path)?
        } else if let Some(found) = ["tokenizer.model", "spiece.model"].iter().find(|f| folder.join(f).exists()) {
            let (folder, found) = (folder.display().to_string(), (*found).to_string());
            return Err(TokenizerError::NeedsConversion { folder, found });
        } else {
            return Err(TokenizerError::NoTokenizer { folder: folder.display().to_string() });
        };
        let bos = tokenizer.end("bos_token", &[&settings, &map], &[&model, &generation])?;
        let eos = tokenizer.end("eos_token", &[&settings, &map], &[&model, &generation])?;
        tokenizer.set_ends(bos, eos)?;
        let usual = || ["[MASK]", "<mask>"].iter().find_map(|mask| tokenizer.inner.token_to_id(mask));
        tokenizer.mask = tokenizer.end("mask_token", &[&settings, &map], &[])?.or_else(usual);
        let jinja = folder.join("chat_template.jinja");
        tokenizer.chat_template = if jinja.exists() { Some(text(&jinja)?) } else { chat_template(&settings) };
        Ok(tokenizer)
    }

    /// Builds the tokenizer that a GGUF file carries: byte-level BPE (`gpt2`) with a known way to split
    /// words, or SentencePiece's BPE (`llama`).
    ///
    /// # Errors
    /// It carries none or one of another kind, or its lists do not fit each other.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let file = gguf.path().display().to_string();
        let broken = |problem: String| TokenizerError::broken(&file, problem);
        let json = build::from_gguf(gguf).map_err(|problem| TokenizerError::Broken {
            file: file.clone(),
            problem,
            remedy: "use the model's Hugging Face folder with its tokenizer.json",
        })?;
        let mut tokenizer = Self::assemble(json.to_string().as_bytes(), &file)?;
        let id = |key| gguf.optional(key).map_err(|e| broken(e.to_string()));
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let narrow = |id: Option<u64>| id.and_then(|id| u32::try_from(id).ok());
        tokenizer.set_ends(narrow(bos), narrow(eos))?;
        tokenizer.chat_template = gguf.text("tokenizer.chat_template").map(str::to_string);
        Ok(tokenizer)
    }

    /// Reads a tokenizer from the content of its `tokenizer.json`, and of its `tokenizer_config.json`,
    /// which names BOS and EOS and holds the chat template.
    ///
    /// # Errors
    /// Either is broken.
    pub fn from_bytes(json: &[u8], config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let mut tokenizer = Self::assemble(json, "tokenizer.json")?;
        let settings = match config {
            Some(bytes) => parse(bytes, "tokenizer_config.json")?,
            None => Json::Null,
        };
        let bos = tokenizer.end("bos_token", &[&settings], &[])?;
        let eos = tokenizer.end("eos_token", &[&settings], &[])?;
        tokenizer.set_ends(bos, eos)?;
        tokenizer.chat_template = chat_template(&settings);
        Ok(tokenizer)
    }

    /// A tokenizer that was put together from pieces, of which `path` is named in errors.
    fn built(made: Result<Json, String>, path: &Path) -> Result<Self, TokenizerError> {
        let file = path.display().to_string();
        let json = made.map_err(|problem| TokenizerError::broken(&file, problem))?;
        Self::assemble(json.to_string().as_bytes(), &file)
    }

    fn assemble(json: &[u8], file: &str) -> Result<Self, TokenizerError> {
        build::check(json).map_err(|problem| TokenizerError::broken(file, problem))?;
        let broken = |e: tokenizers::Error| TokenizerError::broken(file, format!("is no tokenizer: {e}"));
        let mut inner = Tokenizer::from_bytes(json).map_err(broken)?;
        // Sequences are packed whole; what is too long is for the caller to cut, who knows where.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(broken)?;
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let size = inner.get_vocab(true).values().max().map_or(0, |&id| (id as usize).saturating_add(1));
        Ok(Self {
            inner,
            file: file.to_string(),
            sha256: hash::sha256_bytes(json),
            special,
            size,
            bos: None,
            eos: None,
            mask: None,
            adds_bos: false,
            chat_template: None,
        })
    }

    /// The id of BOS or EOS: the first file that names it, else the first that numbers it. A `null` in the
    /// first file says that there is none.
    fn end(&self, key: &str, named: &[&Json], numbered: &[&Json]) -> Result<Option<u32>, TokenizerError> {
        for (place, settings) in named.iter().enumerate() {
            match settings.get(key) {
                Some(Json::Null) if place == 0 => return Ok(None),
                Some(value) => {
                    let Some(content) = build::content(value) else { continue };
                    let id = self.inner.token_to_id(content).ok_or_else(|| {
                        let problem = format!("{key} is {content:?}, which is not in the vocabulary");
                        TokenizerError::broken(&self.file, problem)
                    })?;
                    return Ok(Some(id));
                }
                None => {}
            }
        }
        let number = |settings: &&Json| {
            let value = settings.get(format!("{key}_id"))?;
            let value = value.as_array().and_then(|list| list.first()).unwrap_or(value);
            value.as_u64().and_then(|id| u32::try_from(id).ok())
        };
        Ok(numbered.iter().find_map(number).filter(|&id| (id as usize) < self.size))
    }

    fn set_ends(&mut self, bos: Option<u32>, eos: Option<u32>) -> Result<(), TokenizerError> {
        for (key, id) in [("BOS", bos), ("EOS", eos)] {
            if let Some(id) = id.filter(|&id| self.inner.id_to_token(id).is_none()) {
                return Err(TokenizerError::broken(&self.file, format!("{key} is token {id}, which does not exist")));
            }
        }
        (self.bos, self.eos) = (bos, eos);
        // BOS and EOS are special even where a folder's tokenizer.json does not list them as such.
        self.special.extend(bos.into_iter().chain(eos));
        self.adds_bos = bos.is_some() && self.encode("", true)?.ids.first().copied() == bos;
        Ok(())
    }

    /// The tokens of `text`, with what the tokenizer puts around a text if `add_special`.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, TokenizerError> {
        let encoding = self.inner.encode(text, add_special).map_err(|e| self.failed(e))?;
        Ok(self.tokens(&encoding, false))
    }

    /// The tokens of two texts with what the tokenizer puts around and between them.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the texts.
    pub fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self.inner.encode((text, pair), true).map_err(|e| self.failed(e))?;
        Ok(self.tokens(&encoding, true))
    }

    fn tokens(&self, encoding: &Encoding, pair: bool) -> Encoded {
        let ids = encoding.get_ids().to_vec();
        let special =
            ids.iter().zip(encoding.get_special_tokens_mask()).map(|(&id, &mask)| mask == 1 || self.is_special(id));
        // The second sentence alone can have another type than 0.
        let types = if pair { encoding.get_type_ids().to_vec() } else { Vec::new() };
        Encoded { special: special.collect(), ids, offsets: encoding.get_offsets().to_vec(), types, image: None }
    }

    /// The tokenizer as the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.inner.to_string(true).map_err(|e| TokenizerError::Broken {
            file: "tokenizer".to_owned(),
            problem: e.to_string(),
            remedy: "use a model folder with a tokenizer.json",
        })
    }

    /// The text of `ids`, without special tokens if `skip_special`.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: tokenizers::Error) -> TokenizerError {
        TokenizerError::Use { file: self.file.clone(), problem: one_line(error) }
    }

    /// A token as the vocabulary spells it.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest token id: the least number of embedding rows that the tokenizer needs.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// The token that begins a sequence, if there is one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence, if there is one.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that stands for a hidden one, if there is one.
    #[must_use]
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// Whether [`TextTokenizer::encode`] with special tokens puts BOS in front.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether a token is a special one.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The template that writes chat messages as text, in Jinja.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The SHA-256 of `tokenizer.json`, or of the equivalent built from a tokenizer in pieces.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// One template, or that named `default` of several.
fn chat_template(settings: &Json) -> Option<String> {
    match settings.get("chat_template")? {
        Json::String(template) => Some(template.clone()),
        Json::Array(several) => {
            let default = several.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"))?;
            default.get("template").and_then(Json::as_str).map(str::to_string)
        }
        _ => None,
    }
}

/// Refuses pieces of a tokenizer of another class than those that are read.
fn check_class(folder: &Path, settings: &Json, pieces: &str, known: &[&str]) -> Result<(), TokenizerError> {
    match settings.get("tokenizer_class").and_then(Json::as_str) {
        Some(class) if !known.contains(&class) => {
            let found = format!("{pieces} of a {}", one_line(class));
            Err(TokenizerError::NeedsConversion { folder: folder.display().to_string(), found })
        }
        _ => Ok(()),
    }
}

/// Whether a byte-level tokenizer is RoBERTa's: by its own class, else by the model's type.
fn is_roberta(settings: &Json, model: &Json) -> bool {
    let word = |json: &Json, key: &str| json.get(key).and_then(Json::as_str).map(str::to_lowercase);
    match word(settings, "tokenizer_class") {
        Some(class) if !class.starts_with("pretrained") => class.starts_with("roberta"),
        _ => word(model, "model_type").as_deref() == Some("roberta"),
    }
}

/// The content of a file that must be UTF-8.
fn text(path: &Path) -> Result<String, TokenizerError> {
    String::from_utf8(read(path)?).map_err(|e| TokenizerError::broken(&path.display().to_string(), e))
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let failed = |source| TokenizerError::Read { file: path.display().to_string(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let problem = format!("has {length} bytes, more than any tokenizer");
        return Err(TokenizerError::broken(&path.display().to_string(), problem));
    }
    fs::read(path).map_err(failed)
}

fn parse(bytes: &[u8], file: &str) -> Result<Json, TokenizerError> {
    let broken = |problem: String| TokenizerError::broken(file, problem);
    let json: Json = serde_json::from_slice(bytes).map_err(|e| broken(format!("is not JSON: {e}")))?;
    if json.is_object() { Ok(json) } else { Err(broken("is no JSON object".to_string())) }
}

/// A JSON object, or nothing if there is no such file.
fn json_file(path: &Path) -> Result<Json, TokenizerError> {
    if path.exists() { parse(&read(path)?, &path.display().to_string()) } else { Ok(Json::Null) }
}

impl Tokenize for TextTokenizer {
    fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, DataError> {
        Self::encode(self, text, add_special).map_err(|e| DataError::Tokenizer { reason: e.to_string() })
    }

    fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoded, DataError> {
        Self::encode_pair(self, text, pair).map_err(|e| DataError::Tokenizer { reason: e.to_string() })
    }

    fn bos(&self) -> Option<u32> {
        Self::bos(self)
    }

    fn eos(&self) -> Option<u32> {
        Self::eos(self)
    }

    fn adds_bos(&self) -> bool {
        Self::adds_bos(self)
    }

    fn chat_template(&self) -> Option<String> {
        Self::chat_template(self).map(str::to_owned)
    }

    fn special_token_text(&self, name: &str) -> Option<String> {
        match name {
            "bos_token" => Self::bos(self).and_then(|id| self.token(id)),
            "eos_token" => Self::eos(self).and_then(|id| self.token(id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf_header::tests::{File as Made, Item};
    use std::path::PathBuf;

    fn shared(model: &str) -> Option<PathBuf> {
        let root = std::env::var_os("SMOOTH_PROBE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
        let folder = root.join("models").join(model);
        if folder.exists() {
            return Some(folder);
        }
        println!("SKIPPED: {} is not there (SMOOTH_PROBE_SHARED)", folder.display());
        None
    }

    fn ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, true).unwrap().ids
    }

    const UNICODE: &str = "naïve café — 日本語 🙂";

    // The expected ids are those of transformers 5.23's AutoTokenizer.

    #[test]
    fn sentencepiece_models_tokenise_as_in_transformers() {
        let Some(folder) = shared("stories15M") else { return };
        let tokenizer = TextTokenizer::from_folder(&folder).unwrap();
        for (text, expected) in [
            ("", vec![1]),
            ("The quick brown fox", vec![1, 450, 4996, 17354, 1701, 29916]),
            ("  two spaces\n\nand a newline", vec![1, 259, 1023, 8162, 13, 13, 392, 263, 25899]),
            (
                UNICODE,
                vec![1, 1055, 30085, 345, 274, 28059, 813, 29871, 30325, 30346, 30968, 29871, 243, 162, 156, 133],
            ),
            ("</s> inside", vec![1, 2, 29871, 2768]),
            ("\u{301}a\ttab", vec![1, 29871, 30103, 29874, 12, 3891]),
        ] {
            assert_eq!(ids(&tokenizer, text), expected, "{text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap().ids, expected[1..], "{text:?} without BOS");
        }
        assert_eq!(tokenizer.decode(&ids(&tokenizer, UNICODE), true).unwrap(), UNICODE);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), true));
        assert_eq!((tokenizer.vocab_size(), tokenizer.token(1).as_deref()), (32000, Some("<s>")));
        assert_eq!(tokenizer.chat_template(), None);
        assert_eq!(tokenizer.sha256(), hash::sha256_file(&folder.join("tokenizer.json")).unwrap());

        let encoded = tokenizer.encode("a </s> b", true).unwrap();
        let special: Vec<u32> =
            encoded.ids.iter().zip(&encoded.special).filter(|(_, s)| **s).map(|(i, _)| *i).collect();
        assert_eq!(special, [1, 2]);
        assert_eq!((encoded.offsets[0], encoded.offsets.last().copied()), ((0, 0), Some((6, 8))));

        let Some(folder) = shared("stories260K") else { return };
        let tokenizer = TextTokenizer::from_folder(&folder).unwrap();
        let expected = [1, 291, 410, 456, 425, 417, 340, 268, 420, 327, 416, 272, 414, 444];
        assert_eq!(ids(&tokenizer, "The quick brown fox"), expected);
        assert_eq!(tokenizer.vocab_size(), 512);
    }

    #[test]
    fn padding_and_truncation_inside_the_file_are_switched_off() {
        let Some(folder) = shared("all-MiniLM-L6-v2") else { return };
        let tokenizer = TextTokenizer::from_folder(&folder).unwrap();
        // Its tokenizer.json asks for exactly 128 tokens.
        assert_eq!(ids(&tokenizer, "The quick brown fox"), [101, 1996, 4248, 2829, 4419, 102]);
        assert_eq!(ids(&tokenizer, UNICODE), [101, 15743, 7668, 1517, 1864, 1876, 1950, 100, 102]);
        assert_eq!(ids(&tokenizer, &"fox ".repeat(300)).len(), 302);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (None, None, false));
        assert_eq!(tokenizer.encode("fox", true).unwrap().special, [true, false, true]);
    }

    #[test]
    fn the_tokenizer_inside_a_gguf_file_tokenises_as_in_transformers() {
        let Some(folder) = shared("SmolLM2-135M") else { return };
        let gguf = Gguf::open(&folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
        let tokenizer = TextTokenizer::from_gguf(&gguf).unwrap();
        for (text, expected) in [
            ("", vec![]),
            ("The quick brown fox", vec![504, 2365, 6354, 16438]),
            ("  two spaces\n\nand a newline", vec![216, 827, 5600, 198, 198, 397, 253, 725, 1311]),
            (UNICODE, vec![3546, 46494, 37366, 1841, 17097, 241, 115, 40993, 179, 120, 248, 47526]),
            ("x = 3.14159 + 42", vec![104, 446, 216, 35, 30, 33, 36, 33, 37, 41, 1232, 216, 36, 34]),
            ("</s> inside <|im_start|>user", vec![9617, 99, 46, 2972, 216, 1, 4093]),
            ("don't I'LL", vec![12420, 982, 339, 23, 16421]),
            ("\u{301}a\ttab", vec![151, 219, 81, 197, 15999]),
        ] {
            assert_eq!(ids(&tokenizer, text), expected, "{text:?}");
        }
        assert_eq!(tokenizer.decode(&ids(&tokenizer, UNICODE), true).unwrap(), UNICODE);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), false));
        assert_eq!((tokenizer.vocab_size(), tokenizer.is_special(1)), (49152, true));
        assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>"));
    }

    #[test]
    fn a_sentencepiece_gguf_gives_back_the_folders_tokens() {
        let Some(folder) = shared("stories15M") else { return };
        let expected = TextTokenizer::from_folder(&folder).unwrap();
        let tokens: Vec<String> = (0..32000).map(|id| expected.token(id).unwrap()).collect();
        // As LLaMA's own model has it: three control tokens, 256 bytes, then pieces by falling score.
        let scores = (0..32000).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
        let kinds = (0..32000).map(|id| [2, 3, 3].get(id).copied().unwrap_or(if id < 259 { 6 } else { 1 })).collect();
        let dir = tempfile::tempdir().unwrap();
        let made = Made::default()
            .key("general.architecture", Item::Text("llama"))
            .key("tokenizer.ggml.model", Item::Text("llama"))
            .key("tokenizer.ggml.tokens", Item::Texts(tokens))
            .key("tokenizer.ggml.scores", Item::F32s(scores))
            .key("tokenizer.ggml.token_type", Item::I32s(kinds))
            .key("tokenizer.ggml.bos_token_id", Item::U32(1))
            .key("tokenizer.ggml.eos_token_id", Item::U32(2));
        let built = TextTokenizer::from_gguf(&Gguf::open(&made.write(dir.path())).unwrap()).unwrap();
        for text in [
            "",
            "The quick brown fox",
            "  two spaces\n\nand a newline",
            UNICODE,
            "x = 3.14159 + 42",
            "</s>!",
            "aaaaaaaaaaaaa",
        ] {
            assert_eq!(ids(&built, text), ids(&expected, text), "{text:?}");
            assert_eq!(
                built.decode(&ids(&built, text), true).unwrap(),
                expected.decode(&ids(&expected, text), true).unwrap()
            );
        }
        assert!(built.adds_bos());
        let made = made
            .key("tokenizer.ggml.add_bos_token", Item::Truth(false))
            .key("tokenizer.ggml.add_eos_token", Item::Truth(true));
        let built = TextTokenizer::from_gguf(&Gguf::open(&made.write(dir.path())).unwrap()).unwrap();
        assert_eq!(ids(&built, "fox"), [1701, 29916, 2]);
        assert!(!built.adds_bos());
    }

    /// A byte-level tokenizer of eight tokens, in pieces.
    fn pieces(folder: &Path) {
        let write = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
        write("vocab.json", r#"{"a":0,"b":1,"Ġ":2,"ab":3,"Ġab":4,"<|end|>":5,"c":6,"<|x|>":7}"#);
        write("merges.txt", "#version: 0.2\na b\nĠ ab\n");
        write("special_tokens_map.json", r#"{"bos_token":"<|end|>","eos_token":{"content":"<|end|>"}}"#);
    }

    #[test]
    fn vocabulary_and_merges_make_a_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        pieces(dir.path());
        let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(ids(&tokenizer, "ab abc<|end|>a"), [3, 4, 6, 5, 0]);
        assert_eq!(tokenizer.encode(" ab", false).unwrap().offsets, [(0, 3)]);
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(5), Some(5), false));
        assert_eq!(tokenizer.decode(&[3, 4, 5], true).unwrap(), "ab ab");

        let settings = r#"{"add_bos_token":true,"added_tokens_decoder":{"7":{"content":"<|x|>","special":true}},
            "chat_template":[{"name":"rag","template":"R"},{"name":"default","template":"D"}]}"#;
        fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
        let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
        assert_eq!(ids(&tokenizer, "a<|x|>"), [5, 0, 7]);
        assert_eq!((tokenizer.adds_bos(), tokenizer.is_special(7), tokenizer.chat_template()), (true, true, Some("D")));
        fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
        assert_eq!(TextTokenizer::from_folder(dir.path()).unwrap().chat_template(), Some("J"));

        fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class":"Qwen2Tokenizer"}"#).unwrap();
        let message = TextTokenizer::from_folder(dir.path()).unwrap_err().to_string();
        assert!(message.contains("Qwen2Tokenizer only; convert it: python -c"), "{message}");
    }

    #[test]
    fn bos_and_eos_are_looked_up_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        let ends = || {
            let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
            (tokenizer.bos(), tokenizer.eos())
        };
        pieces(dir.path());
        fs::remove_file(dir.path().join("special_tokens_map.json")).unwrap();
        assert_eq!(ends(), (None, None));
        write("generation_config.json", r#"{"bos_token_id":6,"eos_token_id":6}"#);
        assert_eq!(ends(), (Some(6), Some(6)));
        write("config.json", r#"{"bos_token_id":null,"eos_token_id":[3,4]}"#);
        assert_eq!(ends(), (Some(6), Some(3)));
        write("special_tokens_map.json", r#"{"eos_token":"<|end|>"}"#);
        assert_eq!(ends(), (Some(6), Some(5)));
        write("tokenizer_config.json", r#"{"bos_token":null,"eos_token":{"content":"<|x|>"}}"#);
        assert_eq!(ends(), (None, Some(7)));
        write("tokenizer_config.json", r#"{"eos_token":"<nowhere>"}"#);
        let message = TextTokenizer::from_folder(dir.path()).unwrap_err().to_string();
        assert!(message.contains("eos_token is \"<nowhere>\", which is not in the vocabulary"), "{message}");
    }

    #[test]
    fn a_tokenizer_is_read_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        pieces(dir.path());
        let vocab = json_file(&dir.path().join("vocab.json")).unwrap();
        let json = build::byte_level(vocab, "a b", &Json::Null, &Json::Null).unwrap().to_string();
        let config = br#"{"eos_token":"<|end|>","chat_template":"T"}"#;
        let tokenizer = TextTokenizer::from_bytes(json.as_bytes(), Some(config)).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.chat_template()), (None, Some(5), Some("T")));
        assert_eq!(tokenizer.sha256(), hash::sha256_bytes(json.as_bytes()));
        assert_eq!(ids(&tokenizer, "abc"), [3, 6]);
        assert!(TextTokenizer::from_bytes(json.as_bytes(), Some(b"[]")).is_err());
    }

    #[test]
    fn broken_tokenizers_are_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = || {
            let message = TextTokenizer::from_folder(dir.path()).unwrap_err().to_string();
            assert!(!message.contains('\n') && message.len() < 800, "{message}");
            message
        };
        assert!(refusal().contains("no tokenizer here"));
        fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
        assert!(refusal().contains("the tokenizer is tokenizer.model only; convert it: python -c \"from transformers"));
        let undefined = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"decoder":null,"post_processor":{"type":"TemplateProcessing",
            "single":[{"SpecialToken":{"id":"<s>","type_id":0}}],"pair":[],"special_tokens":{}},
            "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
        for (content, expected) in [
            ("", "tokenizer.json: is not JSON"),
            ("{", "tokenizer.json: is not JSON"),
            ("[]", "is no tokenizer"),
            ("{}", "is no tokenizer"),
            (r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a z"]}}"#, "is no tokenizer"),
            (r#"{"version":"1.0","model":{"type":"None"}}"#, "is no tokenizer"),
            (undefined, "post_processor.single names \"<s>\", which special_tokens does not define"),
        ] {
            fs::write(dir.path().join("tokenizer.json"), content).unwrap();
            assert!(refusal().contains(expected), "{content}: {}", refusal());
        }
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
        assert!(refusal().contains("cannot read the tokenizer"), "{}", refusal());
        fs::remove_dir(dir.path().join("tokenizer.json")).unwrap();
        pieces(dir.path());
        fs::write(dir.path().join("merges.txt"), "a b c\n").unwrap();
        assert!(refusal().contains("line 1 of merges.txt is no pair of tokens"), "{}", refusal());
        pieces(dir.path());
        fs::write(dir.path().join("tokenizer_config.json"), "{,}").unwrap();
        assert!(refusal().contains("tokenizer_config.json: is not JSON"), "{}", refusal());
    }

    /// Gemma's way: a space is a piece of its own in front of nothing, and BOS is added.
    #[test]
    fn pieces_without_a_space_in_front_are_read_from_gguf() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = ["<unk>", "<bos>", "<eos>", "a", "b", "▁", "ab", "▁a", "▁ab", "  "].map(str::to_owned).to_vec();
        let scores = vec![0.0, 0.0, 0.0, -5.0, -6.0, -7.0, -1.0, -2.0, -3.0, -1000.0];
        let made = Made::default()
            .key("general.architecture", Item::Text("gemma"))
            .key("tokenizer.ggml.model", Item::Text("llama"))
            .key("tokenizer.ggml.tokens", Item::Texts(tokens))
            .key("tokenizer.ggml.scores", Item::F32s(scores))
            .key("tokenizer.ggml.token_type", Item::I32s(vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 4]))
            .key("tokenizer.ggml.bos_token_id", Item::U32(1))
            .key("tokenizer.ggml.eos_token_id", Item::U32(2))
            .key("tokenizer.ggml.add_space_prefix", Item::Truth(false));
        let tokenizer = TextTokenizer::from_gguf(&Gguf::open(&made.write(dir.path())).unwrap()).unwrap();
        for (text, expected) in
            [("ab", vec![1, 6]), (" ab", vec![1, 8]), ("a  b", vec![1, 3, 9, 4]), ("ba b", vec![1, 4, 3, 5, 4])]
        {
            assert_eq!(ids(&tokenizer, text), expected, "{text:?}");
            assert_eq!(tokenizer.decode(&expected, true).unwrap(), text);
        }
    }

    #[test]
    fn qwens_words_have_single_digits_and_composed_letters() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = |pre: &str| {
            let tokens = ["1", "2", "12", "e", "Ã", "©", "Ã©", "Ì", "ģ"].map(str::to_owned).to_vec();
            let merges = ["1 2", "Ã ©"].map(str::to_owned).to_vec();
            let made = Made::default()
                .key("general.architecture", Item::Text("qwen2"))
                .key("tokenizer.ggml.model", Item::Text("gpt2"))
                .key("tokenizer.ggml.pre", Item::Text(pre))
                .key("tokenizer.ggml.tokens", Item::Texts(tokens))
                .key("tokenizer.ggml.merges", Item::Texts(merges));
            TextTokenizer::from_gguf(&Gguf::open(&made.write(dir.path())).unwrap()).unwrap()
        };
        let (qwen, llama) = (tokenizer("qwen2"), tokenizer("llama-bpe"));
        assert_eq!((ids(&qwen, "12"), ids(&llama, "12")), (vec![0, 1], vec![2]));
        assert_eq!((ids(&qwen, "e\u{301}"), ids(&llama, "e\u{301}")), (vec![6], vec![3, 7, 8]));
    }

    #[test]
    fn broken_tokenizers_in_gguf_files_are_refused_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let base = || Made::default().key("general.architecture", Item::Text("llama"));
        let two = || base().key("tokenizer.ggml.tokens", Item::Texts(vec!["a".into(), "b".into()]));
        for (made, expected) in [
            (base(), "carries no tokenizer"),
            (two(), "key tokenizer.ggml.model: missing"),
            (two().key("tokenizer.ggml.model", Item::Text("t5")), "key tokenizer.ggml.model: t5"),
            (two().key("tokenizer.ggml.model", Item::Text("gpt2")), "key tokenizer.ggml.merges: is missing"),
            (two().key("tokenizer.ggml.model", Item::Text("llama")), "key tokenizer.ggml.scores: is missing"),
            (two().key("tokenizer.ggml.token_type", Item::I32s(vec![1])), "one number per token"),
            (base().key("tokenizer.ggml.tokens", Item::Texts(vec!["a".into(); 2])), "\"a\" appears twice"),
            (
                two()
                    .key("tokenizer.ggml.model", Item::Text("gpt2"))
                    .key("tokenizer.ggml.merges", Item::Texts(vec![]))
                    .key("tokenizer.ggml.pre", Item::Text("mystery")),
                "key tokenizer.ggml.pre: mystery",
            ),
            (
                two()
                    .key("tokenizer.ggml.model", Item::Text("gpt2"))
                    .key("tokenizer.ggml.merges", Item::Texts(vec![]))
                    .key("tokenizer.ggml.eos_token_id", Item::U32(9)),
                "EOS is token 9, which does not exist",
            ),
        ] {
            let gguf = Gguf::open(&made.write(dir.path())).unwrap();
            let message = TextTokenizer::from_gguf(&gguf).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        }
    }
}
