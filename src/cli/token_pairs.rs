//! The options of `similarity` about pairs of tokens, and the files that they write.

use super::states::check_layers;
use crate::analysis::layers::Layers;
use crate::analysis::states::StoredStates;
use crate::analysis::token_pairs::{self, HeatMapRequest, PairRequest, RunPairs};
use crate::persist;
use crate::report;
use anyhow::{Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

#[derive(Debug, Clone, Args)]
pub(super) struct PairArgs {
    /// Similarity within and between classes of tokens (first, special, digits, punctuation, words): which
    /// tokens make the mean what it is.
    #[arg(long)]
    pub(super) token_classes: bool,
    /// Similarity against the distance |i−j| of two tokens. It forms every pair, so its cost grows with the
    /// square of the length: of the first --max-texts texts.
    #[arg(long)]
    pub(super) distance: bool,
    /// A token × token heat map at each of these layers: all, 0,4,8 or 2..10.
    #[arg(long, value_name = "LAYERS")]
    heatmap: Option<Layers>,
    /// The texts of the heat maps, by their position in the input from 0.
    #[arg(long, value_name = "INDICES", value_delimiter = ',', default_value = "0", requires = "heatmap",
        value_parser = text_index)]
    text: Vec<u64>,
    /// How many texts --distance reads and --save-states writes: the first N, by default 50.
    #[arg(long, value_name = "N")]
    max_texts: Option<usize>,
}

/// A text by its position. The option differs from that of the texts' file by one letter.
fn text_index(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be the position of a text, from 0; the file of texts is --texts".to_owned())
}

impl PairArgs {
    /// How many texts --distance and --save-states take.
    pub(super) fn max_texts(&self) -> usize {
        self.max_texts.unwrap_or(50)
    }

    /// What is asked for; `saving` says that states are to be saved.
    pub(super) fn request(&self, saving: bool) -> Result<PairRequest> {
        ensure!(self.max_texts != Some(0), "--max-texts is 0; it must be at least 1");
        let used = self.distance || saving;
        ensure!(used || self.max_texts.is_none(), "--max-texts belongs to --distance and --save-states; give one");
        let heatmap = self.heatmap.clone().map(|layers| {
            let mut texts = self.text.clone();
            texts.sort_unstable();
            texts.dedup();
            HeatMapRequest { layers, texts }
        });
        let distance_texts = self.distance.then_some(self.max_texts());
        Ok(PairRequest { classes: self.token_classes, distance_texts, heatmap })
    }

    /// Refuses a layer that a model of `depth` blocks does not have.
    pub(super) fn check(&self, depth: usize, model: &str) -> Result<()> {
        match &self.heatmap {
            Some(layers) => layers.check(depth, model).map_err(|e| anyhow!(e.replacen("--layers", "--heatmap", 1))),
            None => Ok(()),
        }
    }

    /// Refuses a layer that is not stored.
    pub(super) fn check_stored(&self, states: &StoredStates, folder: &str) -> Result<()> {
        match &self.heatmap {
            Some(layers) => check_layers(states, layers, "--heatmap", folder),
            None => Ok(()),
        }
    }

    /// What the manifest says of it.
    pub(super) fn describe(&self, heatmaps: Vec<Value>) -> Value {
        json!({
            "heatmaps": heatmaps,
            "token_classes": self.token_classes,
            "distance_texts": self.distance.then_some(self.max_texts()),
            "heatmap_texts": self.heatmap.is_some().then_some(&self.text),
        })
    }
}

/// Writes the tables that `request` asks for; `seed` is that of their intervals. Answers what the manifest says of the
/// heat maps.
pub(super) fn write(out: &Path, request: &PairRequest, runs: &[RunPairs], seed: u64) -> Result<Vec<Value>> {
    if request.classes {
        let rows = token_pairs::token_class_rows(runs, seed)?;
        report::write_table(out, "token_classes", &mut report::token_class_frame(&rows)?)?;
    }
    if request.distance_texts.is_some() {
        let rows = token_pairs::distance_rows(runs, seed)?;
        report::write_table(out, "distance", &mut report::distance_frame(&rows)?)?;
    }
    let mut maps = Vec::new();
    if request.heatmap.is_some() {
        let folder = out.join("heatmap");
        persist::create_folder(&folder)?;
        for (run, name) in runs.iter().zip(file_names(runs)) {
            for matrix in &run.matrices {
                let (text, point) = (matrix.text, matrix.point);
                let stem = format!("{name}_text{text}_layer{}", point.layer);
                report::write_csv(&folder.join(format!("{stem}.csv")), &mut report::heatmap_frame(&matrix.rows())?)?;
                let site = point.site.to_string();
                maps.push(json!({"stem": stem, "run": run.run, "text": text, "layer": point.layer, "site": site}));
            }
        }
    }
    Ok(maps)
}

/// A run's name as a part of a file's name.
pub(super) fn file_name(run: &str) -> String {
    run.chars().map(|c| if c.is_alphanumeric() || "-_.=".contains(c) { c } else { '-' }).collect()
}

/// The runs' names as parts of file names, no two alike.
fn file_names(runs: &[RunPairs]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for run in runs {
        let name = file_name(&run.run);
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !names.contains(name));
        names.push(free.unwrap_or(name));
    }
    names
}
