//! Similarity tables as figures: one curve a run and group, over layers or depth.

use super::chart::{Chart, GREY, Panel, Point, Scale, Series, Width, baseline_of};
use super::rows::SimilarityRow;

/// What follows a run's name in the names of its null baselines: tokens of different texts, untrained weights,
/// shuffled order. They are drawn grey.
pub const BASELINE_SUFFIXES: [&str; 3] = [" (other texts)", " (untrained)", " (shuffled)"];

/// Which null baseline a run is, if it is one.
fn baseline(run: &str) -> Option<usize> {
    BASELINE_SUFFIXES.iter().position(|suffix| run.ends_with(suffix))
}

/// The horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The layer's number.
    Layers,
    /// The layer over the deepest layer that the table has of the run, to compare models of different depth.
    Relative,
}

/// The vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The mean over texts.
    Mean,
    /// The paired difference to the reference run.
    Difference,
}

/// What of a table to draw, and how.
#[derive(Debug, Clone)]
pub struct CurveOptions {
    /// First line of the figure.
    pub title: String,
    /// Panels, each a measure and a token set (`("cosine", "all")`).
    pub panels: Vec<(String, String)>,
    /// The horizontal axis.
    pub depth: Depth,
    /// The vertical axis.
    pub shown: Shown,
    /// Width at print.
    pub width: Width,
}

/// The figure of `rows`: a panel for each measure and token set asked for, a curve for each run and
/// group in order of appearance, the state after the final norm as a hollow marker beside the last layer.
#[must_use]
pub fn similarity_chart(rows: &[SimilarityRow], options: &CurveOptions) -> Chart {
    let mut curves: Vec<(&str, Option<&str>)> = Vec::new();
    for row in rows {
        let curve = (row.run.as_str(), row.group.as_deref());
        if !curves.contains(&curve) {
            curves.push(curve);
        }
    }
    // Runs keep the looks that they have without baselines; one kind of baseline has one dash for all runs.
    let runs = |upto: usize| curves.iter().take(upto).filter(|(run, _)| baseline(run).is_none()).count();
    let looks: Vec<usize> = curves
        .iter()
        .enumerate()
        .map(|(place, (run, _))| baseline(run).map_or_else(|| runs(place), |kind| baseline_of(0, kind)))
        .collect();
    let one_run = curves.iter().all(|(run, _)| curves.first().is_some_and(|first| first.0 == *run));
    let panels: Vec<Panel> = options
        .panels
        .iter()
        .map(|(measure, tokens)| {
            let rows = || rows.iter().filter(|row| row.measure == *measure && row.tokens == *tokens);
            let series = curves.iter().zip(&looks).map(|(&(run, group), &style)| {
                let own: Vec<&SimilarityRow> =
                    rows().filter(|row| row.run == run && row.group.as_deref() == group).collect();
                curve(&own, label(run, group, one_run), style, options)
            });
            Panel {
                title: if options.panels.len() > 1 {
                    format!("{}, {}", measure_name(measure), token_name(tokens))
                } else {
                    String::new()
                },
                y_label: y_label(measure, options.shown),
                x_axis: None,
                series: series
                    .filter(|series| series.points.iter().chain(&series.hollow).any(|p| p.y.is_some()))
                    .collect(),
                y_range: None,
            }
        })
        .collect();
    let drawn: Vec<&SimilarityRow> = rows
        .iter()
        .filter(|row| options.panels.iter().any(|(measure, tokens)| row.measure == *measure && row.tokens == *tokens))
        .collect();
    let hollow = panels.iter().flat_map(|panel| &panel.series).any(|series| !series.hollow.is_empty());
    Chart {
        title: options.title.clone(),
        subtitle: subtitle(&drawn, options),
        x_label: match options.depth {
            Depth::Layers => "layer (0 = embedding, 1…L = blocks)",
            Depth::Relative => "relative depth (0 = embedding, 1 = last block)",
        }
        .to_owned(),
        x_scale: if options.depth == Depth::Layers { Scale::Whole } else { Scale::Linear },
        columns: None,
        panels,
        notes: notes(&drawn, options, hollow),
        width: options.width,
    }
}

/// Shades what is within `error` of zero in a panel of differences, and greys the curves that never leave it.
pub fn grey_below(panel: &mut Panel, error: f64) {
    let places = || panel.series.iter().flat_map(|series| series.points.iter().map(|point| point.x));
    let ends = places()
        .fold(None, |ends: Option<(f64, f64)>, x| Some(ends.map_or((x, x), |(low, high)| (low.min(x), high.max(x)))));
    let Some((first, last)) = ends else { return };
    for series in &mut panel.series {
        let mut all = series.points.iter().chain(&series.hollow);
        if all.all(|point| point.y.is_none_or(|y| y.abs() <= error)) {
            series.style += GREY;
        }
    }
    let band = |x| Point { x, y: Some(0.0), interval: Some((-error, error)) };
    let label = "audit error".to_owned();
    panel.series.push(Series { label, style: GREY, points: vec![band(first), band(last)], hollow: Vec::new() });
}

fn curve(rows: &[&SimilarityRow], label: String, style: usize, options: &CurveOptions) -> Series {
    let layers = rows.iter().map(|row| row.layer).max().unwrap_or(0).max(1);
    let point = |row: &&SimilarityRow| {
        let (y, low, high) = match options.shown {
            Shown::Mean => (row.mean, row.ci_low, row.ci_high),
            Shown::Difference => (row.diff, row.diff_ci_low, row.diff_ci_high),
        };
        let x = match options.depth {
            Depth::Layers => f64::from(row.layer),
            Depth::Relative => f64::from(row.layer) / f64::from(layers),
        };
        Point { x, y, interval: low.zip(high) }
    };
    let (after, mut along): (Vec<&SimilarityRow>, Vec<&SimilarityRow>) =
        rows.iter().partition(|row| row.site == "final_norm");
    along.sort_by_key(|row| row.layer);
    let hollow = after.iter().map(point).filter(|point| point.y.is_some()).collect();
    Series { label, style, points: along.iter().map(point).collect(), hollow }
}

fn label(run: &str, group: Option<&str>, one_run: bool) -> String {
    match group {
        Some(group) if one_run => group.to_owned(),
        Some(group) => format!("{run}, {group}"),
        None => run.to_owned(),
    }
}

fn measure_name(measure: &str) -> String {
    match measure {
        "cosine_centred" => "cosine, corpus-centred".to_owned(),
        other => other.replace('_', " "),
    }
}

fn token_name(tokens: &str) -> String {
    match tokens {
        "all" => "all tokens".to_owned(),
        "no_first" => "without the first token".to_owned(),
        "no_special" => "without special tokens".to_owned(),
        other => other.replace('_', " "),
    }
}

fn y_label(measure: &str, shown: Shown) -> String {
    let name = match measure {
        "cosine" => "token-wise cosine similarity".to_owned(),
        "cosine_centred" => "corpus-centred token-wise cosine".to_owned(),
        other => measure_name(other),
    };
    match shown {
        Shown::Mean => name,
        Shown::Difference => format!("difference in {name}"),
    }
}

fn subtitle(rows: &[&SimilarityRow], options: &CurveOptions) -> String {
    let least = rows.iter().map(|row| row.texts).min().unwrap_or(0);
    let most = rows.iter().map(|row| row.texts).max().unwrap_or(0);
    let texts = if least == most { format!("n = {most} texts") } else { format!("n = {least} to {most} texts") };
    match options.panels.as_slice() {
        [(_, tokens)] => format!("{}; {texts}", capitalised(&token_name(tokens))),
        _ => texts,
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn notes(rows: &[&SimilarityRow], options: &CurveOptions, hollow: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let (banded, note) = match options.shown {
        Shown::Mean => (
            rows.iter().any(|row| row.ci_low.is_some()),
            "Mean over texts; bands: 95 % percentile bootstrap over texts.".to_owned(),
        ),
        Shown::Difference => {
            let reference = rows.iter().find_map(|row| row.reference.as_deref()).unwrap_or("the reference");
            let note = format!("Mean over the same texts, minus {reference}; bands: 95 % paired bootstrap over texts.");
            (true, note)
        }
    };
    if banded {
        notes.push(note);
    }
    if rows.iter().any(|row| baseline(&row.run).is_some()) {
        notes.push("Grey: null baselines, what the measure gives where there is nothing to see.".to_owned());
    }
    if hollow {
        notes.push("Hollow: after the final norm, at the last layer (drawn beside it).".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(run: &str, layer: u32, site: &str, mean: f64, diff: Option<f64>) -> SimilarityRow {
        SimilarityRow {
            run: run.into(),
            group: None,
            layer,
            site: site.into(),
            measure: "cosine".into(),
            tokens: "no_first".into(),
            mean: Some(mean),
            std: Some(0.1),
            ci_low: Some(mean - 0.02),
            ci_high: Some(mean + 0.02),
            texts: 98 + u64::from(layer.min(2)),
            reference: diff.map(|_| "base".into()),
            diff,
            diff_ci_low: diff.map(|diff| diff - 0.01),
            diff_ci_high: diff.map(|diff| diff + 0.01),
        }
    }

    fn rows() -> Vec<SimilarityRow> {
        let mut other = row("base", 1, "block", 0.9, None);
        other.tokens = "all".into();
        vec![
            row("base", 2, "final_norm", 0.5, None),
            row("base", 2, "block", 0.7, None),
            row("base", 0, "embedding", 0.1, None),
            row("base", 1, "block", 0.3, None),
            other,
            row("SIBO", 0, "embedding", 0.1, Some(0.0)),
            row("SIBO", 4, "block", 0.6, Some(-0.1)),
        ]
    }

    fn options(depth: Depth, shown: Shown) -> CurveOptions {
        let panels = vec![("cosine".to_owned(), "no_first".to_owned())];
        CurveOptions { title: "t".into(), panels, depth, shown, width: Width::OneColumn }
    }

    #[test]
    fn a_curve_is_its_rows_in_order_of_depth_and_the_final_norm_stands_apart() {
        let chart = similarity_chart(&rows(), &options(Depth::Relative, Shown::Mean));
        let base = &chart.panels[0].series[0];
        let drawn: Vec<(f64, Option<f64>)> = base.points.iter().map(|point| (point.x, point.y)).collect();
        assert_eq!(drawn, [(0.0, Some(0.1)), (0.5, Some(0.3)), (1.0, Some(0.7))]);
        assert_eq!(base.hollow, [Point { x: 1.0, y: Some(0.5), interval: Some((0.48, 0.52)) }]);
        assert_eq!(chart.subtitle, "Without the first token; n = 98 to 100 texts");
        assert!(chart.notes.iter().any(|note| note.contains("final norm")));
        let layers = similarity_chart(&rows(), &options(Depth::Layers, Shown::Mean));
        assert_eq!(layers.panels[0].series[1].points[1].x, 4.0);
    }

    #[test]
    fn baselines_are_grey_and_leave_the_runs_their_looks() {
        let mut with = rows();
        with.insert(3, row("base (shuffled)", 1, "block", 0.2, None));
        let plain = similarity_chart(&rows(), &options(Depth::Layers, Shown::Mean));
        let chart = similarity_chart(&with, &options(Depth::Layers, Shown::Mean));
        let looks = |chart: &Chart| -> Vec<(String, usize)> {
            chart.panels[0].series.iter().map(|s| (s.label.clone(), s.style)).collect()
        };
        assert_eq!(looks(&plain), [("base".to_owned(), 0), ("SIBO".to_owned(), 1)]);
        let expected =
            [("base".to_owned(), 0), ("base (shuffled)".to_owned(), baseline_of(0, 2)), ("SIBO".to_owned(), 1)];
        assert_eq!(looks(&chart), expected);
        assert!(chart.notes.iter().any(|note| note.starts_with("Grey:")));
    }

    #[test]
    fn what_the_audit_cannot_tell_from_nothing_is_grey() {
        let mut chart = similarity_chart(&rows(), &options(Depth::Layers, Shown::Difference));
        let mut small = chart.clone();
        grey_below(&mut chart.panels[0], 0.05);
        grey_below(&mut small.panels[0], 0.2);
        let styles = |chart: &Chart| chart.panels[0].series.iter().map(|s| s.style).collect::<Vec<_>>();
        assert_eq!((styles(&chart), styles(&small)), (vec![1, GREY], vec![GREY + 1, GREY]));
        let band = &chart.panels[0].series[1].points;
        assert_eq!((band[0].x, band[1].x, band[1].interval), (0.0, 4.0, Some((-0.05, 0.05))));
    }

    #[test]
    fn differences_leave_the_reference_out_and_keep_every_runs_looks() {
        let chart = similarity_chart(&rows(), &options(Depth::Layers, Shown::Difference));
        let [series] = chart.panels[0].series.as_slice() else { panic!("{chart:?}") };
        assert_eq!((series.label.as_str(), series.style), ("SIBO", 1));
        assert_eq!(series.points[1].interval, Some((-0.1 - 0.01, -0.1 + 0.01)));
        assert!(chart.notes[0].contains("minus base"), "{:?}", chart.notes);
    }
}
