//! The table that a paper would print: each run and measure at a few depths, and its difference to the reference.

use super::answers::LEVEL;
use super::read::SimilarityResult;
use crate::report::document::{Cell, Column, DataTable, Warning};
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// One run's measure over all texts and tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SummaryRow {
    /// The measure.
    pub measure: String,
    /// The run, or a baseline of one.
    pub run: String,
    /// Mean at the embedding.
    pub embedding: Option<f64>,
    /// After the block in the middle of those measured.
    pub middle_block: Option<f64>,
    /// After the last block.
    pub last_block: Option<f64>,
    /// After the final norm.
    pub final_norm: Option<f64>,
    /// The last block's layer.
    pub last_layer: Option<u32>,
    /// The run that the difference is against.
    pub reference: Option<String>,
    /// The difference after the last block, over the same texts.
    pub diff: Option<f64>,
    /// Lower end of its 95 % paired bootstrap interval.
    pub diff_ci_low: Option<f64>,
    /// Upper end.
    pub diff_ci_high: Option<f64>,
    /// The two-sided p-value that it is 0, adjusted by Holm over the layers.
    pub diff_p_holm: Option<f64>,
    /// Texts that have a value after the last block.
    pub texts: u64,
}

/// The summary of a run, a row for each measure and run.
#[must_use]
pub fn summary_rows(result: &SimilarityResult) -> Vec<SummaryRow> {
    let mut runs: Vec<&str> = Vec::new();
    for row in &result.rows {
        if !runs.contains(&row.run.as_str()) {
            runs.push(&row.run);
        }
    }
    let measures = result.measures();
    let all = measures.iter().flat_map(|measure| runs.iter().map(move |run| (*measure, *run)));
    all.filter_map(|(measure, run)| summary_row(result, measure, run)).collect()
}

fn summary_row(result: &SimilarityResult, measure: &str, run: &str) -> Option<SummaryRow> {
    let found = |at| result.row(run, measure, "all", at);
    let mean = |at| found(at)?.0.mean;
    let blocks = result.rows.iter().filter(|row| row.run == run && row.measure == measure && row.site == "block");
    let mut layers: Vec<u32> = blocks.filter(|row| row.mean.is_some()).map(|row| row.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let last = layers.last().copied();
    let middle = layers.get(layers.len() / 2).copied().filter(|middle| Some(*middle) != last);
    let end = last.and_then(|last| found((last, "block")));
    let embedding = mean((0, "embedding"));
    let norm_layer =
        result.rows.iter().filter(|row| row.run == run && row.site == "final_norm").map(|row| row.layer).max();
    let final_norm = norm_layer.and_then(|layer| mean((layer, "final_norm")));
    if embedding.is_none() && end.is_none() && final_norm.is_none() {
        return None;
    }
    let own = end.map(|(row, _)| row);
    Some(SummaryRow {
        measure: measure.to_owned(),
        run: run.to_owned(),
        embedding,
        middle_block: middle.and_then(|layer| mean((layer, "block"))),
        last_block: own.and_then(|row| row.mean),
        final_norm,
        last_layer: last,
        reference: own.filter(|row| row.diff.is_some()).and_then(|row| row.reference.clone()),
        diff: own.and_then(|row| row.diff),
        diff_ci_low: own.and_then(|row| row.diff_ci_low),
        diff_ci_high: own.and_then(|row| row.diff_ci_high),
        diff_p_holm: end.and_then(|(_, p)| p),
        texts: own.map_or(0, |row| row.texts),
    })
}

/// The frame of `summary.csv`.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn summary_frame(rows: &[SummaryRow]) -> Result<DataFrame, PolarsError> {
    fn cells<'a, T>(rows: &'a [SummaryRow], cell: impl Fn(&'a SummaryRow) -> T) -> Vec<T> {
        rows.iter().map(cell).collect()
    }
    df!(
        "measure" => cells(rows, |r| r.measure.as_str()),
        "run" => cells(rows, |r| r.run.as_str()),
        "embedding" => cells(rows, |r| r.embedding),
        "middle_block" => cells(rows, |r| r.middle_block),
        "last_block" => cells(rows, |r| r.last_block),
        "final_norm" => cells(rows, |r| r.final_norm),
        "last_layer" => cells(rows, |r| r.last_layer),
        "reference" => cells(rows, |r| r.reference.as_deref()),
        "diff" => cells(rows, |r| r.diff),
        "diff_ci_low" => cells(rows, |r| r.diff_ci_low),
        "diff_ci_high" => cells(rows, |r| r.diff_ci_high),
        "diff_p_holm" => cells(rows, |r| r.diff_p_holm),
        "texts" => cells(rows, |r| r.texts),
    )
}

/// The summary as it is read; `warnings` mark the rows that they touch.
#[must_use]
pub fn summary_table(rows: &[SummaryRow], warnings: &[Warning]) -> DataTable {
    let touching = |row: &SummaryRow| -> Vec<usize> {
        let touches = |warning: &Warning| {
            (warning.measure.is_some() || warning.run.is_some())
                && warning.measure.as_ref().is_none_or(|measure| *measure == row.measure)
                && warning.run.as_ref().is_none_or(|run| *run == row.run)
        };
        warnings.iter().enumerate().filter(|(_, warning)| touches(warning)).map(|(n, _)| n + 1).collect()
    };
    let reference = rows.iter().find_map(|row| row.reference.as_deref());
    let against = reference.map_or_else(String::new, |_| {
        format!(
            " Δ: minus the run's reference after the last block, over the same texts; bold where p < {LEVEL} (paired \
             bootstrap, Holm over the layers)."
        )
    });
    let table_row = |row: &SummaryRow| {
        let decimals = decimals(row);
        let interval = row.diff_ci_low.zip(row.diff_ci_high).map(|(low, high)| {
            format!("[{}, {}]", Cell::change(Some(low), decimals).text, Cell::change(Some(high), decimals).text)
        });
        let clear = row.diff_p_holm.is_some_and(|p| p < LEVEL);
        let p = match row.diff_p_holm {
            Some(p) if p < 0.001 => Cell { text: "<0.001".to_owned(), value: Some(p), ..Cell::default() },
            p => Cell::number(p, 3),
        };
        let mut cells = vec![
            Cell::text(row.measure.replace('_', " ")),
            Cell { warnings: touching(row), ..Cell::text(&row.run) },
            Cell::number(row.embedding, decimals),
            Cell::number(row.middle_block, decimals),
            Cell::number(row.last_block, decimals),
            Cell::number(row.final_norm, decimals),
        ];
        if reference.is_some() {
            cells.extend([
                Cell { bold: clear, ..Cell::change(row.diff, decimals) },
                Cell { value: row.diff_ci_low, ..Cell::text(interval.unwrap_or_default()) },
                p,
            ]);
        }
        cells.push(Cell::count(row.texts));
        cells
    };
    let mut columns = vec![
        Column::text("measure"),
        Column::text("run"),
        Column::number("embedding"),
        Column::number("middle block"),
        Column::number("last block"),
        Column::number("final norm"),
    ];
    if reference.is_some() {
        columns.extend([Column::number("Δ"), Column::number("95 % interval"), Column::number("p (Holm)")]);
    }
    columns.push(Column::number("n"));
    DataTable {
        caption: format!("Means over texts, all tokens.{against} n: texts."),
        columns,
        rows: rows.iter().map(table_row).collect(),
    }
}

/// Decimals that show four digits of the row's largest number, and no less than two.
fn decimals(row: &SummaryRow) -> usize {
    let all = [row.embedding, row.middle_block, row.last_block, row.final_norm];
    let largest = all.into_iter().flatten().map(f64::abs).fold(0.0, f64::max);
    if largest >= 1000.0 {
        1
    } else if largest >= 10.0 {
        2
    } else {
        4
    }
}
