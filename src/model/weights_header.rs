//! The header of a safetensors file, checked by the format's rules before any of it is used.
//!
//! Format: <https://github.com/huggingface/safetensors#format>: eight bytes with the header's length,
//! little-endian; the header, JSON; then the data, which the tensors cover without overlap or hole.

use crate::model::weights::{FETCH_AGAIN, WeightsError, one_line};
use candle_core::DType;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The format's own limit on the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// How values are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    F16,
    Bf16,
    F32,
    F64,
    /// A type that the format knows and no weight of a transformer has, such as the integers.
    Other(String),
}

impl Stored {
    /// Bytes per value and the type; none if the format has no such type.
    fn parse(name: &str) -> Option<(u64, Self)> {
        Some(match name {
            "F16" => (2, Self::F16),
            "BF16" => (2, Self::Bf16),
            "F32" => (4, Self::F32),
            "F64" => (8, Self::F64),
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => (1, Self::Other(name.to_string())),
            "U16" | "I16" => (2, Self::Other(name.to_string())),
            "U32" | "I32" => (4, Self::Other(name.to_string())),
            "U64" | "I64" | "C64" => (8, Self::Other(name.to_string())),
            _ => return None,
        })
    }

    pub(crate) fn dtype(&self) -> Option<DType> {
        match self {
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
            Self::F32 => Some(DType::F32),
            Self::F64 => Some(DType::F64),
            Self::Other(_) => None,
        }
    }
}

/// One tensor's description: `bytes` bytes from `start`, counted from the beginning of the file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) stored: Stored,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl Entry {
    /// The number of values, of whatever type.
    pub(crate) fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))
    }
}

#[derive(serde::Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's tensors. A visitor, since a map type would keep the last of two equal names in silence.
struct Header(BTreeMap<String, Described>);

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let described =
                        map.next_value().map_err(|e| A::Error::custom(format!("tensor {}: {e}", one_line(&name))))?;
                    if tensors.insert(name.clone(), described).is_some() {
                        return Err(A::Error::custom(format!("tensor {} is described twice", one_line(&name))));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Reads and checks the header of `path`.
pub(crate) fn entries(path: &Path) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let mut file = File::open(path).map_err(|e| WeightsError::read(path, e))?;
    let meta = file.metadata().map_err(|e| WeightsError::read(path, e))?;
    if meta.is_dir() {
        return Err(WeightsError::file(path, "is a folder where a safetensors file was expected"));
    }
    let broken = |problem: String| WeightsError::file(path, problem);
    let mut length = [0u8; 8];
    if meta.len() < 8 {
        return Err(broken(format!("has {} bytes, too few for a safetensors file", meta.len())));
    }
    file.read_exact(&mut length).map_err(|e| WeightsError::read(path, e))?;
    if length.starts_with(b"\x80\x02\x8a\x0a") {
        return Err(WeightsError::File {
            file: path.display().to_string(),
            problem: "was saved by PyTorch before 1.6".to_string(),
            remedy: "save it again with a newer torch, as model.safetensors if you can",
        });
    }
    let length = u64::from_le_bytes(length);
    let room = meta.len().saturating_sub(8);
    if length > MAX_HEADER || length > room {
        return Err(broken(format!(
            "is no whole safetensors file: its header claims {length} bytes of {room}, and 100 MB are allowed"
        )));
    }
    let mut header = vec![0u8; usize::try_from(length).unwrap_or_default()];
    file.read_exact(&mut header).map_err(|e| WeightsError::read(path, e))?;
    let Header(described) =
        serde_json::from_slice(&header).map_err(|e| broken(format!("its safetensors header is broken: {e}")))?;
    let data_start = length.saturating_add(8);
    check(path, described, data_start, meta.len().saturating_sub(data_start))
}

fn check(
    path: &Path,
    described: BTreeMap<String, Described>,
    data_start: u64,
    data_bytes: u64,
) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let mut entries = BTreeMap::new();
    let mut ranges = Vec::with_capacity(described.len());
    for (name, Described { dtype, shape, data_offsets: (from, to) }) in described {
        let bad = |problem: String| WeightsError::tensor(path, &name, problem, FETCH_AGAIN);
        let (size, stored) = Stored::parse(&dtype).ok_or_else(|| bad(format!("has the unknown type {dtype:?}")))?;
        if from > to || to > data_bytes {
            return Err(bad(format!("lies at bytes {from}..{to} of {data_bytes}")));
        }
        let needed = shape.iter().try_fold(size, |product, &n| product.checked_mul(n));
        let bytes = to.saturating_sub(from);
        if needed != Some(bytes) {
            return Err(bad(format!("has {bytes} bytes, which do not fit {dtype} values of shape {shape:?}")));
        }
        let shape = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| bad("has a dimension beyond this machine's range".to_string()))?;
        ranges.push((from, to, name.clone()));
        entries.insert(name, Entry { stored, shape, start: data_start.saturating_add(from), bytes });
    }
    ranges.sort();
    let mut covered = 0;
    for (from, to, name) in &ranges {
        if *from != covered {
            let what = if *from < covered { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let problem = format!("{what}: it starts at byte {from}, not {covered}");
            return Err(WeightsError::tensor(path, name, problem, FETCH_AGAIN));
        }
        covered = *to;
    }
    if covered != data_bytes {
        let problem = format!("holds {data_bytes} bytes of data, of which its header describes {covered}");
        return Err(WeightsError::file(path, problem));
    }
    Ok(entries)
}
