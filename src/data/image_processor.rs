//! Image files to what a model was trained on: `preprocessor_config.json`.

use super::resize::{Filter, resized};
use super::{DataError, Encoded, Image, PatchGrid};
use crate::hash;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The file beside a vision model that says how images are prepared for it.
pub const PREPROCESSOR: &str = "preprocessor_config.json";

/// The keys of `preprocessor_config.json` that decide what a model sees, with transformers' defaults for ViT.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Settings {
    do_resize: bool,
    size: Value,
    resample: u8,
    do_center_crop: bool,
    crop_size: Value,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: Vec<f64>,
    image_std: Vec<f64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Value::from(224),
            resample: 2,
            do_center_crop: false,
            crop_size: Value::Null,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: vec![0.5; 3],
            image_std: vec![0.5; 3],
        }
    }
}

/// How an image is made smaller or larger.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Resize {
    /// To height and width.
    Exactly([usize; 2]),
    /// Until the shorter side is so long; the other follows.
    Shortest(usize),
}

/// Prepares image files as transformers' image processors do: RGB, resized as Pillow resizes, cut to the middle,
/// scaled and normalised. Turns that a photograph only notes (EXIF) are not made.
#[derive(Debug)]
pub struct ImageProcessor {
    grid: PatchGrid,
    resize: Option<(Resize, Filter)>,
    crop: Option<[usize; 2]>,
    factor: f64,
    mean: [f64; 3],
    deviation: [f64; 3],
    sha256: String,
}

impl ImageProcessor {
    /// Reads the `preprocessor_config.json` of a model that reads images of `grid`.
    ///
    /// # Errors
    /// The file is missing, malformed, or makes images of another size.
    pub fn from_folder(folder: &Path, grid: PatchGrid) -> Result<Self, DataError> {
        let path = folder.join(PREPROCESSOR);
        let file = path.display().to_string();
        let bytes = std::fs::read(&path).map_err(|source| DataError::Read { path: file.clone(), source })?;
        Self::from_bytes(&bytes, grid).map_err(|reason| DataError::Preprocessor { file, reason })
    }

    fn from_bytes(bytes: &[u8], grid: PatchGrid) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let settings: Settings = serde_json::from_value(Value::Object(object)).map_err(|e| e.to_string())?;
        let resize = match settings.do_resize {
            false => None,
            true => Some((resize(&settings.size)?, filter(settings.resample)?)),
        };
        let crop = match settings.do_center_crop {
            false => None,
            true => Some(height_width("crop_size", &settings.crop_size)?),
        };
        let three = |key: &str, values: &[f64]| match (settings.do_normalize, values.try_into()) {
            (false, _) => Ok(None),
            (true, Ok(values)) => Ok(Some(values)),
            (true, Err(_)) => Err(format!("{key} has {} numbers; an RGB image needs 3", values.len())),
        };
        let mean = three("image_mean", &settings.image_mean)?.unwrap_or([0.0; 3]);
        let deviation = three("image_std", &settings.image_std)?.unwrap_or([1.0; 3]);
        if deviation.iter().any(|d| !d.is_finite() || *d == 0.0) {
            return Err("image_std holds a number that nothing can be divided by".to_owned());
        }
        let factor = if settings.do_rescale { settings.rescale_factor } else { 1.0 };
        let size = match (crop, &resize) {
            (Some(crop), _) => Some(crop),
            (None, Some((Resize::Exactly(size), _))) => Some(*size),
            _ => None,
        };
        if let Some([height, width]) = size.filter(|size| *size != grid.image) {
            let [tall, wide] = grid.image;
            return Err(format!("makes images of {height} × {width} pixels, and the model reads {tall} × {wide}"));
        }
        Ok(Self { grid, resize, crop, factor, mean, deviation, sha256: hash::sha256_bytes(bytes) })
    }

    /// How images are cut.
    #[must_use]
    pub fn grid(&self) -> &PatchGrid {
        &self.grid
    }

    /// SHA-256 of the file that it was read from.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The tokens of an image file: the class token, then its patches, each by its number from 1.
    ///
    /// # Errors
    /// The file cannot be read, is no image, or comes out in another size than the model reads.
    pub fn encode(&self, path: &Path) -> Result<Encoded, DataError> {
        let fault = |reason: String| DataError::Image { path: path.display().to_string(), reason };
        let reader = image::io::Reader::open(path).and_then(image::io::Reader::with_guessed_format);
        let reader = reader.map_err(|source| DataError::Read { path: path.display().to_string(), source })?;
        let decoded = reader.decode().map_err(|e| fault(e.to_string()))?.into_rgb8();
        let size = [decoded.height() as usize, decoded.width() as usize];
        let pixels = self.pixels(decoded.into_raw(), size).map_err(fault)?;
        let tokens = self.grid.patches() + 1;
        Ok(Encoded {
            ids: (0..tokens as u32).collect(),
            special: (0..tokens).map(|token| token == 0).collect(),
            offsets: vec![(0, 0); tokens],
            types: Vec::new(),
            image: Some(Image::from_pixels(&pixels, &self.grid)),
        })
    }

    /// RGB bytes of a size to normalised pixels, `[3, height, width]`.
    fn pixels(&self, mut bytes: Vec<u8>, mut size: [usize; 2]) -> Result<Vec<f32>, String> {
        if let Some((resize, filter)) = &self.resize {
            let wanted = resize.of(size);
            if wanted != size {
                bytes = resized(&bytes, size, wanted, *filter);
                size = wanted;
            }
        }
        let [tall, wide] = self.grid.image;
        let [height, width] = size;
        let cut = self.crop.is_some() && height >= tall && width >= wide;
        if !cut && size != self.grid.image {
            return Err(format!("comes out as {height} × {width} pixels, and the model reads {tall} × {wide}"));
        }
        let (top, left) = ((height - tall) / 2, (width - wide) / 2);
        let mut pixels = Vec::with_capacity(3 * tall * wide);
        for (channel, (mean, deviation)) in self.mean.iter().zip(self.deviation).enumerate() {
            for y in top..top + tall {
                let line = (left..left + wide).map(|x| bytes.get((y * width + x) * 3 + channel).copied().unwrap_or(0));
                pixels.extend(line.map(|byte| ((f64::from(byte) * self.factor - mean) / deviation) as f32));
            }
        }
        Ok(pixels)
    }
}

impl Resize {
    /// Height and width of what becomes of an image.
    fn of(self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Exactly(size) => size,
            Self::Shortest(short) if height <= width => [short, (short * width).checked_div(height).unwrap_or(0)],
            Self::Shortest(short) => [(short * height).checked_div(width).unwrap_or(0), short],
        }
    }
}

/// Largest side that an image is made to.
const LARGEST: u64 = 1 << 14;

fn side(key: &str, value: &Value) -> Result<usize, String> {
    match value.as_u64().filter(|n| (1..=LARGEST).contains(n)) {
        Some(side) => Ok(side as usize),
        None => Err(format!("{key} is {value}; it must be a whole number from 1 to {LARGEST}")),
    }
}

/// A size by `height` and `width`, or one number for both.
fn height_width(key: &str, value: &Value) -> Result<[usize; 2], String> {
    match (value.get("height"), value.get("width")) {
        (Some(height), Some(width)) => Ok([side(key, height)?, side(key, width)?]),
        _ if value.is_number() => Ok([side(key, value)?; 2]),
        _ => Err(format!("{key} is {value}; supported: a number, or height and width")),
    }
}

fn resize(size: &Value) -> Result<Resize, String> {
    match size.get("shortest_edge") {
        Some(short) => Ok(Resize::Shortest(side("size.shortest_edge", short)?)),
        None => Ok(Resize::Exactly(height_width("size", size)?)),
    }
}

/// By Pillow's number.
fn filter(resample: u8) -> Result<Filter, String> {
    let unknown = || format!("resample is {resample}; supported: 0 to 5, as Pillow numbers its filters");
    Filter::numbered(resample).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
    }

    /// One patch: the image as it is.
    fn whole(image: [usize; 2]) -> PatchGrid {
        PatchGrid { image, patch: image, channels: 3 }
    }

    #[test]
    fn pictures_come_out_as_transformers_makes_them() {
        let wanted = candle_core::safetensors::load(golden().join("pixels.safetensors"), &candle_core::Device::Cpu);
        let wanted: BTreeMap<String, candle_core::Tensor> = wanted.unwrap().into_iter().collect();
        let cases: Value = serde_json::from_slice(&std::fs::read(golden().join("cases.json")).unwrap()).unwrap();
        assert_eq!(wanted.len(), 4 * cases.as_object().unwrap().len());
        for (key, pixels) in &wanted {
            let (case, file) = key.split_once('/').unwrap();
            let (_, height, width) = pixels.dims3().unwrap();
            let config = serde_json::to_vec(&cases[case]).unwrap();
            let processor = ImageProcessor::from_bytes(&config, whole([height, width])).unwrap();
            let found = processor.encode(&golden().join(file)).unwrap();
            assert_eq!((&found.ids[..], &found.special[..]), (&[0, 1][..], &[true, false][..]));
            let level = processor.factor / processor.deviation.iter().copied().fold(f64::INFINITY, f64::min);
            let image = found.image.unwrap();
            let pairs = image.values().iter().zip(pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let levels: Vec<f64> = pairs.map(|(a, b)| f64::from((a - b).abs()) / level).collect();
            let most = levels.iter().copied().fold(0.0, f64::max);
            let mean = levels.iter().sum::<f64>() / levels.len() as f64;
            // JPEG leaves it to the decoder how colours of low resolution are spread; all else is equal but for f32.
            let allowed = if file.ends_with(".jpg") { (5.0, 0.6) } else { (0.001, 0.001) };
            assert!(most <= allowed.0 && mean <= allowed.1, "{key}: {most}, mean {mean} levels of 256");
        }
    }

    #[test]
    fn a_configuration_that_cannot_be_followed_is_refused() {
        let refused = |config: Value| {
            ImageProcessor::from_bytes(&serde_json::to_vec(&config).unwrap(), whole([12, 12])).unwrap_err()
        };
        for (config, wanted) in [
            (json!({"size": 224}), "makes images of 224 × 224 pixels, and the model reads 12 × 12"),
            (
                json!({"size": {"longest_edge": 12}}),
                "size is {\"longest_edge\":12}; supported: a number, or height and width",
            ),
            (json!({"size": 12, "resample": 9}), "resample is 9; supported: 0 to 5, as Pillow numbers its filters"),
            (json!({"size": 12, "image_std": [1, 0, 1]}), "image_std holds a number that nothing can be divided by"),
            (json!({"size": 12, "image_mean": [0.5]}), "image_mean has 1 numbers; an RGB image needs 3"),
            (json!({"size": 0}), "size is 0; it must be a whole number from 1 to 16384"),
        ] {
            assert_eq!(refused(config), wanted);
        }
        assert!(refused(json!({"size": 12, "resample": "bilinear"})).starts_with("invalid type"));
        assert!(refused(json!([])).starts_with("invalid type"));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = serde_json::to_vec(&json!({"do_resize": false})).unwrap();
        let processor = ImageProcessor::from_bytes(&config, whole([12, 12])).unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, "no picture").unwrap();
        let error = processor.encode(&path).unwrap_err().to_string();
        assert!(error.contains("a.png: cannot be read as an image: "), "{error}");
        let error = processor.encode(&golden().join("photo.png")).unwrap_err().to_string();
        assert!(error.contains("comes out as 37 × 23 pixels, and the model reads 12 × 12"), "{error}");
        let bytes = std::fs::read(golden().join("photo.png")).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(processor.encode(&path).is_err());
    }
}
