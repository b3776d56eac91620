//! The views of a `train` run.

use super::{ONE_COLUMN, drawing_folder, move_in};
use crate::analysis::training_page::{course, training_document, training_figures};
use crate::analysis::verify::Verification;
use crate::cli::write_drawing;
use crate::persist;
use crate::report::{Width, write_table};
use crate::train::{StepEvent, read_events};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Figures at both widths, the page in both forms, the table of similarity by step.
pub(super) fn redraw(folder: &Path, manifest: &Value) -> Result<()> {
    let events = events(folder)?;
    let drawing = drawing_folder(folder)?;
    draw(drawing.path(), &events, manifest, true)?;
    let narrow = drawing.path().join(ONE_COLUMN);
    persist::create_folder(&narrow)?;
    figures(&narrow, &events, Width::OneColumn, true)?;
    move_in(drawing.path(), folder)?;
    Ok(())
}

fn events(folder: &Path) -> Result<Vec<StepEvent>> {
    let path = folder.join("events.jsonl");
    let events = read_events(&path)?;
    ensure!(!events.is_empty(), "{}: holds no step yet; wait for the run's first", path.display());
    Ok(events)
}

fn draw(out: &Path, events: &[StepEvent], manifest: &Value, png: bool) -> Result<()> {
    figures(out, events, Width::TwoColumn, png)?;
    write_table(out, "similarity_by_step", &mut course(events).frame()?)?;
    let document = training_document(events, manifest)?;
    persist::write_file(&out.join("report.md"), document.markdown().as_bytes())?;
    Ok(persist::write_file(&out.join("report.html"), document.html()?.as_bytes())?)
}

fn figures(out: &Path, events: &[StepEvent], width: Width, png: bool) -> Result<()> {
    let drawn = training_figures(events, width);
    if let Some(map) = drawn.similarity {
        write_drawing(out, "training_similarity", &map.draw(), png)?;
    }
    write_drawing(out, "training_loss", &drawn.loss.draw(), png)
}

/// The outcome against the events, views against both, inputs against their hashes.
pub(super) fn verify(folder: &Path, manifest: &Value) -> Result<Verification> {
    let events = events(folder)?;
    let mut found = Verification::default();
    let outcome = &manifest["outcome"];
    if outcome.is_object() {
        let validated = events.iter().filter_map(|event| Some((event.val_loss?, event.step)));
        let best = validated.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let steps = events.last().map(|event| event.step as f64);
        let numbers = [
            ("steps", outcome["steps"].as_f64(), steps),
            ("best_val_loss", outcome["best_val_loss"].as_f64(), best.map(|(loss, _)| loss)),
            ("best_step", outcome["best_step"].as_f64(), best.map(|(_, step)| step as f64)),
        ];
        found.compare("manifest.json", "outcome", &numbers);
    } else {
        found.unchecked.push("the run is not finished, and has no outcome".to_owned());
    }
    let drawn = tempfile::tempdir()?;
    draw(drawn.path(), &events, manifest, false)?;
    found.compare_views(folder, drawn.path())?;
    let config = &manifest["config"];
    if let Some(data) = config["data"].as_str().map(Path::new).filter(|data| !data.is_dir()) {
        found.hash_input("data", data, &manifest["data_sha256"]);
    }
    let model = Path::new(config["model"].as_str().unwrap_or_default());
    for (file, hash) in manifest["model_sha256"].as_object().into_iter().flatten() {
        let path = if model.is_dir() { model.join(file) } else { model.to_owned() };
        found.hash_input("model", &path, hash);
    }
    Ok(found)
}
