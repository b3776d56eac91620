//! The report of a comparison: a page and its tables.

use super::CompareError;
use super::design::{Arm, Design, Kind};
use super::run::Finished;
use super::verdict::{Answer, Metric, Paired};
use crate::persist;
use crate::report::{Bar, BarChart, BarGroup, Page, Reference, Width, write_table};
use crate::statistics::student_t_interval;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};
use std::path::Path;

/// Writes `README.md`, `cells.csv`, `search.csv`, `comparisons.csv` (each also as Parquet) and the figure into `folder`.
///
/// # Errors
/// The folder cannot be written.
pub fn write_report(
    folder: &Path,
    design: &Design,
    finished: &Finished,
    pairs: &[Paired],
    answer: &Answer,
    metric: Metric,
) -> Result<(), CompareError> {
    write_table(folder, "cells", &mut cells(finished)?)?;
    write_table(folder, "search", &mut search(finished)?)?;
    write_table(folder, "comparisons", &mut comparisons(pairs, metric)?)?;
    let chart = figure(finished, metric);
    persist::write_file(&folder.join("comparison.png"), &chart.png()?)?;
    persist::write_file(&folder.join("comparison.svg"), chart.svg()?.as_bytes())?;
    let text = page(design, finished, pairs, answer, metric);
    Ok(persist::write_file(&folder.join("README.md"), text.as_bytes())?)
}

fn page(design: &Design, finished: &Finished, pairs: &[Paired], answer: &Answer, metric: Metric) -> String {
    let mut page = Page::new("Does the initial residual help on this data?");
    page.paragraph(&format!("**{answer}**"));
    if finished.left_out > 0 {
        page.paragraph(&format!("The budget did not hold {} of the seeds.", finished.left_out));
    }
    page.figure("comparison.png", &format!("{} of every arm, a dot a seed", metric.name()));
    page.section("Arms");
    page.table(
        &[
            "arm",
            "lambda",
            "lr",
            "seeds",
            "trained",
            "loss (nats)",
            "tokens right (%)",
            "items right (%)",
            "similarity",
            "s a step",
        ],
        &arms(finished),
    );
    page.section("Comparisons, paired by seed");
    let row = |paired: &Paired| {
        let c = &paired.comparison;
        let interval = c.interval.map_or_else(String::new, |i| format!("[{:+.4}, {:+.4}]", i.low, i.high));
        vec![
            format!("{} − {}", paired.treatment.name(), paired.control.name()),
            format!("{:+.4}", c.mean),
            interval,
            c.seeds.to_string(),
            c.to_string(),
        ]
    };
    page.table(
        &["difference", "mean", "95 % interval", "seeds", "verdict"],
        &pairs.iter().map(row).collect::<Vec<_>>(),
    );
    page.section("How it was made");
    let margin = pairs.first().map_or(f64::NAN, |paired| paired.comparison.margin);
    page.paragraph(&format!(
        "Outcome: {}; differences below {margin} do not matter, as was said before the run. Every arm chose its learning \
         rate among {:?}, and SIBO and its control `none` their λ among {:?}, by the validation loss of a seed that is not \
         compared; then each was trained with that in paired seeds: the same start values, batches and dropout. Steps: {}, \
         of {} sequences; what else was set is in `design.toml`. Intervals are Student-t over seeds. `none` shrinks the \
         modules' input as SIBO does and adds nothing: only SIBO − none is the initial residual's own. Under similarity: the \
         mean token cosine behind the last block over the first test items.",
        metric.name(),
        design.lrs,
        design.lambdas,
        design.training.steps.unwrap_or_default(),
        design.training.batch_size * design.training.accumulate,
    ));
    page.text()
}

fn arms(finished: &Finished) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for kind in [Kind::Base].into_iter().chain(Kind::TRAINED) {
        let own: Vec<_> = finished.cells.iter().filter(|(arm, ..)| arm.kind == kind).collect();
        let Some((Arm { lambda, lr, .. }, _, first)) = own.first() else { continue };
        let mean = |value: &dyn Fn(&super::CellResult) -> Option<f64>| {
            let all: Vec<f64> = own.iter().filter_map(|(.., result)| value(result)).collect();
            all.iter().sum::<f64>() / all.len().max(1) as f64
        };
        let unless = |zero: f64, text: String| if zero == 0.0 { String::new() } else { text };
        rows.push(vec![
            kind.name().to_owned(),
            unless(*lambda, lambda.to_string()),
            unless(*lr, lr.to_string()),
            own.len().to_string(),
            first.trainable.to_string(),
            format!("{:.4}", mean(&|r| Metric::Loss.of(r))),
            format!("{:.1}", 100.0 * mean(&|r| Metric::Tokens.of(r))),
            format!("{:.1}", 100.0 * mean(&|r| Metric::Items.of(r))),
            format!("{:.4}", mean(&|r| r.similarity)),
            unless(*lr, format!("{:.3}", mean(&|r| Some(r.step_seconds)))),
        ]);
    }
    rows
}

fn figure(finished: &Finished, metric: Metric) -> BarChart {
    let percent = if metric == Metric::Loss { 1.0 } else { 100.0 };
    let bar = |(style, kind): (usize, Kind)| {
        let own = finished.cells.iter().filter(|(arm, ..)| arm.kind == kind);
        let dots: Vec<f64> = own.filter_map(|(.., result)| Some(percent * metric.of(result)?)).collect();
        let mean = (!dots.is_empty()).then(|| dots.iter().sum::<f64>() / dots.len() as f64);
        let interval =
            if dots.len() > 1 { student_t_interval(&dots, 0.95).ok().map(|i| (i.low, i.high)) } else { None };
        Bar { label: kind.name().to_owned(), style, value: mean, interval, dots }
    };
    let base = finished.cells.iter().find(|(arm, ..)| arm.kind == Kind::Base);
    let base = base.and_then(|(.., result)| metric.of(result)).filter(|value| value.is_finite());
    let chosen = finished.chosen.iter().map(|c| match c.arm.kind {
        Kind::Vanilla => format!("vanilla: lr {}", c.arm.lr),
        kind => format!("{}: lr {}, lambda {}", kind.name(), c.arm.lr, c.arm.lambda),
    });
    BarChart {
        title: "The test items, arm by arm".to_owned(),
        subtitle: "dots are seeds, whiskers the 95 % t-interval over them".to_owned(),
        y_label: if metric == Metric::Loss { metric.name().to_owned() } else { format!("{} (%)", metric.name()) },
        groups: vec![BarGroup { label: String::new(), bars: (1..).zip(Kind::TRAINED).map(bar).collect() }],
        references: base
            .map(|value| Reference { label: "base model".to_owned(), value: percent * value })
            .into_iter()
            .collect(),
        decimals: if metric == Metric::Loss { 3 } else { 1 },
        notes: vec![chosen.collect::<Vec<_>>().join("; ")],
        width: Width::OneColumn,
    }
}

fn cells(finished: &Finished) -> Result<DataFrame, PolarsError> {
    let all = &finished.cells;
    let test =
        |value: fn(&super::Found) -> f64| all.iter().map(|(.., r)| r.test.as_ref().map(value)).collect::<Vec<_>>();
    df!(
        "arm" => all.iter().map(|(arm, ..)| arm.kind.name()).collect::<Vec<_>>(),
        "lambda" => all.iter().map(|(arm, ..)| arm.lambda).collect::<Vec<_>>(),
        "lr" => all.iter().map(|(arm, ..)| arm.lr).collect::<Vec<_>>(),
        "seed" => all.iter().map(|(_, seed, _)| *seed).collect::<Vec<_>>(),
        "trainable" => all.iter().map(|(.., r)| r.trainable as u64).collect::<Vec<_>>(),
        "validation_loss" => all.iter().map(|(.., r)| r.validation.loss).collect::<Vec<_>>(),
        "test_loss" => test(|found| found.loss),
        "test_tokens" => test(|found| found.tokens),
        "test_items" => test(|found| found.items),
        "similarity" => all.iter().map(|(.., r)| r.similarity).collect::<Vec<_>>(),
        "step_seconds" => all.iter().map(|(.., r)| r.step_seconds).collect::<Vec<_>>(),
        "seconds" => all.iter().map(|(.., r)| r.seconds).collect::<Vec<_>>(),
    )
}

fn search(finished: &Finished) -> Result<DataFrame, PolarsError> {
    let all = &finished.search;
    df!(
        "arm" => all.iter().map(|(arm, _)| arm.kind.name()).collect::<Vec<_>>(),
        "lambda" => all.iter().map(|(arm, _)| arm.lambda).collect::<Vec<_>>(),
        "lr" => all.iter().map(|(arm, _)| arm.lr).collect::<Vec<_>>(),
        "validation_loss" => all.iter().map(|(_, r)| r.validation.loss).collect::<Vec<_>>(),
        "chosen" => all.iter().map(|(arm, _)| finished.chosen.iter().any(|c| c.arm == *arm)).collect::<Vec<_>>(),
    )
}

fn comparisons(pairs: &[Paired], metric: Metric) -> Result<DataFrame, PolarsError> {
    let ends = |end: fn(&crate::statistics::Interval) -> f64| {
        pairs.iter().map(|p| p.comparison.interval.as_ref().map(end)).collect::<Vec<_>>()
    };
    df!(
        "treatment" => pairs.iter().map(|p| p.treatment.name()).collect::<Vec<_>>(),
        "control" => pairs.iter().map(|p| p.control.name()).collect::<Vec<_>>(),
        "metric" => pairs.iter().map(|_| metric.name()).collect::<Vec<_>>(),
        "seeds" => pairs.iter().map(|p| p.comparison.seeds as u64).collect::<Vec<_>>(),
        "mean" => pairs.iter().map(|p| p.comparison.mean).collect::<Vec<_>>(),
        "low" => ends(|i| i.low),
        "high" => ends(|i| i.high),
        "margin" => pairs.iter().map(|p| p.comparison.margin).collect::<Vec<_>>(),
        "verdict" => pairs.iter().map(|p| p.comparison.to_string()).collect::<Vec<_>>(),
    )
}
