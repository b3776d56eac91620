//! A model's tokenizer: from its folder or its GGUF file, with its special tokens and chat template.

use crate::data::{DataError, Encoded, Tokenize};
use crate::hash;
use crate::model::gguf::Gguf;
use crate::model::tokenizer_build as build;
use crate::model::weights::one_line;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use tokenizers::Tokenizer;

const FETCH_AGAIN: &str = "download the tokenizer again";

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
    #[error("{folder}: no tokenizer here; expected tokenizer.json, or vocab.json and merges.txt")]
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
    adds_bos: bool,
    chat_template: Option<String>,
}

impl TextTokenizer {
    /// Loads the tokenizer of a Hugging Face folder: `tokenizer.json`, else `vocab.json` and `merges.txt`
    /// (GPT-2's byte-level BPE). BOS and EOS are those of `tokenizer_config.json`, else
    /// `special_tokens_map.json`, else `config.json`, else `generation_config.json`.
    ///
    /// # Errors
    /// There is no tokenizer, only one that needs conversion, or a file is broken.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let settings = json_file(&folder.join("tokenizer_config.json"))?;
        let map = json_file(&folder.join("special_tokens_map.json"))?;
        let path = folder.join("tokenizer.json");
        let shown = path.display().to_string();
        let mut tokenizer = if path.exists() {
            Self::assemble(&read(&path)?, &shown)?
        } else if folder.join("vocab.json").exists() && folder.join("merges.txt").exists() {
            if let Some(class) = settings.get("tokenizer_class").and_then(Json::as_str)
                && !["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"].contains(&class)
            {
                let found = format!("vocab.json and merges.txt of a {}", one_line(class));
                return Err(TokenizerError::NeedsConversion { folder: folder.display().to_string(), found });
            }
            let vocab = json_file(&folder.join("vocab.json"))?;
            let merges = String::from_utf8(read(&folder.join("merges.txt"))?)
                .map_err(|e| TokenizerError::broken(&folder.join("merges.txt").display().to_string(), e))?;
            let json = build::byte_level(vocab, &merges, &settings, &map)
                .map_err(|problem| TokenizerError::broken(&folder.join("vocab.json").display().to_string(), problem))?;
            Self::assemble(json.to_string().as_bytes(), &folder.join("vocab.json").display().to_string())?
        } else if let Some(found) =
            ["tokenizer.model", "spiece.model", "vocab.txt"].iter().find(|f| folder.join(f).exists())
        {
            let (folder, found) = (folder.display().to_string(), (*found).to_string());
            return Err(TokenizerError::NeedsConversion { folder, found });
        } else {
            return Err(TokenizerError::NoTokenizer { folder: folder.display().to_string() });
        };
        let model = json_file(&folder.join("config.json"))?;
        let generation = json_file(&folder.join("generation_config.json"))?;
        let bos = tokenizer.end("bos_token", &[&settings, &map], &[&model, &generation])?;
        let eos = tokenizer.end("eos_token", &[&settings, &map], &[&model, &generation])?;
        tokenizer.set_ends(bos, eos)?;
        let jinja = folder.join("chat_template.jinja");
        tokenizer.chat_template = if jinja.exists() {
            let text = String::from_utf8(read(&jinja)?);
            Some(text.map_err(|e| TokenizerError::broken(&jinja.display().to_string(), e))?)
        } else {
            chat_template(&settings)
        };
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
        let ids = encoding.get_ids().to_vec();
        let special =
            ids.iter().zip(encoding.get_special_tokens_mask()).map(|(&id, &mask)| mask == 1 || self.is_special(id));
        Ok(Encoded { special: special.collect(), ids, offsets: encoding.get_offsets().to_vec() })
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
