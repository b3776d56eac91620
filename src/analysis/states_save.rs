//! Writing hidden states to files: a forward pass whose probe puts every row on the disk as it comes.

use super::states::{StoredText, TOKENS_FILE, file_name};
use crate::data::{Image, Packed, Sequence};
use crate::disk::free_space;
use crate::hash;
use crate::measures::Point;
use crate::model::{LoadedModel, ModelError, Pass};
use crate::peft::Peft;
use crate::persist::{self, PersistError};
use crate::probe::{Probe, Site};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The file that says what the states were made from.
pub const ORIGIN_FILE: &str = "manifest.json";

/// Above this size, in bytes, states are saved only if it is insisted on.
pub const LARGE: u64 = 10_000_000_000;

/// States that were not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The folder holds something.
    #[error("--save-states {folder}: is not an empty folder, nor one of the same states; name a new one")]
    NotEmpty {
        /// The folder.
        folder: String,
    },
    /// More than the disk has room for.
    #[error(
        "--save-states {folder}: {size} are needed and {free} are free; choose fewer --layers or a smaller --max-texts"
    )]
    NoRoom {
        /// The folder.
        folder: String,
        /// What is needed.
        size: String,
        /// What is free.
        free: String,
    },
    /// More than anyone wants by chance.
    #[error(
        "--save-states {folder}: {size} are needed; choose fewer --layers or a smaller --max-texts, or insist with --force"
    )]
    Large {
        /// The folder.
        folder: String,
        /// What is needed.
        size: String,
    },
    /// A file that could not be written.
    #[error("{path}: cannot write: {source}; check that the folder is writable and has room")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The folder could not be made or renamed.
    #[error(transparent)]
    Folder(#[from] PersistError),
    /// The model cannot be run.
    #[error("{run}: {source}")]
    Run {
        /// The run.
        run: String,
        /// Why.
        source: ModelError,
    },
    /// The model gave other rows than were announced.
    #[error("{file}: {found} rows came where {wanted} were announced")]
    Rows {
        /// The file.
        file: String,
        /// Rows that came.
        found: u64,
        /// Rows announced.
        wanted: u64,
    },
}

/// A text to save: what `tokens.jsonl` says of it, and its ids.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedText {
    /// Its line.
    pub line: StoredText,
    /// Token ids, as many as the line has tokens.
    pub ids: Vec<u32>,
    /// Token types; empty where all are 0.
    pub types: Vec<u32>,
    /// The image, where it is one.
    pub image: Option<Image>,
}

impl SavedText {
    fn sequence(&self) -> Sequence<'_> {
        Sequence { ids: &self.ids, types: &self.types, image: self.image.as_ref() }
    }
}

/// A run whose states are saved.
#[derive(Clone, Copy)]
pub struct SavedRun<'a> {
    /// Its name.
    pub name: &'a str,
    /// The model.
    pub model: &'a LoadedModel,
    /// Its adapter.
    pub peft: Option<&'a Peft>,
    /// Hashes of the model, tokenizer and adapter, and what is computed in: which states these are.
    pub made_from: &'a Value,
    /// Texts that run through the model together.
    pub batch_size: usize,
}

impl SavedRun<'_> {
    /// What the states of `plan` are made from. Equal values give equal states, but for rounding: the batch size is
    /// not in it.
    fn origin(&self, plan: &SavePlan, texts: &[SavedText]) -> Value {
        let points: Vec<String> = plan.points.iter().map(|point| file_name(*point)).collect();
        let lines: Vec<Value> = texts.iter().map(|text| json!([text.line, text.ids, text.types])).collect();
        json!({
            "program": "smooth-probe",
            "version": env!("CARGO_PKG_VERSION"),
            "made_from": self.made_from,
            "points": points,
            "texts": plan.texts,
            "texts_sha256": hash::sha256_bytes(json!(lines).to_string().as_bytes()),
        })
    }

    /// Whether `folder` holds the states of `plan` already, whole.
    #[must_use]
    pub fn is_saved(&self, plan: &SavePlan, texts: &[SavedText], folder: &Path) -> bool {
        let whole = |point: &Point| {
            let file = fs::metadata(folder.join(file_name(*point)));
            file.is_ok_and(|file| file.len() == plan.file_bytes())
        };
        let origin =
            fs::read(folder.join(ORIGIN_FILE)).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        origin.is_some_and(|origin| origin == self.origin(plan, texts))
            && plan.points.iter().all(whole)
            && folder.join(TOKENS_FILE).is_file()
    }
}

/// What is going to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavePlan {
    points: Vec<Point>,
    texts: u64,
    tokens: u64,
    width: u64,
}

impl SavePlan {
    /// The plan for `texts` at `points`, rows being `width` wide.
    #[must_use]
    pub fn new(points: &[Point], texts: &[SavedText], width: usize) -> Self {
        Self {
            points: points.to_vec(),
            texts: texts.len() as u64,
            tokens: texts.iter().map(|text| text.ids.len() as u64).sum(),
            width: width as u64,
        }
    }

    /// The size of the safetensors files, in bytes, without their headers of some hundred bytes each.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.points.len() as u64 * (self.tokens * (self.width + 1) * 4 + (self.texts + 1) * 8)
    }

    /// The size of one safetensors file, in bytes.
    fn file_bytes(&self) -> u64 {
        let offsets = (self.texts + 1) * 8;
        header(self, offsets).len() as u64 + offsets + self.tokens * (self.width + 1) * 4
    }

    /// The plan in words, with the size.
    #[must_use]
    pub fn describe(&self) -> String {
        let files = self.points.len();
        let (texts, tokens, width) = (self.texts, self.tokens, self.width);
        format!("{files} files of {tokens} tokens ({texts} texts) × {width} values in f32: {}", size(self.bytes()))
    }

    /// Refuses a folder that holds something, a size beyond the disk's room, and, unless `force`, one above
    /// [`LARGE`].
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, folder: &Path, force: bool) -> Result<(), SaveError> {
        let name = || folder.display().to_string();
        let unnamed = folder.file_name().is_none();
        let taken = folder.exists() && fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_some());
        if unnamed || taken {
            return Err(SaveError::NotEmpty { folder: name() });
        }
        if let Some(free) = free_space(folder).filter(|free| *free < self.bytes()) {
            return Err(SaveError::NoRoom { folder: name(), size: size(self.bytes()), free: size(free) });
        }
        if self.bytes() > LARGE && !force {
            return Err(SaveError::Large { folder: name(), size: size(self.bytes()) });
        }
        Ok(())
    }
}

/// A size in bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1_000_000 => (bytes as f64 / 1e3, "kB"),
        1_000_000..1_000_000_000 => (bytes as f64 / 1e6, "MB"),
        _ => (bytes as f64 / 1e9, "GB"),
    };
    format!("{value:.1} {unit}")
}

/// Runs the texts through the model and writes the states of the plan's points into `folder`, which appears
/// whole or not at all; `done` is told of every batch how many texts it held.
///
/// # Errors
/// The folder cannot be written, or the model cannot be run.
pub fn save_states(
    run: &SavedRun<'_>,
    texts: &[SavedText],
    plan: &SavePlan,
    folder: &Path,
    done: &mut dyn FnMut(usize),
) -> Result<(), SaveError> {
    let frozen = run.peft.map(Peft::frozen);
    let pass = Pass::inference(frozen.as_ref());
    persist::replace_folder(folder, |next| {
        let mut writer = Writer::create(next, plan, texts)?;
        for group in texts.chunks(run.batch_size.max(1)) {
            let batch = Packed::pack(group.iter().map(SavedText::sequence));
            let ran = run.model.transformer.hidden_states(&batch, &pass, &mut writer);
            match (writer.failed.take(), ran) {
                (Some(failed), _) => return Err(failed),
                (None, Err(source)) => return Err(SaveError::Run { run: run.name.to_owned(), source }),
                (None, Ok(_)) => done(group.len()),
            }
        }
        writer.finish(plan.tokens)?;
        let lines: Result<Vec<String>, _> = texts.iter().map(|text| serde_json::to_string(&text.line)).collect();
        let path = next.join(TOKENS_FILE);
        let lines = lines.map_err(|e| write_error(&path)(io::Error::other(e)))?;
        persist::write_file(&path, format!("{}\n", lines.join("\n")).as_bytes())?;
        let origin = format!("{:#}\n", run.origin(plan, texts));
        Ok(persist::write_file(&next.join(ORIGIN_FILE), origin.as_bytes())?)
    })
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> SaveError {
    let path = path.display().to_string();
    move |source| SaveError::Write { path, source }
}

/// A file whose rows are still coming.
struct Growing {
    file: BufWriter<File>,
    path: PathBuf,
    rows: u64,
}

impl Growing {
    fn append(&mut self, values: &[f32], rows: u64) -> Result<(), SaveError> {
        self.rows += rows;
        let mut put = || values.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes()));
        put().map_err(write_error(&self.path))
    }
}

/// The probe that writes.
struct Writer {
    files: BTreeMap<(usize, Site), Growing>,
    /// What follows the rows in every file.
    ids: Vec<u8>,
    /// The system's own words; a probe's error has no room for them.
    failed: Option<SaveError>,
}

impl Writer {
    /// Opens a file for each point and writes what goes before the rows.
    fn create(folder: &Path, plan: &SavePlan, texts: &[SavedText]) -> Result<Self, SaveError> {
        let mut starts = 0_i64.to_le_bytes().to_vec();
        let mut end = 0_i64;
        for text in texts {
            end = end.saturating_add_unsigned(text.ids.len() as u64);
            starts.extend(end.to_le_bytes());
        }
        let head = header(plan, starts.len() as u64);
        let mut files = BTreeMap::new();
        for &point in &plan.points {
            let path = folder.join(file_name(point));
            let mut file = BufWriter::with_capacity(1 << 18, File::create(&path).map_err(write_error(&path))?);
            file.write_all(&head).and_then(|()| file.write_all(&starts)).map_err(write_error(&path))?;
            files.insert((point.layer, point.site), Growing { file, path, rows: 0 });
        }
        let ids = texts.iter().flat_map(|text| &text.ids).flat_map(|id| id.to_le_bytes()).collect();
        Ok(Self { files, ids, failed: None })
    }

    fn finish(self, wanted: u64) -> Result<(), SaveError> {
        for Growing { mut file, path, rows } in self.files.into_values() {
            if rows != wanted {
                return Err(SaveError::Rows { file: path.display().to_string(), found: rows, wanted });
            }
            let closed = file.write_all(&self.ids).and_then(|()| file.flush()).and_then(|()| file.get_ref().sync_all());
            closed.map_err(write_error(&path))?;
        }
        Ok(())
    }
}

impl Probe for Writer {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        let Some(file) = self.files.get_mut(&(layer, site)) else { return Ok(()) };
        let rows = states.dim(0)? as u64;
        let values = states.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        file.append(&values, rows).map_err(|failed| {
            self.failed = Some(failed);
            ModelError::Tensor(candle_core::Error::Msg("states could not be written".to_owned()))
        })
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.files.contains_key(&(layer, site))
    }
}

/// The length and header of a safetensors file with `offsets` first (eight bytes a value, so that every tensor
/// is aligned), then `states`, then `ids`.
fn header(plan: &SavePlan, offset_bytes: u64) -> Vec<u8> {
    let SavePlan { texts, tokens, width, .. } = plan;
    let rows = offset_bytes + tokens * width * 4;
    let ids = rows + tokens * 4;
    let mut json = format!(
        "{{\"offsets\":{{\"dtype\":\"I64\",\"shape\":[{}],\"data_offsets\":[0,{offset_bytes}]}},\
         \"states\":{{\"dtype\":\"F32\",\"shape\":[{tokens},{width}],\"data_offsets\":[{offset_bytes},{rows}]}},\
         \"ids\":{{\"dtype\":\"U32\",\"shape\":[{tokens}],\"data_offsets\":[{rows},{ids}]}}}}",
        texts + 1
    );
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes
}
