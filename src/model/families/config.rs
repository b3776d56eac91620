//! Reading `config.json` without trusting it.

use serde_json::Value;

/// Why a `config.json` cannot be used; names file, key and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}; a model folder needs a config.json")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{file}: not valid JSON: {source}")]
    NotJson {
        /// The file.
        file: String,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A key is missing or holds a value that no model can have.
    #[error("{file}: {key} {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Far above any real model, and small enough that products of three of them fit 64 bits.
const LARGEST: u64 = 1 << 20;

/// The deepest model that is believed.
const MOST_LAYERS: usize = 1024;

/// A parsed configuration with checked access.
pub(super) struct Config<'a> {
    file: &'a str,
    value: &'a Value,
    /// What a family has where the file is silent.
    defaults: Vec<(&'static str, Value)>,
}

impl<'a> Config<'a> {
    pub(super) fn new(file: &'a str, value: &'a Value) -> Result<Self, ConfigError> {
        let config = Self { file, value, defaults: Vec::new() };
        if value.is_object() { Ok(config) } else { Err(config.invalid("the file", "must hold a JSON object")) }
    }

    /// The object under `key`, if there is one.
    pub(super) fn section(&self, key: &str) -> Option<Config<'a>> {
        let value = self.value.get(key)?;
        value.is_object().then_some(Config { file: self.file, value, defaults: Vec::new() })
    }

    /// The same with `value` for `key` where the file has none.
    pub(super) fn with_default(&self, key: &'static str, value: impl Into<Value>) -> Self {
        let mut defaults = self.defaults.clone();
        defaults.push((key, value.into()));
        Self { file: self.file, value: self.value, defaults }
    }

    /// Whether the file names `key`, be it as null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    pub(super) fn invalid(&self, key: &str, problem: &str) -> ConfigError {
        ConfigError::Invalid { file: self.file.to_owned(), key: key.to_owned(), problem: problem.to_owned() }
    }

    /// A key that is absent or null is `None`.
    fn get(&self, key: &str) -> Option<&Value> {
        let default = || self.defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
        self.value.get(key).filter(|v| !v.is_null()).or_else(default)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.invalid(key, &format!("is {other}, not a string"))),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.invalid(key, &format!("is {other}, not true or false"))),
        }
    }

    /// A whole number from 1 to 2²⁰ (2³² for positions and vocabulary would only hide an error).
    pub(super) fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.invalid(key, "is missing"))
    }

    /// The first of the keys that is there, and its size; where none is, the error names the first.
    pub(super) fn first_size(&self, keys: &[&'static str]) -> Result<(&'static str, usize), ConfigError> {
        let first = keys.first().copied().unwrap_or_default();
        self.first_optional_size(keys)?.ok_or_else(|| self.invalid(first, "is missing"))
    }

    /// The first of the keys that is there, and its size.
    pub(super) fn first_optional_size(
        &self,
        keys: &[&'static str],
    ) -> Result<Option<(&'static str, usize)>, ConfigError> {
        keys.iter().find_map(|&key| Some(self.optional_size(key).transpose()?.map(|size| (key, size)))).transpose()
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.invalid(key, "is no list of strings"))
    }

    /// A number of blocks.
    pub(super) fn layers(&self, key: &str) -> Result<usize, ConfigError> {
        match self.size(key)? {
            layers @ ..=MOST_LAYERS => Ok(layers),
            layers => Err(self.invalid(key, &format!("is {layers}; at most {MOST_LAYERS} are supported"))),
        }
    }

    /// The first of a list of strings.
    pub(super) fn first_text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_array()?.first()?.as_str()
    }

    /// A whole number from 0 to 2²⁰, such as a token's id.
    pub(super) fn optional_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().filter(|&n| n <= LARGEST).and_then(|n| u32::try_from(n).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.invalid(key, &format!("is {value}; it must be a whole number from 0 to {LARGEST}"))),
        }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.invalid(key, &format!("is {value}; it must be a whole number from 1 to {LARGEST}"))),
        }
    }

    /// One size for height and width, or a list of the two.
    pub(super) fn height_width(&self, key: &str, absent: usize) -> Result<[usize; 2], ConfigError> {
        let Some(Value::Array(sides)) = self.get(key) else {
            return Ok([self.optional_size(key)?.unwrap_or(absent); 2]);
        };
        let side = |side: &Value| side.as_u64().filter(|n| (1..=LARGEST).contains(n)).map(|n| n as usize);
        match sides.iter().map(side).collect::<Option<Vec<_>>>().as_deref() {
            Some(&[height, width]) => Ok([height, width]),
            _ => Err(self.invalid(key, "is a list; it must hold height and width in pixels")),
        }
    }

    /// A size, or none where the number is below 1, as many a file says -1 or 0 for what it does not have.
    pub(super) fn size_above_zero(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let none = self.get(key).and_then(Value::as_i64).is_some_and(|n| n < 1);
        if none { Ok(None) } else { self.optional_size(key) }
    }

    /// The words of a list, or of one text that `|` divides, in small letters.
    pub(super) fn words(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let word = |word: &str| word.trim().to_lowercase();
        match self.get(key).and_then(Value::as_str) {
            Some(text) => Ok(text.split('|').map(word).collect()),
            None => Ok(self.texts(key)?.unwrap_or_default().into_iter().map(word).collect()),
        }
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.invalid(key, &format!("is {value}; it must be a number above 0"))),
        }
    }

    pub(super) fn required_positive(&self, key: &str) -> Result<f64, ConfigError> {
        self.positive(key)?.ok_or_else(|| self.invalid(key, "is missing"))
    }
}
