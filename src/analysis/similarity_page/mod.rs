//! The page of a similarity run, from its tables alone.

mod answers;
mod heatmaps;
mod methods;
mod read;
mod summary;
mod warnings;

pub use read::{HeatMapTable, PageError, SimilarityResult, read_audit, read_heatmaps, read_similarity, read_values};
pub use summary::{SummaryRow, summary_frame, summary_rows, summary_table};

use super::provenance::provenance;
use super::run_values::RunValues;
use super::tables::difference_rows;
use crate::measures::Measure;
use crate::report::document::{Block, DataTable, Document, View, ViewKind};
use crate::report::{Beside, DifferenceRow, SimilarityRow, baseline, explorer_data};
use crate::statistics::StatisticsError;
use std::collections::BTreeMap;

/// The bytes that figures may take in a page.
const FIGURE_BYTES: usize = 300_000;
/// The cells that the tables beside the summary may take in a page.
const MOST_CELLS: usize = 2_000;

/// The document of a similarity run.
///
/// # Errors
/// A difference of two runs cannot be computed.
pub fn similarity_document(result: &SimilarityResult) -> Result<Document, StatisticsError> {
    let warnings = warnings::warnings(result);
    let pairs = pairs(&result.values, result.seed)?;
    let mut document = Document {
        title: title(result),
        question: answers::question(result),
        answers: answers::answers(result)?,
        warnings,
        methods: methods::methods(result),
        provenance: provenance(&result.manifest),
        ..Document::default()
    };
    let beside = Beside {
        relative: result.manifest["config"]["relative"] == true,
        errors: errors(result),
        warnings: document.warnings.clone(),
    };
    let explorer = explorer_data(&result.rows, &pairs, &beside);
    let explorer = match explorer {
        Some(data) => Block::View(View { kind: ViewKind::Explorer, data }),
        None => Block::Text("The table is too large to be explored in a page; similarity.csv has every number.".into()),
    };
    document.section("Explore", vec![explorer]);
    let (shown, folded) = figures(result);
    document.section("Figures", [shown, folded].concat());
    let summary = summary_table(&summary_rows(result), &document.warnings);
    document.section("Summary", vec![Block::Table(summary), measures_table(result)]);
    if let Some(data) = heatmaps::data(&result.heatmaps) {
        document.section("Pairs of tokens", vec![Block::View(View { kind: ViewKind::HeatMaps, data })]);
    }
    document.section("Tables", tables(result));
    Ok(document)
}

fn title(result: &SimilarityResult) -> String {
    format!("Token similarity over the layers: {}", result.plain_runs().join(", "))
}

/// The differences of every two runs, and of every baseline to its own run.
fn pairs(values: &[RunValues], seed: u64) -> Result<Vec<DifferenceRow>, StatisticsError> {
    let mut found = Vec::new();
    for (place, run) in values.iter().enumerate().filter(|(_, run)| baseline(&run.run).is_none()) {
        for against in values.iter().take(place).filter(|against| baseline(&against.run).is_none()) {
            let rows = difference_rows(run, against, seed)?;
            found.extend(rows.into_iter().map(|(row, p_holm)| DifferenceRow { row, p_holm }));
        }
    }
    Ok(found)
}

fn errors(result: &SimilarityResult) -> BTreeMap<(String, u32, String, String), f64> {
    let Some(audit) = &result.audit else { return BTreeMap::new() };
    let error = |row: &SimilarityRow| {
        let place = read::audit_place(row)?;
        let key = (row.measure.clone(), row.layer, row.site.clone(), row.tokens.clone());
        Some((key, audit.error(place)?))
    };
    result.rows.iter().filter_map(error).collect()
}

/// The figures that stand open, and the others folded, as far as there is room.
fn figures(result: &SimilarityResult) -> (Vec<Block>, Vec<Block>) {
    let (mut shown, mut folded, mut left_out, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for figure in &result.figures {
        bytes += figure.svg.len();
        if bytes > FIGURE_BYTES {
            bytes -= figure.svg.len();
            left_out.push(format!("{}.svg", figure.stem));
        } else if ["similarity", "differences"].contains(&figure.stem.as_str()) || result.figures.len() == 1 {
            shown.push(Block::Figure(figure.clone()));
        } else {
            folded.push(Block::Figure(figure.clone()));
        }
    }
    if !left_out.is_empty() {
        folded.push(Block::Text(format!("Beside this page, for want of room in it: {}.", left_out.join(", "))));
    }
    let more = (!folded.is_empty()).then(|| Block::Folded("More figures".to_owned(), folded));
    (shown, more.into_iter().collect())
}

/// What was measured, in words.
fn measures_table(result: &SimilarityResult) -> Block {
    use crate::report::document::{Cell, Column};
    let measures = result.measures();
    let known = measures.iter().filter_map(|name| Measure::from_name(name));
    let row = |measure: Measure| {
        [measure.name(), measure.formula(), measure.source(), measure.reveals(), measure.hides()]
            .map(Cell::text)
            .to_vec()
    };
    let table = DataTable {
        caption: "Rows h_i are tokens, n of a text; docs/measures.md states each.".to_owned(),
        columns: ["measure", "formula", "source", "reveals", "hides"].map(Column::text).to_vec(),
        rows: known.map(row).collect(),
    };
    Block::Folded("What was measured".to_owned(), vec![Block::Table(table)])
}

/// The other tables of the run, each folded; what there is no room for is named alone.
fn tables(result: &SimilarityResult) -> Vec<Block> {
    let mut cells = 0;
    let mut blocks = Vec::new();
    for (stem, title, table) in &result.tables {
        let (rows, own) = (table.rows.len(), table.rows.len() * table.columns.len());
        if cells + own > MOST_CELLS {
            blocks.push(Block::Text(format!("{title}: {rows} rows, in {stem}.csv beside this page.")));
        } else {
            cells += own;
            blocks.push(Block::Folded(format!("{title} ({rows} rows)"), vec![Block::Table(table.clone())]));
        }
    }
    blocks.push(Block::Text(format!(
        "Every number by run, group, layer, site, measure and token set: similarity.csv, {} rows; every text's values: \
         per_text.parquet.",
        result.rows.len()
    )));
    blocks
}
