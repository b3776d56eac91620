//! Texts, images and training records: readers, prompt templates, encoding, batching.
//!
//! A file becomes [`Record`]s ([`read_records`]), a [`Template`] renders each to a text that knows where its
//! response begins, [`encode_records`] turns that into token [`Example`]s with their loss targets, and
//! [`Packed`] lays the sequences of a batch one after another. [`TextSource`] streams the texts of a probe.

mod batch;
mod chat;
mod encode;
mod error;
mod image;
mod image_folder;
mod image_processor;
mod json;
mod labelled;
mod lines;
#[cfg(feature = "cli")]
mod parquet;
mod records;
mod resize;
mod rows;
mod span;
mod table;
mod template;
mod texts;

pub use batch::{EpochOrder, Packed, Sequence, split_validation, targets_and_weights};
pub use chat::ChatTemplate;
pub use encode::{EncodingOptions, EncodingReport, Example, LossOn, encode_prompt, encode_records, encode_text};
pub use error::DataError;
pub use image::{Image, PatchGrid};
pub use image_folder::{ImageFile, image_files};
pub use image_processor::{ImageProcessor, PREPROCESSOR};
pub use labelled::{Labelled, read_labelled, read_labelled_images};
pub use records::{Message, Record, read_records};
pub use rows::{Row, read_rows};
pub use span::{Span, clip};
pub use template::{FileTemplate, Phase, Rendered, Template};
pub use texts::{Content, ProbeText, TextOptions, TextSource};

/// The tokens of one text, or of one image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token whether it is a special one (BOS, EOS, …).
    pub special: Vec<bool>,
    /// For each token the byte range of the text that it stands for; `(0, 0)` for added special tokens.
    pub offsets: Vec<(usize, usize)>,
    /// For each token which text of a pair it belongs to, 0 or 1; empty where all are 0.
    pub types: Vec<u32>,
    /// The image, whose patches the ids from 1 on are; id 0 is the class token.
    pub image: Option<Image>,
}

/// What encoding needs of a tokenizer.
pub trait Tokenize: Sync {
    /// The tokens of `text`, with the special tokens that the tokenizer puts around a single text if
    /// `add_special`.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    fn encode(&self, text: &str, add_special: bool) -> Result<Encoded, DataError>;
    /// The tokens of two texts, put together as the tokenizer does with a pair; offsets are counted in each text.
    ///
    /// # Errors
    /// The tokenizer refuses the texts, or knows no pairs.
    fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoded, DataError> {
        let _ = (text, pair);
        Err(DataError::Tokenizer { reason: "it knows no pairs of texts".to_owned() })
    }
    /// The id of the beginning-of-sequence token.
    fn bos(&self) -> Option<u32>;
    /// The id of the end-of-sequence token.
    fn eos(&self) -> Option<u32>;
    /// Whether a text is to begin with BOS.
    fn adds_bos(&self) -> bool;
    /// The Jinja source of the tokenizer's chat template.
    fn chat_template(&self) -> Option<String>;
    /// The text of the special token called `name` in the tokenizer's configuration (`bos_token`, `eos_token`).
    fn special_token_text(&self, name: &str) -> Option<String>;
}

#[cfg(test)]
pub(crate) mod toy;
