//! Tables and figures about pairs of tokens: their classes, their distance, the matrix of one text.

use super::cells::CellReader;
use super::chart::{Chart, HeatMap, Panel, Point, Scale, Series, Width};
use super::table::TableError;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// Under so many texts a mean has no interval: a bootstrap over them covers far less than it says.
pub const MIN_TEXTS: u64 = 5;

/// The mean cosine within a class of tokens, or between two.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenClassRow {
    /// Name of the run.
    pub run: String,
    /// Layer: 0 is the embedding, 1..L the block outputs.
    pub layer: u32,
    /// `embedding`, `block` or `final_norm`.
    pub site: String,
    /// `first`, `special`, `digits`, `punctuation`, `words` or `other`.
    pub class_a: String,
    /// The same as `class_a` for the pairs within it, else one that comes later in that list.
    pub class_b: String,
    /// Mean over texts, each weighing 1.
    pub mean: f64,
    /// Sample standard deviation over texts.
    pub std: Option<f64>,
    /// Lower end of the 95 % percentile bootstrap interval of the mean; `None` under [`MIN_TEXTS`] texts.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
    /// Pairs of tokens, over all texts.
    pub pairs: u64,
    /// Texts that have such a pair.
    pub texts: u64,
}

/// The mean cosine of tokens that stand so far apart.
#[derive(Debug, Clone, PartialEq)]
pub struct DistanceRow {
    /// Name of the run.
    pub run: String,
    /// Layer, as in [`TokenClassRow::layer`].
    pub layer: u32,
    /// Site.
    pub site: String,
    /// Smallest distance |i − j|, in tokens.
    pub distance_from: u64,
    /// Largest.
    pub distance_to: u64,
    /// Mean over texts, each weighing 1.
    pub mean: f64,
    /// Sample standard deviation over texts.
    pub std: Option<f64>,
    /// Lower end of the 95 % percentile bootstrap interval of the mean; `None` under [`MIN_TEXTS`] texts.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
    /// Pairs of tokens, over all texts.
    pub pairs: u64,
    /// Texts that have such a pair.
    pub texts: u64,
}

/// One cell of a token × token matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMapRow {
    /// Position of the one token in its text, from 0.
    pub row: u32,
    /// Position of the other.
    pub column: u32,
    /// The one token, white space made visible.
    pub token_row: String,
    /// The other.
    pub token_column: String,
    /// Their cosine; empty if one of the two rows is zero.
    pub cosine: Option<f64>,
}

fn cells<'a, R, T>(rows: &'a [R], cell: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(cell).collect()
}

/// The frame of `token_classes.csv`.
///
/// # Errors
/// None in practice; polars' constructor is fallible.
pub fn token_class_frame(rows: &[TokenClassRow]) -> Result<DataFrame, PolarsError> {
    df!(
        "run" => cells(rows, |row| row.run.as_str()),
        "layer" => cells(rows, |row| row.layer),
        "site" => cells(rows, |row| row.site.as_str()),
        "class_a" => cells(rows, |row| row.class_a.as_str()),
        "class_b" => cells(rows, |row| row.class_b.as_str()),
        "mean" => cells(rows, |row| row.mean),
        "std" => cells(rows, |row| row.std),
        "ci_low" => cells(rows, |row| row.ci_low),
        "ci_high" => cells(rows, |row| row.ci_high),
        "pairs" => cells(rows, |row| row.pairs),
        "texts" => cells(rows, |row| row.texts),
        "few_texts" => cells(rows, |row| row.texts < MIN_TEXTS),
    )
}

/// The frame of `distance.csv`.
///
/// # Errors
/// As [`token_class_frame`].
pub fn distance_frame(rows: &[DistanceRow]) -> Result<DataFrame, PolarsError> {
    df!(
        "run" => cells(rows, |row| row.run.as_str()),
        "layer" => cells(rows, |row| row.layer),
        "site" => cells(rows, |row| row.site.as_str()),
        "distance_from" => cells(rows, |row| row.distance_from),
        "distance_to" => cells(rows, |row| row.distance_to),
        "mean" => cells(rows, |row| row.mean),
        "std" => cells(rows, |row| row.std),
        "ci_low" => cells(rows, |row| row.ci_low),
        "ci_high" => cells(rows, |row| row.ci_high),
        "pairs" => cells(rows, |row| row.pairs),
        "texts" => cells(rows, |row| row.texts),
        "few_texts" => cells(rows, |row| row.texts < MIN_TEXTS),
    )
}

/// The frame of a heat map's CSV.
///
/// # Errors
/// As [`token_class_frame`].
pub fn heatmap_frame(rows: &[HeatMapRow]) -> Result<DataFrame, PolarsError> {
    df!(
        "row" => cells(rows, |row| row.row),
        "column" => cells(rows, |row| row.column),
        "token_row" => cells(rows, |row| row.token_row.as_str()),
        "token_column" => cells(rows, |row| row.token_column.as_str()),
        "cosine" => cells(rows, |row| row.cosine),
    )
}

/// The rows of a heat map's table.
///
/// # Errors
/// A column is missing, of another type, or empty where it may not be.
pub fn heatmap_rows(frame: &DataFrame) -> Result<Vec<HeatMapRow>, TableError> {
    let mut cells = CellReader::new(frame);
    let (row, column) = (cells.integers("row")?, cells.integers("column")?);
    let (token_row, token_column) = (cells.strings("token_row")?, cells.strings("token_column")?);
    let cosine = cells.floats("cosine")?;
    (0..frame.height())
        .map(|at| {
            Ok(HeatMapRow {
                row: row.narrow(at)?,
                column: column.narrow(at)?,
                token_row: token_row.filled(at)?.to_owned(),
                token_column: token_column.filled(at)?.to_owned(),
                cosine: cosine.get(at),
            })
        })
        .collect()
}

/// The rows of `token_classes.csv`.
///
/// # Errors
/// As [`heatmap_rows`].
pub fn token_class_rows(frame: &DataFrame) -> Result<Vec<TokenClassRow>, TableError> {
    let mut cells = CellReader::new(frame);
    let (run, site, layer) = (cells.strings("run")?, cells.strings("site")?, cells.integers("layer")?);
    let (class_a, class_b) = (cells.strings("class_a")?, cells.strings("class_b")?);
    let (mean, std) = (cells.floats("mean")?, cells.floats("std")?);
    let (ci_low, ci_high) = (cells.floats("ci_low")?, cells.floats("ci_high")?);
    let (pairs, texts) = (cells.integers("pairs")?, cells.integers("texts")?);
    (0..frame.height())
        .map(|at| {
            Ok(TokenClassRow {
                run: run.filled(at)?.to_owned(),
                layer: layer.narrow(at)?,
                site: site.filled(at)?.to_owned(),
                class_a: class_a.filled(at)?.to_owned(),
                class_b: class_b.filled(at)?.to_owned(),
                mean: mean.filled(at)?,
                std: std.get(at),
                ci_low: ci_low.get(at),
                ci_high: ci_high.get(at),
                pairs: pairs.filled(at)?,
                texts: texts.filled(at)?,
            })
        })
        .collect()
}

/// The rows of `distance.csv`.
///
/// # Errors
/// As [`heatmap_rows`].
pub fn distance_rows(frame: &DataFrame) -> Result<Vec<DistanceRow>, TableError> {
    let mut cells = CellReader::new(frame);
    let (run, site, layer) = (cells.strings("run")?, cells.strings("site")?, cells.integers("layer")?);
    let (from, to) = (cells.integers("distance_from")?, cells.integers("distance_to")?);
    let (mean, std) = (cells.floats("mean")?, cells.floats("std")?);
    let (ci_low, ci_high) = (cells.floats("ci_low")?, cells.floats("ci_high")?);
    let (pairs, texts) = (cells.integers("pairs")?, cells.integers("texts")?);
    (0..frame.height())
        .map(|at| {
            Ok(DistanceRow {
                run: run.filled(at)?.to_owned(),
                layer: layer.narrow(at)?,
                site: site.filled(at)?.to_owned(),
                distance_from: from.filled(at)?,
                distance_to: to.filled(at)?,
                mean: mean.filled(at)?,
                std: std.get(at),
                ci_low: ci_low.get(at),
                ci_high: ci_high.get(at),
                pairs: pairs.filled(at)?,
                texts: texts.filled(at)?,
            })
        })
        .collect()
}

/// The order of classes: each keeps its colour in every panel and figure.
const CLASSES: [&str; 6] = ["first", "special", "digits", "punctuation", "words", "other"];

/// The figure of `token_classes.csv`: for each run a panel of the pairs within a class and one of the pairs with
/// a word, over the layers.
#[must_use]
pub fn token_class_chart(rows: &[TokenClassRow]) -> Chart {
    let mut panels = Vec::new();
    for run in runs(rows.iter().map(|row| row.run.as_str())) {
        let within = |class: &str| rows_of(rows, run, class, class);
        let with_words = |class: &str| match class {
            "words" => Vec::new(),
            "other" => rows_of(rows, run, "words", class),
            _ => rows_of(rows, run, class, "words"),
        };
        panels.push(class_panel(format!("{run}: within a class"), within));
        panels.push(class_panel(format!("{run}: with words"), with_words));
    }
    Chart {
        title: "Who is alike: similarity by class of token".to_owned(),
        subtitle: texts_phrase(rows.iter().map(|row| row.texts)),
        x_label: LAYERS.to_owned(),
        x_scale: Scale::Whole,
        panels,
        // A run's two panels side by side.
        columns: Some(2),
        notes: notes(
            rows.iter().any(|row| row.site == FINAL_NORM),
            &["Mean over the texts that have such a pair.", BANDS],
        ),
        width: Width::TwoColumn,
    }
}

const LAYERS: &str = "layer (0 = embedding, 1…L = blocks)";
const PAIRS: &str = "mean cosine of the pairs";
const FINAL_NORM: &str = "final_norm";

const BANDS: &str = "Shaded: 95 % bootstrap over texts; fewer than 5 texts have none.";

fn notes(hollow: bool, first: &[&str]) -> Vec<String> {
    let after = "Hollow: after the final norm, at the last layer (drawn beside it).";
    first.iter().copied().chain(hollow.then_some(after)).map(str::to_owned).collect()
}

fn runs<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut runs = Vec::new();
    names.for_each(|name| {
        if !runs.contains(&name) {
            runs.push(name);
        }
    });
    runs
}

fn rows_of<'a>(rows: &'a [TokenClassRow], run: &str, a: &str, b: &str) -> Vec<&'a TokenClassRow> {
    rows.iter().filter(|row| row.run == run && row.class_a == a && row.class_b == b).collect()
}

fn texts_phrase(texts: impl Iterator<Item = u64>) -> String {
    let (least, most) = texts.fold((u64::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
    if least >= most { format!("n = {most} texts") } else { format!("n = {least} to {most} texts") }
}

fn class_panel<'a>(title: String, rows: impl Fn(&str) -> Vec<&'a TokenClassRow>) -> Panel {
    let series = CLASSES.iter().enumerate().filter_map(|(style, class)| {
        let rows = rows(class);
        let point = |row: &&TokenClassRow| Point {
            x: f64::from(row.layer),
            y: Some(row.mean),
            interval: row.ci_low.zip(row.ci_high),
        };
        let (after, mut along): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.site == FINAL_NORM);
        along.sort_by_key(|row| row.layer);
        (!along.is_empty() || !after.is_empty()).then(|| Series {
            label: (*class).to_owned(),
            style,
            points: along.iter().map(point).collect(),
            hollow: after.iter().map(point).collect(),
        })
    });
    Panel { title, y_label: PAIRS.to_owned(), x_axis: None, series: series.collect(), y_range: None }
}

/// The figure of `distance.csv`: for each run a panel with a curve for each of at most five layers, spread evenly
/// from the first to the last. A layer looks the same in every panel.
#[must_use]
pub fn distance_chart(rows: &[DistanceRow]) -> Chart {
    let own = |run: &str| -> Vec<&DistanceRow> {
        rows.iter().filter(|row| row.run == run && row.site != FINAL_NORM).collect()
    };
    let runs = runs(rows.iter().map(|row| row.run.as_str()));
    let measured = |run: &str| sorted(own(run).iter().map(|row| row.layer));
    let shown: Vec<(&str, Vec<u32>)> = runs.into_iter().map(|run| (run, spread(&measured(run)))).collect();
    let styles = sorted(shown.iter().flat_map(|(_, layers)| layers.iter().copied()));
    let panels = shown.iter().map(|(run, layers)| {
        let series = layers.iter().map(|&layer| {
            let mut along: Vec<&DistanceRow> = own(run).into_iter().filter(|row| row.layer == layer).collect();
            along.sort_by_key(|row| row.distance_from);
            let point = |row: &&DistanceRow| {
                // The middle of a band on an axis of doublings.
                let middle = (row.distance_from as f64 * row.distance_to as f64).sqrt();
                Point { x: middle, y: Some(row.mean), interval: row.ci_low.zip(row.ci_high) }
            };
            Series {
                label: format!("layer {layer}"),
                style: styles.iter().position(|style| *style == layer).unwrap_or_default(),
                points: along.iter().map(point).collect(),
                hollow: Vec::new(),
            }
        });
        Panel {
            title: (*run).to_owned(),
            y_label: PAIRS.to_owned(),
            x_axis: None,
            series: series.collect(),
            y_range: None,
        }
    });
    let mut chart = Chart {
        title: "Similarity against distance".to_owned(),
        subtitle: texts_phrase(rows.iter().map(|row| row.texts)),
        x_label: "distance |i − j| (tokens)".to_owned(),
        x_scale: Scale::Doubling,
        panels: panels.collect(),
        columns: None,
        notes: notes(
            false,
            &[
                "Mean over the texts that have such a pair. From 5 on, a point is a band of distances (5–8, 9–16, …) and \
                 stands in its middle.",
                BANDS,
            ],
        ),
        width: Width::TwoColumn,
    };
    chart.notes.extend(layers_note(&shown, |run| measured(run).len()));
    chart
}

/// Which layers are drawn of each run, where not all are.
fn layers_note(shown: &[(&str, Vec<u32>)], measured: impl Fn(&str) -> usize) -> Option<String> {
    let some: Vec<&(&str, Vec<u32>)> = shown.iter().filter(|(run, layers)| layers.len() < measured(run)).collect();
    let list = |layers: &[u32]| layers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let alike = shown.iter().all(|(run, layers)| {
        some.first().is_some_and(|(first, own)| own == layers && measured(first) == measured(run))
    });
    let said = |name: &str, run: &str, layers: &[u32]| format!("{name}{} of {}", list(layers), measured(run));
    match some.as_slice() {
        [] => None,
        [(run, layers), ..] if alike => Some(format!("Drawn: layers {}.", said("", run, layers))),
        _ => {
            let each = some.iter().map(|(run, layers)| said(&format!("{run}, layers "), run, layers));
            Some(format!("Drawn: {}.", each.collect::<Vec<_>>().join("; ")))
        }
    }
}

fn sorted(layers: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut layers: Vec<u32> = layers.collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}

/// At most five of the layers, evenly from the first to the last.
fn spread(layers: &[u32]) -> Vec<u32> {
    const MOST: usize = 5;
    if layers.len() <= MOST {
        return layers.to_vec();
    }
    let last = layers.len() - 1;
    (0..MOST).filter_map(|step| layers.get((step * last + (MOST - 1) / 2) / (MOST - 1)).copied()).collect()
}

/// The figure of a heat map's table (its cells row by row): the diagonal is left out of the scale.
#[must_use]
pub fn heatmap_chart(rows: &[HeatMapRow], title: String, subtitle: String) -> HeatMap {
    let first = rows.first().map_or(0, |cell| cell.row);
    let columns: Vec<String> =
        rows.iter().take_while(|cell| cell.row == first).map(|cell| cell.token_column.clone()).collect();
    let labels = rows.iter().step_by(columns.len().max(1)).map(|cell| cell.token_row.clone()).collect();
    let values = rows.iter().map(|cell| cell.cosine.filter(|_| cell.row != cell.column)).collect();
    let zero = rows.iter().any(|cell| cell.cosine.is_none());
    let grey = if zero { "Grey: a token with itself, and rows that are zero." } else { "Grey: a token with itself." };
    HeatMap {
        title,
        subtitle,
        rows: labels,
        columns,
        values,
        value_label: "cosine".to_owned(),
        notes: vec![grey.to_owned()],
        width: Width::TwoColumn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(layer: u32, site: &str, a: &str, b: &str, mean: f64) -> TokenClassRow {
        let (run, site) = ("base".to_owned(), site.to_owned());
        TokenClassRow {
            run,
            layer,
            site,
            class_a: a.into(),
            class_b: b.into(),
            mean,
            std: None,
            ci_low: Some(mean - 0.1),
            ci_high: Some(mean + 0.1),
            pairs: 3,
            texts: 4,
        }
    }

    #[test]
    fn a_class_keeps_its_colour_and_the_other_class_is_found_on_either_side() {
        let rows = [
            class(1, "block", "digits", "words", 0.2),
            class(0, "embedding", "digits", "words", 0.1),
            class(0, "embedding", "words", "words", 0.5),
            class(0, "embedding", "words", "other", 0.7),
            class(1, "final_norm", "words", "words", 0.9),
        ];
        let chart = token_class_chart(&rows);
        let [within, with_words] = chart.panels.as_slice() else { panic!("{chart:?}") };
        let drawn = |panel: &Panel| -> Vec<(String, usize, Vec<f64>)> {
            let values = |s: &Series| s.points.iter().filter_map(|p| p.y).collect();
            panel.series.iter().map(|s| (s.label.clone(), s.style, values(s))).collect()
        };
        assert_eq!(drawn(within), [("words".to_owned(), 4, vec![0.5])]);
        assert_eq!(within.series[0].hollow[0].y, Some(0.9));
        assert_eq!(within.series[0].points[0].interval, Some((0.4, 0.6)));
        assert_eq!(drawn(with_words), [("digits".to_owned(), 2, vec![0.1, 0.2]), ("other".to_owned(), 5, vec![0.7])]);
        assert_eq!((chart.subtitle.as_str(), chart.columns), ("n = 4 texts", Some(2)));
    }

    #[test]
    fn distances_stand_at_the_middle_of_their_band_and_layers_are_spread() {
        let row = |layer: u32, from: u64, to: u64| DistanceRow {
            run: "base".into(),
            layer,
            site: "block".into(),
            distance_from: from,
            distance_to: to,
            mean: f64::from(layer) / 10.0 + 1.0 / from as f64,
            std: None,
            ci_low: None,
            ci_high: None,
            pairs: 5,
            texts: 2,
        };
        let rows: Vec<DistanceRow> = (0..=30).flat_map(|l| [row(l, 17, 32), row(l, 1, 1), row(l, 4, 4)]).collect();
        let chart = distance_chart(&rows);
        let labels: Vec<&str> = chart.panels[0].series.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels, ["layer 0", "layer 8", "layer 15", "layer 23", "layer 30"]);
        let places: Vec<f64> = chart.panels[0].series[0].points.iter().map(|p| p.x).collect();
        assert_eq!(places, [1.0, 4.0, (17.0_f64 * 32.0).sqrt()]);
        assert_eq!(chart.notes.last().unwrap(), "Drawn: layers 0, 8, 15, 23, 30 of 31.");
        assert_eq!(spread(&[0, 3, 6]), [0, 3, 6]);
        let mut two = rows.clone();
        two.extend((0..=2).map(|layer| DistanceRow { run: "small".into(), ..row(layer * 8, 1, 1) }));
        let chart = distance_chart(&two);
        let looks = |panel: usize| -> Vec<(&str, usize)> {
            chart.panels[panel].series.iter().map(|s| (s.label.as_str(), s.style)).collect()
        };
        assert_eq!(looks(0)[..2], [("layer 0", 0), ("layer 8", 1)]);
        assert_eq!(looks(1), [("layer 0", 0), ("layer 8", 1), ("layer 16", 3)], "a layer looks the same");
        assert_eq!(chart.notes.last().unwrap(), "Drawn: base, layers 0, 8, 15, 23, 30 of 31.");
        assert!(
            !distance_chart(&two[two.len() - 3..]).notes.iter().any(|note| note.starts_with("Drawn")),
            "all are drawn"
        );
    }

    #[test]
    fn the_diagonal_is_not_drawn_as_a_value() {
        let cell = |row: u32, column: u32, cosine| HeatMapRow {
            row,
            column,
            token_row: format!("t{row}"),
            token_column: format!("t{column}"),
            cosine,
        };
        let rows = [cell(4, 4, Some(1.0)), cell(4, 5, Some(0.3)), cell(5, 4, Some(0.3)), cell(5, 5, Some(1.0))];
        let map = heatmap_chart(&rows, "t".into(), "s".into());
        assert_eq!((map.rows, map.columns), (vec!["t4".to_owned(), "t5".into()], vec!["t4".to_owned(), "t5".into()]));
        assert_eq!(map.values, [None, Some(0.3), Some(0.3), None]);
        assert_eq!(map.notes, ["Grey: a token with itself."]);
    }
}
