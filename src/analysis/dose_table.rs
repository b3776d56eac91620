//! The table of a dose study, and its figure.

use super::dose::Measured;
use super::dose_grid::DosePoint;
use super::dose_spread::{Spread, Spreads, dose_spreads, spread_columns};
use crate::peft::ResidualConfig;
use crate::report::{Chart, Panel, Point, Scale, Series, Width};
use crate::statistics::StatisticsError;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// One layer of one point.
#[derive(Debug, Clone, PartialEq)]
pub struct DoseRow {
    /// The run's name.
    pub run: String,
    /// The dosed block, from 1; `None` for all of them.
    pub dose_layer: Option<u32>,
    /// λ of what is dosed.
    pub lambda: f64,
    /// What r is there.
    pub arm: String,
    /// Whether this is the adapter as it was trained.
    pub trained: bool,
    /// Mean of `‖λr‖ / ‖(1−λ)x‖` over the dosed modules; `None` for λ = 1.
    pub real_share: Option<f64>,
    /// The layer that was measured: 0 is the embedding, 1 to L the blocks.
    pub layer: u32,
    /// Mean token cosine over texts, all tokens.
    pub similarity: Option<f64>,
    /// The same without each text's first token.
    pub similarity_no_first: Option<f64>,
    /// Mean effective rank over texts; of the last block only.
    pub effective_rank: Option<f64>,
    /// Mean next-token loss of the point, in nats: the same in every row of it.
    pub loss: f64,
    /// Texts that entered.
    pub texts: u64,
    /// Intervals of similarity, rank and loss, and their paired differences.
    pub spreads: Spreads,
}

impl DoseRow {
    fn dosed(&self) -> String {
        self.dose_layer.map_or_else(|| "all".to_owned(), |layer| layer.to_string())
    }
}

/// The rows of a study, point by point; `seed` draws the resamples of its intervals.
///
/// # Errors
/// An interval cannot be computed.
pub fn dose_rows(
    run: &str,
    points: &[(DosePoint, Measured)],
    trained: &ResidualConfig,
    seed: u64,
) -> Result<Vec<DoseRow>, StatisticsError> {
    let spreads = dose_spreads(points, trained, seed)?;
    let rows = points.iter().zip(&spreads);
    Ok(rows.flat_map(|((point, measured), spreads)| point_rows(run, point, trained, measured, spreads)).collect())
}

fn point_rows(
    run: &str,
    point: &DosePoint,
    trained: &ResidualConfig,
    measured: &Measured,
    spreads: &[Spreads],
) -> Vec<DoseRow> {
    let last = measured.layers.last().map(|values| values.layer);
    let row = |(values, spreads): (&super::dose::LayerValues, &Spreads)| DoseRow {
        run: run.to_owned(),
        dose_layer: point.layer.map(|layer| layer as u32),
        lambda: point.dose.lambda,
        arm: point.dose.arm.to_string(),
        trained: point.is_trained(trained),
        real_share: measured.real_share(point.layer),
        layer: values.layer as u32,
        similarity: values.similarity,
        similarity_no_first: values.similarity_no_first,
        effective_rank: measured.effective_rank.filter(|_| Some(values.layer) == last),
        loss: measured.loss,
        texts: values.texts,
        spreads: *spreads,
    };
    measured.layers.iter().zip(spreads).map(row).collect()
}

/// The frame of `dose.csv` and `.parquet`.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn dose_frame(rows: &[DoseRow]) -> Result<DataFrame, PolarsError> {
    fn cells<'a, T>(rows: &'a [DoseRow], cell: impl Fn(&'a DoseRow) -> T) -> Vec<T> {
        rows.iter().map(cell).collect()
    }
    let mut frame = df!(
        "run" => cells(rows, |r| r.run.as_str()),
        "dose_layer" => cells(rows, DoseRow::dosed),
        "lambda" => cells(rows, |r| r.lambda),
        "arm" => cells(rows, |r| r.arm.as_str()),
        "trained" => cells(rows, |r| r.trained),
        "real_share" => cells(rows, |r| r.real_share),
        "layer" => cells(rows, |r| r.layer),
        "similarity" => cells(rows, |r| r.similarity),
        "similarity_no_first" => cells(rows, |r| r.similarity_no_first),
        "effective_rank" => cells(rows, |r| r.effective_rank),
        "loss" => cells(rows, |r| r.loss),
        "texts" => cells(rows, |r| r.texts),
    )?;
    frame.hstack_mut(&spread_columns(&cells(rows, |r| r.spreads)))?;
    Ok(frame)
}

/// The rows of the last block: one for each point.
#[must_use]
pub fn last_block(rows: &[DoseRow]) -> Vec<&DoseRow> {
    let last = rows.iter().map(|row| row.layer).max().unwrap_or(0);
    rows.iter().filter(|row| row.layer == last).collect()
}

/// What the loss was taken on, for the figure: `240 records of data.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossSource(pub String);

/// The figure of a study: with all blocks dosed, similarity and loss against λ and against the real share of h0;
/// with one block at a time, against the block and against the share there, a curve for each λ.
#[must_use]
pub fn dose_chart(rows: &[DoseRow], loss: &LossSource) -> Chart {
    let points = last_block(rows);
    let texts = points.iter().map(|row| row.texts).max().unwrap_or(0);
    let subtitle = format!("n = {texts} texts; loss over {}", loss.0);
    let notes = "Weights frozen: only λ and what its term reads change.";
    if points.iter().any(|row| row.dose_layer.is_some()) {
        each_chart(&points, subtitle, notes)
    } else {
        all_chart(&points, subtitle, notes)
    }
}

const SIMILARITY: &str = "token-wise cosine similarity";
const LOSS: &str = "next-token loss (nats)";
const SHARE: &str = "real h0 share, ‖λr‖ / ‖(1−λ)x‖";

const BANDS: &str = "Bands: 95 % bootstrap over texts, of the loss over examples. Paired differences are narrower: \
    dose.csv.";

/// What stands at a row's place.
type Value = fn(&DoseRow) -> Option<f64>;
/// What a panel shows of a row, with its band.
type Banded = fn(&DoseRow) -> (Option<f64>, &Spread);

fn banded(x: f64, (y, spread): (Option<f64>, &Spread)) -> Point {
    Point { x, y, interval: spread.interval.map(|interval| (interval.low, interval.high)) }
}

const OF_SIMILARITY: Banded = |row| (row.similarity, &row.spreads.similarity);
const OF_LOSS: Banded = |row| (Some(row.loss), &row.spreads.loss);

fn all_chart(points: &[&DoseRow], subtitle: String, note: &str) -> Chart {
    let lambda: Value = |row| Some(row.lambda);
    let share: Value = |row| row.real_share;
    let (similarity, loss) = (OF_SIMILARITY, OF_LOSS);
    let panel = |title: &str, y_label: &str, x_label: &str, (x, y): (Value, Banded)| Panel {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        x_axis: Some((x_label.to_owned(), Scale::Linear)),
        series: dose_curves(points, x, y),
        y_range: None,
    };
    Chart {
        title: "Dose and response: the initial residual of a frozen adapter".to_owned(),
        subtitle: format!("Similarity after the last block; {subtitle}"),
        x_label: "λ".to_owned(),
        x_scale: Scale::Linear,
        panels: vec![
            panel("similarity against λ", SIMILARITY, "λ", (lambda, similarity)),
            panel("similarity against the real share", SIMILARITY, SHARE, (share, similarity)),
            panel("loss against λ", LOSS, "λ", (lambda, loss)),
            panel("loss against the real share", LOSS, SHARE, (share, loss)),
        ],
        columns: Some(2),
        notes: vec![
            format!("{note} All blocks dosed at once; curves: what the λ term reads. \"trained\": as trained."),
            "The share is the mean over tokens and dosed modules; λ = 1 has none, and `none` stays at 0.".to_owned(),
            BANDS.to_owned(),
        ],
        width: Width::TwoColumn,
    }
}

/// A curve an arm in order of λ, and the trained point by itself.
fn dose_curves(points: &[&DoseRow], x: Value, y: Banded) -> Vec<Series> {
    let arms = dosed_arms(points);
    let place = |row: &DoseRow| x(row).map(|x| banded(x, y(row)));
    let mut series: Vec<Series> = arms
        .iter()
        .enumerate()
        .map(|(style, arm)| Series {
            label: (*arm).to_owned(),
            style: style + 1,
            points: points.iter().filter(|row| row.arm == *arm).filter_map(|row| place(row)).collect(),
            hollow: Vec::new(),
        })
        .collect();
    // Where its arm has a curve, that curve's band is its own.
    let bare = |row: &DoseRow, point: Point| Point {
        interval: point.interval.filter(|_| !arms.contains(&row.arm.as_str())),
        ..point
    };
    let trained = points.iter().find(|row| row.trained).and_then(|row| Some(bare(row, place(row)?)));
    series.push(Series {
        label: "trained".to_owned(),
        style: 0,
        points: trained.into_iter().collect(),
        hollow: vec![],
    });
    series
}

/// Most curves of a panel that shows one block at a time.
const MOST_CURVES: usize = 6;

fn each_chart(points: &[&DoseRow], subtitle: String, note: &str) -> Chart {
    let mut lambdas: Vec<f64> = points.iter().map(|row| row.lambda).collect();
    lambdas.sort_by(f64::total_cmp);
    lambdas.dedup();
    let trained = points.iter().find(|row| row.trained).map(|row| (row.lambda, row.arm.as_str()));
    let shown = spread_out(&lambdas, trained.map(|(lambda, _)| lambda));
    let (similarity, loss) = (OF_SIMILARITY, OF_LOSS);
    let block: Value = |row| row.dose_layer.map(f64::from);
    let share: Value = |row| row.real_share;
    let panels = dosed_arms(points).into_iter().flat_map(|arm| {
        let own: Vec<&DoseRow> = points.iter().filter(|row| row.arm == arm).copied().collect();
        let panel = |what: &str, y_label: &str, x_label: Option<&str>, (x, y): (Value, Banded)| Panel {
            title: match trained {
                Some((lambda, trained)) if trained == arm => format!("{what}, r = {arm} (trained at λ = {lambda})"),
                _ => format!("{what}, r = {arm}"),
            },
            y_label: y_label.to_owned(),
            x_axis: x_label.map(|label| (label.to_owned(), Scale::Linear)),
            series: lambda_curves(&own, &shown, x_label.is_none(), x, y),
            y_range: None,
        };
        let mut panels = vec![
            panel("similarity by block", SIMILARITY, None, (block, similarity)),
            panel("loss by block", LOSS, None, (block, loss)),
        ];
        // An arm that adds nothing has a share of 0 whatever the dose.
        if own.iter().any(|row| row.real_share.is_some_and(|share| share > 0.0)) {
            panels.push(panel("similarity by share", SIMILARITY, Some(SHARE_THERE), (share, similarity)));
            panels.push(panel("loss by share", LOSS, Some(SHARE_THERE), (share, loss)));
        }
        panels
    });
    let panels: Vec<Panel> = panels.collect();
    let mut notes = vec![format!("{note} The other blocks keep the λ and the arm that they were trained with.")];
    notes.push(BANDS.to_owned());
    if panels.iter().any(|panel| panel.x_axis.is_some()) {
        notes
            .push("Against the share: a dot is a block; the share is the mean over its tokens and modules.".to_owned());
    }
    if shown.len() < lambdas.len() {
        notes.push(format!("Drawn: {} of {} λ; dose.csv holds all.", shown.len(), lambdas.len()));
    }
    Chart {
        title: "Dose and response, one block at a time".to_owned(),
        subtitle: format!("Similarity after the last block; {subtitle}"),
        x_label: "dosed block".to_owned(),
        x_scale: Scale::Whole,
        panels,
        columns: Some(2),
        notes,
        width: Width::TwoColumn,
    }
}

/// The real share in the block that is dosed.
const SHARE_THERE: &str = "real h0 share in the dosed block, ‖λr‖ / ‖(1−λ)x‖";

/// A curve a λ, or dots that nothing joins.
fn lambda_curves(own: &[&DoseRow], lambdas: &[f64], joined: bool, x: Value, y: Banded) -> Vec<Series> {
    let series = lambdas.iter().enumerate().map(|(style, &lambda)| {
        let points = own.iter().filter(|row| row.lambda == lambda);
        let points = points.filter_map(|row| Some(banded(x(row)?, y(row))));
        let gap = |point: Point| (!joined).then_some(Point { y: None, interval: None, ..point });
        Series {
            label: format!("λ = {lambda}"),
            style,
            points: points.flat_map(|point| [Some(point), gap(point)]).flatten().collect(),
            hollow: Vec::new(),
        }
    });
    series.collect()
}

/// At most [`MOST_CURVES`] of the values: the ends, the trained one, and others between them.
fn spread_out(values: &[f64], trained: Option<f64>) -> Vec<f64> {
    let (count, most) = (values.len(), MOST_CURVES);
    if count <= most {
        return values.to_vec();
    }
    let mut places: Vec<usize> = (0..most).map(|i| i * (count - 1) / (most - 1)).collect();
    if let Some(at) = values.iter().position(|value| Some(*value) == trained)
        && !places.contains(&at)
        && let Some(nearest) = (1..most - 1).min_by_key(|&i| places.get(i).map_or(usize::MAX, |p| p.abs_diff(at)))
        && let Some(place) = places.get_mut(nearest)
    {
        *place = at;
    }
    places.sort_unstable();
    places.into_iter().filter_map(|place| values.get(place).copied()).collect()
}

/// The arms that were dosed, in their order; the trained one may be there with its trained point alone.
fn dosed_arms<'a>(points: &[&'a DoseRow]) -> Vec<&'a str> {
    let mut arms = Vec::new();
    for row in points {
        let turned = points.iter().any(|other| other.arm == row.arm && !other.trained);
        if (turned || points.len() == 1) && !arms.contains(&row.arm.as_str()) {
            arms.push(row.arm.as_str());
        }
    }
    arms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Interval;

    fn row(layer: Option<u32>, arm: &str, lambda: f64) -> DoseRow {
        DoseRow {
            run: "adapter".into(),
            dose_layer: layer,
            lambda,
            arm: arm.into(),
            trained: lambda == 0.5 && arm == "h0",
            real_share: (lambda < 1.0).then(|| if arm == "none" { 0.0 } else { lambda / (1.0 - lambda) / 4.0 }),
            layer: 3,
            similarity: Some(0.9 - 0.2 * lambda),
            similarity_no_first: None,
            effective_rank: Some(4.0),
            loss: 2.0 + lambda,
            texts: 9,
            spreads: Spreads {
                loss: Spread {
                    interval: Some(Interval { low: 1.0 + lambda, high: 3.0 + lambda }),
                    ..Spread::default()
                },
                ..Spreads::default()
            },
        }
    }

    #[test]
    fn all_blocks_at_once_are_drawn_against_both_doses_with_the_trained_point() {
        let mut rows: Vec<DoseRow> = [0.0, 0.5, 1.0].map(|l| row(None, "h0", l)).to_vec();
        rows.extend([0.0, 0.5, 1.0].map(|l| row(None, "none", l)));
        rows.push(DoseRow { layer: 1, similarity: Some(0.0), ..row(None, "h0", 0.5) });
        let chart = dose_chart(&rows, &LossSource("the texts".into()));
        let drawn = |panel: usize, series: usize| {
            chart.panels[panel].series[series].points.iter().map(|p| (p.x, p.y)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(0, 0), [(0.0, Some(0.9)), (0.5, Some(0.8)), (1.0, Some(0.7))]);
        assert_eq!(drawn(1, 0), [(0.0, Some(0.9)), (0.25, Some(0.8))], "λ = 1 has no share");
        assert_eq!(drawn(1, 1), [(0.0, Some(0.9)), (0.0, Some(0.8))]);
        assert_eq!(drawn(2, 0), [(0.0, Some(2.0)), (0.5, Some(2.5)), (1.0, Some(3.0))]);
        assert_eq!((drawn(0, 2), drawn(3, 2)), (vec![(0.5, Some(0.8))], vec![(0.25, Some(2.5))]));
        assert_eq!(chart.panels[0].series[2].label, "trained");
        let bands = |panel: usize| chart.panels[panel].series[0].points.iter().map(|p| p.interval).collect::<Vec<_>>();
        assert_eq!(bands(2), [Some((1.0, 3.0)), Some((1.5, 3.5)), Some((2.0, 4.0))]);
        assert_eq!(bands(0), [None; 3]);
        assert_eq!(chart.panels[2].series[2].points[0].interval, None, "the curve's band is the trained point's");
        let axes: Vec<&str> = chart.panels.iter().filter_map(|p| Some(p.x_axis.as_ref()?.0.as_str())).collect();
        assert_eq!(axes, ["λ", SHARE, "λ", SHARE]);
        assert!(chart.subtitle.contains("n = 9 texts; loss over the texts"));
    }

    #[test]
    fn one_block_at_a_time_is_drawn_against_the_block() {
        let rows: Vec<DoseRow> =
            (1..=2).flat_map(|block| [0.0, 0.5].map(|lambda| row(Some(block), "h0", lambda))).collect();
        let chart = dose_chart(&rows, &LossSource("x".into()));
        let titles: Vec<&str> = chart.panels.iter().map(|panel| panel.title.as_str()).collect();
        let trained = "r = h0 (trained at λ = 0.5)";
        let wanted = ["similarity by block", "loss by block", "similarity by share", "loss by share"]
            .map(|what| format!("{what}, {trained}"));
        assert_eq!(titles, wanted);
        let labels: Vec<&str> = chart.panels[0].series.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels, ["λ = 0", "λ = 0.5"]);
        let points: Vec<(f64, Option<f64>)> = chart.panels[1].series[1].points.iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(points, [(1.0, Some(2.5)), (2.0, Some(2.5))]);
        let dots: Vec<(f64, Option<f64>)> = chart.panels[3].series[1].points.iter().map(|p| (p.x, p.y)).collect();
        assert_eq!(dots, [(0.25, Some(2.5)), (0.25, None)].repeat(2), "nothing joins two blocks");
        assert!(!chart.notes.iter().any(|note| note.starts_with("Drawn:")));
        let tenths: Vec<f64> = (0..=10).map(|i| f64::from(i) / 10.0).collect();
        assert_eq!(spread_out(&tenths, Some(0.3)), [0.0, 0.3, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(spread_out(&tenths, Some(0.8)), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    }

    #[test]
    fn only_the_trained_arm_is_called_trained_and_what_is_left_out_is_said() {
        let tenths = || (0..=10).map(|i| f64::from(i) / 10.0);
        let rows: Vec<DoseRow> =
            ["none", "h0"].iter().flat_map(|arm| tenths().map(|lambda| row(Some(1), arm, lambda))).collect();
        let chart = dose_chart(&rows, &LossSource("x".into()));
        let titles: Vec<&str> = chart.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(
            titles[..2],
            ["similarity by block, r = none", "loss by block, r = none"],
            "with a share of 0 throughout"
        );
        assert_eq!(
            titles[2..4],
            ["similarity by block, r = h0 (trained at λ = 0.5)", "loss by block, r = h0 (trained at λ = 0.5)"]
        );
        assert_eq!((titles.len(), chart.columns), (6, Some(2)));
        assert_eq!(chart.notes.last().unwrap(), "Drawn: 6 of 11 λ; dose.csv holds all.");
    }
}
