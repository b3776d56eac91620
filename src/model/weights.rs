//! Pretrained weights by name: safetensors, whole or in shards, and PyTorch's zip files.
//!
//! Headers are checked before anything is believed; values are read one tensor at a time, when asked for,
//! so that no more than one tensor is ever held beside the model.

use crate::model::weights_header::{self, Entry, Stored};
use crate::model::{weights_pickle, weights_values};
use crate::persist::{self, PersistError};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What to do about a file that is not what its name says.
pub(crate) const FETCH_AGAIN: &str = "download or export the file again";

/// Weights that cannot be read or written; each message is one line with the file, the tensor and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused to open or read the file.
    #[error("{file}: cannot read the weights: {source}; check the path and its permissions")]
    Read {
        /// The file's path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A folder without a weights file that this program reads.
    #[error(
        "{folder}: no weights here; expected model.safetensors, model.safetensors.index.json with its shards, or pytorch_model.bin"
    )]
    NoWeights {
        /// The folder's path.
        folder: String,
    },
    /// A file whose structure is broken or hostile.
    #[error("{file}: {problem}; {remedy}")]
    File {
        /// The file's path.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor whose description is broken, or of a kind that cannot be used.
    #[error("{file}: tensor {tensor}: {problem}; {remedy}")]
    Tensor {
        /// The file's path.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor that the model needs and the file does not have.
    #[error("{file}: tensor {tensor} is missing; check that config.json and the weights belong together")]
    Missing {
        /// The file's path, or the first one's of several.
        file: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error(
        "{file}: tensor {tensor} has shape {found:?} where the configuration asks for {expected:?}; check that config.json and the weights belong together"
    )]
    Shape {
        /// The file's path.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
    /// NaN or infinite weights.
    #[error("{file}: tensor {tensor}: {count} of {of} values are NaN or infinite as {dtype}; {FETCH_AGAIN}")]
    NotFinite {
        /// The file's path.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// How many values are not finite.
        count: usize,
        /// How many values the tensor has.
        of: usize,
        /// The type that they were converted to.
        dtype: &'static str,
    },
    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] PersistError),
}

impl WeightsError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { file: path.display().to_string(), source }
    }

    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { file: path.display().to_string(), problem: one_line(problem), remedy: FETCH_AGAIN }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl ToString, remedy: &'static str) -> Self {
        let (file, tensor) = (path.display().to_string(), one_line(tensor));
        Self::Tensor { file, tensor, problem: one_line(problem), remedy }
    }

    pub(crate) fn missing(path: &Path, tensor: &str) -> Self {
        Self::Missing { file: path.display().to_string(), tensor: one_line(tensor) }
    }
}

/// Text from a file as a part of a message: without line breaks, and short.
pub(crate) fn one_line(text: impl ToString) -> String {
    let text = text.to_string();
    let kept = text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    kept.trim().to_string()
}

/// Where a transformer gets its tensors from, under their Hugging Face names.
pub trait TensorSource {
    /// Whether there is a tensor `name`.
    fn contains(&self, name: &str) -> bool;

    /// The shape of a tensor, where that is known before it is read.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        None
    }

    /// Reads the tensor `name`, converted to `dtype` (F32, F64, F16 or BF16), onto `device`.
    ///
    /// # Errors
    /// It is missing, has another shape than `shape`, is not of floating-point type, or holds a value
    /// that is NaN or infinite once converted.
    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError>;

    /// All names, sorted.
    fn names(&self) -> Vec<String>;
}

/// One tensor's place.
#[derive(Debug, Clone)]
struct Place {
    file: usize,
    entry: Entry,
}

/// The weights of one model: the descriptions of all tensors in one or more files.
#[derive(Debug)]
pub struct Weights {
    files: Vec<PathBuf>,
    places: BTreeMap<String, Place>,
}

impl Weights {
    /// Opens the weights in `folder`: `model.safetensors`, else the shards that
    /// `model.safetensors.index.json` lists, else `pytorch_model.bin`, else its index and shards.
    ///
    /// # Errors
    /// There are none, or a header or the index is broken (see [`Weights::from_files`]).
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        for (whole, index) in [
            ("model.safetensors", "model.safetensors.index.json"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json"),
        ] {
            if folder.join(whole).exists() {
                return Self::from_files(vec![folder.join(whole)]);
            }
            if folder.join(index).exists() {
                return Self::from_index(folder, &folder.join(index));
            }
        }
        Err(WeightsError::NoWeights { folder: folder.display().to_string() })
    }

    /// Opens the given files together, each safetensors or a PyTorch zip file, told apart by content.
    ///
    /// # Errors
    /// A file cannot be read; its header is truncated, over 100 MB or no JSON; a tensor's bytes are out of
    /// range, overlap another's, leave a hole or do not fit its shape; a type is unknown; two files hold
    /// the same tensor.
    pub fn from_files(files: Vec<PathBuf>) -> Result<Self, WeightsError> {
        let mut places = BTreeMap::<String, Place>::new();
        for (file, path) in files.iter().enumerate() {
            for (name, entry) in entries(path)? {
                if let Some(other) = places.get(&name) {
                    let other = files.get(other.file).map(|f| f.display().to_string()).unwrap_or_default();
                    let problem = format!("is in {other} too");
                    return Err(WeightsError::tensor(path, &name, problem, "keep the tensor in one shard only"));
                }
                places.insert(name, Place { file, entry });
            }
        }
        Ok(Self { files, places })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Self, WeightsError> {
        let mut shards = shard_names(index)?.into_values().collect::<Vec<_>>();
        shards.sort();
        shards.dedup();
        for shard in &shards {
            if !folder.join(shard).is_file() {
                let problem = format!("names the shard {shard}, which is not in the folder");
                return Err(WeightsError::file(index, problem));
            }
        }
        let weights = Self::from_files(shards.iter().map(|shard| folder.join(shard)).collect())?;
        for (tensor, shard) in shard_names(index)? {
            let found = weights.places.get(&tensor).and_then(|place| shards.get(place.file));
            if found != Some(&shard) {
                let problem = format!("{} places it in {shard}, which does not hold it", index.display());
                return Err(WeightsError::tensor(&folder.join(&shard), &tensor, problem, FETCH_AGAIN));
            }
        }
        Ok(weights)
    }

    /// The files, for hashing.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The shape of a tensor, if there is one of that name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.places.get(name).map(|place| place.entry.shape.as_slice())
    }

    /// The floating-point type that a tensor is stored in; none if it is missing or no floating-point tensor.
    #[must_use]
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.places.get(name).and_then(|place| place.entry.stored.dtype())
    }

    fn any_file(&self) -> &Path {
        self.files.first().map_or(Path::new("(no file)"), PathBuf::as_path)
    }
}

impl Weights {
    /// A tensor in the shape and type that it is stored in.
    ///
    /// # Errors
    /// It is missing, cannot be read, or is of no float type.
    pub fn as_stored(&self, name: &str) -> Result<Tensor, WeightsError> {
        let place = self.places.get(name).ok_or_else(|| WeightsError::missing(self.any_file(), name))?;
        let path = self.files.get(place.file).map_or(self.any_file(), PathBuf::as_path);
        let dtype = place.entry.stored.dtype().unwrap_or(DType::F32);
        weights_values::read(path, name, &place.entry, dtype, &Device::Cpu)
    }
}

impl TensorSource for Weights {
    fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.places.get(name).map(|place| place.entry.shape.clone())
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let place = self.places.get(name).ok_or_else(|| WeightsError::missing(self.any_file(), name))?;
        let path = self.files.get(place.file).map_or(self.any_file(), PathBuf::as_path);
        if place.entry.shape != shape {
            return Err(WeightsError::Shape {
                file: path.display().to_string(),
                tensor: one_line(name),
                found: place.entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        weights_values::read(path, name, &place.entry, dtype, device)
    }

    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }
}

/// The tensors that one file describes.
fn entries(path: &Path) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let mut start = [0u8; 4];
    let mut file = File::open(path).map_err(|e| WeightsError::read(path, e))?;
    let is_zip = file.read_exact(&mut start).is_ok() && &start == b"PK\x03\x04";
    if is_zip { weights_pickle::entries(path) } else { weights_header::entries(path) }
}

/// Tensor name to shard file name, as an index says.
fn shard_names(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(index).map_err(|e| WeightsError::read(index, e))?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|e| WeightsError::file(index, format!("is no index of shards: {e}")))?;
    for shard in weight_map.values() {
        // A plain name only: an index must not reach outside its own folder.
        if shard.is_empty() || shard == ".." || shard == "." || shard.contains(['/', '\\', ':', '\0']) {
            return Err(WeightsError::file(index, format!("names the shard {shard:?}, which is no plain file name")));
        }
    }
    Ok(weight_map)
}

/// Reads every tensor of a small safetensors file, such as an adapter, in the type that it is stored in,
/// onto the CPU, with the checks of [`Weights`].
///
/// # Errors
/// Those of [`Weights::from_files`] and [`TensorSource::load`].
pub fn load_adapter_file(path: &Path) -> Result<BTreeMap<String, Tensor>, WeightsError> {
    let read = |(name, entry): (String, Entry)| {
        let dtype = entry.stored.dtype().unwrap_or(DType::F32);
        let tensor = weights_values::read(path, &name, &entry, dtype, &Device::Cpu)?;
        Ok((name, tensor))
    };
    entries(path)?.into_iter().map(read).collect()
}

/// Writes tensors to a safetensors file, whole or not at all. The same tensors give the same bytes: they
/// are sorted by type, then name, and there is at most one metadata key, since the format's writer takes
/// metadata from a hash map.
///
/// # Errors
/// A tensor cannot be brought to the CPU, or the file cannot be written.
pub fn save_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<(&str, &str)>,
) -> Result<(), WeightsError> {
    let on_cpu = |(name, tensor): (&String, &Tensor)| {
        let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.contiguous());
        let tensor = tensor
            .map_err(|e| WeightsError::tensor(path, name, format!("cannot be copied: {e}"), "free some memory"))?;
        Ok((name.clone(), tensor))
    };
    let tensors = tensors.iter().map(on_cpu).collect::<Result<Vec<_>, WeightsError>>()?;
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_string(), value.to_string())]));
    let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), metadata)
        .map_err(|e| WeightsError::file(path, format!("cannot be written as safetensors: {e}")))?;
    Ok(persist::write_file(path, &bytes)?)
}

/// The name of a stored type, as safetensors spells it.
pub(crate) fn type_name(stored: &Stored) -> &str {
    match stored {
        Stored::F16 => "F16",
        Stored::Bf16 => "BF16",
        Stored::F32 => "F32",
        Stored::F64 => "F64",
        Stored::Other(name) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A safetensors file of this header and so many bytes of data, each 0.
    fn file(folder: &Path, header: &str, data: usize) -> PathBuf {
        let path = folder.join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn refusal(folder: &Path) -> String {
        let message = Weights::open(folder).unwrap_err().to_string();
        assert!(!message.contains('\n') && message.len() < 700, "{message}");
        message
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn tensors() -> BTreeMap<String, Tensor> {
        let source = Tensor::from_vec(vec![0.5f64, -1.25, 3.0, 1e-3, 0.0, 65504.0], (2, 3), &Device::Cpu).unwrap();
        [("d", DType::F64), ("a", DType::F32), ("c", DType::BF16), ("b", DType::F16)]
            .map(|(name, dtype)| (name.to_string(), source.to_dtype(dtype).unwrap()))
            .into()
    }

    #[test]
    fn each_stored_type_is_converted_to_each_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = tensors();
        save_tensors(&dir.path().join("model.safetensors"), &tensors, Some(("format", "pt"))).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.names(), ["a", "b", "c", "d"]);
        assert_eq!((weights.shape("c"), weights.dtype("c")), (Some([2, 3].as_slice()), Some(DType::BF16)));
        for (name, tensor) in &tensors {
            for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
                let loaded = weights.load(name, &[2, 3], dtype, &Device::Cpu);
                // bf16's largest neighbour of 65504 is 65536, which f16 does not have.
                if (name.as_str(), dtype) == ("c", DType::F16) {
                    assert!(loaded.unwrap_err().to_string().contains("1 of 6 values are NaN or infinite as f16"));
                    continue;
                }
                let loaded = loaded.unwrap();
                assert_eq!((loaded.dtype(), loaded.dims()), (dtype, [2, 3].as_slice()));
                assert_eq!(values(&loaded), values(&tensor.to_dtype(dtype).unwrap()), "{name} as {dtype:?}");
            }
        }
        assert!(weights.load("a", &[2, 3], DType::U32, &Device::Cpu).is_err());
        let shape = weights.load("a", &[3, 2], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(shape.contains("tensor a has shape [2, 3] where the configuration asks for [3, 2]"), "{shape}");
        let missing = weights.load("model.x", &[1], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(missing.contains("model.safetensors: tensor model.x is missing"), "{missing}");
    }

    #[test]
    fn a_tensor_longer_than_a_block_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::arange(0f32, 300_001f32, &Device::Cpu).unwrap();
        let path = dir.path().join("model.safetensors");
        save_tensors(&path, &[("a".to_string(), tensor.clone())].into(), None).unwrap();
        let loaded = Weights::open(dir.path()).unwrap().load("a", &[300_001], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(loaded.to_vec1::<f32>().unwrap(), tensor.to_vec1::<f32>().unwrap());
    }

    #[test]
    fn values_that_are_not_finite_are_counted_over_all_of_a_long_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let mut values = vec![1.0_f32; 300_001];
        for index in [0, 131_071, 131_072, 200_000, 300_000] {
            values[index] = f32::NAN;
        }
        let tensor = Tensor::from_vec(values, 300_001, &Device::Cpu).unwrap();
        save_tensors(&dir.path().join("model.safetensors"), &[("a".to_string(), tensor)].into(), None).unwrap();
        let read = Weights::open(dir.path()).unwrap().load("a", &[300_001], DType::F64, &Device::Cpu);
        let message = read.unwrap_err().to_string();
        assert!(message.contains("tensor a: 5 of 300001 values are NaN or infinite as f64"), "{message}");
    }

    #[test]
    fn small_files_come_back_as_written_and_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        save_tensors(&one, &tensors(), Some(("format", "pt"))).unwrap();
        let loaded = load_adapter_file(&one).unwrap();
        for (name, tensor) in tensors() {
            assert_eq!(loaded[&name].dtype(), tensor.dtype());
            assert_eq!(values(&loaded[&name]), values(&tensor));
        }
        save_tensors(&two, &loaded, Some(("format", "pt"))).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
        let nowhere = save_tensors(&dir.path().join("no/folder"), &loaded, None).unwrap_err().to_string();
        assert!(nowhere.contains("no/folder: cannot write"), "{nowhere}");
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = Tensor::new(&[1f32, f32::NAN, f32::INFINITY, 2.0], &Device::Cpu).unwrap();
        let path = dir.path().join("model.safetensors");
        save_tensors(&path, &[("w".to_string(), tensor)].into(), None).unwrap();
        let message = load_adapter_file(&path).unwrap_err().to_string();
        assert!(message.contains("tensor w: 2 of 4 values are NaN or infinite as f32"), "{message}");
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let a = |dtype: &str, shape: &str, range: &str| {
            format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}"#)
        };
        let good = a("F32", "[2]", "[0,8]");
        let b = |range: &str| format!(r#","b":{{"dtype":"F32","shape":[2],"data_offsets":{range}}}"#);
        let huge = "[4294967296,4294967296,4294967296]";
        for (header, data, expected) in [
            ("not json".to_string(), 0, "header is broken"),
            ("[]".to_string(), 0, "header is broken"),
            (format!("{{{good},{good}}}"), 8, "tensor a is described twice"),
            (format!("{{{}}}", a("F31", "[2]", "[0,8]")), 8, "tensor a: has the unknown type \"F31\""),
            (format!("{{{}}}", a("F32", "[3]", "[0,8]")), 8, "tensor a: has 8 bytes, which do not fit"),
            (format!("{{{}}}", a("F32", huge, "[0,8]")), 8, "do not fit"),
            (format!("{{{}}}", a("F32", "[-2]", "[0,8]")), 8, "header is broken: tensor a"),
            (format!("{{{}}}", a("F32", "[2]", "[8,0]")), 8, "tensor a: lies at bytes 8..0"),
            (format!("{{{}}}", a("F32", "[2]", "[0,18446744073709551615]")), 8, "tensor a: lies at bytes"),
            (format!("{{{good}{}}}", b("[4,12]")), 12, "tensor b: overlaps"),
            (format!("{{{good}{}}}", b("[12,20]")), 20, "tensor b: leaves a hole"),
            (format!("{{{good}}}"), 9, "holds 9 bytes of data, of which its header describes 8"),
            (format!("{{{good}}}"), 7, "tensor a: lies at bytes 0..8 of 7"),
            (r#"{"a":{"dtype":"F32"}}"#.to_string(), 0, "tensor a"),
        ] {
            let path = file(dir.path(), &header, data);
            let message = refusal(dir.path());
            assert!(message.contains(expected) && message.contains("model.safetensors"), "{header}: {message}");
            assert_eq!(load_adapter_file(&path).unwrap_err().to_string(), message);
        }
        let path = file(dir.path(), &format!("{{{good}}}   "), 8);
        let padded = Weights::open(dir.path()).unwrap().load("a", &[2], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(padded.to_vec1::<f32>().unwrap(), [0.0, 0.0]);

        let weights = Weights::open(dir.path()).unwrap();
        fs::write(&path, b"cut since").unwrap();
        let cut = weights.load("a", &[2], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(cut.contains("beyond the end of the file"), "{cut}");
        for (bytes, expected) in [
            (vec![], "has 0 bytes, too few"),
            (vec![1, 2, 3], "has 3 bytes, too few"),
            (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
            (100u64.to_le_bytes().to_vec(), "claims 100 bytes of 0"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(refusal(dir.path()).contains(expected), "{}", refusal(dir.path()));
        }
        let int = file(dir.path(), &format!("{{{}}}", a("I64", "[1]", "[0,8]")), 8);
        let message = load_adapter_file(&int).unwrap_err().to_string();
        assert!(message.contains("tensor a: is stored as I64"), "{message}");
        fs::remove_file(&path).unwrap();
        assert!(refusal(dir.path()).contains("no weights here"));
        fs::create_dir(&path).unwrap();
        assert!(refusal(dir.path()).contains("is a folder"));
    }

    #[test]
    fn shards_hold_what_the_index_says_once_and_stay_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let one = |name: &str, value: f32| [(name.to_string(), Tensor::new(&[value], &Device::Cpu).unwrap())].into();
        let index = |text: &str| fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
        save_tensors(&dir.path().join("1.safetensors"), &one("a", 1.0), None).unwrap();
        save_tensors(&dir.path().join("2.safetensors"), &one("b", 2.0), None).unwrap();
        index(r#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(weights.files().len(), 2);
        let b = weights.load("b", &[1], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(b.to_vec1::<f32>().unwrap(), [2.0]);
        for (text, expected) in [
            (
                r#"{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}"#,
                "names the shard 3.safetensors, which is not",
            ),
            (r#"{"weight_map":{"a":"2.safetensors"}}"#, "tensor a: "),
            (r#"{"weight_map":{"a":"1.safetensors","c":"2.safetensors"}}"#, "tensor c: "),
            (r#"{"weight_map":{"a":"../1.safetensors"}}"#, "no plain file name"),
            (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "no plain file name"),
            (r#"{"weight_map":[]}"#, "is no index"),
            ("", "is no index"),
        ] {
            index(text);
            assert!(refusal(dir.path()).contains(expected), "{}", refusal(dir.path()));
        }
        save_tensors(&dir.path().join("2.safetensors"), &one("a", 2.0), None).unwrap();
        index(r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
        assert!(refusal(dir.path()).contains("2.safetensors: tensor a: is in "), "{}", refusal(dir.path()));
    }
}
