//! The first figure, before any tuning: the embedded model untrained and pretrained, beside a real model.

use super::StudyError;
use crate::model::{Architecture, Initialisation, LoadedModel, Pass, RandomWeights, Transformer};
use crate::pretrain::corpus::probe_texts;
use crate::pretrain::run::geometry;
use crate::pretrain::vocabulary;
use crate::report::{Chart, Panel, Point, Scale, Series, Width};
use candle_core::{DType, Device};
use std::path::Path;

/// A value at every layer, the one after the final norm last.
type LayerValues = Vec<(f64, Option<f64>)>;

/// The committed curve of a real model, SmolLM2-135M over GSM8K's test problems.
const SMOLLM2: &str = include_str!("../../../reports/real/smollm2-135m/similarity.csv");

/// Draws it into `folder` under the name `file`.
///
/// # Errors
/// The model cannot be run or the folder not be written.
pub fn write_base_figure(folder: &Path, file: &str) -> Result<(), StudyError> {
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
    super::page::write_chart(folder, file, &chart.png()?, &chart.svg()?)
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
