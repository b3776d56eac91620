//! Where a layer changes a measure: its change split among attention, feed-forward, PEFT and the λ term.
//!
//! A block takes the stream from the state before it to the state after it in two steps, attention and feed-forward.
//! Each step is split by what its stream would be without PEFT, and with PEFT but nothing read of h0 (see
//! [`Site`]), on the same input. For a measure m, text by text:
//!
//! | part | change |
//! |---|---|
//! | `attention` | m(after attention, no PEFT) − m(before the block) |
//! | `attention_peft` | m(after attention, no h0) − m(after attention, no PEFT) |
//! | `attention_h0` | m(after attention) − m(after attention, no h0) |
//! | `feed_forward`, `_peft`, `_h0` | the same from after attention to after the block |
//! | `total` | m(after the block) − m(before the block) |
//!
//! The parts of a text sum to its total by construction. They stand in the order in which they are computed; another
//! order would split what two of them do together otherwise. Where the norm stands after the sum (BERT), its effect
//! belongs to the step that it ends.

use super::estimates::Estimates;
use super::run_values::RunValues;
use crate::measures::{Measure, Point, Scope, TokenSet};
use crate::probe::Site;
use crate::report::{CellReader, Chart, Panel, Point as Spot, Scale, Series, TableError, Width};
use crate::statistics::StatisticsError;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// The sites that a split needs.
pub const SITES: [Site; 7] = [
    Site::Embedding,
    Site::AfterAttentionNoPeft,
    Site::AfterAttentionNoH0,
    Site::AfterAttention,
    Site::BlockNoPeft,
    Site::BlockNoH0,
    Site::Block,
];

/// The name of the whole change.
const TOTAL: &str = "total";

/// The parts in the order of a forward pass: each leads from one site to the next.
const PARTS: [(&str, Site); 6] = [
    ("attention", Site::AfterAttentionNoPeft),
    ("attention_peft", Site::AfterAttentionNoH0),
    ("attention_h0", Site::AfterAttention),
    ("feed_forward", Site::BlockNoPeft),
    ("feed_forward_peft", Site::BlockNoH0),
    ("feed_forward_h0", Site::Block),
];

/// One part of a layer's change.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitRow {
    /// The run's name.
    pub run: String,
    /// The layer, from 1.
    pub layer: u32,
    /// The measure.
    pub measure: Measure,
    /// The token set.
    pub tokens: TokenSet,
    /// The part, or `total`.
    pub part: &'static str,
    /// Mean over texts, in the unit of the measure; `None` where no text has both values.
    pub change: Option<f64>,
    /// Lower end of its 95 % percentile bootstrap interval over texts.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
    /// Texts that entered.
    pub texts: u64,
}

/// The layers that can be split: the state before and every site of the block are among `points`.
#[must_use]
pub fn split_layers(points: &[Point]) -> Vec<usize> {
    let has = |site, layer| points.contains(&Point { site, layer });
    let deepest = points.iter().map(|point| point.layer).max().unwrap_or(0);
    (1..=deepest)
        .filter(|&layer| {
            let before = before(layer);
            has(before.site, before.layer) && PARTS.iter().all(|&(_, site)| has(site, layer))
        })
        .collect()
}

/// The state that a block receives.
fn before(layer: usize) -> Point {
    match layer {
        0 | 1 => Point { site: Site::Embedding, layer: 0 },
        _ => Point { site: Site::Block, layer: layer - 1 },
    }
}

/// The split of every run, layer, measure of single texts, and token set.
///
/// # Errors
/// An interval cannot be computed.
pub fn split_rows(runs: &[RunValues], seed: u64) -> Result<Vec<SplitRow>, StatisticsError> {
    let mut rows = Vec::new();
    let mut estimates = Estimates::new(seed);
    for run in runs {
        for layer in split_layers(&run.points) {
            let sites = std::iter::once(before(layer)).chain(PARTS.map(|(_, site)| Point { site, layer }));
            let places: Vec<usize> = sites.filter_map(|point| run.place(point)).collect();
            for (slot, &measure) in run.measures.iter().enumerate().filter(|(_, m)| m.scope() == Scope::Text) {
                for tokens in TokenSet::ALL {
                    let values: Vec<Vec<Option<f64>>> =
                        places.iter().map(|&place| run.series(&None, place, slot, tokens)).collect();
                    // Only texts that have a value everywhere, so that the parts of the means sum up too.
                    let whole = |text: usize| values.iter().all(|site| site.get(text).is_some_and(Option::is_some));
                    let mut add = |part: &'static str, from: usize, to: usize| {
                        let value = |site: usize, text: usize| values.get(site)?.get(text).copied().flatten();
                        let change = |text| Some(value(to, text)? - value(from, text)?).filter(|_| whole(text));
                        estimates.add(&(0..run.texts.len()).map(change).collect::<Vec<_>>());
                        rows.push(SplitRow {
                            run: run.run.clone(),
                            layer: layer as u32,
                            measure,
                            tokens,
                            part,
                            change: None,
                            ci_low: None,
                            ci_high: None,
                            texts: 0,
                        });
                    };
                    for (step, (part, _)) in PARTS.into_iter().enumerate() {
                        add(part, step, step + 1);
                    }
                    add(TOTAL, 0, PARTS.len());
                }
            }
        }
    }
    for (row, found) in rows.iter_mut().zip(estimates.finish()?) {
        let Some(found) = found else { continue };
        (row.change, row.texts) = (Some(found.mean), found.n);
        (row.ci_low, row.ci_high) = (Some(found.interval.low), Some(found.interval.high));
    }
    Ok(rows)
}

/// `split.csv` and `split.parquet`.
///
/// # Errors
/// polars refuses the columns.
pub fn split_frame(rows: &[SplitRow]) -> Result<DataFrame, PolarsError> {
    let text = |f: fn(&SplitRow) -> &str| rows.iter().map(f).collect::<Vec<_>>();
    let number = |f: fn(&SplitRow) -> Option<f64>| rows.iter().map(f).collect::<Vec<_>>();
    df!(
        "run" => text(|row| &row.run),
        "layer" => rows.iter().map(|row| row.layer).collect::<Vec<_>>(),
        "measure" => text(|row| row.measure.name()),
        "tokens" => rows.iter().map(|row| row.tokens.to_string()).collect::<Vec<_>>(),
        "part" => text(|row| row.part),
        "change" => number(|row| row.change),
        "ci_low" => number(|row| row.ci_low),
        "ci_high" => number(|row| row.ci_high),
        "texts" => rows.iter().map(|row| row.texts).collect::<Vec<_>>(),
    )
}

/// A split's table that is none.
#[derive(Debug, thiserror::Error)]
pub enum SplitTableError {
    /// A column.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A name that this program does not know.
    #[error("row {row}: \"{name}\" is no {what}; write the table again with the command that made it")]
    Unknown {
        /// The row, from 0.
        row: usize,
        /// What should stand there.
        what: &'static str,
        /// What stands there.
        name: String,
    },
}

/// The rows of a frame that [`split_frame`] made.
///
/// # Errors
/// A column is missing, of another type, or holds a name that is not known.
pub fn read_split(frame: &DataFrame) -> Result<Vec<SplitRow>, SplitTableError> {
    let mut cells = CellReader::new(frame);
    let (run, layer, measure) = (cells.strings("run")?, cells.integers("layer")?, cells.strings("measure")?);
    let (tokens, part) = (cells.strings("tokens")?, cells.strings("part")?);
    let (change, ci_low, ci_high) = (cells.floats("change")?, cells.floats("ci_low")?, cells.floats("ci_high")?);
    let texts = cells.integers("texts")?;
    let names = || PARTS.iter().map(|&(part, _)| part).chain([TOTAL]);
    let unknown = |row, what, name: &str| SplitTableError::Unknown { row, what, name: name.to_owned() };
    (0..frame.height())
        .map(|at| {
            let (own, set, name) = (measure.filled(at)?, tokens.filled(at)?, part.filled(at)?);
            let known = TokenSet::ALL.into_iter().find(|known| known.to_string() == set);
            Ok(SplitRow {
                run: run.filled(at)?.to_owned(),
                layer: layer.narrow(at)?,
                measure: Measure::from_name(own).ok_or_else(|| unknown(at, "measure", own))?,
                tokens: known.ok_or_else(|| unknown(at, "token set", set))?,
                part: names().find(|known| *known == name).ok_or_else(|| unknown(at, "part", name))?,
                change: change.get(at),
                ci_low: ci_low.get(at),
                ci_high: ci_high.get(at),
                texts: texts.filled(at)?,
            })
        })
        .collect()
}

/// A part with its change, or that summed over layers.
pub type PartSum = (&'static str, f64);

/// For one run the parts that change anything, each summed over the layers, then the whole change; all tokens.
#[must_use]
pub fn summed(rows: &[SplitRow], run: &str, measure: Measure) -> Vec<PartSum> {
    let own = || rows.iter().filter(|row| row.run == run && row.measure == measure && row.tokens == TokenSet::All);
    let names = PARTS.iter().map(|&(part, _)| part).chain([TOTAL]);
    names
        .map(|part| (part, own().filter(|row| row.part == part).filter_map(|row| row.change).sum()))
        .filter(|(part, _)| {
            *part == TOTAL || own().any(|row| row.part == *part && row.change.is_some_and(|c| c != 0.0))
        })
        .collect()
}

/// A part for people.
#[must_use]
pub fn part_name(part: &str) -> String {
    let (step, of) = match part.rsplit_once('_') {
        Some((step, "peft")) => (step, ", PEFT"),
        Some((step, "h0")) => (step, ", h0"),
        _ => (part, ""),
    };
    let step = if step == "feed_forward" { "feed-forward" } else { step };
    format!("{step}{of}")
}

/// The figure of one measure: for each run the change of every layer, and the changes summed from layer 0 on; `None`
/// where nothing was split.
#[must_use]
pub fn split_chart(rows: &[SplitRow], measure: Measure) -> Option<Chart> {
    let own: Vec<&SplitRow> = rows
        .iter()
        .filter(|row| row.measure == measure && row.tokens == TokenSet::All && row.change.is_some())
        .collect();
    let mut runs: Vec<&str> = Vec::new();
    for row in &own {
        if !runs.contains(&row.run.as_str()) {
            runs.push(&row.run);
        }
    }
    let texts = own.iter().map(|row| row.texts).max()?;
    // What a run without PEFT, or without h0, cannot change is left out.
    let moves = |run: &str, part: &str| {
        part == TOTAL || own.iter().any(|row| row.run == run && row.part == part && row.change != Some(0.0))
    };
    let parts = PARTS.map(|(part, _)| part).into_iter().chain([TOTAL]).enumerate().collect::<Vec<_>>();
    let title = measure.title();
    let panels = runs.iter().flat_map(|run| {
        [false, true].map(|summed| {
            let series = parts.iter().filter(|(_, part)| moves(run, part)).map(|(style, part)| {
                let mut sum = 0.0;
                let points = own.iter().filter(|row| row.run == *run && row.part == *part).map(|row| {
                    sum += row.change.unwrap_or_default();
                    let (y, interval) = match summed {
                        true => (Some(sum), None),
                        false => (row.change, row.ci_low.zip(row.ci_high)),
                    };
                    Spot { x: f64::from(row.layer), y, interval }
                });
                Series { label: part.replace('_', " "), style: *style, points: points.collect(), hollow: Vec::new() }
            });
            let what = if summed { "summed from the embedding on" } else { "change in each layer" };
            Panel {
                title: if runs.len() > 1 { format!("{run}: {what}") } else { what.to_owned() },
                y_label: if summed { "summed change".to_owned() } else { "change".to_owned() },
                series: series.collect(),
                x_axis: None,
                y_range: Some((0.0, 0.0)),
            }
        })
    });
    Some(Chart {
        title: format!("{title}: who changes it"),
        subtitle: format!("All tokens; n = {texts} texts"),
        x_label: "layer".to_owned(),
        x_scale: Scale::Whole,
        columns: Some(2),
        panels: panels.collect(),
        notes: vec![
            "Change of the residual stream's value through each step of a block; the parts sum to the total. Bands: 95 % \
             bootstrap over texts."
                .to_owned(),
        ],
        width: Width::TwoColumn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::plan::MeasurePlan;
    use crate::analysis::run_values::MeasuredText;

    /// Two layers; text t at the k-th site of a run has the value (t + 1) · f(k).
    fn run(without: Option<usize>) -> RunValues {
        let mut points = vec![Point { site: Site::Embedding, layer: 0 }];
        for layer in [1, 2] {
            let mut own = PARTS.map(|(_, site)| Point { site, layer }).to_vec();
            own.sort_by_key(|point| point.site);
            points.extend(own);
        }
        let plan = MeasurePlan { measures: vec![Measure::Cosine], points, seed: 0 };
        let texts = (0..3).map(|index| MeasuredText { index, group: None, tokens: 4 }).collect();
        let value = |text: usize, point: usize| match without {
            Some(k) if text == 2 && point == k => f64::NAN,
            _ => (text + 1) as f64 * (point * point) as f64 / 64.0,
        };
        let points = plan.points.len();
        let values = (0..3).flat_map(|t| (0..points).flat_map(move |p| [value(t, p); 3])).collect();
        RunValues::new("tuned", &plan, texts, values, &[])
    }

    #[test]
    fn parts_sum_to_the_total_and_are_the_differences_of_their_sites() {
        for without in [None, Some(3)] {
            let rows = split_rows(&[run(without)], 1).unwrap();
            assert_eq!(rows.len(), 2 * 3 * 7);
            for layer in [1, 2] {
                let own = |part: &str| {
                    let row = rows.iter().find(|r| r.layer == layer && r.part == part && r.tokens == TokenSet::NoFirst);
                    row.unwrap().change.unwrap()
                };
                let sum: f64 = PARTS.iter().map(|(part, _)| own(part)).sum();
                assert!((sum - own(TOTAL)).abs() < 1e-12);
            }
        }
        let rows = split_rows(&[run(None)], 1).unwrap();
        let change = |part: &str| rows.iter().find(|r| r.layer == 1 && r.part == part).unwrap().change.unwrap();
        // The sites in the order of a forward pass are numbered 0 embedding, 1 after attention, 2 without PEFT, 3
        // without h0, 4 block, 5 and 6 without; the mean of t + 1 over three texts is 2.
        let of = |from: f64, to: f64| 2.0 * (to * to - from * from) / 64.0;
        assert!((change("attention") - of(0.0, 2.0)).abs() < 1e-12);
        assert!((change("attention_peft") - of(2.0, 3.0)).abs() < 1e-12);
        assert!((change("attention_h0") - of(3.0, 1.0)).abs() < 1e-12);
        assert!((change("feed_forward") - of(1.0, 5.0)).abs() < 1e-12);
        assert!((change("feed_forward_h0") - of(6.0, 4.0)).abs() < 1e-12);
        assert!((change(TOTAL) - of(0.0, 4.0)).abs() < 1e-12);
    }

    #[test]
    fn a_text_without_a_value_somewhere_leaves_its_layer() {
        let rows = split_rows(&[run(Some(3))], 1).unwrap();
        let texts = |layer| rows.iter().filter(|r| r.layer == layer).map(|r| r.texts).collect::<Vec<_>>();
        assert_eq!((texts(1), texts(2)), (vec![2; 21], vec![3; 21]));
    }

    #[test]
    fn only_layers_with_the_one_before_them_are_split() {
        let mut points = run(None).points;
        assert_eq!(split_layers(&points), [1, 2]);
        points.retain(|point| *point != Point { site: Site::Block, layer: 1 });
        assert_eq!(split_layers(&points), Vec::<usize>::new(), "layer 1 lacks its end, layer 2 its start");
        points.retain(|point| point.site != Site::Embedding);
        assert!(split_layers(&points).is_empty());
    }

    #[test]
    fn the_figure_sums_the_layers_up() {
        let rows = split_rows(&[run(None)], 1).unwrap();
        let chart = split_chart(&rows, Measure::Cosine).unwrap();
        let total = |panel: usize| {
            let series = chart.panels[panel].series.iter().find(|s| s.label == TOTAL).unwrap();
            series.points.iter().map(|p| p.y.unwrap()).collect::<Vec<_>>()
        };
        let (change, sum) = (total(0), total(1));
        assert_eq!(sum, [change[0], change[0] + change[1]]);
        assert_eq!(summed(&rows, "tuned", Measure::Cosine).last(), Some(&(TOTAL, sum[1])));
        assert_eq!(split_chart(&rows, Measure::EffectiveRank), None);
    }
}
