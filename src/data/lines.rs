//! Streaming the lines of a UTF-8 file with their numbers.

use super::DataError;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The lines of a file that are not blank, with their numbers (from 1), without line ends and byte-order mark.
#[derive(Debug)]
pub(super) struct Lines {
    path: String,
    reader: BufReader<File>,
    line: usize,
    offset: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let path_text = path.display().to_string();
        let file = File::open(path).map_err(|source| DataError::Read { path: path_text.clone(), source })?;
        Ok(Self { path: path_text, reader: BufReader::new(file), line: 0, offset: 0 })
    }

    fn read(&mut self) -> Result<Option<String>, DataError> {
        let mut bytes = Vec::new();
        let read = self
            .reader
            .read_until(b'\n', &mut bytes)
            .map_err(|source| DataError::Read { path: self.path.clone(), source })?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let start = self.offset;
        self.offset += read as u64;
        let mut text = String::from_utf8(bytes).map_err(|e| DataError::NotUtf8 {
            path: self.path.clone(),
            line: self.line,
            offset: start + e.utf8_error().valid_up_to() as u64,
        })?;
        let end = text.strip_suffix('\n').map_or(text.len(), |t| t.strip_suffix('\r').unwrap_or(t).len());
        text.truncate(end);
        if self.line == 1 && text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        Ok(Some(text))
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, String), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(None) => return None,
                Ok(Some(text)) if text.trim().is_empty() => {}
                Ok(Some(text)) => return Some(Ok((self.line, text))),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// The content of a whole UTF-8 file, without a byte-order mark.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| DataError::Read { path: name(), source })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        let before = e.as_bytes().iter().take(offset);
        DataError::NotUtf8 {
            path: name(),
            line: 1 + before.filter(|&&byte| byte == b'\n').count(),
            offset: offset as u64,
        }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_are_skipped_but_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "\u{feff}one\r\n\n  \nfour\nfive").unwrap();
        let lines: Vec<_> = Lines::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(lines, [(1, "one".into()), (4, "four".into()), (5, "five".into())]);
    }

    #[test]
    fn a_wrong_byte_is_named_by_line_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, b"good\nno\xff").unwrap();
        let error = Lines::open(&path).unwrap().find_map(Result::err).unwrap().to_string();
        assert!(error.ends_with("a.txt:2: not UTF-8 at byte 7 of the file; convert the file to UTF-8"), "{error}");
        assert_eq!(read_text(&path).unwrap_err().to_string(), error);
    }
}
