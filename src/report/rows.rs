//! The rows of a similarity run and their columns, by which files of any version are read.

use super::table::TableError;
use polars::df;
use polars::prelude::{Column, DataFrame, DataType, PolarsError};

/// One mean over texts: a run, group, layer, site, measure and token set.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarityRow {
    /// Name of the run: `base`, an adapter's name, or as given by `--run`.
    pub run: String,
    /// Value of `--group-by` that the texts share.
    pub group: Option<String>,
    /// Layer: 0 is the embedding, 1..L the block outputs.
    pub layer: u32,
    /// `embedding`, `block` or `final_norm`.
    pub site: String,
    /// `cosine`, `cosine_centred`, or another measure's name.
    pub measure: String,
    /// `all`, `no_first` or `no_special`.
    pub tokens: String,
    /// Mean over texts; `None` where no text had a value.
    pub mean: Option<f64>,
    /// Sample standard deviation over texts.
    pub std: Option<f64>,
    /// Lower end of the 95 % percentile bootstrap interval of the mean.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
    /// Number of texts that entered.
    pub texts: u64,
    /// The run that `diff` is against.
    pub reference: Option<String>,
    /// Mean over the same texts of this run minus the reference.
    pub diff: Option<f64>,
    /// Lower end of the 95 % paired bootstrap interval of `diff`.
    pub diff_ci_low: Option<f64>,
    /// Upper end.
    pub diff_ci_high: Option<f64>,
}

/// One text's value.
#[derive(Debug, Clone, PartialEq)]
pub struct PerTextRow {
    /// Name of the run.
    pub run: String,
    /// Value of `--group-by`.
    pub group: Option<String>,
    /// Position of the text in the input, from 0.
    pub text: u64,
    /// Tokens of the text that were measured: those of the span.
    pub n_tokens: u32,
    /// Layer, as in [`SimilarityRow::layer`].
    pub layer: u32,
    /// Site, as in [`SimilarityRow::site`].
    pub site: String,
    /// Measure.
    pub measure: String,
    /// Token set.
    pub tokens: String,
    /// The value; `None` where fewer than two tokens counted.
    pub value: Option<f64>,
}

/// Columns and types of `similarity.csv` and `.parquet`, in order. The files may have more behind them, as those of
/// `similarity` do; older ones have not.
pub const SIMILARITY_COLUMNS: [(&str, DataType); 15] = [
    ("run", DataType::String),
    ("group", DataType::String),
    ("layer", DataType::UInt32),
    ("site", DataType::String),
    ("measure", DataType::String),
    ("tokens", DataType::String),
    ("mean", DataType::Float64),
    ("std", DataType::Float64),
    ("ci_low", DataType::Float64),
    ("ci_high", DataType::Float64),
    ("texts", DataType::UInt64),
    ("reference", DataType::String),
    ("diff", DataType::Float64),
    ("diff_ci_low", DataType::Float64),
    ("diff_ci_high", DataType::Float64),
];

/// Columns and types of `per_text.parquet`, in order.
pub const PER_TEXT_COLUMNS: [(&str, DataType); 9] = [
    ("run", DataType::String),
    ("group", DataType::String),
    ("text", DataType::UInt64),
    ("n_tokens", DataType::UInt32),
    ("layer", DataType::UInt32),
    ("site", DataType::String),
    ("measure", DataType::String),
    ("tokens", DataType::String),
    ("value", DataType::Float64),
];

/// A column of `rows`, one cell a row.
fn cells<'a, R, T>(rows: &'a [R], cell: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(cell).collect()
}

/// The frame of `similarity.csv`: columns of [`SIMILARITY_COLUMNS`], one row each.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn similarity_frame(rows: &[SimilarityRow]) -> Result<DataFrame, PolarsError> {
    df!(
        "run" => cells(rows, |row| row.run.as_str()),
        "group" => cells(rows, |row| row.group.as_deref()),
        "layer" => cells(rows, |row| row.layer),
        "site" => cells(rows, |row| row.site.as_str()),
        "measure" => cells(rows, |row| row.measure.as_str()),
        "tokens" => cells(rows, |row| row.tokens.as_str()),
        "mean" => cells(rows, |row| row.mean),
        "std" => cells(rows, |row| row.std),
        "ci_low" => cells(rows, |row| row.ci_low),
        "ci_high" => cells(rows, |row| row.ci_high),
        "texts" => cells(rows, |row| row.texts),
        "reference" => cells(rows, |row| row.reference.as_deref()),
        "diff" => cells(rows, |row| row.diff),
        "diff_ci_low" => cells(rows, |row| row.diff_ci_low),
        "diff_ci_high" => cells(rows, |row| row.diff_ci_high),
    )
}

/// The frame of `per_text.parquet`: columns of [`PER_TEXT_COLUMNS`], one row each.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn per_text_frame(rows: &[PerTextRow]) -> Result<DataFrame, PolarsError> {
    df!(
        "run" => cells(rows, |row| row.run.as_str()),
        "group" => cells(rows, |row| row.group.as_deref()),
        "text" => cells(rows, |row| row.text),
        "n_tokens" => cells(rows, |row| row.n_tokens),
        "layer" => cells(rows, |row| row.layer),
        "site" => cells(rows, |row| row.site.as_str()),
        "measure" => cells(rows, |row| row.measure.as_str()),
        "tokens" => cells(rows, |row| row.tokens.as_str()),
        "value" => cells(rows, |row| row.value),
    )
}

/// The rows of a frame that [`similarity_frame`] made, or that was read with [`SIMILARITY_COLUMNS`].
///
/// # Errors
/// A column is missing, of another type, or empty where it may not be.
pub fn similarity_rows(frame: &DataFrame) -> Result<Vec<SimilarityRow>, TableError> {
    let (mut run, mut group) = (strings(frame, "run")?, strings(frame, "group")?);
    let (mut site, mut measure) = (strings(frame, "site")?, strings(frame, "measure")?);
    let (mut tokens, mut reference) = (strings(frame, "tokens")?, strings(frame, "reference")?);
    let (mut layer, mut texts) = (integers(frame, "layer")?, integers(frame, "texts")?);
    let (mut mean, mut std) = (floats(frame, "mean")?, floats(frame, "std")?);
    let (mut ci_low, mut ci_high) = (floats(frame, "ci_low")?, floats(frame, "ci_high")?);
    let (mut diff, mut diff_ci_low) = (floats(frame, "diff")?, floats(frame, "diff_ci_low")?);
    let mut diff_ci_high = floats(frame, "diff_ci_high")?;
    (0..frame.height())
        .map(|row| {
            Ok(SimilarityRow {
                run: filled(run.next(), "run", row)?,
                group: group.next().flatten(),
                layer: narrow(layer.next(), "layer", row)?,
                site: filled(site.next(), "site", row)?,
                measure: filled(measure.next(), "measure", row)?,
                tokens: filled(tokens.next(), "tokens", row)?,
                mean: mean.next().flatten(),
                std: std.next().flatten(),
                ci_low: ci_low.next().flatten(),
                ci_high: ci_high.next().flatten(),
                texts: filled(texts.next(), "texts", row)?,
                reference: reference.next().flatten(),
                diff: diff.next().flatten(),
                diff_ci_low: diff_ci_low.next().flatten(),
                diff_ci_high: diff_ci_high.next().flatten(),
            })
        })
        .collect()
}

/// The rows of a frame that [`per_text_frame`] made.
///
/// # Errors
/// As [`similarity_rows`].
pub fn per_text_rows(frame: &DataFrame) -> Result<Vec<PerTextRow>, TableError> {
    let (mut run, mut group) = (strings(frame, "run")?, strings(frame, "group")?);
    let (mut site, mut measure) = (strings(frame, "site")?, strings(frame, "measure")?);
    let (mut tokens, mut value) = (strings(frame, "tokens")?, floats(frame, "value")?);
    let (mut text, mut n_tokens) = (integers(frame, "text")?, integers(frame, "n_tokens")?);
    let mut layer = integers(frame, "layer")?;
    (0..frame.height())
        .map(|row| {
            Ok(PerTextRow {
                run: filled(run.next(), "run", row)?,
                group: group.next().flatten(),
                text: filled(text.next(), "text", row)?,
                n_tokens: narrow(n_tokens.next(), "n_tokens", row)?,
                layer: narrow(layer.next(), "layer", row)?,
                site: filled(site.next(), "site", row)?,
                measure: filled(measure.next(), "measure", row)?,
                tokens: filled(tokens.next(), "tokens", row)?,
                value: value.next().flatten(),
            })
        })
        .collect()
}

type Cells<T> = std::vec::IntoIter<Option<T>>;

/// A column cast to `kind`; a cell that does not convert becomes empty only if it was.
fn column(frame: &DataFrame, column: &'static str, kind: &DataType) -> Result<Column, TableError> {
    frame
        .column(column)
        .and_then(|found| found.strict_cast(kind))
        .map_err(|source| TableError::Column { column, source })
}

fn strings(frame: &DataFrame, name: &'static str) -> Result<Cells<String>, TableError> {
    let column = column(frame, name, &DataType::String)?;
    let cells = column.str().map_err(|source| TableError::Column { column: name, source })?;
    Ok(cells.iter().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>().into_iter())
}

fn integers(frame: &DataFrame, name: &'static str) -> Result<Cells<u64>, TableError> {
    let column = column(frame, name, &DataType::UInt64)?;
    let cells = column.u64().map_err(|source| TableError::Column { column: name, source })?;
    Ok(cells.iter().collect::<Vec<_>>().into_iter())
}

fn floats(frame: &DataFrame, name: &'static str) -> Result<Cells<f64>, TableError> {
    let column = column(frame, name, &DataType::Float64)?;
    let cells = column.f64().map_err(|source| TableError::Column { column: name, source })?;
    Ok(cells.iter().collect::<Vec<_>>().into_iter())
}

fn filled<T>(cell: Option<Option<T>>, column: &'static str, row: usize) -> Result<T, TableError> {
    cell.flatten().ok_or(TableError::Empty { column, row })
}

fn narrow(cell: Option<Option<u64>>, column: &'static str, row: usize) -> Result<u32, TableError> {
    let value = filled(cell, column, row)?;
    u32::try_from(value).map_err(|_| TableError::Column {
        column,
        source: PolarsError::ComputeError(format!("row {row} is {value}, more than 32 bits hold").into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::{read_table, write_table};

    fn row(run: &str, layer: u32, mean: Option<f64>) -> SimilarityRow {
        SimilarityRow {
            run: run.into(),
            group: None,
            layer,
            site: if layer == 0 { "embedding" } else { "block" }.into(),
            measure: "cosine".into(),
            tokens: "no_first".into(),
            mean,
            std: mean.map(|value| value / 7.0),
            ci_low: mean.map(|value| value - 0.1),
            ci_high: mean.map(|value| value + 0.1),
            texts: 100,
            reference: (layer > 0).then(|| "base".into()),
            diff: mean.map(|value| -value / 3.0),
            diff_ci_low: None,
            diff_ci_high: None,
        }
    }

    #[test]
    fn rows_round_trip_through_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let rows = vec![row("base", 0, Some(0.1 + 0.2)), row("SIBO λ=0.3, r=8", 30, None), row("1", 2, Some(-1e-17))];
        let mut frame = similarity_frame(&rows).unwrap();
        write_table(dir.path(), "similarity", &mut frame).unwrap();
        for file in ["similarity.csv", "similarity.parquet"] {
            let frame = read_table(&dir.path().join(file), &SIMILARITY_COLUMNS).unwrap();
            assert_eq!(similarity_rows(&frame).unwrap(), rows, "{file}");
        }
        let csv = std::fs::read_to_string(dir.path().join("similarity.csv")).unwrap();
        let header =
            "run,group,layer,site,measure,tokens,mean,std,ci_low,ci_high,texts,reference,diff,diff_ci_low,diff_ci_high";
        assert_eq!(csv.lines().next(), Some(header));
        assert!(csv.contains("base,,0,embedding,cosine,no_first,0.30000000000000004,"), "{csv}");
    }

    #[test]
    fn per_text_rows_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let one = |text, value| PerTextRow {
            run: "base".into(),
            group: Some("gsm8k".into()),
            text,
            n_tokens: 41,
            layer: 3,
            site: "block".into(),
            measure: "cosine".into(),
            tokens: "all".into(),
            value,
        };
        let rows = vec![one(0, Some(1.0 / 3.0)), one(u64::from(u32::MAX) + 1, None)];
        let frame = &mut per_text_frame(&rows).unwrap();
        let path = dir.path().join("per_text.parquet");
        crate::report::table::write_parquet(&path, frame).unwrap();
        let types: Vec<_> = frame.columns().iter().map(|c| (c.name().to_string(), c.dtype().clone())).collect();
        let expected: Vec<_> = PER_TEXT_COLUMNS.iter().map(|(name, kind)| ((*name).to_owned(), kind.clone())).collect();
        assert_eq!(types, expected);
        assert_eq!(per_text_rows(&read_table(&path, &[]).unwrap()).unwrap(), rows);
    }

    #[test]
    fn a_missing_column_and_an_empty_cell_are_named() {
        let frame = similarity_frame(&[row("base", 0, None)]).unwrap();
        let error = similarity_rows(&frame.drop("diff").unwrap()).unwrap_err().to_string();
        assert!(error.contains("`diff`") && !error.contains('\n'), "{error}");
        let mut frame = frame;
        frame.with_column(Column::new("site".into(), [None::<&str>])).unwrap();
        let error = similarity_rows(&frame).unwrap_err().to_string();
        assert!(error.contains("column `site`, row 0: empty"), "{error}");
    }
}
