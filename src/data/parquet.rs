//! The rows of a Parquet file.

use super::DataError;
use super::json::Object;
use crate::report::read_table;
use polars::prelude::{AnyValue, DataFrame};
use serde_json::Value;
use std::path::Path;

/// The rows of a `.parquet` file with their places (`file: row n`, from 1).
pub(super) fn read_parquet(path: &Path) -> Result<Vec<(String, Object)>, DataError> {
    let name = path.display().to_string();
    let frame = read_table(path, &[]).map_err(|error| DataError::Parquet { reason: error.to_string() })?;
    (0..frame.height()).map(|row| Ok((format!("{name}: row {}", row + 1), object(&frame, row, &name)?))).collect()
}

fn object(frame: &DataFrame, row: usize, name: &str) -> Result<Object, DataError> {
    let cell = |column: &polars::prelude::Column| {
        let place = || format!("{name}: row {}, column {}", row + 1, column.name());
        let value = column.get(row).ok().and_then(|cell| value(&cell));
        let value = value.ok_or_else(|| DataError::Parquet {
            reason: format!(
                "{}: holds {}; wanted are texts, numbers, true or false, and lists of them",
                place(),
                column.dtype()
            ),
        })?;
        Ok((column.name().to_string(), value))
    };
    frame.columns().iter().map(cell).collect()
}

/// A cell as JSON; `None` of a type that JSON has no like of.
fn value(cell: &AnyValue<'_>) -> Option<Value> {
    Some(match cell {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => Value::from(*value),
        AnyValue::String(text) => Value::from(*text),
        AnyValue::StringOwned(text) => Value::from(text.as_str()),
        AnyValue::Float32(number) => Value::from(f64::from(*number)),
        AnyValue::Float64(number) => Value::from(*number),
        AnyValue::List(series) => {
            Value::Array((0..series.len()).map(|i| value(&series.get(i).ok()?)).collect::<Option<_>>()?)
        }
        other => Value::from(other.extract::<i64>()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::write_parquet;
    use polars::df;
    use polars::prelude::{NamedFrom, Series};

    #[test]
    fn cells_become_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let list = Series::new("".into(), ["x", "y"]);
        let mut frame = df!("text" => [Some("a"), None], "label" => [1_i64, -1], "score" => [0.5, 2.0],
            "choices" => [list.clone(), list])
        .unwrap();
        write_parquet(&path, &mut frame).unwrap();
        let rows = read_parquet(&path).unwrap();
        assert!(rows[1].0.ends_with("a.parquet: row 2"));
        let text = |index: usize| Value::Object(rows[index].1.clone()).to_string();
        assert_eq!(text(0), r#"{"text":"a","label":1,"score":0.5,"choices":["x","y"]}"#);
        assert_eq!(text(1), r#"{"text":null,"label":-1,"score":2.0,"choices":["x","y"]}"#);
        std::fs::write(&path, "no table").unwrap();
        let error = read_parquet(&path).unwrap_err().to_string();
        assert!(error.contains("a.parquet") && !error.contains('\n'), "{error}");
    }
}
