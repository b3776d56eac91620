//! `pytorch_model.bin`: a zip file with one pickle that describes tensors, and their bytes beside it.
//!
//! candle's pickle machine does the reading, one operation at a time, fenced in: it clones what it
//! memorises, so a few bytes could describe a structure of any size or depth, and it would allocate the
//! lengths that a file claims. What it yields is plain data, nothing is ever executed, and only tensors
//! are taken from it.

use crate::model::weights::{FETCH_AGAIN, WeightsError};
use crate::model::weights_header::{Entry, Stored};
use candle_core::pickle::{Object, Stack};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

/// The largest description accepted, in bytes; a model of 1000 layers needs about 3 MB.
const MAX_PICKLE: u64 = 64 << 20;
/// How deep a description may nest; torch's own nest about eight deep.
const MAX_DEPTH: usize = 64;
/// How many objects may be built or copied in all.
const MAX_OBJECTS: usize = 20_000_000;

/// Where a tensor's storage lies in the file: start and length in bytes.
type Storages = BTreeMap<String, (u64, u64)>;

/// Reads and checks what `path` describes.
pub(crate) fn entries(path: &Path) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let broken = |problem: String| WeightsError::file(path, problem);
    let file = File::open(path).map_err(|e| WeightsError::read(path, e))?;
    let length = file.metadata().map_err(|e| WeightsError::read(path, e))?.len();
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|e| broken(format!("is no whole zip file: {e}")))?;
    let mut pickle = None;
    let mut storages = Storages::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| broken(format!("its zip entry {index} is broken: {e}")))?;
        let name = entry.name().map_err(|e| broken(format!("its zip entry {index} has no name: {e}")))?.into_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(broken(format!("its part {name} is compressed, which torch never does")));
        }
        let bytes = entry.size();
        let start = entry.data_start().ok_or_else(|| broken(format!("its part {name} has no place")))?;
        if start.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(broken(format!("its part {name} reaches beyond the end of the file")));
        }
        if let Some(folder) = name.strip_suffix("data.pkl") {
            if bytes > MAX_PICKLE {
                return Err(broken(format!("its description has {bytes} bytes, more than {MAX_PICKLE}")));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|e| WeightsError::read(path, e))?;
            pickle = Some((folder.to_string(), content));
        }
        storages.insert(name, (start, bytes));
    }
    let (folder, content) = pickle.ok_or_else(|| broken("has no data.pkl inside".to_string()))?;
    let root = run(&content).map_err(|e| broken(format!("its description cannot be read: {e}")))?;
    let Object::Dict(items) = root else {
        return Err(broken("holds no dictionary of tensors".to_string()));
    };
    let mut entries = BTreeMap::new();
    for (key, value) in items {
        let Object::Unicode(name) = key else { continue };
        // Not a tensor: a step counter, say. What the model needs and does not find is reported by name.
        let Some(args) = rebuilt(&value) else { continue };
        let bad = |problem: String| WeightsError::tensor(path, &name, problem, FETCH_AGAIN);
        let entry = describe(args, &folder, &storages).map_err(bad)?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(bad("is described twice".to_string()));
        }
    }
    if entries.is_empty() {
        return Err(broken("describes no tensors at its top level".to_string()));
    }
    Ok(entries)
}

/// Runs the pickle machine over `content` within the limits.
fn run(content: &[u8]) -> Result<Object, String> {
    let mut reader = content;
    let mut stack = Stack::empty();
    let mut objects = 0usize;
    loop {
        let code = *reader.first().ok_or("it ends before its end mark")?;
        match code {
            b'X' => {
                let claimed = reader.get(1..5).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
                if claimed.is_none_or(|n| n as usize > reader.len()) {
                    return Err("a text is longer than the file".to_string());
                }
            }
            0x8a if reader.get(1).is_none_or(|&n| n > 8) => {
                return Err("an integer has more than 64 bits".to_string());
            }
            _ => {}
        }
        if stack.read(&mut reader).map_err(|e| e.to_string())? {
            return stack.finalize().map_err(|e| e.to_string());
        }
        // Whatever nests or copies leaves its outcome on top.
        if let Some(top) = stack.stack().last() {
            measure(top, MAX_DEPTH, &mut objects)?;
        }
    }
}

/// Adds the number of objects in `object` to `objects`, within the limits.
fn measure(object: &Object, depth: usize, objects: &mut usize) -> Result<(), String> {
    *objects = objects.saturating_add(1);
    if *objects > MAX_OBJECTS {
        return Err(format!("it builds more than {MAX_OBJECTS} objects"));
    }
    let depth = depth.checked_sub(1).ok_or_else(|| format!("it nests more than {MAX_DEPTH} deep"))?;
    match object {
        Object::Tuple(items) | Object::List(items) => items.iter().try_for_each(|o| measure(o, depth, objects)),
        Object::Dict(items) => items.iter().try_for_each(|(key, value)| {
            measure(key, depth, objects)?;
            measure(value, depth, objects)
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            measure(callable, depth, objects)?;
            measure(args, depth, objects)
        }
        Object::PersistentLoad(id) => measure(id, depth, objects),
        Object::Unicode(text) => {
            // A text counts by its length, since a copy of it does.
            *objects = objects.saturating_add(text.len() / 32);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The arguments of `torch._utils._rebuild_tensor_v2`, also through a parameter's or a subclass's wrapper.
fn rebuilt(value: &Object) -> Option<&[Object]> {
    let Object::Reduce { callable, args } = value else { return None };
    let Object::Class { module_name, class_name } = callable.as_ref() else { return None };
    let Object::Tuple(args) = args.as_ref() else { return None };
    match (module_name.as_str(), class_name.as_str()) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(args),
        ("torch._utils", "_rebuild_parameter") => rebuilt(args.first()?),
        _ => None,
    }
}

/// Arguments: storage, offset in values, size, stride, and two that matter to autograd only.
fn describe(args: &[Object], folder: &str, storages: &Storages) -> Result<Entry, String> {
    let [Object::PersistentLoad(storage), offset, size, stride, ..] = args else {
        return Err("is described in an unknown way".to_string());
    };
    let Object::Tuple(storage) = storage.as_ref() else {
        return Err("has an unknown kind of storage".to_string());
    };
    let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = storage.as_slice() else {
        return Err("has an unknown kind of storage".to_string());
    };
    let (width, stored) = match class_name.as_str() {
        "FloatStorage" => (4u64, Stored::F32),
        "DoubleStorage" => (8, Stored::F64),
        "HalfStorage" => (2, Stored::F16),
        "BFloat16Storage" => (2, Stored::Bf16),
        "LongStorage" => (8, Stored::Other("I64".to_string())),
        "IntStorage" => (4, Stored::Other("I32".to_string())),
        "ShortStorage" => (2, Stored::Other("I16".to_string())),
        "CharStorage" => (1, Stored::Other("I8".to_string())),
        "ByteStorage" => (1, Stored::Other("U8".to_string())),
        "BoolStorage" => (1, Stored::Other("BOOL".to_string())),
        other => return Err(format!("has the unknown storage type {other:?}")),
    };
    let (start, room) =
        storages.get(&format!("{folder}data/{key}")).copied().ok_or("its bytes are not in the file".to_string())?;
    let offset = whole(offset).ok_or("has a negative offset")?;
    let (shape, stride) = (whole_numbers(size)?, whole_numbers(stride)?);
    if shape.len() != stride.len() || !contiguous(&shape, &stride) {
        return Err(format!("is a strided view (shape {shape:?}, stride {stride:?}); call contiguous() before saving"));
    }
    let too_far = || format!("of shape {shape:?} reaches beyond its storage of {room} bytes");
    let bytes = shape.iter().try_fold(width, |product, &n| product.checked_mul(n)).ok_or_else(too_far)?;
    let from = offset.checked_mul(width).ok_or_else(too_far)?;
    if from.checked_add(bytes).is_none_or(|end| end > room) {
        return Err(too_far());
    }
    let shape = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(|_| too_far())?;
    Ok(Entry { stored, shape, start: start.saturating_add(from), bytes })
}

fn whole(object: &Object) -> Option<u64> {
    match object {
        Object::Int(n) => u64::try_from(*n).ok(),
        Object::Long(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn whole_numbers(object: &Object) -> Result<Vec<u64>, String> {
    let Object::Tuple(items) = object else { return Err("has an unknown kind of shape".to_string()) };
    items.iter().map(whole).collect::<Option<Vec<_>>>().ok_or_else(|| "has a negative size or stride".to_string())
}

/// Whether the values lie one after another, row by row; a dimension of one may have any stride.
fn contiguous(shape: &[u64], stride: &[u64]) -> bool {
    let mut expected = Some(1u64);
    shape.iter().zip(stride).rev().all(|(&n, &step)| {
        let fits = n <= 1 || Some(step) == expected;
        expected = expected.and_then(|e| e.checked_mul(n));
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::{TensorSource, Weights};
    use candle_core::{DType, Device};
    use std::fs;
    use std::io::Write;

    /// Saved by torch: see `tests/golden/loading.py`.
    const SAVED: &[u8] = include_bytes!("../../tests/golden/pytorch_model.bin");

    fn write(folder: &Path, bytes: &[u8]) {
        fs::write(folder.join("pytorch_model.bin"), bytes).unwrap();
    }

    fn refusal(folder: &Path) -> String {
        let message = Weights::open(folder).unwrap_err().to_string();
        assert!(message.contains("pytorch_model.bin") && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn what_torch_saved_is_read_by_value() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), SAVED);
        let weights = Weights::open(dir.path()).unwrap();
        let base: Vec<f64> = (0..12).map(|i| f64::from(i) / 8.0 - 0.5).collect();
        let third: Vec<f64> = base[..3].iter().map(|v| v / 3.0).collect();
        for (name, shape, dtype, expected) in [
            ("single", vec![3, 4], DType::F32, &base[..]),
            ("tied", vec![3, 4], DType::F32, &base[..]),
            ("tail", vec![4], DType::F32, &base[8..]),
            ("half", vec![2, 3], DType::F16, &base[..6]),
            ("brain", vec![4], DType::BF16, &base[..4]),
            ("double", vec![3], DType::F64, &third[..]),
            ("parameter", vec![2], DType::F32, &base[4..6]),
        ] {
            assert_eq!(weights.dtype(name), Some(dtype), "{name}");
            let tensor = weights.load(name, &shape, DType::F64, &Device::Cpu).unwrap();
            assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap(), expected, "{name}");
        }
        let whole = weights.load("whole", &[5], DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(whole.contains("is stored as I64"), "{whole}");
    }

    #[test]
    fn a_file_cut_or_altered_anywhere_is_an_error_or_the_same_kind_of_file() {
        let dir = tempfile::tempdir().unwrap();
        for cut in (0..SAVED.len()).step_by(37) {
            write(dir.path(), &SAVED[..cut]);
            refusal(dir.path());
        }
        // Altered bytes may still make a file; they must never make a panic.
        for at in (0..SAVED.len()).step_by(3) {
            let mut bytes = SAVED.to_vec();
            bytes[at] ^= 0xff;
            write(dir.path(), &bytes);
            if let Ok(weights) = Weights::open(dir.path()) {
                for name in weights.names() {
                    let shape = weights.shape(&name).unwrap_or_default().to_vec();
                    let _ = weights.load(&name, &shape, DType::F32, &Device::Cpu);
                }
            }
        }
    }

    /// A zip file with this pickle and one storage of eight bytes.
    fn zipped(pickle: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", &[0u8; 8])] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn bombs_are_refused_within_limits() {
        let dir = tempfile::tempdir().unwrap();
        // Each level doubles the one before it: 2^40 objects in 240 bytes.
        let mut laughs = b"\x80\x02)q\x00".to_vec();
        for _ in 0..40 {
            laughs.extend(b"h\x00h\x00\x86q\x00");
        }
        laughs.push(b'.');
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend(vec![0x85; 1 << 20]);
        deep.push(b'.');
        let mut copies = b"\x80\x02X\x00\x00\x10\x00".to_vec();
        copies.extend(vec![b'a'; 1 << 20]);
        copies.extend(b"q\x00h\x00".repeat(100_000));
        copies.push(b'.');
        for (pickle, expected) in [
            (laughs, "builds more than"),
            (deep, "nests more than 64"),
            (copies, "builds more than"),
            (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "a text is longer than the file"),
            (b"\x80\x02\x8a\xff\x01.".to_vec(), "more than 64 bits"),
            (b"\x80\x02cos\nsystem\n.".to_vec(), "holds no dictionary"),
            (b"\x80\x02}.".to_vec(), "describes no tensors"),
            (b"\x80\x02}".to_vec(), "ends before its end mark"),
            (b".".to_vec(), "cannot be read"),
            (b"".to_vec(), "cannot be read"),
        ] {
            write(dir.path(), &zipped(&pickle));
            assert!(refusal(dir.path()).contains(expected), "{expected}: {}", refusal(dir.path()));
        }
    }

    #[test]
    fn a_tensor_beyond_its_storage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tensor = |size: &[u8], stride: &[u8], offset: u8| {
            let mut p = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
            p.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ");
            p.extend([b'K', offset]);
            p.extend(size);
            p.extend(stride);
            p.extend(b"\x89NtRs.");
            zipped(&p)
        };
        write(dir.path(), &tensor(b"K\x02\x85", b"K\x01\x85", 0));
        assert_eq!(Weights::open(dir.path()).unwrap().shape("w"), Some([2].as_slice()));
        for (size, stride, offset, expected) in [
            (&b"K\x02\x85"[..], &b"K\x01\x85"[..], 1, "beyond its storage"),
            (b"K\x03\x85", b"K\x01\x85", 0, "beyond its storage"),
            (b"J\xff\xff\xff\x7f\x85", b"K\x01\x85", 0, "beyond its storage"),
            (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", 0, "negative size"),
            (b"K\x02\x85", b"K\x02\x85", 0, "strided view"),
            (b"K\x02\x85", b")", 0, "strided view"),
            (b"N", b"N", 0, "unknown kind of shape"),
        ] {
            write(dir.path(), &tensor(size, stride, offset));
            let message = refusal(dir.path());
            assert!(message.contains("tensor w") && message.contains(expected), "{message}");
        }
    }
}
