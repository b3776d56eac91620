//! Hidden states in files: the format, and its reader. `docs/states.md` shows a writer in Python.
//!
//! A folder holds `tokens.jsonl`, a line for each text, and a safetensors file for each site and layer, named
//! `<site>_<layer>.safetensors`: `states` F32 `[tokens, d]`, the tokens of all texts one after another; `ids`
//! U32 `[tokens]`; `offsets` I64 `[texts + 1]`, where each text begins. Rows are read a few texts at a time.

use super::similarity::EncodedText;
use crate::data::Packed;
use crate::measures::Point;
use crate::model::ModelError;
use crate::model::weights::WeightsError;
use crate::model::weights_header::{self, Entry, Stored};
use crate::probe::{Probe, Site};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file that describes the texts.
pub const TOKENS_FILE: &str = "tokens.jsonl";
/// The deepest layer that a file's name may give.
const MAX_LAYER: usize = 4096;
/// The longest line of `tokens.jsonl`, in bytes.
const MAX_LINE: u64 = 64 << 20;

/// A text whose states are stored: a line of `tokens.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredText {
    /// Its position in the input that it came from, from 0; larger than that of the text before it.
    pub text: u64,
    /// What each token stands for in the text.
    pub tokens: Vec<String>,
    /// Which tokens are special.
    pub special: Vec<bool>,
    /// For each token the range of characters that it stands for, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<(u64, u64)>>,
    /// The tokens to measure; without it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<(usize, usize)>,
    /// The text's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

impl StoredText {
    /// The rows to measure.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.span.map_or(0..self.tokens.len(), |(start, end)| start..end)
    }
}

/// Stored states that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatesError {
    /// The system refused.
    #[error("{path}: cannot read: {source}; check the path and its permissions")]
    Read {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file whose structure is broken or hostile.
    #[error(transparent)]
    Header(#[from] WeightsError),
    /// A file, or a line of one, that is not in the format.
    #[error("{place}: {problem}; docs/states.md has the format, and a writer to copy")]
    Format {
        /// The file and line, or the folder.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A value that is not finite.
    #[error("{file}: text {text} holds a value that is NaN or infinite; leave the text out, or find what overflows")]
    NotFinite {
        /// The file.
        file: String,
        /// The text.
        text: u64,
    },
    /// What reads the states refused them.
    #[error(transparent)]
    Probe(#[from] ModelError),
}

fn format(place: impl Into<String>, problem: impl Into<String>) -> StatesError {
    StatesError::Format { place: place.into(), problem: problem.into() }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> StatesError {
    let path = path.display().to_string();
    move |source| StatesError::Read { path, source }
}

/// The file of the states at a point.
#[must_use]
pub fn file_name(point: Point) -> String {
    format!("{}_{}.safetensors", point.site, point.layer)
}

/// The point that a file's name gives; none for other names.
fn point_of(name: &str) -> Option<Point> {
    let (site, layer) = name.strip_suffix(".safetensors")?.rsplit_once('_')?;
    // "007" or "+7" would be a second name of a point.
    let layer = layer.parse::<usize>().ok().filter(|l| *l <= MAX_LAYER && l.to_string() == layer)?;
    let site = site.parse::<Site>().ok().filter(|found| found.to_string() == site)?;
    ((site == Site::Embedding) == (layer == 0)).then_some(Point { site, layer })
}

/// The states of one point.
#[derive(Debug)]
struct PointFile {
    point: Point,
    path: PathBuf,
    /// Where the rows begin, in bytes.
    start: u64,
}

/// A folder of stored states: its texts, and where their rows lie. Everything but the rows is checked.
#[derive(Debug)]
pub struct StoredStates {
    folder: PathBuf,
    texts: Vec<StoredText>,
    packed: Packed,
    width: usize,
    files: Vec<PointFile>,
}

impl StoredStates {
    /// Opens a folder and checks that its files are whole and belong together.
    ///
    /// # Errors
    /// A file is missing, broken or hostile, or two of them disagree about texts, ids or width.
    pub fn open(folder: &Path) -> Result<Self, StatesError> {
        let texts = read_texts(&folder.join(TOKENS_FILE))?;
        let mut files: Vec<(Point, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder).map_err(read_error(folder))? {
            let path = entry.map_err(read_error(folder))?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let point = point_of(&name).ok_or_else(|| {
                    let wanted = "expected embedding_0, block_<layer>, final_norm_<layer> or another site";
                    format(path.display().to_string(), format!("the name gives no site and layer; {wanted}"))
                })?;
                files.push((point, path));
            }
        }
        files.sort_by_key(|(point, _)| (point.layer, point.site));
        let mut first: Option<(Contents, String)> = None;
        let mut points = Vec::new();
        for (point, path) in files {
            let place = path.display().to_string();
            let contents = Contents::read(&path)?;
            points.push(PointFile { point, path, start: contents.start });
            match &first {
                None => {
                    contents.check(&texts, &place)?;
                    first = Some((contents, place));
                }
                Some((other, of)) => contents.agree(other, of, &place)?,
            }
        }
        let Some((contents, _)) = first else {
            return Err(format(folder.display().to_string(), "no states here: no block_<layer>.safetensors"));
        };
        let (ids, offsets) = (contents.ids.into(), contents.offsets.into());
        let packed =
            Packed { ids, offsets, types: Default::default(), images: Default::default(), first: Default::default() };
        Ok(Self { folder: folder.to_path_buf(), texts, packed, width: contents.width, files: points })
    }

    /// The texts, in the order of their rows.
    #[must_use]
    pub fn texts(&self) -> &[StoredText] {
        &self.texts
    }

    /// The stored texts as the analyses take them.
    #[must_use]
    pub fn encoded(&self) -> Vec<EncodedText> {
        let texts = self.texts.iter().enumerate();
        texts
            .map(|(place, text)| EncodedText {
                index: text.text,
                group: text.group.clone(),
                ids: self.ids(place).to_vec(),
                special: text.special.clone(),
                span: text.rows(),
                ..EncodedText::default()
            })
            .collect()
    }

    /// What each token of a text stands for, by the text's position in the input; empty if there is no such text.
    #[must_use]
    pub fn tokens(&self, text: u64) -> &[String] {
        let place = self.texts.binary_search_by_key(&text, |stored| stored.text);
        place.ok().and_then(|place| self.texts.get(place)).map(|text| text.tokens.as_slice()).unwrap_or_default()
    }

    /// The token ids of a text, by its place; empty if there is none.
    #[must_use]
    pub fn ids(&self, place: usize) -> &[u32] {
        self.packed.sequence(place)
    }

    /// The points that are stored, in order of layer, then site.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.files.iter().map(|file| file.point)
    }

    /// Every file that is read: the texts', then each point's.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.folder.join(TOKENS_FILE)).chain(self.files.iter().map(|file| file.path.clone()))
    }

    /// The width of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Shows the states of the texts, named by their position in the input, to `probe`, point by point, as a forward
    /// pass over them would.
    ///
    /// # Errors
    /// A text is not stored, a file cannot be read, a value is not finite, or the probe refuses.
    pub fn replay(&self, texts: &[u64], probe: &mut dyn Probe) -> Result<(), StatesError> {
        let mut places = Vec::with_capacity(texts.len());
        for text in texts {
            let place = self.texts.binary_search_by_key(text, |stored| stored.text);
            let none = |_| format(self.folder.display().to_string(), format!("holds no text {text}"));
            places.push((*text, place.map_err(none)?));
        }
        let sequences: Vec<&[u32]> = places.iter().map(|(_, place)| self.ids(*place)).collect();
        let batch = Packed::from_sequences(&sequences);
        for PointFile { point, path, start } in &self.files {
            if !probe.wants(point.site, point.layer) {
                continue;
            }
            let mut file = File::open(path).map_err(read_error(path))?;
            let mut states: Vec<f32> = Vec::with_capacity(batch.ids.len().saturating_mul(self.width));
            for &(text, place) in &places {
                let (rows, row) = (self.packed.rows(place), self.width as u64 * 4);
                // The header was checked against the file's length: these products lie within it.
                let bytes = read_at(&mut file, path, start + rows.start as u64 * row, rows.len() as u64 * row)?;
                let own = values(&bytes, f32::from_le_bytes);
                if own.iter().any(|x| !x.is_finite()) {
                    return Err(StatesError::NotFinite { file: path.display().to_string(), text });
                }
                states.extend(own);
            }
            let states = Tensor::from_vec(states, (batch.ids.len(), self.width), &Device::Cpu);
            probe.record(point.site, point.layer, &states.map_err(ModelError::from)?, &batch)?;
        }
        Ok(())
    }
}

/// `bytes` bytes of a file from `start`.
fn read_at(file: &mut File, path: &Path, start: u64, bytes: u64) -> Result<Vec<u8>, StatesError> {
    file.seek(SeekFrom::Start(start)).map_err(read_error(path))?;
    let mut found = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact(&mut found).map_err(read_error(path))?;
    Ok(found)
}

fn values<T, const N: usize>(bytes: &[u8], value: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
}

/// What a file holds beside its rows.
struct Contents {
    start: u64,
    width: usize,
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Contents {
    fn read(path: &Path) -> Result<Self, StatesError> {
        // The header's reader speaks of weights: what the system refuses is said here.
        let mut file = File::open(path).map_err(read_error(path))?;
        let entries = weights_header::entries(path)?;
        let place = || path.display().to_string();
        let tensor = |name: &str, kind: &str, shape: &str| -> Result<&Entry, StatesError> {
            let entry = entries.get(name).ok_or_else(|| format(place(), format!("has no tensor `{name}`")))?;
            let stored = match &entry.stored {
                Stored::F32 => "F32",
                Stored::F16 => "F16",
                Stored::Bf16 => "BF16",
                Stored::F64 => "F64",
                Stored::Other(name) => name.as_str(),
            };
            if stored != kind || entry.shape.len() != if name == "states" { 2 } else { 1 } {
                let found = &entry.shape;
                return Err(format(place(), format!("`{name}` is {stored} {found:?}, not {kind} {shape}")));
            }
            Ok(entry)
        };
        let states = tensor("states", "F32", "[tokens, d]")?;
        let ids = tensor("ids", "U32", "[tokens]")?;
        let offsets = tensor("offsets", "I64", "[texts + 1]")?;
        let (tokens, width) = match states.shape.as_slice() {
            &[tokens, width] if tokens > 0 && width > 0 => (tokens, width),
            shape => return Err(format(place(), format!("`states` has the shape {shape:?}: there is nothing in it"))),
        };
        if ids.shape != [tokens] {
            return Err(format(place(), format!("`ids` has the shape {:?} for {tokens} rows of states", ids.shape)));
        }
        let starts: Vec<i64> = values(&read_at(&mut file, path, offsets.start, offsets.bytes)?, i64::from_le_bytes);
        let starts: Vec<usize> = starts.into_iter().map(|start| usize::try_from(start).unwrap_or(usize::MAX)).collect();
        let ascending = starts.iter().zip(starts.iter().skip(1)).all(|(start, next)| start < next);
        if starts.first() != Some(&0) || starts.last() != Some(&tokens) || !ascending {
            let problem = format!("`offsets` does not rise from 0 to {tokens}, the number of rows");
            return Err(format(place(), problem));
        }
        let ids = values(&read_at(&mut file, path, ids.start, ids.bytes)?, u32::from_le_bytes);
        Ok(Self { start: states.start, width, ids, offsets: starts })
    }

    /// Refuses offsets that are not those of the texts.
    fn check(&self, texts: &[StoredText], place: &str) -> Result<(), StatesError> {
        let found = self.offsets.len().saturating_sub(1);
        if found != texts.len() {
            let problem = format!("holds {found} texts where {TOKENS_FILE} has {}", texts.len());
            return Err(format(place, problem));
        }
        let lengths = self.offsets.iter().zip(self.offsets.iter().skip(1)).map(|(start, end)| end - start);
        for (text, length) in texts.iter().zip(lengths) {
            if text.tokens.len() != length {
                let (index, named) = (text.text, text.tokens.len());
                let problem = format!("text {index} has {length} rows where {TOKENS_FILE} names {named} tokens");
                return Err(format(place, problem));
            }
        }
        Ok(())
    }

    fn agree(&self, other: &Self, of: &str, place: &str) -> Result<(), StatesError> {
        if self.width != other.width {
            return Err(format(place, format!("is {} wide where {of} is {}", self.width, other.width)));
        }
        if self.ids != other.ids || self.offsets != other.offsets {
            return Err(format(place, format!("holds other tokens than {of}")));
        }
        Ok(())
    }
}

fn read_texts(path: &Path) -> Result<Vec<StoredText>, StatesError> {
    let mut reader = BufReader::new(File::open(path).map_err(read_error(path))?);
    let mut texts: Vec<StoredText> = Vec::new();
    for number in 1.. {
        let place = || format!("{}:{number}", path.display());
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(read_error(path))?;
        if read == 0 {
            break;
        }
        if read as u64 >= MAX_LINE {
            return Err(format(place(), "the line is longer than 64 MB"));
        }
        let text: StoredText = serde_json::from_slice(&line).map_err(|e| format(place(), e.to_string()))?;
        let n = text.tokens.len();
        let problem = if n == 0 {
            Some("a text without tokens".to_owned())
        } else if text.special.len() != n {
            Some(format!("{n} tokens, but {} flags in `special`", text.special.len()))
        } else if text.offsets.as_ref().is_some_and(|offsets| offsets.len() != n) {
            Some(format!("{n} tokens, but not as many `offsets`"))
        } else if text.span.is_some_and(|(start, end)| start > end || end > n) {
            Some(format!("`span` does not lie within the {n} tokens"))
        } else if let Some(last) = texts.last().filter(|last| last.text >= text.text) {
            Some(format!("text {} comes after text {}; put the texts in order", text.text, last.text))
        } else {
            None
        };
        match problem {
            Some(problem) => return Err(format(place(), problem)),
            None => texts.push(text),
        }
    }
    if texts.is_empty() {
        return Err(format(path.display().to_string(), "holds no texts"));
    }
    Ok(texts)
}

#[cfg(test)]
#[path = "states_tests.rs"]
mod tests;
