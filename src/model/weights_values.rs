//! A tensor's bytes to a tensor: read in blocks on all threads, converted as they come, each value checked.

use crate::model::weights::{FETCH_AGAIN, WeightsError, one_line, type_name};
use crate::model::weights_header::{Entry, Stored};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Values read at a time: their bytes stay in a core's cache until they are converted and checked.
const BLOCK: usize = 1 << 15;
/// Blocks that one task reads in a row.
const BLOCKS_A_TASK: usize = 4;

/// Reads one tensor as `dtype` onto `device`.
pub(crate) fn read(
    path: &Path,
    name: &str,
    entry: &Entry,
    dtype: DType,
    device: &Device,
) -> Result<Tensor, WeightsError> {
    match dtype {
        DType::F32 => read_as::<f32>(path, name, entry, device),
        DType::F64 => read_as::<f64>(path, name, entry, device),
        DType::F16 => read_as::<f16>(path, name, entry, device),
        DType::BF16 => read_as::<bf16>(path, name, entry, device),
        other => {
            let problem = format!("cannot be loaded as {}", other.as_str());
            Err(WeightsError::tensor(path, name, problem, "ask for f32, f64, f16 or bf16"))
        }
    }
}

trait Float: WithDType {
    fn narrow(value: f64) -> Self;
    fn from_single(value: f32) -> Self;
    fn finite(self) -> bool;
}

macro_rules! float {
    ($type:ty, $narrow:expr, $single:expr) => {
        impl Float for $type {
            fn narrow(value: f64) -> Self {
                $narrow(value)
            }
            fn from_single(value: f32) -> Self {
                $single(value)
            }
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
float!(f32, |v| v as f32, |v| v);
float!(f64, |v| v, f64::from);
float!(f16, f16::from_f64, f16::from_f32);
float!(bf16, bf16::from_f64, bf16::from_f32);

fn read_as<T: Float>(path: &Path, name: &str, entry: &Entry, device: &Device) -> Result<Tensor, WeightsError> {
    let bad = |problem: String, remedy| WeightsError::tensor(path, name, problem, remedy);
    let size: usize = match entry.stored {
        Stored::F16 | Stored::Bf16 => 2,
        Stored::F32 => 4,
        Stored::F64 => 8,
        Stored::Other(_) => {
            let problem = format!("is stored as {}, not as floating-point values", type_name(&entry.stored));
            return Err(bad(problem, "export it as F32, F16 or BF16"));
        }
    };
    let count = entry.count().filter(|n| n.checked_mul(size).map(|b| b as u64) == Some(entry.bytes));
    let count = count.ok_or_else(|| bad("its shape does not fit its bytes".to_string(), FETCH_AGAIN))?;
    let length = std::fs::metadata(path).map_err(|e| WeightsError::read(path, e))?.len();
    // The file may have been cut since its header was read: ask again before making room.
    if entry.start.checked_add(entry.bytes).is_none_or(|end| end > length) {
        return Err(bad("reaches beyond the end of the file".to_string(), FETCH_AGAIN));
    }
    // Zeroed memory of this size comes from the system untouched; its pages are first written by the task that reads.
    let mut values = vec![T::zero(); count];
    let task = BLOCK.saturating_mul(BLOCKS_A_TASK);
    let read = |(index, values): (usize, &mut [T])| {
        let skipped = index.saturating_mul(task).saturating_mul(size);
        read_task(path, entry.start.saturating_add(skipped as u64), &entry.stored, size, values)
    };
    let counts = if count > task {
        values.par_chunks_mut(task).enumerate().map(read).try_reduce(|| 0, |a, b| Ok(a.saturating_add(b)))
    } else {
        read((0, values.as_mut_slice()))
    };
    let count_bad = counts.map_err(|e| WeightsError::read(path, e))?;
    if count_bad > 0 {
        return Err(WeightsError::NotFinite {
            file: path.display().to_string(),
            tensor: one_line(name),
            count: count_bad,
            of: count,
            dtype: T::DTYPE.as_str(),
        });
    }
    Tensor::from_vec(values, entry.shape.as_slice(), device)
        .map_err(|e| bad(format!("cannot be placed on the device: {e}"), "free some memory"))
}

/// Fills `values` from the file's byte `start` on; answers how many are not finite.
fn read_task<T: Float>(path: &Path, start: u64, stored: &Stored, size: usize, values: &mut [T]) -> io::Result<usize> {
    // A handle of its own: a shared one has one position.
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0u8; BLOCK.min(values.len()).saturating_mul(size)];
    let mut count_bad = 0;
    for values in values.chunks_mut(BLOCK) {
        let part = bytes.get_mut(..values.len().saturating_mul(size)).unwrap_or_default();
        file.read_exact(part)?;
        decode(part, stored, values);
        count_bad += values.iter().filter(|v| !v.finite()).count();
    }
    Ok(count_bad)
}

fn decode<T: Float>(bytes: &[u8], stored: &Stored, values: &mut [T]) {
    match stored {
        Stored::F16 => fill(values, bytes, |b| T::from_single(f16::from_le_bytes(b).to_f32())),
        Stored::Bf16 => fill(values, bytes, |b| T::from_single(bf16::from_le_bytes(b).to_f32())),
        Stored::F32 => fill(values, bytes, |b| T::from_single(f32::from_le_bytes(b))),
        Stored::F64 => fill(values, bytes, |b| T::narrow(f64::from_le_bytes(b))),
        Stored::Other(_) => {}
    }
}

fn fill<T, const N: usize>(values: &mut [T], bytes: &[u8], read: impl Fn([u8; N]) -> T) {
    for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(bytes);
    }
}
