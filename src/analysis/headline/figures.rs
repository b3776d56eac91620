//! The study's figures and tables.

use super::cell::{Arm, CellResult, SearchResult};
use super::verdicts::last_block;
use crate::report::{Bar, BarChart, BarGroup, Chart, Panel, Point, Reference, Scale, Series, Width};
use crate::statistics::student_t_interval;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// A value of every seed at every point.
type Curve = fn(&CellResult) -> &[Option<f64>];

/// Mean over seeds and its 95 % t-interval, where there are at least two.
fn over_seeds(values: &[f64]) -> (Option<f64>, Option<(f64, f64)>) {
    if values.is_empty() {
        return (None, None);
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let interval = if values.len() > 1 { student_t_interval(values, 0.95).ok() } else { None };
    (Some(mean), interval.map(|i| (i.low, i.high)))
}

/// An arm's colour and marker: the same for both methods and in every figure.
fn style(arm: Arm) -> usize {
    match arm {
        Arm::Base => 0,
        Arm::LoraVanilla | Arm::AdapterVanilla => 1,
        Arm::LoraNone | Arm::AdapterNone => 2,
        Arm::LoraSibo | Arm::AdapterSibo => 3,
        Arm::Full => 4,
    }
}

fn series(cells: &[CellResult], arm: Arm, style: usize, curve: Curve) -> Series {
    let own: Vec<&[Option<f64>]> = cells.iter().filter(|c| c.arm == arm).map(curve).collect();
    let length = own.first().map_or(0, |c| c.len());
    let point = |layer: usize, at: usize| {
        let values: Vec<f64> = own.iter().filter_map(|c| c.get(at).copied().flatten()).collect();
        let (y, interval) = over_seeds(&values);
        Point { x: layer as f64, y, interval }
    };
    let depth = length.saturating_sub(2);
    Series {
        label: arm.name().to_owned(),
        style,
        points: (0..length.saturating_sub(1)).map(|l| point(l, l)).collect(),
        hollow: if length > 1 { vec![point(depth, length - 1)] } else { Vec::new() },
    }
}

/// Similarity over the layers: LoRA's arms in one panel, the adapters' in the other, the base in both.
pub(super) fn similarity_figure(cells: &[CellResult]) -> Chart {
    curves(cells, "Token similarity over the layers, tuned on one task", "mean token cosine (all tokens)", |c| {
        &c.similarity
    })
}

/// Effective rank over the layers: similarity cannot see a collapse of dimension.
pub(super) fn rank_figure(cells: &[CellResult]) -> Chart {
    curves(cells, "Effective rank over the layers", "effective rank (all tokens)", |c| &c.effective_rank)
}

fn curves(cells: &[CellResult], title: &str, y_label: &str, curve: Curve) -> Chart {
    let panel = |title: &str, arms: &[Arm]| Panel {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        series: arms
            .iter()
            .filter(|arm| cells.iter().any(|c| c.arm == **arm))
            .map(|&arm| series(cells, arm, style(arm), curve))
            .collect(),
        x_axis: None,
        y_range: None,
    };
    let seeds = cells.iter().filter(|c| c.arm == Arm::LoraVanilla).count();
    Chart {
        title: title.to_owned(),
        subtitle: format!("embedded model, task difference, {seeds} paired seeds; the same steps in every arm"),
        x_label: "layer (0 = embedding)".to_owned(),
        x_scale: Scale::Whole,
        columns: None,
        panels: vec![
            panel("LoRA", &[Arm::Base, Arm::LoraVanilla, Arm::LoraNone, Arm::LoraSibo]),
            panel("Adapter", &[Arm::Base, Arm::AdapterVanilla, Arm::AdapterNone, Arm::AdapterSibo]),
        ],
        notes: vec![
            "Bands: 95 % t-interval over seeds. Hollow: after the final norm.".to_owned(),
            "none = the branch's input is shrunken as SIBO's and nothing is added: only SIBO − none is h0's."
                .to_owned(),
        ],
        width: Width::TwoColumn,
    }
}

/// Test accuracy of every arm with the value of each seed.
pub(super) fn accuracy_figure(cells: &[CellResult]) -> BarChart {
    let bar = |arm: Arm| {
        let dots: Vec<f64> = cells.iter().filter(|c| c.arm == arm).map(|c| 100.0 * c.accuracy).collect();
        let (value, interval) = over_seeds(&dots);
        let label = arm.name().split('-').next_back().unwrap_or_default().to_owned();
        Bar { label, style: style(arm), value, interval, dots }
    };
    let group = |label: &str, arms: &[Arm]| BarGroup {
        label: label.to_owned(),
        bars: arms.iter().map(|&arm| bar(arm)).collect(),
    };
    let mean = |value: fn(&CellResult) -> f64| {
        let own: Vec<f64> = cells.iter().filter(|c| c.arm == Arm::Base).map(value).collect();
        100.0 * own.iter().sum::<f64>() / own.len().max(1) as f64
    };
    BarChart {
        title: "Accuracy on the held-out test items".to_owned(),
        subtitle: "task difference; dots are seeds, whiskers the 95 % t-interval over them".to_owned(),
        y_label: "accuracy (%)".to_owned(),
        groups: vec![
            group("LoRA", &[Arm::LoraVanilla, Arm::LoraNone, Arm::LoraSibo]),
            group("Adapter", &[Arm::AdapterVanilla, Arm::AdapterNone, Arm::AdapterSibo]),
        ],
        references: vec![
            Reference { label: "base model".to_owned(), value: mean(|c| c.accuracy) },
            Reference { label: "commonest answer".to_owned(), value: mean(|c| c.majority) },
        ],
        decimals: 1,
        notes: Vec::new(),
        width: Width::OneColumn,
    }
}

/// One row a cell.
pub(super) fn cells_frame(cells: &[CellResult]) -> Result<DataFrame, PolarsError> {
    df!(
        "arm" => cells.iter().map(|c| c.arm.name()).collect::<Vec<_>>(),
        "seed" => cells.iter().map(|c| c.seed).collect::<Vec<_>>(),
        "lr" => cells.iter().map(|c| (c.lr > 0.0).then_some(c.lr)).collect::<Vec<_>>(),
        "trainable" => cells.iter().map(|c| c.trainable as u64).collect::<Vec<_>>(),
        "accuracy" => cells.iter().map(|c| c.accuracy).collect::<Vec<_>>(),
        "loss" => cells.iter().map(|c| c.loss).collect::<Vec<_>>(),
        "majority" => cells.iter().map(|c| c.majority).collect::<Vec<_>>(),
        "last_block_similarity" => cells.iter().map(last_block).collect::<Vec<_>>(),
    )
}

/// One row an arm and learning rate.
pub(super) fn search_frame(search: &[SearchResult]) -> Result<DataFrame, PolarsError> {
    df!(
        "arm" => search.iter().map(|c| c.arm.name()).collect::<Vec<_>>(),
        "lr" => search.iter().map(|c| c.lr).collect::<Vec<_>>(),
        "validation_loss" => search.iter().map(|c| c.validation_loss).collect::<Vec<_>>(),
    )
}

/// One row a cell and layer.
pub(super) fn curves_frame(cells: &[CellResult]) -> Result<DataFrame, PolarsError> {
    let rows: Vec<(&CellResult, usize)> =
        cells.iter().flat_map(|c| (0..c.similarity.len()).map(move |i| (c, i))).collect();
    let depth = |c: &CellResult| c.similarity.len().saturating_sub(2);
    df!(
        "arm" => rows.iter().map(|(c, _)| c.arm.name()).collect::<Vec<_>>(),
        "seed" => rows.iter().map(|(c, _)| c.seed).collect::<Vec<_>>(),
        "layer" => rows.iter().map(|(c, i)| (*i).min(depth(c)) as u32).collect::<Vec<_>>(),
        "site" => rows.iter().map(|(c, i)| match *i {
            0 => "embedding",
            i if i > depth(c) => "final_norm",
            _ => "block",
        }).collect::<Vec<_>>(),
        "cosine" => rows.iter().map(|(c, i)| c.similarity.get(*i).copied().flatten()).collect::<Vec<_>>(),
        "effective_rank" => rows.iter().map(|(c, i)| c.effective_rank.get(*i).copied().flatten()).collect::<Vec<_>>(),
    )
}
