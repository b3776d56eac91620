//! Streaming the rows of a table of text: comma-separated with quotes, or tab-separated without.

use super::DataError;
use super::json::Object;
use super::lines::Lines;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The rows below a header line, each with its place; every value is a string.
#[derive(Debug)]
pub(super) struct TableRows {
    path: PathBuf,
    reader: Box<csv::Reader<File>>,
    columns: csv::StringRecord,
}

impl TableRows {
    /// A `.csv` file.
    pub(super) fn csv(path: &Path) -> Result<Self, DataError> {
        Self::open(path, &csv::ReaderBuilder::new())
    }

    /// A `.tsv` file as GLUE writes them: a quotation mark is a character like any other.
    pub(super) fn tsv(path: &Path) -> Result<Self, DataError> {
        Self::open(path, csv::ReaderBuilder::new().delimiter(b'\t').quoting(false))
    }

    /// A `.tsv` file whose first line is a header if it holds one of the names `columns`, else a row of these columns; without
    /// names a header.
    pub(super) fn tsv_with(path: &Path, columns: &[String]) -> Result<Self, DataError> {
        if columns.is_empty() {
            return Self::tsv(path);
        }
        let mut builder = csv::ReaderBuilder::new();
        let named = Self::tsv(path)?;
        let found = named.columns.len();
        if named.columns.iter().any(|column| columns.iter().any(|known| known == column)) {
            return Ok(named);
        }
        if found != columns.len() {
            let (path, columns) = (path.display().to_string(), columns.join(", "));
            return Err(DataError::NoHeader { path, found, wanted: columns.split(", ").count(), columns });
        }
        let file = File::open(path).map_err(|source| DataError::Read { path: path.display().to_string(), source })?;
        let reader = builder.delimiter(b'\t').quoting(false).has_headers(false).from_reader(file);
        Ok(Self {
            path: path.to_owned(),
            reader: Box::new(reader),
            columns: columns.iter().map(String::as_str).collect(),
        })
    }

    fn open(path: &Path, builder: &csv::ReaderBuilder) -> Result<Self, DataError> {
        let unreadable = |source| DataError::Read { path: path.display().to_string(), source };
        let mut reader = builder.from_reader(File::open(path).map_err(unreadable)?);
        let columns = reader.headers().map_err(|e| csv_error(path, &e))?.clone();
        Ok(Self { path: path.to_owned(), reader: Box::new(reader), columns })
    }

    /// The column's name, if there is only one.
    pub(super) fn only_column(&self) -> Option<&str> {
        self.columns.get(0).filter(|_| self.columns.len() == 1)
    }

    fn read(&mut self) -> Result<Option<(String, Object)>, DataError> {
        let mut record = csv::StringRecord::new();
        if !self.reader.read_record(&mut record).map_err(|e| csv_error(&self.path, &e))? {
            return Ok(None);
        }
        let line = record.position().map_or(0, csv::Position::line);
        let values = self.columns.iter().zip(&record);
        let row = values.map(|(column, value)| (column.to_owned(), Value::from(value))).collect();
        Ok(Some((format!("{}:{line}", self.path.display()), row)))
    }
}

impl Iterator for TableRows {
    type Item = Result<(String, Object), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

fn csv_error(path: &Path, error: &csv::Error) -> DataError {
    if let csv::ErrorKind::Utf8 { .. } = error.kind() {
        // The CSV reader knows the row and field, but not the byte.
        let wrong = Lines::open(path).ok().and_then(|mut lines| lines.find_map(Result::err));
        if let Some(wrong) = wrong {
            return wrong;
        }
    }
    DataError::Csv { path: path.display().to_string(), reason: error.to_string() }
}
