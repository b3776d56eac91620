//! The views of a `similarity` run.

use super::{ONE_COLUMN, drawing_folder, move_in};
use crate::analysis::convention::Convention;
use crate::analysis::manifest::write_manifest;
use crate::analysis::results::FILES;
use crate::analysis::similarity_page::{read_similarity, read_values};
use crate::analysis::split::read_split;
use crate::analysis::verify::Verification;
use crate::cli::similarity::figures::Look;
use crate::cli::similarity::pages;
use crate::persist;
use crate::report::{Width, read_table};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Figures at both widths, the page in both forms, the summary.
pub(super) fn redraw(folder: &Path, mut manifest: Value) -> Result<()> {
    let drawing = drawing_folder(folder)?;
    let out = drawing.path();
    pages::draw(folder, &look(&manifest, out, Width::TwoColumn, true), &manifest)?;
    let narrow = out.join(ONE_COLUMN);
    persist::create_folder(&narrow)?;
    pages::draw(folder, &Look { out: &narrow, ..look(&manifest, out, Width::OneColumn, true) }, &manifest)?;
    // Folders of figures lie one deep.
    flatten(&narrow)?;
    pages::write(folder, out, &manifest)?;
    let drawn = move_in(out, folder)?;
    let listed = manifest[FILES].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let files: BTreeSet<String> = listed.chain(drawn).collect();
    if let Some(entries) = manifest.as_object_mut() {
        entries.insert(FILES.to_owned(), json!(files));
    }
    Ok(write_manifest(folder, &manifest)?)
}

/// Moves the heat maps of one column out of their own folder.
fn flatten(folder: &Path) -> Result<()> {
    let inner = folder.join("heatmap");
    if inner.is_dir() {
        for entry in std::fs::read_dir(&inner).with_context(|| inner.display().to_string())? {
            let entry = entry?;
            let target = folder.join(format!("heatmap_{}", entry.file_name().to_string_lossy()));
            std::fs::rename(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
        std::fs::remove_dir(&inner).with_context(|| inner.display().to_string())?;
    }
    Ok(())
}

fn look<'a>(manifest: &Value, out: &'a Path, width: Width, png: bool) -> Look<'a> {
    let asked = |key: &str| manifest["config"][key] == true;
    let convention = manifest["convention"]["name"].as_str().and_then(Convention::from_name).unwrap_or_default();
    Look { out, relative: asked("relative"), panel_by_run: asked("panel_by_run"), width, convention, png }
}

/// Tables against hashes, numbers against the texts' values, views against the tables, inputs against their hashes.
pub(super) fn verify(folder: &Path, manifest: &Value) -> Result<Verification> {
    let mut found = Verification::default();
    found.hash_tables(folder, manifest)?;
    let csv = read_similarity(&folder.join("similarity.csv"))?;
    let parquet = read_similarity(&folder.join("similarity.parquet"))?;
    found.compare_tables(("similarity.csv", &csv.0), ("similarity.parquet", &parquet.0));
    let values = read_values(folder)?;
    let seed = manifest["bootstrap"]["seed"].as_u64().unwrap_or(42);
    found.recompute("similarity.parquet", (&parquet.0, &parquet.1), &values, seed)?;
    let split = folder.join("split.parquet");
    if split.is_file() {
        let rows = read_split(&read_table(&split, &[])?).with_context(|| split.display().to_string())?;
        found.recompute_split(&rows, &values, seed)?;
    }
    let drawn = tempfile::tempdir()?;
    pages::draw(folder, &look(manifest, drawn.path(), Width::TwoColumn, false), manifest)?;
    pages::write(folder, drawn.path(), manifest)?;
    found.compare_views(folder, drawn.path())?;
    inputs(&mut found, manifest);
    Ok(found)
}

/// The texts, models and adapters that the manifest names, where they still lie.
fn inputs(found: &mut Verification, manifest: &Value) {
    if let Some(texts) = manifest["texts"].as_str().filter(|texts| !Path::new(texts).is_dir()) {
        found.hash_input("texts", Path::new(texts), &manifest["texts_sha256"]);
    }
    for run in manifest["runs"].as_array().into_iter().flatten() {
        let name = run["name"].as_str().unwrap_or_default();
        let model = Path::new(run["model"].as_str().unwrap_or_default());
        for (file, hash) in run["model_sha256"].as_object().into_iter().flatten() {
            let path = if model.is_dir() { model.join(file) } else { model.to_owned() };
            found.hash_input(&format!("model of {name}"), &path, hash);
        }
        let adapter = &run["adapter"];
        if let Some(folder) = adapter["folder"].as_str().map(Path::new) {
            let what = format!("adapter of {name}");
            found.hash_input(&what, &folder.join("adapter_model.safetensors"), &adapter["sha256"]);
            found.hash_input(&what, &folder.join("adapter_config.json"), &adapter["config_sha256"]);
        }
    }
}
