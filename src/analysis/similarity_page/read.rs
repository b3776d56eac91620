//! The tables of a similarity run, read from its folder.

use crate::analysis::audit::{Audit, AuditError, Place};
use crate::analysis::run_values::RunValues;
use crate::analysis::stored_values::{StoredValuesError, stored_values};
use crate::measures::{Measure, Point, TokenSet};
use crate::report::document::{DataTable, Figure};
use crate::report::{
    CellReader, HeatMapRow, SIMILARITY_COLUMNS, SimilarityRow, TableError, baseline, heatmap_rows, read_table,
    similarity_rows,
};
use crate::statistics::StatisticsError;
use polars::prelude::DataType;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A page that cannot be made of a folder.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A table cannot be read.
    #[error("{path}: {source}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TableError,
    },
    /// A table cannot be read, and says where by itself.
    #[error(transparent)]
    File(#[from] TableError),
    /// The table of every text's values.
    #[error("{path}: {source}")]
    Values {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: StoredValuesError,
    },
    /// The audit's table.
    #[error("{path}: {source}")]
    Audit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: AuditError,
    },
    /// A figure or folder cannot be read.
    #[error("{path}: cannot read: {source}; check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An interval cannot be computed.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// The cosines of one text's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMapTable {
    /// The file's name without its ending.
    pub stem: String,
    /// The run's name.
    pub run: String,
    /// The text's position in the input.
    pub text: u64,
    /// The layer.
    pub layer: u32,
    /// The site.
    pub site: String,
    /// Every cell, row by row.
    pub cells: Vec<HeatMapRow>,
}

/// What a similarity run left, as far as a page shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct SimilarityResult {
    /// `manifest.json`.
    pub manifest: Value,
    /// `similarity.parquet`.
    pub rows: Vec<SimilarityRow>,
    /// Its column `diff_p_holm`; tables of older versions have none.
    pub p_holm: Vec<Option<f64>>,
    /// `per_text.parquet`.
    pub values: Vec<RunValues>,
    /// The seed of the intervals.
    pub seed: u64,
    /// `audit.parquet`.
    pub audit: Option<Audit>,
    /// The other tables: the file's stem, what it is called, its content.
    pub tables: Vec<(String, String, DataTable)>,
    /// The heat maps' tables.
    pub heatmaps: Vec<HeatMapTable>,
    /// The figures, those that stand first first.
    pub figures: Vec<Figure>,
}

/// Tables that a run may have beside: stem, name, caption, decimals.
const BESIDE: [(&str, &str, &str, usize); 5] = [
    ("split", "Each layer's change, split", "Mean change of a measure over texts, by part of the layer.", 5),
    ("residual", "What the modules read of h0", "Means over tokens, by module.", 4),
    ("token_classes", "Similarity by class of token", "Mean cosine of the pairs within a class, or between two.", 4),
    ("distance", "Similarity against distance", "Mean cosine of tokens that stand so far apart.", 4),
    ("audit", "Audit", "Largest deviation of a text's value, by the road that it was computed on.", 8),
];

/// Figures that stand first.
const FIRST: [&str; 2] = ["similarity", "differences"];

impl SimilarityResult {
    /// Reads the tables of a folder, and the figures that were drawn of them into `drawn`; `manifest` is that of the run.
    ///
    /// # Errors
    /// A table that every run has is missing or damaged, or another is damaged.
    pub fn read(folder: &Path, drawn: &Path, manifest: Value) -> Result<Self, PageError> {
        let (rows, p_holm) = read_similarity(&folder.join("similarity.parquet"))?;
        let values = read_values(folder)?;
        let audit = read_audit(folder, &manifest)?;
        Ok(Self {
            seed: manifest["bootstrap"]["seed"].as_u64().unwrap_or(42),
            tables: tables(folder)?,
            heatmaps: read_heatmaps(folder, &manifest)?,
            figures: figures(drawn)?,
            manifest,
            rows,
            p_holm,
            values,
            audit,
        })
    }

    /// The runs that are no baselines, in order.
    #[must_use]
    pub fn plain_runs(&self) -> Vec<&str> {
        let mut runs: Vec<&str> = Vec::new();
        for row in self.rows.iter().filter(|row| baseline(&row.run).is_none()) {
            if !runs.contains(&row.run.as_str()) {
                runs.push(&row.run);
            }
        }
        runs
    }

    /// The measures, in order.
    #[must_use]
    pub fn measures(&self) -> Vec<&str> {
        let mut measures: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !measures.contains(&row.measure.as_str()) {
                measures.push(&row.measure);
            }
        }
        measures
    }

    /// The run that differences are against, if there are any.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        let plain = |row: &&SimilarityRow| baseline(&row.run).is_none();
        self.rows.iter().filter(plain).find_map(|row| row.reference.as_deref())
    }

    /// The row of all texts at a site and layer.
    #[must_use]
    pub fn row(
        &self,
        run: &str,
        measure: &str,
        tokens: &str,
        at: (u32, &str),
    ) -> Option<(&SimilarityRow, Option<f64>)> {
        let mut both = self.rows.iter().zip(&self.p_holm);
        let found = both.find(|(row, _)| {
            row.group.is_none()
                && row.run == run
                && row.measure == measure
                && row.tokens == tokens
                && (row.layer, row.site.as_str()) == at
        });
        found.map(|(row, p)| (row, *p))
    }

    /// A run's deepest block that has a value of the measure.
    #[must_use]
    pub fn last_block(&self, run: &str, measure: &str) -> Option<u32> {
        let own = |row: &&SimilarityRow| {
            row.run == run && row.measure == measure && row.site == "block" && row.mean.is_some()
        };
        self.rows.iter().filter(own).map(|row| row.layer).max()
    }
}

/// The rows of `similarity.csv` or `.parquet`, and for each the adjusted p-value of its difference; tables of older
/// versions have none.
///
/// # Errors
/// The table is missing or damaged.
pub fn read_similarity(path: &Path) -> Result<(Vec<SimilarityRow>, Vec<Option<f64>>), PageError> {
    let in_table = |source| PageError::Table { path: path.to_owned(), source };
    let mut types = SIMILARITY_COLUMNS.to_vec();
    let frame = read_table(path, &types)?;
    if frame.column(P_HOLM).is_err() {
        let rows = similarity_rows(&frame).map_err(in_table)?;
        let none = vec![None; rows.len()];
        return Ok((rows, none));
    }
    types.push((P_HOLM, DataType::Float64));
    let frame = read_table(path, &types)?;
    let rows = similarity_rows(&frame).map_err(in_table)?;
    let cells = CellReader::new(&frame).floats(P_HOLM).map_err(in_table)?;
    let p_holm = (0..rows.len()).map(|row| cells.get(row)).collect();
    Ok((rows, p_holm))
}

const P_HOLM: &str = "diff_p_holm";

/// The runs of `per_text.parquet`.
///
/// # Errors
/// The table is missing or damaged.
pub fn read_values(folder: &Path) -> Result<Vec<RunValues>, PageError> {
    let path = folder.join("per_text.parquet");
    stored_values(&read_table(&path, &[])?).map_err(|source| PageError::Values { path, source })
}

/// The audit of a run, if it has one.
///
/// # Errors
/// Its table is damaged.
pub fn read_audit(folder: &Path, manifest: &Value) -> Result<Option<Audit>, PageError> {
    let path = folder.join("audit.parquet");
    if !path.is_file() {
        return Ok(None);
    }
    let texts = manifest["audit"]["texts"].as_u64().unwrap_or(0) as usize;
    let frame = read_table(&path, &[])?;
    Ok(Some(Audit::of_frame(&frame, texts).map_err(|source| PageError::Audit { path, source })?))
}

/// Where a row stands in an audit.
pub(super) fn audit_place(row: &SimilarityRow) -> Option<Place> {
    let tokens = TokenSet::ALL.into_iter().find(|set| set.to_string() == row.tokens)?;
    let point = Point { site: row.site.parse().ok()?, layer: row.layer as usize };
    Some((Measure::from_name(&row.measure)?, point, tokens))
}

fn tables(folder: &Path) -> Result<Vec<(String, String, DataTable)>, PageError> {
    let there = BESIDE.iter().filter(|(stem, ..)| folder.join(format!("{stem}.parquet")).is_file());
    there
        .map(|&(stem, name, caption, decimals)| {
            let frame = read_table(&folder.join(format!("{stem}.parquet")), &[])?;
            Ok((stem.to_owned(), name.to_owned(), DataTable::of_frame(caption, &frame, decimals)))
        })
        .collect()
}

/// The names of the files of a folder that end so, without their endings, sorted; none if there is no folder.
fn stems(folder: &Path, ending: &str) -> Result<Vec<String>, PageError> {
    let failed = |source| PageError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(ending) {
            found.push(stem.to_owned());
        }
    }
    found.sort();
    Ok(found)
}

fn figures(folder: &Path) -> Result<Vec<Figure>, PageError> {
    let mut stems = stems(folder, ".svg")?;
    stems.sort_by_key(|stem| (FIRST.iter().position(|first| first == stem).unwrap_or(FIRST.len()), stem.clone()));
    let figure = |stem: String| {
        let path = folder.join(format!("{stem}.svg"));
        let svg = fs::read_to_string(&path).map_err(|source| PageError::Read { path, source })?;
        let caption = title_of(&svg);
        Ok(Figure { stem, svg, caption })
    };
    stems.into_iter().map(figure).collect()
}

/// What a figure says of itself, in the title that screen readers speak.
fn title_of(svg: &str) -> String {
    let inside = svg.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let text = inside.map(|(title, _)| title).unwrap_or_default();
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// The tables of a run's heat maps, by text and layer.
///
/// # Errors
/// One is damaged.
pub fn read_heatmaps(folder: &Path, manifest: &Value) -> Result<Vec<HeatMapTable>, PageError> {
    let inner = folder.join("heatmap");
    let mut found = Vec::new();
    for stem in stems(&inner, ".csv")? {
        let path = inner.join(format!("{stem}.csv"));
        let types =
            [("token_row", DataType::String), ("token_column", DataType::String), ("cosine", DataType::Float64)];
        let cells = heatmap_rows(&read_table(&path, &types)?).map_err(|source| PageError::Table { path, source })?;
        let Some((run, text, layer, site)) = listed(manifest, &stem).or_else(|| of_name(&stem)) else { continue };
        found.push(HeatMapTable { stem, run, text, layer, site, cells });
    }
    found.sort_by_key(|map| (map.text, map.layer));
    Ok(found)
}

type Named = (String, u64, u32, String);

/// What the manifest says of a heat map.
fn listed(manifest: &Value, stem: &str) -> Option<Named> {
    let all = manifest["token_pairs"]["heatmaps"].as_array()?;
    let own = all.iter().find(|map| map["stem"] == stem)?;
    let layer = u32::try_from(own["layer"].as_u64()?).ok()?;
    Some((own["run"].as_str()?.to_owned(), own["text"].as_u64()?, layer, own["site"].as_str()?.to_owned()))
}

/// What the file's name says of it, for runs whose manifests list no heat maps.
fn of_name(stem: &str) -> Option<Named> {
    let (rest, layer) = stem.rsplit_once("_layer")?;
    let (run, text) = rest.rsplit_once("_text")?;
    let layer: u32 = layer.parse().ok()?;
    let site = if layer == 0 { "embedding" } else { "block" };
    Some((run.to_owned(), text.parse().ok()?, layer, site.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figures_title_and_a_heat_maps_name_are_read() {
        assert_eq!(title_of("<svg x=\"1\">\n<title>a &lt;b&gt; &amp; c</title>\n<rect/>"), "a <b> & c");
        assert_eq!(title_of("<svg/>"), "");
        assert_eq!(of_name("a_text1_b_text12_layer3"), Some(("a_text1_b".into(), 12, 3, "block".into())));
        assert_eq!(of_name("notes"), None);
    }
}
