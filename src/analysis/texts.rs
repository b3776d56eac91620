//! The texts of a file as a model reads them, streamed once a pass.

use super::chunks::TextSupply;
use super::similarity::{EncodedText, SimilarityError};
use crate::data::{
    DataError, Encoded, ImageFile, ImageProcessor, ProbeText, Span, TextOptions, TextSource, Tokenize, clip,
    image_files,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What texts, or images, are given to.
#[derive(Clone, Copy)]
pub enum Inputs<'t> {
    /// A file of texts, to a tokenizer.
    Texts(&'t dyn Tokenize),
    /// A folder of images, to an image processor.
    Images(&'t ImageProcessor),
}

/// How images are grouped: by the folder that each lies in.
pub const BY_FOLDER: &str = "folder";

/// A file of texts with how they are cut, or a folder of images.
pub struct FileTexts<'t> {
    /// The file, or the folder.
    pub path: PathBuf,
    /// What of a row is its text, and its group.
    pub options: TextOptions,
    /// Which part is measured.
    pub span: Span,
    /// The most tokens of a text.
    pub longest: usize,
    /// Only texts of at least so many tokens, cut to so many.
    pub exact: Option<usize>,
    /// Only the first so many texts.
    pub limit: Option<usize>,
    /// What makes the model's tokens.
    pub inputs: Inputs<'t>,
}

impl<'t> FileTexts<'t> {
    /// The texts with the characters that each token stands for; none for images, and for sentence pairs, whose places
    /// are in two texts.
    ///
    /// # Errors
    /// The file cannot be opened; a text cannot be read or encoded.
    pub fn located(&self) -> Result<impl Iterator<Item = Result<Located, DataError>> + '_, DataError> {
        self.read(true)
    }

    fn read(&self, places: bool) -> Result<Box<dyn Iterator<Item = Result<Located, DataError>> + '_>, DataError> {
        let limit = self.limit.unwrap_or(usize::MAX);
        Ok(match self.inputs {
            Inputs::Texts(tokenizer) => {
                let source = TextSource::open(&self.path, self.options.clone())?.take(limit);
                let locate = move |text: ProbeText| self.locate(text, tokenizer, places);
                Box::new(source.filter_map(move |text| text.and_then(locate).transpose()))
            }
            Inputs::Images(processor) => {
                let files = image_files(&self.path)?.into_iter().take(limit).enumerate();
                Box::new(files.map(move |(index, file)| Ok((self.image(index as u64, file, processor)?, None))))
            }
        })
    }

    fn image(&self, index: u64, file: ImageFile, processor: &ImageProcessor) -> Result<EncodedText, DataError> {
        let Encoded { ids, special, types, image, .. } = processor.encode(&file.path)?;
        let group = match (&self.options.group_by, file.class) {
            (None, _) => None,
            (Some(_), Some(class)) => Some(class),
            (Some(_), None) => return Err(DataError::NoClass { path: file.path.display().to_string() }),
        };
        Ok(EncodedText { index, group, span: 0..ids.len(), ids, special, types, image })
    }

    fn locate(&self, text: ProbeText, tokenizer: &'t dyn Tokenize, places: bool) -> Result<Option<Located>, DataError> {
        let encoded = text.encode(tokenizer)?;
        let span = self.span.rows(&text, &encoded).map_err(|e| e.at(self.path.display().to_string()))?;
        let encoded = clip(encoded, Some(self.longest), self.exact);
        Ok(encoded.map(|encoded| {
            let end = encoded.ids.len();
            let places = (places && text.pair.is_none()).then(|| characters(&text.text, &encoded.offsets));
            let text = EncodedText {
                index: text.index as u64,
                group: text.group,
                ids: encoded.ids,
                special: encoded.special,
                types: encoded.types,
                image: None,
                span: span.start.min(end)..span.end.min(end),
            };
            (text, places)
        }))
    }
}

/// A text with the characters that each of its tokens stands for, where they are known.
pub type Located = (EncodedText, Option<Vec<(u64, u64)>>);

/// For each token's range of bytes in `text` the range of characters.
fn characters(text: &str, bytes: &[(usize, usize)]) -> Vec<(u64, u64)> {
    let mut before = vec![0_u64; text.len() + 1];
    let mut count = 0;
    for (start, c) in text.char_indices() {
        // A place inside a character belongs to it.
        before.iter_mut().skip(start).take(c.len_utf8()).for_each(|place| *place = count);
        count += 1;
    }
    if let Some(last) = before.last_mut() {
        *last = count;
    }
    let at = |byte: usize| before.get(byte).copied().unwrap_or(count);
    bytes.iter().map(|&(start, end)| (at(start), at(end))).collect()
}

impl TextSupply for FileTexts<'_> {
    fn open(&self) -> Result<Box<dyn Iterator<Item = Result<EncodedText, SimilarityError>> + '_>, SimilarityError> {
        Ok(Box::new(self.read(false)?.map(|text| Ok(text?.0))))
    }
}

/// What a first look at the texts tells: it finds a bad one before any work, and how much work there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How many texts enter.
    pub texts: u64,
    /// Their tokens.
    pub tokens: u64,
    /// SHA-256 of what the model is given of them: indices, ids, special tokens, spans, groups.
    pub sha256: String,
    /// The texts that lookup measures are taken of.
    pub lookup: BTreeSet<u64>,
}

/// Reads all texts once and draws `lookup` of them, seeded, for the lookup measures.
///
/// # Errors
/// A text cannot be read or encoded.
pub fn scan(supply: &dyn TextSupply, lookup: usize, seed: u64) -> Result<Scan, SimilarityError> {
    let mut hasher = Sha256::new();
    let (mut texts, mut tokens) = (0, 0);
    // The texts of lowest priority: a sample that no order changes.
    let mut drawn: BTreeSet<(u64, u64)> = BTreeSet::new();
    for text in supply.open()? {
        let text = text?;
        texts += 1;
        tokens += text.ids.len() as u64;
        let group = text.group.as_deref().map_or(u64::MAX, |group| group.len() as u64);
        let types = text.types.len() as u64;
        let span = [text.span.start as u64, text.span.end as u64];
        for number in [text.index, text.ids.len() as u64, types, group].into_iter().chain(span) {
            hasher.update(number.to_le_bytes());
        }
        text.ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        text.types.iter().for_each(|of| hasher.update(of.to_le_bytes()));
        if let Some(image) = &text.image {
            let bytes: Vec<u8> = image.values().iter().flat_map(|value| value.to_le_bytes()).collect();
            hasher.update(bytes);
        }
        text.special.iter().for_each(|&special| hasher.update([u8::from(special)]));
        hasher.update(text.group.as_deref().unwrap_or_default());
        drawn.insert((priority(seed, text.index), text.index));
        if drawn.len() > lookup {
            drawn.pop_last();
        }
    }
    let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Scan { texts, tokens, sha256, lookup: drawn.into_iter().map(|(_, index)| index).collect() })
}

fn priority(seed: u64, index: u64) -> u64 {
    use rand::RngCore;
    crate::random::stream(seed, &["lookup texts", &index.to_string()]).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_characters() {
        // é has two bytes, 日 three, 🙂 four.
        let found = characters("aé日🙂b", &[(0, 1), (1, 3), (3, 6), (6, 10), (10, 11), (0, 0), (0, 11), (0, 99)]);
        assert_eq!(found, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 0), (0, 5), (0, 5)]);
        assert_eq!(characters("", &[(0, 0)]), [(0, 0)]);
    }

    fn text(index: u64, ids: &[u32]) -> EncodedText {
        EncodedText {
            index,
            group: None,
            ids: ids.to_vec(),
            special: vec![false; ids.len()],
            span: 0..ids.len(),
            ..EncodedText::default()
        }
    }

    #[test]
    fn a_scan_counts_and_tells_texts_apart() {
        let texts = vec![text(0, &[1, 2]), text(1, &[3])];
        let found = scan(&texts, 5, 1).unwrap();
        assert_eq!((found.texts, found.tokens), (2, 3));
        assert_eq!(found.lookup, BTreeSet::from([0, 1]));
        let changed = |change: &dyn Fn(&mut EncodedText)| {
            let mut texts = texts.clone();
            change(&mut texts[1]);
            scan(&texts, 5, 1).unwrap().sha256
        };
        let others = [
            changed(&|t| t.ids[0] = 4),
            changed(&|t| t.special[0] = true),
            changed(&|t| t.span = 0..0),
            changed(&|t| t.group = Some(String::new())),
            changed(&|t| t.index = 2),
        ];
        assert!(others.iter().all(|other| *other != found.sha256));
        assert_eq!(scan(&vec![text(0, &[1]), text(1, &[2, 3])], 5, 1).unwrap().texts, 2);
    }

    #[test]
    fn the_drawn_texts_depend_on_the_seed_alone() {
        let texts: Vec<EncodedText> = (0..40).map(|i| text(i, &[1])).collect();
        let drawn = scan(&texts, 10, 1).unwrap().lookup;
        assert_eq!(drawn.len(), 10);
        assert_ne!(drawn, scan(&texts, 10, 2).unwrap().lookup);
        let half: Vec<EncodedText> = texts.iter().filter(|t| t.index % 2 == 0).cloned().collect();
        let of_half = scan(&half, 10, 1).unwrap().lookup;
        assert!(drawn.iter().filter(|i| *i % 2 == 0).all(|i| of_half.contains(i)));
    }
}
