//! The header of a GGUF file: its metadata and the places of its tensors.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. candle has a reader for it, which
//! divides by an alignment of zero and holds each number of an array in 32 bytes; a file from outside
//! needs a more careful one. The quantised blocks themselves are candle's business.

use crate::model::weights::{FETCH_AGAIN, WeightsError, one_line};
use candle_core::quantized::GgmlDType;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// A metadata value; numbers are widened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Whole(i128),
    Real(f64),
    Truth(bool),
    Text(String),
    Texts(Vec<String>),
    Wholes(Vec<i64>),
    Reals(Vec<f32>),
    /// An array of another kind, which nothing here reads.
    Other,
}

/// Where a tensor lies, from the start of the file, and how it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Outermost dimension first, as in PyTorch.
    pub(crate) shape: Vec<usize>,
    pub(crate) start: u64,
    /// The type's number, and what candle knows of it.
    pub(crate) kind: (u32, Option<GgmlDType>),
}

#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Block>,
}

/// Key and value lengths beyond which a file is not believed.
const MAX_NAME: u64 = 1 << 16;

/// Reads and checks the header of `path`.
pub(crate) fn read(path: &Path) -> Result<Header, WeightsError> {
    let file = File::open(path).map_err(|e| WeightsError::read(path, e))?;
    let meta = file.metadata().map_err(|e| WeightsError::read(path, e))?;
    if meta.is_dir() {
        return Err(WeightsError::file(path, "is a folder where a GGUF file was expected"));
    }
    let mut reader = Fenced { inner: BufReader::new(file), left: meta.len(), wide: true };
    header(&mut reader, meta.len()).map_err(|problem| WeightsError::File {
        file: path.display().to_string(),
        problem: one_line(problem),
        remedy: FETCH_AGAIN,
    })
}

fn header(reader: &mut Fenced<impl Read>, file_bytes: u64) -> Result<Header, String> {
    if &reader.bytes::<4>()? != b"GGUF" {
        return Err("is no GGUF file: it does not start with GGUF".to_string());
    }
    let version = reader.u32()?;
    if !(1..=3).contains(&version) {
        return Err(format!("is GGUF version {version}; 1 to 3 are read"));
    }
    reader.wide = version > 1;
    let tensor_count = reader.length()?;
    let key_count = reader.length()?;
    // A key needs 13 bytes at least and a tensor 24; in version 1 four fewer.
    let least = key_count.checked_mul(9).zip(tensor_count.checked_mul(20)).and_then(|(a, b)| a.checked_add(b));
    if least.is_none_or(|least| least > reader.left) {
        return Err(format!("claims {key_count} keys and {tensor_count} tensors, more than its bytes can hold"));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = reader.name("a key")?;
        let kind = reader.u32()?;
        let value = value(reader, kind).map_err(|problem| format!("key {}: {problem}", one_line(&key)))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("key {} appears twice", one_line(&key)));
        }
    }
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.name("a tensor's name")?;
        let (shape, kind, offset) =
            tensor(reader).map_err(|problem| format!("tensor {}: {problem}", one_line(&name)))?;
        described.push((name, shape, kind, offset));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Whole(n)) => u64::try_from(*n)
            .ok()
            .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
            .ok_or(format!("key general.alignment: {n} is no alignment"))?,
        Some(_) => return Err("key general.alignment: is no number".to_string()),
    };
    let position = file_bytes.saturating_sub(reader.left);
    let data_start = position.checked_next_multiple_of(alignment).ok_or("its header is too long")?;
    place(described, data_start, file_bytes).map(|tensors| Header { metadata, tensors })
}

type Described = (String, Vec<u64>, u32, u64);

fn place(described: Vec<Described>, data_start: u64, file_bytes: u64) -> Result<BTreeMap<String, Block>, String> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for (name, shape, kind, offset) in described {
        let bad = |problem: String| format!("tensor {}: {problem}", one_line(&name));
        let too_big = || bad(format!("of shape {shape:?} at byte {offset} reaches beyond the end of the file"));
        let count = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n)).ok_or_else(too_big)?;
        let start = data_start.checked_add(offset).filter(|&start| start <= file_bytes).ok_or_else(too_big)?;
        let dtype = known(kind);
        let bytes = match dtype {
            None => 0,
            Some(dtype) => {
                let (block, size) = (dtype.block_size() as u64, dtype.type_size() as u64);
                let row = shape.last().copied().unwrap_or(1);
                let blocks = count.checked_div(block).filter(|_| row % block == 0);
                let blocks = blocks.ok_or_else(|| bad(format!("has rows of {row}, no multiple of {block}")))?;
                blocks.checked_mul(size).ok_or_else(too_big)?
            }
        };
        let end = start.checked_add(bytes).filter(|&end| end <= file_bytes).ok_or_else(too_big)?;
        ranges.push((start, end, name.clone()));
        let shape = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(|_| too_big())?;
        if tensors.insert(name.clone(), Block { shape, start, kind: (kind, dtype) }).is_some() {
            return Err(bad("appears twice".to_string()));
        }
    }
    ranges.sort();
    let mut covered = 0;
    for (start, end, name) in ranges {
        if start < covered {
            return Err(format!("tensor {}: overlaps the tensor before it", one_line(name)));
        }
        covered = end;
    }
    Ok(tensors)
}

/// The types that candle can widen, by ggml's numbers.
fn known(kind: u32) -> Option<GgmlDType> {
    Some(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

fn tensor(reader: &mut Fenced<impl Read>) -> Result<(Vec<u64>, u32, u64), String> {
    let dimensions = reader.u32()?;
    if dimensions > 4 {
        return Err(format!("has {dimensions} dimensions; 4 are allowed"));
    }
    let mut shape = (0..dimensions).map(|_| reader.length()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    Ok((shape, reader.u32()?, reader.u64()?))
}

fn value(reader: &mut Fenced<impl Read>, kind: u32) -> Result<Value, String> {
    Ok(match kind {
        0..=5 | 10 | 11 => Value::Whole(whole(reader, kind)?),
        6 => Value::Real(f64::from(f32::from_le_bytes(reader.bytes()?))),
        7 => Value::Truth(reader.bytes::<1>()? != [0]),
        8 => Value::Text(reader.text()?),
        9 => array(reader)?,
        12 => Value::Real(f64::from_le_bytes(reader.bytes()?)),
        other => return Err(format!("has the unknown type {other}")),
    })
}

fn whole(reader: &mut Fenced<impl Read>, kind: u32) -> Result<i128, String> {
    Ok(match kind {
        0 => u8::from_le_bytes(reader.bytes()?).into(),
        1 => i8::from_le_bytes(reader.bytes()?).into(),
        2 => u16::from_le_bytes(reader.bytes()?).into(),
        3 => i16::from_le_bytes(reader.bytes()?).into(),
        4 => reader.u32()?.into(),
        5 => i32::from_le_bytes(reader.bytes()?).into(),
        10 => reader.u64()?.into(),
        _ => i64::from_le_bytes(reader.bytes()?).into(),
    })
}

fn array(reader: &mut Fenced<impl Read>) -> Result<Value, String> {
    let kind = reader.u32()?;
    let count = reader.length()?;
    let width: u64 = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 if !reader.wide => 4,
        8 | 10..=12 => 8,
        9 => return Err("is an array of arrays, which no known model has".to_string()),
        other => return Err(format!("is an array of the unknown type {other}")),
    };
    if count.checked_mul(width).is_none_or(|bytes| bytes > reader.left) {
        return Err(format!("claims {count} values, more than the file can hold"));
    }
    Ok(match kind {
        8 => Value::Texts((0..count).map(|_| reader.text()).collect::<Result<_, _>>()?),
        6 => Value::Reals((0..count).map(|_| Ok(f32::from_le_bytes(reader.bytes()?))).collect::<Result<_, String>>()?),
        2..=5 | 11 => {
            let number = |_| whole(reader, kind).and_then(|n| i64::try_from(n).map_err(|e| e.to_string()));
            Value::Wholes((0..count).map(number).collect::<Result<_, _>>()?)
        }
        _ => {
            reader.skip(count.saturating_mul(width))?;
            Value::Other
        }
    })
}

/// A reader that knows how many bytes are left, so that no claimed length is believed.
struct Fenced<R> {
    inner: R,
    left: u64,
    /// Whether lengths have 64 bits, as since version 2.
    wide: bool,
}

impl<R: Read> Fenced<R> {
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        self.left = self.left.checked_sub(bytes).ok_or("is cut off within its header")?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0u8; N];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Result<u64, String> {
        if self.wide { self.u64() } else { self.u32().map(u64::from) }
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.length()?;
        self.take(length).map_err(|_| format!("claims a text of {length} bytes, more than the file holds"))?;
        let mut bytes = vec![0u8; usize::try_from(length).map_err(|e| e.to_string())?];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        // Tokens of single bytes are not always UTF-8; the rest of the file is still good.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let before = self.left;
        let name = self.text()?;
        if before.saturating_sub(self.left) > MAX_NAME {
            return Err(format!("{what} is longer than {MAX_NAME} bytes"));
        }
        Ok(name)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        self.take(bytes)?;
        let skipped = std::io::copy(&mut self.inner.by_ref().take(bytes), &mut std::io::sink());
        if skipped.map_err(|e| format!("cannot be read: {e}"))? != bytes {
            return Err("is cut off within its header".to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A metadata value to write.
    pub(crate) enum Item<'a> {
        U32(u32),
        F32(f32),
        Truth(bool),
        Text(&'a str),
        Texts(Vec<String>),
        I32s(Vec<i32>),
        F32s(Vec<f32>),
    }

    /// A GGUF file in the making.
    #[derive(Default)]
    pub(crate) struct File {
        keys: Vec<Vec<u8>>,
        tensors: Vec<Vec<u8>>,
        data: Vec<u8>,
    }

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn list(kind: u32, count: usize, items: Vec<u8>) -> Vec<u8> {
        [kind.to_le_bytes().to_vec(), (count as u64).to_le_bytes().to_vec(), items].concat()
    }

    impl File {
        pub(crate) fn key(self, name: &str, item: Item<'_>) -> Self {
            let (kind, bytes) = match item {
                Item::U32(n) => (4u32, n.to_le_bytes().to_vec()),
                Item::F32(x) => (6, x.to_le_bytes().to_vec()),
                Item::Truth(t) => (7, vec![u8::from(t)]),
                Item::Text(t) => (8, text(t)),
                Item::Texts(ts) => (9, list(8, ts.len(), ts.iter().flat_map(|t| text(t)).collect())),
                Item::I32s(ns) => (9, list(5, ns.len(), ns.iter().flat_map(|n| n.to_le_bytes()).collect())),
                Item::F32s(xs) => (9, list(6, xs.len(), xs.iter().flat_map(|x| x.to_le_bytes()).collect())),
            };
            self.raw_key(name, kind, &bytes)
        }

        fn raw_key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
            self.keys.push([text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
            self
        }

        /// `shape` innermost first, as the format has it.
        pub(crate) fn tensor(mut self, name: &str, shape: &[u64], values: &[f32]) -> Self {
            let offset = self.data.len() as u64;
            self = self.raw_tensor(name, shape, 0, offset);
            self.data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            self.data.resize(self.data.len().next_multiple_of(32), 0);
            self
        }

        fn raw_tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
            let mut bytes = [text(name), (shape.len() as u32).to_le_bytes().to_vec()].concat();
            bytes.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            self.tensors.push(bytes);
            self
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
            bytes.extend((self.tensors.len() as u64).to_le_bytes());
            bytes.extend((self.keys.len() as u64).to_le_bytes());
            bytes.extend(self.keys.concat());
            bytes.extend(self.tensors.concat());
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.data);
            bytes
        }

        pub(crate) fn write(&self, folder: &Path) -> PathBuf {
            let path = folder.join("m.gguf");
            fs::write(&path, self.bytes()).unwrap();
            path
        }
    }

    fn refusal(folder: &Path, bytes: &[u8]) -> String {
        let path = folder.join("m.gguf");
        fs::write(&path, bytes).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("m.gguf: ") && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn values_of_each_kind_and_the_places_of_tensors_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let made = File::default()
            .key("u", Item::U32(7))
            .key("f", Item::F32(0.5))
            .key("t", Item::Truth(true))
            .key("s", Item::Text("é"))
            .key("ss", Item::Texts(vec!["a".into(), "".into()]))
            .key("ns", Item::I32s(vec![-1, 2]))
            .key("xs", Item::F32s(vec![1.5]))
            .raw_key("i64", 11, &(-5i64).to_le_bytes())
            .raw_key("bytes", 9, &list(0, 3, vec![1, 2, 3]))
            .tensor("a", &[3], &[1.0, 2.0, 3.0])
            .tensor("b", &[2, 1], &[4.0, 5.0]);
        let header = read(&made.write(dir.path())).unwrap();
        for (key, expected) in [
            ("u", Value::Whole(7)),
            ("f", Value::Real(0.5)),
            ("t", Value::Truth(true)),
            ("s", Value::Text("é".into())),
            ("ss", Value::Texts(vec!["a".into(), String::new()])),
            ("ns", Value::Wholes(vec![-1, 2])),
            ("xs", Value::Reals(vec![1.5])),
            ("i64", Value::Whole(-5)),
            ("bytes", Value::Other),
        ] {
            assert_eq!(header.metadata[key], expected, "{key}");
        }
        assert_eq!(header.tensors["b"].shape, [1, 2]);
        assert_eq!(header.tensors["b"].start - header.tensors["a"].start, 32);
        let bytes = made.bytes();
        let start = header.tensors["b"].start as usize;
        assert_eq!(bytes[start..start + 4], 4f32.to_le_bytes());
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = File::default().key("k", Item::Texts(vec!["x".into(); 3])).tensor("a", &[8], &[1.0; 8]);
        let bytes = made.bytes();
        for cut in 0..bytes.len() {
            refusal(dir.path(), &bytes[..cut]);
        }
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let huge = u64::MAX / 2;
        let counted = |tensors: u64, keys: u64| {
            let mut bytes = File::default().bytes();
            bytes[8..16].copy_from_slice(&tensors.to_le_bytes());
            bytes[16..24].copy_from_slice(&keys.to_le_bytes());
            bytes
        };
        let f = File::default;
        for (bytes, expected) in [
            (b"GGML\x03\x00\x00\x00".to_vec(), "is no GGUF file"),
            (b"GGUF\x09\x00\x00\x00".to_vec(), "is GGUF version 9"),
            (counted(huge, 0), "more than its bytes can hold"),
            (counted(0, huge), "more than its bytes can hold"),
            (f().raw_key("k", 8, &huge.to_le_bytes()).bytes(), "key k: claims a text of"),
            (f().raw_key("k", 9, &list(4, usize::MAX / 2, vec![])).bytes(), "key k: claims 9223372036854775807 values"),
            (f().raw_key("k", 9, &list(9, 1, vec![])).bytes(), "key k: is an array of arrays"),
            (f().raw_key("k", 77, &[]).bytes(), "key k: has the unknown type 77"),
            (f().key("k", Item::U32(1)).key("k", Item::U32(1)).bytes(), "key k appears twice"),
            (f().key("general.alignment", Item::U32(0)).bytes(), "0 is no alignment"),
            (f().raw_tensor("w", &[1; 5], 0, 0).bytes(), "tensor w: has 5 dimensions"),
            (f().raw_tensor("w", &[1 << 40, 1 << 40], 0, 0).bytes(), "tensor w: of shape"),
            (f().raw_tensor("w", &[1 << 61], 0, 0).bytes(), "tensor w: of shape"),
            (f().raw_tensor("w", &[1], 0, u64::MAX - 3).bytes(), "tensor w: of shape"),
            (f().raw_tensor("w", &[1], 0, 0).bytes(), "beyond the end of the file"),
            (f().raw_tensor("w", &[33], 2, 0).bytes(), "tensor w: has rows of 33"),
            (f().tensor("a", &[8], &[0.0; 8]).raw_tensor("w", &[8], 0, 0).bytes(), "overlaps"),
            (f().tensor("w", &[1], &[0.0]).tensor("w", &[1], &[0.0]).bytes(), "tensor w: appears twice"),
        ] {
            let message = refusal(dir.path(), &bytes);
            assert!(message.contains(expected), "{expected}: {message}");
        }
        assert!(read(dir.path()).unwrap_err().to_string().contains("is a folder"));
    }
}
