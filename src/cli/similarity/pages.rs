//! The figures and pages of a similarity run, drawn from its tables alone.

use super::figures::{self, Look};
use crate::analysis::residual_figure::residual_chart;
use crate::analysis::residual_share::residual_rows;
use crate::analysis::similarity_page::{
    SimilarityResult, read_audit, read_heatmaps, read_similarity, similarity_document, summary_frame, summary_rows,
    summary_table,
};
use crate::analysis::split::{read_split, split_chart};
use crate::cli::write_drawing;
use crate::measures::Measure;
use crate::persist;
use crate::report::document::latex_table;
use crate::report::{self, read_table};
use anyhow::{Context, Result};
use polars::prelude::DataFrame;
use serde_json::Value;
use std::path::Path;

/// Draws every figure of the tables in `tables` into the folder of `look`.
pub(in crate::cli) fn draw(tables: &Path, look: &Look<'_>, manifest: &Value) -> Result<()> {
    let (rows, _) = read_similarity(&tables.join("similarity.parquet"))?;
    let audit = read_audit(tables, manifest)?;
    let measures: Vec<Measure> =
        Measure::ALL.into_iter().filter(|m| rows.iter().any(|row| row.measure == m.name())).collect();
    figures::draw(look, &measures, &rows, audit.as_ref())?;
    if let Some((path, frame)) = table(tables, "residual")? {
        look.write("residual", &residual_chart(&residual_rows(&frame).context(path)?))?;
    }
    if let Some((path, frame)) = table(tables, "split")? {
        let rows = read_split(&frame).context(path)?;
        for &measure in &measures {
            if let Some(chart) = split_chart(&rows, measure) {
                look.write(&format!("{}_split", measure.name()), &chart)?;
            }
        }
    }
    if let Some((path, frame)) = table(tables, "token_classes")? {
        look.write("token_classes", &report::token_class_chart(&report::token_class_rows(&frame).context(path)?))?;
    }
    if let Some((path, frame)) = table(tables, "distance")? {
        look.write("distance", &report::distance_chart(&report::distance_rows(&frame).context(path)?))?;
    }
    for map in read_heatmaps(tables, manifest)? {
        let folder = look.out.join("heatmap");
        persist::create_folder(&folder)?;
        let first = map.cells.first().map_or(0, |cell| cell.row);
        let tokens = map.cells.iter().take_while(|cell| cell.row == first).count();
        let subtitle = format!("{}, text {}, layer {} ({}), {tokens} tokens", map.run, map.text, map.layer, map.site);
        let mut chart = report::heatmap_chart(&map.cells, "Token × token cosine".to_owned(), subtitle);
        chart.width = look.width;
        write_drawing(&folder, &map.stem, &chart.draw(), look.png)?;
    }
    Ok(())
}

/// A table that not every run has, with its path.
fn table(folder: &Path, stem: &str) -> Result<Option<(String, DataFrame)>> {
    let path = folder.join(format!("{stem}.parquet"));
    if !path.is_file() {
        return Ok(None);
    }
    let frame = read_table(&path, &[])?;
    Ok(Some((path.display().to_string(), frame)))
}

/// Writes `report.html`, `report.md` and the summary into `out`, of the tables in `tables` and the figures in `out`.
pub(in crate::cli) fn write(tables: &Path, out: &Path, manifest: &Value) -> Result<()> {
    let result = SimilarityResult::read(tables, out, manifest.clone())?;
    let summary = summary_rows(&result);
    report::write_table(out, "summary", &mut summary_frame(&summary)?)?;
    let document = similarity_document(&result)?;
    let latex = latex_table(&summary_table(&summary, &document.warnings));
    persist::write_file(&out.join("summary.tex"), latex.as_bytes())?;
    persist::write_file(&out.join("report.md"), document.markdown().as_bytes())?;
    Ok(persist::write_file(&out.join("report.html"), document.html()?.as_bytes())?)
}
