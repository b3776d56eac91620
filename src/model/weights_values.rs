//! A tensor's bytes to a tensor: read in blocks, converted as they come, each value checked.

use crate::model::weights::{FETCH_AGAIN, WeightsError, one_line, type_name};
use crate::model::weights_header::{Entry, Stored};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes read at a time; a multiple of every value's size.
const BLOCK: usize = 1 << 20;

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
    let mut file = File::open(path).map_err(|e| WeightsError::read(path, e))?;
    let length = file.metadata().map_err(|e| WeightsError::read(path, e))?.len();
    // The file may have been cut since its header was read: ask again before making room.
    if entry.start.checked_add(entry.bytes).is_none_or(|end| end > length) {
        return Err(bad("reaches beyond the end of the file".to_string(), FETCH_AGAIN));
    }
    file.seek(SeekFrom::Start(entry.start)).map_err(|e| WeightsError::read(path, e))?;
    let mut values = Vec::<T>::with_capacity(count);
    let mut block = vec![0u8; BLOCK.min(count.saturating_mul(size))];
    while values.len() < count {
        let left = count.saturating_sub(values.len()).saturating_mul(size);
        let part = block.get_mut(..left.min(BLOCK)).unwrap_or_default();
        file.read_exact(part).map_err(|e| WeightsError::read(path, e))?;
        decode(part, &entry.stored, &mut values);
    }
    let count_bad = values.iter().filter(|v| !v.finite()).count();
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

fn decode<T: Float>(bytes: &[u8], stored: &Stored, values: &mut Vec<T>) {
    match stored {
        Stored::F16 => values.extend(words(bytes).map(|b| T::from_single(f16::from_le_bytes(b).to_f32()))),
        Stored::Bf16 => values.extend(words(bytes).map(|b| T::from_single(bf16::from_le_bytes(b).to_f32()))),
        Stored::F32 => values.extend(words(bytes).map(|b| T::from_single(f32::from_le_bytes(b)))),
        Stored::F64 => values.extend(words(bytes).map(|b| T::narrow(f64::from_le_bytes(b)))),
        Stored::Other(_) => {}
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}
