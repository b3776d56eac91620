//! A model ready to run: its files, its transformer, what makes its tokens.

use super::gguf::Gguf;
use super::tokenizer::{TextTokenizer, TokenizerError};
use super::weights::{TensorSource, Weights, WeightsError};
use super::{ModelError, Precision, Processor, Transformer, families};
use crate::data::{DataError, ImageProcessor, PREPROCESSOR};
use crate::hash;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the model that is compiled in.
pub const EMBEDDED: &str = "embedded";

/// A model with what makes its tokens.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// What the user called it.
    pub name: String,
    /// The files that it was read from; empty for the embedded model.
    pub files: Vec<PathBuf>,
    /// What stands beside the weights in a Hugging Face folder, by file name: `config.json`, the tokenizer. A
    /// model that was trained whole is written with them.
    pub companions: BTreeMap<String, Vec<u8>>,
    /// The transformer.
    pub transformer: Transformer,
    /// What makes its tokens.
    pub processor: Arc<Processor>,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Configuration or weights.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The image processor.
    #[error(transparent)]
    Images(#[from] DataError),
    /// A file cannot be hashed.
    #[error("{file}: cannot be read: {source}; check the path and its permissions")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl LoadedModel {
    /// Loads a Hugging Face folder; a type alone is both stored and computed in.
    ///
    /// # Errors
    /// A file is missing, malformed or does not fit the others.
    pub fn from_folder(
        folder: &Path,
        name: &str,
        precision: impl Into<Precision>,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let architecture = families::read_config(folder).map_err(ModelError::from)?;
        let weights = Weights::open(folder).map_err(ModelError::from)?;
        let transformer = Transformer::load(name, architecture, &weights, precision, device)?;
        let processor = match transformer.architecture().patches {
            None => Processor::Texts(Box::new(TextTokenizer::from_folder(folder)?)),
            Some(grid) => Processor::Images(Box::new(ImageProcessor::from_folder(folder, grid)?)),
        };
        let processor = Arc::new(processor);
        let companions = read_companions(folder)?;
        Ok(Self { name: name.to_owned(), files: weights.files().to_vec(), companions, transformer, processor })
    }

    /// Loads a GGUF file of a supported family, dequantised.
    ///
    /// # Errors
    /// As [`Self::from_folder`].
    pub fn from_gguf(
        path: &Path,
        name: &str,
        precision: impl Into<Precision>,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let gguf = Gguf::open(path).map_err(ModelError::from)?;
        let file = path.display().to_string();
        let config = gguf.config_json().map_err(ModelError::from)?;
        let architecture = families::parse_config(&file, &config).map_err(ModelError::from)?;
        let transformer = Transformer::load(name, architecture, &gguf, precision, device)?;
        let tokenizer = TextTokenizer::from_gguf(&gguf)?;
        let companions = BTreeMap::from([
            ("config.json".to_owned(), format!("{config:#}\n").into_bytes()),
            ("tokenizer.json".to_owned(), tokenizer.to_json()?.into_bytes()),
        ]);
        let processor = Arc::new(Processor::Texts(Box::new(tokenizer)));
        Ok(Self { name: name.to_owned(), files: vec![path.to_path_buf()], companions, transformer, processor })
    }

    /// The model that is compiled in.
    ///
    /// # Errors
    /// None that a build which passed its tests could meet.
    pub fn embedded(precision: impl Into<Precision>, device: &Device) -> Result<Self, LoadError> {
        let config = serde_json::from_slice(EMBEDDED_CONFIG).unwrap_or_default();
        let architecture = families::parse_config("embedded config.json", &config).map_err(ModelError::from)?;
        let transformer = Transformer::load(EMBEDDED, architecture, &embedded_weights()?, precision, device)?;
        let tokenizer = TextTokenizer::from_bytes(EMBEDDED_TOKENIZER, Some(EMBEDDED_CONFIG))?;
        let companions = BTreeMap::from([
            ("config.json".to_owned(), EMBEDDED_CONFIG.to_vec()),
            ("tokenizer.json".to_owned(), EMBEDDED_TOKENIZER.to_vec()),
        ]);
        let processor = Arc::new(Processor::Texts(Box::new(tokenizer)));
        Ok(Self { name: EMBEDDED.to_owned(), files: Vec::new(), companions, transformer, processor })
    }

    /// Refuses weights that are no model without the adapter that was merged into them in part.
    ///
    /// # Errors
    /// They are such.
    pub fn refuse_partial(&self) -> Result<(), ModelError> {
        match self.transformer.architecture().partial {
            true => Err(ModelError::Partial { model: self.name.clone() }),
            false => Ok(()),
        }
    }

    /// The tokenizer of a model that reads texts.
    ///
    /// # Errors
    /// It reads images.
    pub fn tokenizer(&self) -> Result<&TextTokenizer, ModelError> {
        match &*self.processor {
            Processor::Texts(tokenizer) => Ok(tokenizer.as_ref()),
            Processor::Images(_) => Err(ModelError::ReadsImages { family: self.transformer.architecture().family }),
        }
    }

    /// The tokens that end a text: the tokenizer's EOS, and what `generation_config.json` and `config.json` name beside it
    /// (models for chat end a turn by another token).
    #[must_use]
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.tokenizer().ok().and_then(TextTokenizer::eos).into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            let stated =
                self.companions.get(file).and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
            let named = match stated.as_ref().and_then(|stated| stated.get("eos_token_id")) {
                Some(serde_json::Value::Array(several)) => several.clone(),
                Some(one) => vec![one.clone()],
                None => Vec::new(),
            };
            all.extend(named.iter().filter_map(serde_json::Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
        }
        all.retain(|&id| (id as usize) < self.transformer.architecture().vocab_size);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The transformer with a head for `classes` classes, from the same files: `path` is the folder or GGUF file, `None` for
    /// the embedded model. Where the files have no such head, it begins at random.
    ///
    /// # Errors
    /// The family has no such head, or a file cannot be read.
    pub fn classifying(
        &self,
        classes: usize,
        path: Option<&Path>,
        precision: impl Into<Precision>,
        device: &Device,
    ) -> Result<Transformer, LoadError> {
        let architecture = self.transformer.architecture().clone();
        let family = architecture.family;
        let architecture = architecture.classifying(classes).ok_or(ModelError::NoClasses { family })?;
        Ok(match path {
            None => Transformer::load(EMBEDDED, architecture, &embedded_weights()?, precision, device)?,
            Some(path) if path.is_file() => {
                let gguf = Gguf::open(path).map_err(ModelError::from)?;
                Transformer::load(&self.name, architecture, &gguf, precision, device)?
            }
            Some(folder) => {
                let weights = Weights::open(folder).map_err(ModelError::from)?;
                Transformer::load(&self.name, architecture, &weights, precision, device)?
            }
        })
    }

    /// SHA-256 of every weights file by its name.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>, LoadError> {
        if self.files.is_empty() {
            return Ok(BTreeMap::from([(EMBEDDED.to_owned(), hash::sha256_bytes(EMBEDDED_WEIGHTS))]));
        }
        // Shards side by side; the digest of one file is a chain.
        let hashed = self.files.par_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match hash::sha256_file(path) {
                Ok(digest) => Ok((name, digest)),
                Err(source) => Err(LoadError::Unreadable { file: path.display().to_string(), source }),
            }
        });
        hashed.collect()
    }
}

/// The files of a Hugging Face folder that are not weights, each used if it is there.
pub(crate) const COMPANIONS: [&str; 10] = [
    "config.json",
    PREPROCESSOR,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

fn read_companions(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, LoadError> {
    let mut companions = BTreeMap::new();
    for name in COMPANIONS {
        let path = folder.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path)
                .map_err(|source| LoadError::Unreadable { file: path.display().to_string(), source })?;
            companions.insert(name.to_owned(), bytes);
        }
    }
    Ok(companions)
}

fn embedded_weights() -> Result<InMemory, LoadError> {
    let tensors = candle_core::safetensors::load_buffer(EMBEDDED_WEIGHTS, &Device::Cpu).map_err(ModelError::from)?;
    Ok(InMemory(tensors))
}

/// Tensors that are in memory already.
struct InMemory(HashMap<String, Tensor>);

impl TensorSource for InMemory {
    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.keys().cloned().collect();
        names.sort();
        names
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let wrong = |problem: String| WeightsError::Tensor {
            file: EMBEDDED.to_owned(),
            tensor: name.to_owned(),
            problem,
            remedy: "this build of smooth-probe is damaged; build it again",
        };
        match self.0.get(name) {
            Some(tensor) if tensor.dims() == shape => {
                tensor.to_dtype(dtype).and_then(|t| t.to_device(device)).map_err(|e| wrong(e.to_string()))
            }
            _ => Err(wrong("is missing or misshapen".to_owned())),
        }
    }
}

const EMBEDDED_CONFIG: &[u8] = include_bytes!("../../models/embedded/config.json");
const EMBEDDED_WEIGHTS: &[u8] = include_bytes!("../../models/embedded/model.safetensors");
const EMBEDDED_TOKENIZER: &[u8] = include_bytes!("../../models/embedded/tokenizer.json");
