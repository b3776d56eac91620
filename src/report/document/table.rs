//! A table that is shown: cells as they are read, with what they are sorted by.

use polars::prelude::{AnyValue, DataFrame};

/// A column's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Whether its cells are numbers, set flush right.
    pub number: bool,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub fn text(name: &str) -> Self {
        Self { name: name.to_owned(), number: false }
    }

    /// A column of numbers.
    #[must_use]
    pub fn number(name: &str) -> Self {
        Self { name: name.to_owned(), number: true }
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cell {
    /// As it is read; empty where there is no value.
    pub text: String,
    /// What it is sorted by, if it is a number.
    pub value: Option<f64>,
    /// Set bold: only where a paired test says that the difference is one.
    pub bold: bool,
    /// Numbers of the document's warnings that touch it, from 1.
    pub warnings: Vec<usize>,
}

impl Cell {
    /// A cell of words.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// A number with so many decimals; empty without one.
    #[must_use]
    pub fn number(value: Option<f64>, decimals: usize) -> Self {
        let text = value.map(|value| format!("{value:.decimals$}")).unwrap_or_default();
        Self { text: text.replace('-', "−"), value, ..Self::default() }
    }

    /// A count.
    #[must_use]
    pub fn count(value: u64) -> Self {
        Self { text: value.to_string(), value: Some(value as f64), ..Self::default() }
    }

    /// A number with its sign; empty without one.
    #[must_use]
    pub fn change(value: Option<f64>, decimals: usize) -> Self {
        let text = value.map(|value| format!("{value:+.decimals$}")).unwrap_or_default();
        Self { text: text.replace('-', "−"), value, ..Self::default() }
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DataTable {
    /// What it holds, in one sentence.
    pub caption: String,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows; a short one is filled up with empty cells.
    pub rows: Vec<Vec<Cell>>,
}

impl DataTable {
    /// The table of a frame, floats with so many decimals.
    #[must_use]
    pub fn of_frame(caption: &str, frame: &DataFrame, decimals: usize) -> Self {
        let columns = frame.columns().iter();
        let columns = columns
            .map(|column| Column { name: column.name().to_string(), number: column.dtype().is_primitive_numeric() });
        let cell = |value: AnyValue<'_>| match value {
            AnyValue::Null => Cell::default(),
            AnyValue::Float64(number) => shown(number, decimals),
            AnyValue::Float32(number) => shown(f64::from(number), decimals),
            AnyValue::String(text) => Cell::text(text),
            other => Cell { value: other.extract::<f64>(), ..Cell::text(other.to_string()) },
        };
        let row = |row: usize| {
            frame.columns().iter().map(|column| column.get(row).map_or_else(|_| Cell::default(), cell)).collect()
        };
        Self { caption: caption.to_owned(), columns: columns.collect(), rows: (0..frame.height()).map(row).collect() }
    }
}

/// A number with so many decimals, or by its power of ten where they would show nothing of it.
fn shown(value: f64, decimals: usize) -> Cell {
    let least = 0.5 * 10_f64.powi(-(decimals as i32));
    if value != 0.0 && value.abs() < least {
        return Cell { text: format!("{value:.1e}").replace('-', "−"), value: Some(value), ..Cell::default() };
    }
    Cell::number(Some(value), decimals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    #[test]
    fn cells_of_a_frame_are_read_and_sorted_by_their_values() {
        let frame = df!("run" => ["a", "<b>"], "layer" => [2_u32, 10], "change" => [Some(-0.123_456), None], "error" => [0.0, 1.2e-7])
            .unwrap();
        let table = DataTable::of_frame("c", &frame, 4);
        assert_eq!(table.columns.iter().map(|c| c.number).collect::<Vec<_>>(), [false, true, true, true]);
        let texts = |row: usize| table.rows[row].iter().map(|c| c.text.as_str()).collect::<Vec<_>>();
        assert_eq!(texts(0), ["a", "2", "−0.1235", "0.0000"]);
        assert_eq!(texts(1), ["<b>", "10", "", "1.2e−7"]);
        assert_eq!(table.rows[0][2].value, Some(-0.123_456));
        assert_eq!(table.rows[1][1].value, Some(10.0));
    }
}
