//! Scores, comparisons and reliability diagrams as tables.

use super::{Scores, TaskComparison};
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// A run's scores on a task.
pub type RunScores<'a> = (&'a str, &'a Scores);

/// The frame of `results.csv`: a row for each run, task and metric; calibration's numbers are metrics without an interval.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn results_frame(all: &[RunScores<'_>]) -> Result<DataFrame, PolarsError> {
    type Row<'a> = (&'a str, &'a Scores, &'a str, Option<f64>, [Option<f64>; 3], &'a str);
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (run, scores) in all {
        for score in &scores.metrics {
            let numbers = [score.low, score.high, score.standard_error];
            rows.push((run, scores, &score.metric, score.value, numbers, &score.interval));
        }
        if let Some(found) = &scores.calibration {
            for (name, value) in [("ece", found.ece), ("brier", found.brier), ("nll", found.nll)] {
                rows.push((run, scores, name, Some(value), [None; 3], ""));
            }
        }
    }
    let numbers = |place: usize| rows.iter().map(|row| row.4.get(place).copied().flatten()).collect::<Vec<_>>();
    df!(
        "run" => rows.iter().map(|row| row.0).collect::<Vec<_>>(),
        "task" => rows.iter().map(|row| row.1.task.as_str()).collect::<Vec<_>>(),
        "version" => rows.iter().map(|row| row.1.version).collect::<Vec<_>>(),
        "mode" => rows.iter().map(|row| row.1.mode.name()).collect::<Vec<_>>(),
        "metric" => rows.iter().map(|row| row.2).collect::<Vec<_>>(),
        "value" => rows.iter().map(|row| row.3).collect::<Vec<_>>(),
        "ci_low" => numbers(0),
        "ci_high" => numbers(1),
        "standard_error" => numbers(2),
        "interval" => rows.iter().map(|row| row.5).collect::<Vec<_>>(),
        "items" => rows.iter().map(|row| row.1.items as u64).collect::<Vec<_>>(),
        "without_answer" => rows.iter().map(|row| row.1.without_answer as u64).collect::<Vec<_>>(),
        "cut" => rows.iter().map(|row| row.1.cut as u64).collect::<Vec<_>>(),
    )
}

/// The frame of `comparisons.csv`: a row for each run, reference and task.
///
/// # Errors
/// As [`results_frame`].
pub fn comparisons_frame(all: &[TaskComparison]) -> Result<DataFrame, PolarsError> {
    fn cells<'a, T>(all: &'a [TaskComparison], cell: impl Fn(&'a TaskComparison) -> T) -> Vec<T> {
        all.iter().map(cell).collect()
    }
    df!(
        "task" => cells(all, |one| one.task.as_str()),
        "run" => cells(all, |one| one.run.as_str()),
        "reference" => cells(all, |one| one.reference.as_str()),
        "metric" => cells(all, |one| one.metric.as_str()),
        "items" => cells(all, |one| one.items as u64),
        "difference" => cells(all, |one| one.difference),
        "ci_low" => cells(all, |one| one.low),
        "ci_high" => cells(all, |one| one.high),
        "only_run" => cells(all, |one| one.only_run),
        "only_reference" => cells(all, |one| one.only_reference),
        "mcnemar_exact" => cells(all, |one| one.mcnemar_exact),
        "mcnemar_mid_p" => cells(all, |one| one.mcnemar_mid_p),
        "p_holm" => cells(all, |one| one.p_holm),
    )
}

/// The frame of `reliability.csv`: a row for each run, task and bin of equal mass.
///
/// # Errors
/// As [`results_frame`].
pub fn reliability_frame(all: &[RunScores<'_>]) -> Result<DataFrame, PolarsError> {
    let of = |&(run, scores): &RunScores<'_>| {
        let bins = scores.calibration.iter().flat_map(|found| found.bins.iter().enumerate()).collect::<Vec<_>>();
        bins.into_iter()
            .map(|(index, bin)| (run.to_owned(), scores.task.clone(), index as u32, *bin))
            .collect::<Vec<_>>()
    };
    let rows: Vec<_> = all.iter().flat_map(of).collect();
    df!(
        "run" => rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(),
        "task" => rows.iter().map(|row| row.1.as_str()).collect::<Vec<_>>(),
        "bin" => rows.iter().map(|row| row.2).collect::<Vec<_>>(),
        "items" => rows.iter().map(|row| row.3.items as u64).collect::<Vec<_>>(),
        "confidence_low" => rows.iter().map(|row| row.3.low).collect::<Vec<_>>(),
        "confidence_high" => rows.iter().map(|row| row.3.high).collect::<Vec<_>>(),
        "confidence" => rows.iter().map(|row| row.3.confidence).collect::<Vec<_>>(),
        "accuracy" => rows.iter().map(|row| row.3.accuracy).collect::<Vec<_>>(),
    )
}
