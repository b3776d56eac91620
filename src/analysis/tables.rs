//! The tables of measured runs: means over texts with intervals and paired differences, and every text's own value.

use super::estimates::Estimates;
use super::run_values::RunValues;
use crate::measures::{Measure, Point, Scope, TokenSet};
use crate::report::{self, PerTextRow, SimilarityRow};
use crate::statistics::{self, StatisticsError};
use polars::prelude::{Column, DataFrame, PolarsError};
use std::collections::BTreeMap;

/// The table of several runs: what its readers need, and what stands beside it in the files.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SimilarityTable {
    /// The rows.
    pub rows: Vec<SimilarityRow>,
    /// For each row the tokens that entered a corpus measure; `None` for a measure of texts.
    pub n_tokens_pooled: Vec<Option<u64>>,
    /// For each row the p-value of its `diff`, adjusted over the layers; `None` without one.
    pub diff_p_holm: Vec<Option<f64>>,
}

impl SimilarityTable {
    /// The frame of `similarity.csv` and `.parquet`: [`report::SIMILARITY_COLUMNS`], then `n_tokens_pooled`
    /// and `diff_p_holm`.
    ///
    /// # Errors
    /// None in practice; polars' functions are fallible.
    pub fn frame(&self) -> Result<DataFrame, PolarsError> {
        let mut frame = report::similarity_frame(&self.rows)?;
        frame.with_column(Column::new("n_tokens_pooled".into(), &self.n_tokens_pooled))?;
        frame.with_column(Column::new("diff_p_holm".into(), &self.diff_p_holm))?;
        Ok(frame)
    }
}

/// The table of several runs over the same texts; `references` gives for each run the one that its differences are
/// against, if any. A run has rows only for what it measured.
///
/// # Errors
/// An interval cannot be computed.
pub fn similarity_table(
    runs: &[RunValues],
    references: &[Option<usize>],
    seed: u64,
) -> Result<SimilarityTable, StatisticsError> {
    let (mut rows, mut n_tokens_pooled) = (Vec::new(), Vec::new());
    let mut estimates = Estimates::new(seed);
    // For each row its own series, and that of its differences.
    let mut series: Vec<(usize, usize, Option<usize>)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let against = references.get(index).copied().flatten().filter(|&r| r != index).and_then(|r| runs.get(r));
        for group in groups(run) {
            for (at, &point) in run.points.iter().enumerate() {
                for (slot, &measure) in run.measures.iter().enumerate() {
                    for tokens in TokenSet::ALL {
                        let mut row = empty_row(run, &group, point, measure, tokens, against);
                        let mut pooled = None;
                        match measure.scope() {
                            Scope::Text => {
                                let own = run.series(&group, at, slot, tokens);
                                let other = against.and_then(|r| {
                                    let (place, slot) = (r.place(point)?, r.slot(measure)?);
                                    Some(run.partners(r, &group, place, slot, tokens))
                                });
                                let pairs = other.map(|other| estimates.add_difference(&own, &other));
                                series.push((rows.len(), estimates.add(&own), pairs));
                            }
                            // One number for all texts: groups have none.
                            Scope::Corpus if group.is_some() => continue,
                            Scope::Corpus => {
                                let own = run.corpus(point, measure, tokens);
                                let other = against.and_then(|r| r.corpus(point, measure, tokens).value);
                                (row.mean, row.texts, pooled) = (own.value, own.texts, own.tokens);
                                row.diff = own.value.zip(other).map(|(own, other)| own - other);
                            }
                        }
                        rows.push(row);
                        n_tokens_pooled.push(pooled);
                    }
                }
            }
        }
    }
    let found = estimates.finish()?;
    let mut p_values = BTreeMap::new();
    let of = |number: usize| found.get(number).copied().flatten();
    for (place, own, pairs) in series {
        let Some(row) = rows.get_mut(place) else { continue };
        if let Some(own) = of(own) {
            (row.mean, row.std, row.texts) = (Some(own.mean), own.std, own.n);
            (row.ci_low, row.ci_high) = (Some(own.interval.low), Some(own.interval.high));
        }
        if let Some(apart) = pairs.and_then(of) {
            p_values.insert(place, apart.p);
            row.diff = Some(apart.mean);
            (row.diff_ci_low, row.diff_ci_high) = (Some(apart.interval.low), Some(apart.interval.high));
        }
    }
    let diff_p_holm = adjusted(&rows, &p_values)?;
    Ok(SimilarityTable { rows, n_tokens_pooled, diff_p_holm })
}

/// The differences of `run` to `against` alone, text by text over the texts that both have: rows as those of
/// [`similarity_table`], of which `texts` counts the pairs, with the adjusted p-values. A corpus measure has none.
///
/// # Errors
/// An interval cannot be computed.
pub fn difference_rows(
    run: &RunValues,
    against: &RunValues,
    seed: u64,
) -> Result<Vec<(SimilarityRow, Option<f64>)>, StatisticsError> {
    let mut rows = Vec::new();
    let mut estimates = Estimates::new(seed);
    let mut series: Vec<usize> = Vec::new();
    for group in groups(run) {
        for (at, &point) in run.points.iter().enumerate() {
            for (slot, &measure) in run.measures.iter().enumerate().filter(|(_, m)| m.scope() == Scope::Text) {
                let Some((place, theirs)) = against.place(point).zip(against.slot(measure)) else { continue };
                // Token sets are mostly the same rows: what is the same is resampled once.
                let mut known: Vec<(Vec<Option<f64>>, usize)> = Vec::new();
                for tokens in TokenSet::ALL {
                    let own = run.series(&group, at, slot, tokens);
                    let other = run.partners(against, &group, place, theirs, tokens);
                    let pairs: Vec<Option<f64>> = own.iter().zip(other).map(|(a, b)| Some((*a)? - b?)).collect();
                    let asked = match known.iter().find(|(other, _)| *other == pairs) {
                        Some((_, asked)) => *asked,
                        None => {
                            let asked = estimates.add(&pairs);
                            known.push((pairs, asked));
                            asked
                        }
                    };
                    series.push(asked);
                    rows.push(empty_row(run, &group, point, measure, tokens, Some(against)));
                }
            }
        }
    }
    let found = estimates.finish()?;
    let mut p_values = BTreeMap::new();
    for (place, (row, asked)) in rows.iter_mut().zip(series).enumerate() {
        let Some(apart) = found.get(asked).copied().flatten() else { continue };
        (row.diff, row.texts) = (Some(apart.mean), apart.n);
        (row.diff_ci_low, row.diff_ci_high) = (Some(apart.interval.low), Some(apart.interval.high));
        p_values.insert(place, apart.p);
    }
    let p_holm = adjusted(&rows, &p_values)?;
    Ok(rows.into_iter().zip(p_holm).collect())
}

/// Holm's adjustment over the layers of one run, group, measure and token set. The embedding, the blocks and the final
/// norm are one family; each site within the blocks is one of its own.
fn adjusted(rows: &[SimilarityRow], p_values: &BTreeMap<usize, f64>) -> Result<Vec<Option<f64>>, StatisticsError> {
    let mut families: BTreeMap<_, Vec<(usize, f64)>> = BTreeMap::new();
    for (&place, &p) in p_values {
        let Some(row) = rows.get(place) else { continue };
        let stream = ["embedding", "block", "final_norm"].contains(&row.site.as_str());
        let site = if stream { "" } else { row.site.as_str() };
        families.entry((&row.run, &row.group, &row.measure, &row.tokens, site)).or_default().push((place, p));
    }
    let mut found = vec![None; rows.len()];
    for family in families.into_values() {
        let p_values: Vec<f64> = family.iter().map(|(_, p)| *p).collect();
        for ((place, _), p) in family.into_iter().zip(statistics::holm(&p_values)?) {
            if let Some(slot) = found.get_mut(place) {
                *slot = Some(p);
            }
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Site;

    #[test]
    fn the_differences_of_two_runs_are_those_of_the_table() {
        let run = |name: &str, texts: std::ops::Range<u64>, slope: f64| {
            let text = |index| super::super::run_values::MeasuredText {
                index,
                group: Some(format!("g{}", index % 2)),
                tokens: 5,
            };
            let plan = super::super::plan::MeasurePlan {
                measures: vec![Measure::Cosine, Measure::Mad],
                points: vec![Point { site: Site::Embedding, layer: 0 }, Point { site: Site::Block, layer: 1 }],
                seed: 0,
            };
            let texts: Vec<_> = texts.map(text).collect();
            let values: Vec<f64> = (0..texts.len() * 12)
                .map(|i| if i % 7 == 2 { f64::NAN } else { (slope * (i / 3) as f64).sin() })
                .collect();
            RunValues::new(name, &plan, texts, values, &[])
        };
        let (a, b) = (run("a", 2..30, 0.7), run("b", 0..25, 1.3));
        let table = similarity_table(&[a.clone(), b.clone()], &[Some(1), None], 11).unwrap();
        let found = difference_rows(&a, &b, 11).unwrap();
        let own: Vec<_> = table.rows.iter().zip(&table.diff_p_holm).filter(|(row, _)| row.run == "a").collect();
        assert_eq!(found.len(), own.len());
        for ((row, p), (wanted, wanted_p)) in found.iter().zip(own) {
            let of = |row: &SimilarityRow| {
                (row.group.clone(), row.layer, row.measure.clone(), row.tokens.clone(), row.reference.clone())
            };
            assert_eq!(of(row), of(wanted));
            assert_eq!(
                (row.diff, row.diff_ci_low, row.diff_ci_high, p),
                (wanted.diff, wanted.diff_ci_low, wanted.diff_ci_high, wanted_p)
            );
            assert!(row.diff.is_some() && row.mean.is_none() && row.texts < 24 && row.texts > 5, "{row:?}");
        }
    }

    #[test]
    fn layers_are_one_family_and_other_sites_another() {
        let row = |site: Site, layer: usize, tokens: TokenSet| {
            let mut row = empty_row(
                &RunValues::new("a", &plan(), vec![], vec![], &[]),
                &None,
                Point { site, layer },
                Measure::Cosine,
                tokens,
                None,
            );
            row.diff = Some(0.1);
            row
        };
        let rows = [
            row(Site::Embedding, 0, TokenSet::All),
            row(Site::Block, 1, TokenSet::All),
            row(Site::FinalNorm, 1, TokenSet::All),
            row(Site::FeedForwardH0, 1, TokenSet::All),
            row(Site::Block, 1, TokenSet::NoFirst),
            row(Site::Block, 2, TokenSet::NoFirst),
        ];
        let p_values = BTreeMap::from([(0, 0.5), (1, 0.01), (2, 0.02), (3, 0.03), (4, 0.04)]);
        let found = adjusted(&rows, &p_values).unwrap();
        assert_eq!(found, [Some(0.5), Some(0.03), Some(0.04), Some(0.03), Some(0.04), None]);
    }

    fn plan() -> super::super::plan::MeasurePlan {
        super::super::plan::MeasurePlan { measures: vec![], points: vec![], seed: 0 }
    }
}
