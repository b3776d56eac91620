//! Data frames on disk: CSV for people, Parquet for programs, the same content in both.

use crate::persist::{self, PersistError};
use polars::prelude::{
    CsvReadOptions, CsvWriter, DataFrame, DataType, ParquetReader, ParquetWriter, PlSmallStr, PolarsError, Schema,
    SerReader, SerWriter,
};
use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A table that could not be written, read, or understood.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] PersistError),
    /// The file could not be read.
    #[error("{path}: cannot read: {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's name ends in neither `.csv` nor `.parquet`.
    #[error("{path}: not a table; give a .csv or .parquet file")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The content is not a table of this kind.
    #[error("{path}: {}; write it again with the command that made it", first_line(source))]
    Content {
        /// The file, or what was being made of it.
        path: PathBuf,
        /// What polars said.
        source: PolarsError,
    },
    /// A cell that must hold a value is empty.
    #[error("column `{column}`, row {row}: empty; write the table again with the command that made it")]
    Empty {
        /// The column.
        column: &'static str,
        /// The row, from 0, header not counted.
        row: usize,
    },
    /// A column is missing or of another type.
    #[error("column `{column}`: {}; write the table again with the command that made it", first_line(source))]
    Column {
        /// The column.
        column: &'static str,
        /// What polars said.
        source: PolarsError,
    },
}

fn first_line(error: &PolarsError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Writes `frame` as `stem.csv` and `stem.parquet` into `folder`, each file whole or not at all.
///
/// Floats are written so that they read back to the same bits; an empty cell is a missing value.
///
/// # Errors
/// The folder cannot be written.
pub fn write_table(folder: &Path, stem: &str, frame: &mut DataFrame) -> Result<(), TableError> {
    write_csv(&folder.join(format!("{stem}.csv")), frame)?;
    write_parquet(&folder.join(format!("{stem}.parquet")), frame)
}

/// Writes `frame` as comma-separated values with a header line.
///
/// # Errors
/// The folder cannot be written.
pub fn write_csv(path: &Path, frame: &mut DataFrame) -> Result<(), TableError> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).finish(frame).map_err(|source| content(path, source))?;
    Ok(persist::write_file(path, &bytes)?)
}

/// Writes `frame` as Parquet (zstd).
///
/// # Errors
/// The folder cannot be written.
pub fn write_parquet(path: &Path, frame: &mut DataFrame) -> Result<(), TableError> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(frame).map_err(|source| content(path, source))?;
    Ok(persist::write_file(path, &bytes)?)
}

/// Reads a `.csv` or `.parquet` file; of a CSV file, the columns named in `types` are read as those types
/// and the rest as they look.
///
/// # Errors
/// The file is missing, of another kind, or damaged.
pub fn read_table(path: &Path, types: &[(&str, DataType)]) -> Result<DataFrame, TableError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let bytes = || fs::read(path).map(Cursor::new).map_err(|source| TableError::Read { path: path.into(), source });
    let frame = match extension {
        "csv" => {
            let fields = types.iter().map(|(name, kind)| (PlSmallStr::from(*name), kind.clone()));
            CsvReadOptions::default()
                .with_schema_overwrite(Some(Arc::new(fields.collect::<Schema>())))
                .into_reader_with_file_handle(bytes()?)
                .finish()
        }
        "parquet" => ParquetReader::new(bytes()?).finish(),
        _ => return Err(TableError::UnknownFormat { path: path.into() }),
    };
    frame.map_err(|source| content(path, source))
}

fn content(path: &Path, source: PolarsError) -> TableError {
    TableError::Content { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    #[test]
    fn both_files_read_back_to_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let values = [Some(0.1 + 0.2), None, Some(-1.0 / 3.0), Some(1e-300), Some(5e-324), Some(123_456_789.0)];
        let names = ["a", "with, comma", "with \"quote\"", "λ=0.3", "line\nbreak", "-"];
        let mut frame = df!("name" => names, "value" => values).unwrap();
        write_table(dir.path(), "t", &mut frame).unwrap();
        let types = [("name", DataType::String), ("value", DataType::Float64)];
        for file in ["t.csv", "t.parquet"] {
            let back = read_table(&dir.path().join(file), &types).unwrap();
            assert!(back.equals_missing(&frame), "{file}: {back}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bad.parquet"), b"PAR1 and nothing else").unwrap();
        fs::write(dir.path().join("bad.csv"), b"value\nnot a number\n").unwrap();
        for file in ["bad.parquet", "bad.csv", "missing.csv", "table.txt"] {
            let error = read_table(&dir.path().join(file), &[("value", DataType::Float64)]).unwrap_err().to_string();
            assert!(error.contains(file) && !error.contains('\n'), "{error}");
        }
    }
}
