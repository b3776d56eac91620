//! The file form that the accumulators share: little-endian numbers behind a name and a version, nothing trusted.

use thiserror::Error;

/// The form's version; another one is refused.
const VERSION: u64 = 1;

/// Why bytes are not the file form of an accumulator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FileFormError {
    /// The bytes end before the form does.
    #[error("the saved state of `{name}` is cut off: {missing} bytes are missing; delete the file and measure again")]
    Truncated {
        /// Which accumulator.
        name: String,
        /// How many bytes more the field at hand needs.
        missing: u64,
    },
    /// Another accumulator's state, another version, or no state at all.
    #[error("this is not a saved state of `{name}` in version {VERSION}; delete the file and measure again")]
    Foreign {
        /// Which accumulator was asked for.
        name: String,
    },
    /// A value that no accumulator can hold.
    #[error("the saved state of `{name}` is malformed: {reason}; delete the file and measure again")]
    Malformed {
        /// Which accumulator.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

fn printable(name: [u8; 8]) -> String {
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// Writes a file form.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(name: [u8; 8]) -> Self {
        let mut out = Self(name.to_vec());
        out.integer(VERSION);
        out
    }

    pub(super) fn integer(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn number(&mut self, value: f64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A list, its length first.
    pub(super) fn numbers(&mut self, values: &[f64]) {
        self.integer(values.len() as u64);
        self.0.reserve(values.len() * 8);
        values.iter().for_each(|&v| self.number(v));
    }

    /// A list of f32, its length first.
    pub(super) fn singles(&mut self, values: &[f32]) {
        self.integer(values.len() as u64);
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a file form; every length is checked against what is left before anything is allocated.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    name: String,
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], name: [u8; 8]) -> Result<Self, FileFormError> {
        let mut input = Self { name: printable(name), left: bytes };
        let foreign = FileFormError::Foreign { name: input.name.clone() };
        if input.take(8)? != name || input.integer()? != VERSION {
            return Err(foreign);
        }
        Ok(input)
    }

    pub(super) fn malformed(&self, reason: impl Into<String>) -> FileFormError {
        FileFormError::Malformed { name: self.name.clone(), reason: reason.into() }
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], FileFormError> {
        let split = usize::try_from(bytes).ok().and_then(|at| self.left.split_at_checked(at));
        let Some((taken, left)) = split else {
            let missing = bytes.saturating_sub(self.left.len() as u64);
            return Err(FileFormError::Truncated { name: self.name.clone(), missing });
        };
        self.left = left;
        Ok(taken)
    }

    pub(super) fn integer(&mut self) -> Result<u64, FileFormError> {
        Ok(self.take(8)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// A finite number.
    pub(super) fn number(&mut self) -> Result<f64, FileFormError> {
        let value = f64::from_bits(self.integer()?);
        if value.is_finite() { Ok(value) } else { Err(self.malformed("a number is not finite")) }
    }

    /// A list of finite numbers.
    pub(super) fn numbers(&mut self) -> Result<Vec<f64>, FileFormError> {
        let length = self.integer()?;
        let bytes = self.take(self.list(length, 8)?)?;
        let values: Vec<f64> = bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(self.malformed("a number is not finite")) }
    }

    /// A list of `length` finite numbers.
    pub(super) fn numbers_of(&mut self, length: usize) -> Result<Vec<f64>, FileFormError> {
        let values = self.numbers()?;
        self.expect(values.len(), length)?;
        Ok(values)
    }

    /// A list of `length` finite f32.
    pub(super) fn singles_of(&mut self, length: usize) -> Result<Vec<f32>, FileFormError> {
        let stored = self.integer()?;
        let bytes = self.take(self.list(stored, 4)?)?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        self.expect(values.len(), length)?;
        if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(self.malformed("a number is not finite")) }
    }

    fn list(&self, length: u64, size: u64) -> Result<u64, FileFormError> {
        length.checked_mul(size).ok_or_else(|| self.malformed(format!("a list claims {length} numbers")))
    }

    fn expect(&self, found: usize, wanted: usize) -> Result<(), FileFormError> {
        if found == wanted { Ok(()) } else { Err(self.malformed(format!("a list of {wanted} numbers has {found}"))) }
    }

    /// Nothing may follow.
    pub(super) fn finish(self) -> Result<(), FileFormError> {
        let left = self.left.len();
        if left == 0 { Ok(()) } else { Err(self.malformed(format!("{left} bytes follow its end"))) }
    }
}
