//! The rows of any file of data as objects, each with its place.

use super::DataError;
use super::json::{JsonObjects, Object};
use super::table::TableRows;
use std::path::Path;

/// A row: its fields by name.
pub type Row = Object;

/// The rows of a `.json`, `.jsonl`, `.csv` or `.tsv` file with their places, and with the feature `cli` of a `.parquet`
/// file. `columns` names those of a tab-separated file that has no header line: a first line that holds none of the
/// names is a row.
///
/// # Errors
/// The file cannot be read, is malformed, or its name's ending is unknown; a row is malformed.
pub fn read_rows(path: &Path, columns: &[String]) -> Result<Vec<(String, Row)>, DataError> {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let rows: Vec<(String, Row)> = match extension.as_deref() {
        Some("json" | "jsonl") => JsonObjects::open(path)?.collect::<Result<_, _>>()?,
        Some("csv") => TableRows::csv(path)?.collect::<Result<_, _>>()?,
        Some("tsv") => TableRows::tsv_with(path, columns)?.collect::<Result<_, _>>()?,
        #[cfg(feature = "cli")]
        Some("parquet") => super::parquet::read_parquet(path)?,
        _ => {
            let path = path.display().to_string();
            return Err(DataError::UnknownFormat { path, known: ".json, .jsonl, .csv, .tsv or .parquet" });
        }
    };
    if rows.is_empty() {
        return Err(DataError::Empty { path: path.display().to_string(), wanted: "rows" });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &str, columns: &[&str]) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let columns: Vec<String> = columns.iter().map(|c| (*c).to_owned()).collect();
        let front = format!("{}/", folder.path().display());
        let rows = read_rows(&path, &columns).map_err(|e| e.to_string().replace(&front, ""))?;
        Ok(rows.into_iter().map(|(place, row)| (place.replace(&front, ""), row["b"].to_string())).collect())
    }

    #[test]
    fn every_kind_of_file_has_rows_and_places() {
        let row = |place: &str, value: &str| (place.to_owned(), value.to_owned());
        assert_eq!(
            read("a.jsonl", "{\"b\": 1}\n\n{\"b\": [2]}\n", &[]).unwrap(),
            [row("a.jsonl:1", "1"), row("a.jsonl:3", "[2]")]
        );
        assert_eq!(read("a.json", "[{\"b\": 1}]", &[]).unwrap(), [row("a.json: record 1", "1")]);
        assert_eq!(read("a.csv", "a,b\nx,\"y,z\"\n", &[]).unwrap(), [row("a.csv:2", "\"y,z\"")]);
        // With a header and without, by the columns' names.
        let stated = ["a", "b"];
        assert_eq!(read("a.tsv", "b\ta\ny\tx\n", &stated).unwrap(), [row("a.tsv:2", "\"y\"")]);
        assert_eq!(
            read("a.tsv", "x\t\"y\nv\tw\n", &stated).unwrap(),
            [row("a.tsv:1", "\"\\\"y\""), row("a.tsv:2", "\"w\"")]
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_line() {
        let error = read("a.tsv", "x\ty\tz\n", &["a", "b"]).unwrap_err();
        assert_eq!(error, "a.tsv:1: has 3 fields and no header line; a file without one has 2: a, b");
        let error = read("a.tsv", "a\tb\nx\n", &[]).unwrap_err();
        assert!(error.contains("a.tsv") && error.contains("line: 2"), "{error}");
        assert_eq!(read("a.jsonl", "\n", &[]).unwrap_err(), "a.jsonl: holds no rows; give a file that does");
        assert!(read("a.xlsx", "", &[]).unwrap_err().contains("end its name in .json, .jsonl, .csv, .tsv or .parquet"));
    }
}
