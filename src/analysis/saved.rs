//! Unfinished work on disk: what an interrupted run goes on from.
//!
//! One safetensors file a run: the values and accumulators so far, and in its metadata where the run stands and the
//! fingerprint of everything that its numbers depend on. Threads are not in it, since they change nothing, nor is the
//! batch size, which moves last digits only.

use super::chunks::CHUNK;
use super::pooled::Pooled;
use super::run_values::MeasuredText;
use super::similarity::{PassNumber, RunState};
use crate::persist::{self, PersistError};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The one metadata entry.
const ENTRY: &str = "similarity_progress";

/// Where a run stands.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    fingerprint: String,
    pass: PassNumber,
    chunks: u64,
    texts: Vec<MeasuredText>,
    /// Points with accumulators of the first and second pass.
    points: [usize; 2],
}

/// What a file of unfinished work was found to be.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is of this work.
    Own(Box<RunState>),
    /// It is of other work, or damaged: why it cannot be gone on from.
    Other(&'static str),
}

impl RunState {
    /// Texts that went through the model and need not again, counted once for each of up to two passes.
    #[must_use]
    pub fn passed(&self) -> u64 {
        let mut chunks: Vec<u64> = self.texts.iter().map(|text| text.index / CHUNK).collect();
        chunks.dedup();
        let second = match self.pass {
            PassNumber::First => 0,
            PassNumber::Second => {
                let next = chunks.get(self.chunks as usize).copied();
                self.texts.iter().filter(|text| next.is_none_or(|next| text.index / CHUNK < next)).count()
            }
            PassNumber::Done => self.texts.len(),
        };
        (self.texts.len() + second) as u64
    }
}

/// Saves a run's state now and then.
#[derive(Debug)]
pub struct Saver {
    path: PathBuf,
    fingerprint: String,
    every: Duration,
    last: Instant,
}

impl Saver {
    /// A saver to `path`, at most once in `every`.
    #[must_use]
    pub fn new(path: PathBuf, fingerprint: String, every: Duration) -> Self {
        Self { path, fingerprint, every, last: Instant::now() }
    }

    /// What is at the path.
    #[must_use]
    pub fn find(&self) -> Found {
        let Ok(bytes) = std::fs::read(&self.path) else { return Found::Nothing };
        match read(&bytes) {
            None => Found::Other("is damaged"),
            Some((fingerprint, _)) if fingerprint != self.fingerprint => {
                Found::Other("is of another model, adapter, text or choice of measures")
            }
            Some((_, state)) => Found::Own(Box::new(state)),
        }
    }

    /// Saves the state if it is time, or if the run is done.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, state: &RunState) -> Result<(), PersistError> {
        if state.pass != PassNumber::Done && self.last.elapsed() < self.every {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            persist::create_folder(folder)?;
        }
        write(&self.path, &self.fingerprint, state)?;
        self.last = Instant::now();
        Ok(())
    }
}

fn write(path: &Path, fingerprint: &str, state: &RunState) -> Result<(), PersistError> {
    let header = Header {
        fingerprint: fingerprint.to_owned(),
        pass: state.pass,
        chunks: state.chunks,
        texts: state.texts.clone(),
        points: [state.first.len(), state.second.len()],
    };
    let mut parts: Vec<(String, Dtype, Vec<u8>)> =
        vec![("values".to_owned(), Dtype::F64, state.values.iter().flat_map(|v| v.to_le_bytes()).collect())];
    for (pass, points) in [("first", &state.first), ("second", &state.second)] {
        for (point, sets) in points.iter().enumerate() {
            for (set, pooled) in sets.iter().enumerate() {
                parts.push((format!("{pass}.{point}.{set}"), Dtype::U8, pooled.to_bytes()));
            }
        }
    }
    let views = parts.iter().filter_map(|(name, dtype, bytes)| {
        let length = if *dtype == Dtype::F64 { bytes.len() / 8 } else { bytes.len() };
        Some((name.as_str(), TensorView::new(*dtype, vec![length], bytes).ok()?))
    });
    let header = serde_json::to_string(&header).unwrap_or_default();
    let metadata = HashMap::from([(ENTRY.to_owned(), header)]);
    let bytes = safetensors::serialize(views, Some(metadata)).unwrap_or_default();
    persist::write_file(path, &bytes)
}

/// The fingerprint and the state; `None` for anything that [`write`] does not write.
fn read(bytes: &[u8]) -> Option<(String, RunState)> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let header: Header = serde_json::from_str(metadata.metadata().as_ref()?.get(ENTRY)?).ok()?;
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let values = tensors.tensor("values").ok().filter(|view| view.dtype() == Dtype::F64)?;
    let values: Vec<f64> = values.data().as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
    if values.iter().any(|value| value.is_infinite()) {
        return None;
    }
    let [first, second] = header.points;
    let pooled = |pass: &str, count: usize| -> Option<Vec<[Pooled; 3]>> {
        // As many as there are tensors at most, whatever the header says.
        (0..count.min(tensors.len()))
            .map(|point| {
                let one = |set| {
                    let view = tensors.tensor(&format!("{pass}.{point}.{set}")).ok()?;
                    Pooled::from_bytes(view.data()).ok()?
                };
                Some([one(0)?, one(1)?, one(2)?])
            })
            .collect()
    };
    let state = RunState {
        pass: header.pass,
        chunks: header.chunks,
        texts: header.texts,
        values,
        first: pooled("first", first)?,
        second: pooled("second", second)?,
    };
    Some((header.fingerprint, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::pooled::Kept;

    fn state() -> RunState {
        let kept = Kept { moments: true, squares: true, anisotropy: true, sample: true };
        RunState {
            pass: PassNumber::Second,
            chunks: 2,
            texts: vec![MeasuredText { index: 3, group: Some("g".into()), tokens: 9 }],
            values: vec![0.5, -1.25, 1e-300],
            first: vec![std::array::from_fn(|_| Pooled::new(kept, 5, 1)); 2],
            second: vec![Default::default()],
        }
    }

    #[test]
    fn work_is_gone_on_from_only_if_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.safetensors");
        let saver = |print: &str| Saver::new(path.clone(), print.to_owned(), Duration::ZERO);
        assert_eq!(saver("a").find(), Found::Nothing);
        saver("a").save(&state()).unwrap();
        assert_eq!(saver("a").find(), Found::Own(Box::new(state())));
        assert!(matches!(saver("b").find(), Found::Other(why) if why.contains("another model")));
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 5, 100, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(saver("a").find(), Found::Other("is damaged"), "{cut}");
        }
    }

    #[test]
    fn what_passed_is_counted_in_both_passes() {
        let texts = [0, 31, 64, 65, 90, 100].map(|index| MeasuredText { index, group: None, tokens: 9 }).to_vec();
        let passed = |pass, chunks| RunState { pass, chunks, texts: texts.clone(), ..state() }.passed();
        assert_eq!(passed(PassNumber::First, 3), 6);
        // Chunks of two, three and one text.
        assert_eq!([0, 1, 2, 3].map(|chunks| passed(PassNumber::Second, chunks)), [6, 8, 11, 12]);
        assert_eq!(passed(PassNumber::Done, 0), 12);
        assert_eq!(RunState::default().passed(), 0);
    }

    #[test]
    fn an_undefined_value_stays_undefined() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = Saver::new(dir.path().join("s"), "a".into(), Duration::ZERO);
        let undefined = RunState { values: vec![f64::NAN, 2.0], ..state() };
        saver.save(&undefined).unwrap();
        let Found::Own(found) = saver.find() else { panic!() };
        assert!(found.values[0].is_nan() && found.values[1] == 2.0);
    }

    #[test]
    fn a_file_is_written_only_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = Saver::new(dir.path().join("s"), "a".into(), Duration::from_secs(3600));
        saver.save(&state()).unwrap();
        assert_eq!(saver.find(), Found::Nothing);
        saver.save(&RunState { pass: PassNumber::Done, ..state() }).unwrap();
        assert!(matches!(saver.find(), Found::Own(_)), "what is finished is always saved");
    }
}
