//! The study's page.

use super::cell::{Arm, CellResult, SearchResult, StudyConfig};
use super::figures;
use super::verdicts::{self, Outcome, last_block};
use crate::model::{Architecture, Initialisation, LoadedModel, Pass, RandomWeights, Transformer};
use crate::persist::{self, PersistError};
use crate::pretrain::corpus::probe_texts;
use crate::pretrain::run::{geometry, read_log};
use crate::pretrain::vocabulary;
use crate::report::{Chart, Page, Panel, Point, RenderError, Scale, Series, TableError, Width, write_table};
use crate::statistics::StatisticsError;
use candle_core::{DType, Device};
use std::path::Path;

/// Why the report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// A figure.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table's columns.
    #[error(transparent)]
    Polars(#[from] polars::prelude::PolarsError),
    /// A file.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// An interval.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// The model.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// The model.
    #[error(transparent)]
    Load(#[from] crate::model::LoadError),
}

/// A value at every layer, the one after the final norm last.
type LayerValues = Vec<(f64, Option<f64>)>;

const PRETRAIN_LOG: &str = include_str!("../../../models/embedded/pretrain.jsonl");

/// The committed curve of a real model, SmolLM2-135M over GSM8K's test problems.
const SMOLLM2: &str = include_str!("../../../reports/real/smollm2-135m/similarity.csv");

/// The first figure, before any tuning: the embedded model untrained and pretrained, beside a real model.
///
/// # Errors
/// The model cannot be run or the folder not be written.
pub fn write_base_figure(folder: &Path) -> Result<(), StudyError> {
    let model = LoadedModel::embedded(DType::F32, &Device::Cpu)?;
    let architecture: &Architecture = model.transformer.architecture();
    let texts: Vec<Vec<u32>> = probe_texts(100, 7)
        .iter()
        .map(|words| std::iter::once(vocabulary::BOS).chain(words.split_whitespace().map(vocabulary::id)).collect())
        .collect();
    let weights = RandomWeights::new(architecture, Initialisation::FanIn, 1);
    let untrained = Transformer::load("untrained", architecture.clone(), &weights, DType::F32, &Device::Cpu)?;
    let mut curves = Vec::new();
    for (label, transformer) in [("pretrained", &model.transformer), ("untrained", &untrained)] {
        let similarity = geometry(transformer, &Pass::default(), &texts)?.similarity;
        let points: LayerValues = similarity.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
        curves.push((label, points));
    }
    let chart = base_chart(&curves, &committed_curve(SMOLLM2));
    write_chart(folder, "phenomenon", &chart.png()?, &chart.svg()?)
}

/// Layer and mean of the plain cosine over all tokens: blocks and embedding, then the final norm.
fn committed_curve(csv: &str) -> LayerValues {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name);
    let mut points = Vec::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let get = |name: &str| column(name).and_then(|i| cells.get(i)).copied().unwrap_or_default();
        if get("measure") == "cosine" && get("tokens") == "all" && get("group").is_empty() {
            points.push((get("layer").parse().unwrap_or(f64::NAN), get("mean").parse().ok()));
        }
    }
    points
}

fn base_chart(embedded: &[(&str, LayerValues)], real: &LayerValues) -> Chart {
    let series = |label: &str, style: usize, points: &LayerValues| {
        let (last, body) = match points.split_last() {
            Some((last, body)) => (Some(last), body),
            None => (None, points.as_slice()),
        };
        let depth = body.last().map_or(0.0, |(x, _)| *x);
        let point = |x: f64, y: Option<f64>| Point { x, y, interval: None };
        Series {
            label: label.to_owned(),
            style,
            points: body.iter().map(|&(x, y)| point(x, y)).collect(),
            hollow: last.map(|&(_, y)| point(depth, y)).into_iter().collect(),
        }
    };
    let panel = |title: &str, series: Vec<Series>| Panel {
        title: title.to_owned(),
        y_label: "mean token cosine (all tokens)".to_owned(),
        series,
        x_axis: None,
        y_range: Some((0.0, 0.8)),
    };
    Chart {
        title: "Where tokens grow alike before any tuning".to_owned(),
        subtitle: "left: a real model of 30 layers; right: the embedded model that this study tunes".to_owned(),
        x_label: "layer (0 = embedding)".to_owned(),
        x_scale: Scale::Whole,
        columns: None,
        panels: vec![
            panel("SmolLM2-135M, 100 GSM8K problems", vec![series("pretrained", 0, real)]),
            panel(
                "embedded model, 100 held-out stories",
                embedded.iter().enumerate().map(|(i, (label, points))| series(label, i, points)).collect(),
            ),
        ],
        notes: vec!["Hollow: after the final norm.".to_owned()],
        width: Width::TwoColumn,
    }
}

fn write_chart(folder: &Path, stem: &str, png: &[u8], svg: &str) -> Result<(), StudyError> {
    persist::write_file(&folder.join(format!("{stem}.png")), png)?;
    persist::write_file(&folder.join(format!("{stem}.svg")), svg.as_bytes())?;
    Ok(())
}

/// Writes `search.csv` and `.parquet`: what every arm's learning rate was chosen by.
///
/// # Errors
/// The folder cannot be written.
pub fn write_search(folder: &Path, search: &[SearchResult]) -> Result<(), StudyError> {
    Ok(write_table(folder, "search", &mut figures::search_frame(search)?)?)
}

/// Writes tables, figures and page from the cells that are there.
///
/// # Errors
/// The folder cannot be written.
pub fn write_report(folder: &Path, study: &StudyConfig, cells: &[CellResult]) -> Result<(), StudyError> {
    write_table(folder, "cells", &mut figures::cells_frame(cells)?)?;
    write_table(folder, "curves", &mut figures::curves_frame(cells)?)?;
    for (stem, chart) in
        [("similarity", figures::similarity_figure(cells)), ("effective_rank", figures::rank_figure(cells))]
    {
        write_chart(folder, stem, &chart.png()?, &chart.svg()?)?;
    }
    let bars = figures::accuracy_figure(cells);
    write_chart(folder, "accuracy", &bars.png()?, &bars.svg()?)?;
    let page = page(study, cells)?;
    Ok(persist::write_file(&folder.join("README.md"), page.as_bytes())?)
}

fn page(study: &StudyConfig, cells: &[CellResult]) -> Result<String, StudyError> {
    let compared = verdicts::comparisons(study, cells)?;
    let mut page = Page::new(&study.title);
    page.paragraph(
        "The embedded model, tuned at tiny scale by `smooth-probe reproduce`. Every sentence with a verdict is \
         computed from the intervals below it; nothing on this page is a number of the paper's.",
    );
    page.paragraph(&format!("Question: {} Expected: {}", study.question, study.hypothesis));
    let answers: Vec<String> = compared
        .iter()
        .filter(|c| {
            [(Arm::LoraSibo, Arm::LoraNone), (Arm::AdapterSibo, Arm::AdapterNone)].contains(&(c.treatment, c.control))
        })
        .map(verdicts::sentence)
        .collect();
    page.section("What the initial residual does (SIBO against its control)");
    page.list(&answers);
    page.section("The phenomenon, before any tuning");
    page.figure("phenomenon.png", "Token similarity over the layers of SmolLM2-135M and of the embedded model");
    page.section("Similarity over the layers");
    page.figure("similarity.png", "Token similarity over the layers for every arm");
    page.figure("effective_rank.png", "Effective rank over the layers for every arm");
    page.section("Accuracy");
    page.figure("accuracy.png", "Test accuracy of every arm");
    page.table(
        &["arm", "seeds", "trained", "lr", "accuracy (%)", "loss (nats)", "last-block similarity"],
        &arm_rows(cells),
    );
    page.section("All comparisons, paired by seed");
    page.table(
        &["treatment", "control", "outcome", "mean difference", "95 % interval", "verdict"],
        &verdict_rows(&compared),
    );
    page.section("Gates");
    page.list(&gates(cells));
    page.section("How it was made");
    page.paragraph(&methods(study, cells));
    page.section("What this scale cannot tell");
    page.list(&[
        "Each arm has the learning rate that suits it (table above): where two arms differ in it, so may their \
         similarity for that reason alone, since a larger rate raises it.",
        "A small trained model does not over-smooth by itself; the study shows what tuning moves, the first \
         figure shows the phenomenon.",
        "One task whose answer names a relation of two tokens; tasks that pool over tokens may fall out otherwise.",
    ]);
    Ok(page.text())
}

fn arm_rows(cells: &[CellResult]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for arm in Arm::all() {
        let own: Vec<&CellResult> = cells.iter().filter(|c| c.arm == arm).collect();
        let Some(first) = own.first() else { continue };
        let mean = |value: &dyn Fn(&CellResult) -> Option<f64>| {
            let values: Vec<f64> = own.iter().filter_map(|c| value(c)).collect();
            values.iter().sum::<f64>() / values.len().max(1) as f64
        };
        rows.push(vec![
            arm.name().to_owned(),
            own.len().to_string(),
            first.trainable.to_string(),
            if first.lr > 0.0 { format!("{}", first.lr) } else { String::new() },
            format!("{:.1}", 100.0 * mean(&|c| Some(c.accuracy))),
            format!("{:.3}", mean(&|c| Some(c.loss))),
            format!("{:.4}", mean(&last_block)),
        ]);
    }
    rows
}

fn verdict_rows(compared: &[verdicts::Paired]) -> Vec<Vec<String>> {
    let row = |paired: &verdicts::Paired| {
        let (mean, interval, verdict) = match &paired.comparison {
            None => ("".to_owned(), "".to_owned(), "no common seed".to_owned()),
            Some(c) => (
                format!("{:+.4}", c.mean),
                c.interval.map_or_else(String::new, |i| format!("[{:+.4}, {:+.4}]", i.low, i.high)),
                c.to_string(),
            ),
        };
        let name = |arm: Arm| arm.name().to_owned();
        vec![name(paired.treatment), name(paired.control), paired.outcome.name().to_owned(), mean, interval, verdict]
    };
    compared.iter().map(row).collect()
}

/// The gates that the embedded model itself had to pass, from the last line of its log.
fn pretraining_gates(log: &str) -> Vec<String> {
    let gates = read_log(log).pop().map(|event| event.gates).unwrap_or_default();
    let wanted = [("how many", 0.90), ("yes/no", 0.95)];
    let line = |(kind, least): (&str, f64)| {
        let gate = gates.iter().find(|gate| gate.kind == kind && gate.split == "validation")?;
        let ok = if gate.accuracy >= least { "passed" } else { "**missed**: the model cannot do this lookup" };
        let (found, least) = (100.0 * gate.accuracy, 100.0 * least);
        Some(format!("pre-training, \"{kind}\" on held-out pairs at least {least:.0} %: {found:.1} %: {ok}"))
    };
    wanted.into_iter().filter_map(line).collect()
}

fn gates(cells: &[CellResult]) -> Vec<String> {
    let mean = |arm: Arm, value: fn(&CellResult) -> f64| {
        let own: Vec<f64> = cells.iter().filter(|c| c.arm == arm).map(value).collect();
        (!own.is_empty()).then(|| 100.0 * own.iter().sum::<f64>() / own.len() as f64)
    };
    let passed = |ok: bool| if ok { "passed" } else { "**missed**: read the comparisons with care" };
    let mut lines = pretraining_gates(PRETRAIN_LOG);
    if let (Some(base), Some(majority)) = (mean(Arm::Base, |c| c.accuracy), mean(Arm::Base, |c| c.majority)) {
        let ok = passed(base <= majority + 25.0);
        lines.push(format!(
            "base model at most 25 points over the commonest answer: {base:.1} % over {majority:.1} %: {ok}"
        ));
    }
    if let Some(vanilla) = mean(Arm::LoraVanilla, |c| c.accuracy) {
        let ok = passed((45.0..=80.0).contains(&vanilla));
        lines.push(format!("vanilla LoRA between 45 and 80 %: {vanilla:.1} %: {ok}"));
    }
    if let Some(full) = mean(Arm::Full, |c| c.accuracy) {
        lines.push(format!("full fine-tuning at least 85 %: {full:.1} %: {}", passed(full >= 85.0)));
    }
    lines
}

fn methods(study: &StudyConfig, cells: &[CellResult]) -> String {
    let seeds = cells.iter().filter(|c| c.arm == Arm::LoraVanilla).count();
    let outcomes = Outcome::ALL.map(Outcome::name).join("; ");
    format!(
        "Task `{}` (\"how many more apples has A than B ?\"), 3,000 training items, {} test items of \
         held-out name pairs, loss on the answer alone. {} steps of {} sequences, AdamW with {} warm-up steps, \
         then linear to 0, the peak rate of each arm chosen from {:?} by its validation loss on another seed \
         (`search.csv`); LoRA r={} α={} on q, k, v, up, down; series adapters of width {} in front of {}; dropout 0. \
         λ = {}, policy `all`. {seeds} seeds, paired: the same start values, batches and items in every arm. \
         Outcomes: {outcomes}. Intervals are Student-t over seeds; margins, fixed before the run: \
         ±{:.0} points of accuracy, ±{} of similarity. Verdicts: helps, hurts, equivalent (two one-sided tests), undecided. Full fine-tuning: {} steps, one seed, for the headroom alone.",
        study.task,
        study.test_items,
        study.steps,
        study.batch_size,
        study.warmup_steps,
        study.lr_candidates,
        study.rank,
        2 * study.rank,
        study.bottleneck,
        study.adapter_targets.join(", "),
        study.lambda,
        100.0 * study.accuracy_margin,
        study.similarity_margin,
        study.full_steps,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_study_file_has_what_the_search_chose() {
        let study = StudyConfig::headline().unwrap();
        let search = include_str!("../../../reports/headline/search.csv");
        for arm in Arm::TUNED {
            let rows = search.lines().filter_map(|line| {
                let [name, lr, loss] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
                (name == arm.name()).then_some((lr.parse::<f64>().ok()?, loss.parse::<f64>().ok()?))
            });
            let rows: Vec<(f64, f64)> = rows.collect();
            assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), study.lr_candidates, "{}", arm.name());
            let best = rows.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            assert_eq!(study.lr[&arm], best.0, "{}", arm.name());
        }
    }

    #[test]
    fn the_embedded_model_passed_its_gates() {
        let gates = pretraining_gates(PRETRAIN_LOG);
        assert_eq!(gates.len(), 2);
        assert!(gates.iter().all(|gate| gate.ends_with("passed")), "{gates:?}");
    }
}
