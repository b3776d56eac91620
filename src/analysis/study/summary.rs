//! What an arm came to over its seeds.

use super::cell::{Cell, CellResult};
use super::file::{Arm, Study};
use super::verdicts::last_block;
use crate::statistics::student_t_interval;

/// Mean over seeds and its 95 % t-interval, where there are at least two.
pub(super) fn over_seeds(values: &[f64]) -> (Option<f64>, Option<(f64, f64)>) {
    if values.is_empty() {
        return (None, None);
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let interval = if values.len() > 1 { student_t_interval(values, 0.95).ok() } else { None };
    (Some(mean), interval.map(|i| (i.low, i.high)))
}

/// A value of every cell of an arm that has it.
pub(super) fn values(cells: &[Cell], arm: &str, value: impl Fn(&CellResult) -> Option<f64>) -> Vec<f64> {
    cells.iter().filter(|cell| cell.arm == arm).filter_map(|cell| value(&cell.result)).collect()
}

/// CPU time of a step as a multiple of the reference arm's of the same seed, seed by seed.
pub(super) fn costs(study: &Study, cells: &[Cell], arm: &str) -> Vec<f64> {
    let Some(reference) = &study.page.cost_reference else { return Vec::new() };
    let of = |cell: &Cell| cell.result.step_cpu_seconds;
    let ratio = |cell: &Cell| {
        let other = cells.iter().find(|other| other.arm == *reference && other.seed == cell.seed)?;
        Some(of(cell)? / of(other)?)
    };
    cells.iter().filter(|cell| cell.arm == arm).filter_map(ratio).filter(|ratio| ratio.is_finite()).collect()
}

/// An arm over its seeds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary<'s> {
    pub(super) arm: &'s Arm,
    pub(super) seeds: usize,
    pub(super) trained: usize,
    /// `None` where nothing is tuned.
    pub(super) lr: Option<f64>,
    pub(super) accuracy: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) last_block: Option<f64>,
    /// CPU seconds of a step.
    pub(super) step_seconds: Option<f64>,
    pub(super) cost: Option<f64>,
}

/// Every arm that has a cell, in the order of the study.
pub(super) fn summaries<'s>(study: &'s Study, cells: &[Cell]) -> Vec<Summary<'s>> {
    let summary = |arm: &'s Arm| {
        let own: Vec<&Cell> = cells.iter().filter(|cell| cell.arm == arm.name).collect();
        let first = own.first()?;
        let mean = |value: fn(&CellResult) -> Option<f64>| over_seeds(&values(cells, &arm.name, value)).0;
        Some(Summary {
            arm,
            seeds: own.len(),
            trained: first.result.trainable,
            lr: (first.lr > 0.0).then_some(first.lr),
            accuracy: mean(|cell| Some(cell.accuracy)),
            loss: mean(|cell| Some(cell.loss)),
            last_block: mean(last_block),
            step_seconds: mean(|cell| cell.step_cpu_seconds),
            cost: over_seeds(&costs(study, cells, &arm.name)).0,
        })
    };
    study.arms.iter().filter_map(summary).collect()
}
