//! The tables of measured runs: means over texts with intervals and paired differences, and every text's own value.

use super::intervals::Intervals;
use super::run_values::RunValues;
use crate::measures::{Measure, Point, Scope, TokenSet};
use crate::report::{PerTextRow, SimilarityRow};
use crate::statistics::StatisticsError;

/// The table of several runs over the same texts; `references` gives for each run the one that its differences are
/// against, if any. A run has rows only for what it measured.
///
/// # Errors
/// An interval cannot be computed.
pub fn similarity_rows(
    runs: &[RunValues],
    references: &[Option<usize>],
    seed: u64,
) -> Result<Vec<SimilarityRow>, StatisticsError> {
    let mut rows = Vec::new();
    let mut intervals = Intervals::new(seed);
    // For each row its own series, and that of its differences.
    let mut series: Vec<(usize, usize, Option<usize>)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let against = references.get(index).copied().flatten().filter(|&r| r != index).and_then(|r| runs.get(r));
        for group in groups(run) {
            for (at, &point) in run.points.iter().enumerate() {
                for (slot, &measure) in run.measures.iter().enumerate() {
                    for tokens in TokenSet::ALL {
                        let mut row = empty_row(run, &group, point, measure, tokens, against);
                        match measure.scope() {
                            Scope::Text => {
                                let own = run.series(&group, at, slot, tokens);
                                let other = against.and_then(|r| {
                                    let (place, slot) = (r.place(point)?, r.slot(measure)?);
                                    Some(run.partners(r, &group, place, slot, tokens))
                                });
                                let pairs = other.map(|other| {
                                    let apart = |(a, b): (&Option<f64>, &Option<f64>)| Some((*a)? - (*b)?);
                                    intervals.add(own.iter().zip(&other).map(apart).collect())
                                });
                                series.push((rows.len(), intervals.add(own), pairs));
                            }
                            // One number for all texts: groups have none.
                            Scope::Corpus if group.is_some() => continue,
                            Scope::Corpus => {
                                let (value, texts) = run.corpus(point, measure, tokens);
                                let other = against.and_then(|r| r.corpus(point, measure, tokens).0);
                                (row.mean, row.texts) = (value, texts);
                                row.diff = value.zip(other).map(|(own, other)| own - other);
                            }
                        }
                        rows.push(row);
                    }
                }
            }
        }
    }
    let found = intervals.finish()?;
    let of = |number: usize| found.get(number).copied().flatten();
    for (row, own, pairs) in series {
        let Some(row) = rows.get_mut(row) else { continue };
        if let Some(own) = of(own) {
            (row.mean, row.std, row.texts) = (Some(own.mean), own.std, own.texts);
            (row.ci_low, row.ci_high) = (Some(own.interval.low), Some(own.interval.high));
        }
        if let Some(apart) = pairs.and_then(of) {
            row.diff = Some(apart.mean);
            (row.diff_ci_low, row.diff_ci_high) = (Some(apart.interval.low), Some(apart.interval.high));
        }
    }
    Ok(rows)
}

fn empty_row(
    run: &RunValues,
    group: &Option<String>,
    point: Point,
    measure: Measure,
    tokens: TokenSet,
    against: Option<&RunValues>,
) -> SimilarityRow {
    SimilarityRow {
        run: run.run.clone(),
        group: group.clone(),
        layer: point.layer as u32,
        site: point.site.to_string(),
        measure: measure.name().to_owned(),
        tokens: tokens.to_string(),
        mean: None,
        std: None,
        ci_low: None,
        ci_high: None,
        texts: 0,
        reference: against.map(|r| r.run.clone()),
        diff: None,
        diff_ci_low: None,
        diff_ci_high: None,
    }
}

/// `None` first (all texts), then every group in order of appearance.
fn groups(run: &RunValues) -> Vec<Option<String>> {
    let mut all = vec![None];
    for text in &run.texts {
        if text.group.is_some() && !all.contains(&text.group) {
            all.push(text.group.clone());
        }
    }
    all
}

/// The table of every text: of the measures that are a number a text.
#[must_use]
pub fn per_text_rows(runs: &[RunValues]) -> Vec<PerTextRow> {
    let mut rows = Vec::new();
    for run in runs {
        for (number, text) in run.texts.iter().enumerate() {
            for (at, point) in run.points.iter().enumerate() {
                for (slot, measure) in run.measures.iter().enumerate().filter(|(_, m)| m.scope() == Scope::Text) {
                    for tokens in TokenSet::ALL {
                        rows.push(PerTextRow {
                            run: run.run.clone(),
                            group: text.group.clone(),
                            text: text.index,
                            n_tokens: text.tokens as u32,
                            layer: point.layer as u32,
                            site: point.site.to_string(),
                            measure: measure.name().to_owned(),
                            tokens: tokens.to_string(),
                            value: run.value(number, at, slot, tokens),
                        });
                    }
                }
            }
        }
    }
    rows
}
