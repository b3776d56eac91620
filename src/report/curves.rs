//! Similarity tables as figures: one curve a run and group, over layers or depth.

use super::chart::{Chart, GREY, Panel, Point, Scale, Series, Width, baseline_of};
use super::measure_words::{self as words, BASELINE_SUFFIXES, baseline};
use super::rows::SimilarityRow;

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

/// A run and group that has a curve in every panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Curve<'a> {
    run: &'a str,
    group: Option<&'a str>,
}

/// The curves of a table, in order of appearance, and how they look.
#[derive(Debug)]
pub(super) struct Curves<'a> {
    /// Each with the number of its style.
    curves: Vec<(Curve<'a>, usize)>,
    one_run: bool,
}

impl<'a> Curves<'a> {
    /// Runs keep the looks that they have without baselines; a baseline has its run's colour made pale.
    pub(super) fn of(rows: &'a [SimilarityRow]) -> Self {
        let mut all: Vec<Curve<'a>> = Vec::new();
        for row in rows {
            let curve = Curve { run: &row.run, group: row.group.as_deref() };
            if !all.contains(&curve) {
                all.push(curve);
            }
        }
        let own = |curve: &Curve<'a>| Curve { run: baseline(curve.run).map_or(curve.run, |(run, _)| run), ..*curve };
        let mut runs: Vec<Curve<'a>> = all.iter().filter(|curve| baseline(curve.run).is_none()).copied().collect();
        let orphans: Vec<Curve<'a>> = all.iter().map(own).filter(|own| !runs.contains(own)).collect();
        runs.extend(orphans);
        let look = |curve: &Curve<'a>| {
            let place = runs.iter().position(|run| *run == own(curve)).unwrap_or_default();
            baseline(curve.run).map_or(place, |(_, kind)| baseline_of(place, kind))
        };
        let one_run = all.iter().all(|curve| runs.first().is_some_and(|first| first.run == own(curve).run));
        Self { curves: all.iter().map(|curve| (*curve, look(curve))).collect(), one_run }
    }

    /// The panel of the `rows` of one measure and token set; curves without a value are left out.
    pub(super) fn panel(&self, rows: &[&SimilarityRow], measure: &str, options: &CurveOptions) -> Panel {
        let series = self.curves.iter().map(|&(curve, style)| {
            let of = |row: &&&SimilarityRow| row.run == curve.run && row.group.as_deref() == curve.group;
            let own: Vec<&SimilarityRow> = rows.iter().filter(of).copied().collect();
            along(&own, self.label(curve), style, options)
        });
        Panel {
            title: String::new(),
            y_label: y_label(measure, options.shown),
            x_axis: None,
            series: series.filter(|s| s.points.iter().chain(&s.hollow).any(|point| point.y.is_some())).collect(),
            y_range: None,
        }
    }

    fn label(&self, Curve { run, group }: Curve<'_>) -> String {
        match group {
            Some(group) if self.one_run => {
                let kind = baseline(run).and_then(|(_, kind)| BASELINE_SUFFIXES.get(kind));
                format!("{group}{}", kind.copied().unwrap_or_default())
            }
            Some(group) => format!("{run}, {group}"),
            None => run.to_owned(),
        }
    }
}

/// The figure of `rows`: a panel for each measure and token set asked for, a curve for each run and
/// group in order of appearance, the state after the final norm as a hollow marker beside the last layer.
#[must_use]
pub fn similarity_chart(rows: &[SimilarityRow], options: &CurveOptions) -> Chart {
    let curves = Curves::of(rows);
    let one_measure = options.panels.iter().all(|(m, _)| options.panels.first().is_some_and(|(first, _)| first == m));
    let shown = |(measure, tokens): &(String, String)| -> Vec<&SimilarityRow> {
        rows.iter().filter(|row| row.measure == *measure && row.tokens == *tokens).collect()
    };
    let mut outside = Vec::new();
    let panels: Vec<Panel> = options
        .panels
        .iter()
        .map(|asked| {
            let (measure, tokens) = asked;
            let mut panel = curves.panel(&shown(asked), measure, options);
            if options.panels.len() > 1 {
                panel.title = match one_measure {
                    true => capitalised(&token_name(tokens)),
                    false => format!("{}, {}", words::short(measure), token_name(tokens)),
                };
            }
            if words::is_size(measure)
                && let Some(values) = take_far_hollow(&mut panel)
            {
                outside.push(if options.panels.len() > 1 {
                    format!("{}: {values}", token_name(tokens))
                } else {
                    values
                });
            }
            panel
        })
        .collect();
    let drawn: Vec<&SimilarityRow> = options.panels.iter().flat_map(shown).collect();
    let hollow = panels.iter().flat_map(|panel| &panel.series).any(|series| !series.hollow.is_empty());
    let mut notes = notes(&drawn, options);
    if hollow {
        notes.push("Hollow: after the final norm, at the last layer (drawn beside it).".to_owned());
    }
    if !outside.is_empty() {
        notes.push(format!("After the final norm, outside the axis: {}.", outside.join("; ")));
    }
    Chart {
        title: options.title.clone(),
        subtitle: subtitle(&drawn, options),
        x_label: x_label(&drawn, options.depth),
        x_scale: if options.depth == Depth::Layers { Scale::Whole } else { Scale::Linear },
        panels,
        columns: None,
        notes,
        width: options.width,
    }
}

/// The horizontal axis of the layers that `rows` have.
pub(super) fn x_label(rows: &[&SimilarityRow], depth: Depth) -> String {
    let embedding = rows.iter().any(|row| row.layer == 0);
    match (depth, embedding) {
        (Depth::Layers, true) => "layer (0 = embedding, 1…L = blocks)",
        (Depth::Layers, false) => "layer (1…L = blocks)",
        (Depth::Relative, true) => "relative depth (0 = embedding, 1 = last block)",
        (Depth::Relative, false) => "relative depth (1 = last block)",
    }
    .to_owned()
}

/// Takes the hollow points out of a panel whose axis one of them would more than double; gives the runs' values, for
/// the note.
fn take_far_hollow(panel: &mut Panel) -> Option<String> {
    let size = |point: &Point| point.y.filter(|y| y.is_finite()).map(f64::abs);
    let largest = panel.series.iter().flat_map(|series| &series.points).filter_map(size).fold(0.0, f64::max);
    let hollow = panel.series.iter().flat_map(|series| &series.hollow);
    if largest == 0.0 || !hollow.filter_map(size).any(|size| size > 2.0 * largest) {
        return None;
    }
    let mut values = Vec::new();
    for series in &mut panel.series {
        for y in series.hollow.drain(..).filter_map(|point| point.y) {
            if baseline(&series.label).is_none() {
                values.push(format!("{} {}", series.label, three_digits(y)));
            }
        }
    }
    Some(values.join(", "))
}

fn three_digits(value: f64) -> String {
    if value.abs() >= 1e5 {
        return format!("{value:.2e}");
    }
    let decimals = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

/// Shades the audit's error around zero in a panel of differences, and greys each point within it. `error` gives that
/// of a place on the axis, along the curve or (`true`) after the final norm. Returns whether a point was greyed.
pub fn grey_below(panel: &mut Panel, error: impl Fn(f64, bool) -> Option<f64>) -> bool {
    let mut places: Vec<f64> = panel.series.iter().flat_map(|s| s.points.iter().map(|point| point.x)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let all = panel.series.iter().flat_map(|series| series.points.iter().chain(&series.hollow));
    let largest = all.filter_map(|point| point.y).map(f64::abs).fold(0.0, f64::max);
    let below =
        |point: &Point, last: bool| point.y.zip(error(point.x, last)).is_some_and(|(y, error)| y.abs() <= error);
    let mut grey = Vec::new();
    for series in &mut panel.series {
        let mut own = Series {
            // No name: a note says what grey is.
            label: String::new(),
            style: GREY,
            points: series.points.clone(),
            hollow: series.hollow.clone(),
        };
        for (last, points, greys) in
            [(false, &mut series.points, &mut own.points), (true, &mut series.hollow, &mut own.hollow)]
        {
            for (point, grey) in points.iter_mut().zip(greys) {
                // One of the two keeps the point, the other has a gap there.
                let hidden = if below(point, last) { point } else { grey };
                *hidden = Point { y: None, interval: None, ..*hidden };
            }
        }
        if own.points.iter().chain(&own.hollow).any(|point| point.y.is_some()) {
            grey.push(own);
        }
    }
    let greyed = !grey.is_empty();
    panel.series.extend(grey);
    // A band beyond the data would only shrink them.
    let band = |&x: &f64| {
        let error = error(x, false).map(|error| error.min(1.1 * largest));
        Point { x, y: None, interval: error.map(|error| (-error, error)) }
    };
    let points = places.iter().map(band).collect();
    panel.series.push(Series { label: String::new(), style: GREY, points, hollow: Vec::new() });
    greyed
}

fn along(rows: &[&SimilarityRow], label: String, style: usize, options: &CurveOptions) -> Series {
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

pub(super) fn token_name(tokens: &str) -> String {
    match tokens {
        "all" => "all tokens".to_owned(),
        "no_first" => "without the first token".to_owned(),
        "no_special" => "without special tokens".to_owned(),
        other => other.replace('_', " "),
    }
}

fn y_label(measure: &str, shown: Shown) -> String {
    let name = words::axis(measure);
    match shown {
        Shown::Mean => name,
        Shown::Difference => format!("difference in {name}"),
    }
}

/// The rows that have what is shown.
fn with_value<'a>(rows: &[&'a SimilarityRow], shown: Shown) -> Vec<&'a SimilarityRow> {
    let value = |row: &&&SimilarityRow| match shown {
        Shown::Mean => row.mean.is_some(),
        Shown::Difference => row.diff.is_some(),
    };
    rows.iter().filter(value).copied().collect()
}

pub(super) fn subtitle(rows: &[&SimilarityRow], options: &CurveOptions) -> String {
    let rows = with_value(rows, options.shown);
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

/// What the bands, the baselines and the measure are.
pub(super) fn notes(rows: &[&SimilarityRow], options: &CurveOptions) -> Vec<String> {
    let rows = with_value(rows, options.shown);
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
    let measure = options.panels.first().map(|(measure, _)| measure.as_str()).unwrap_or_default();
    let mut kinds: Vec<usize> = rows.iter().filter_map(|row| Some(baseline(&row.run)?.1)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if !kinds.is_empty() {
        let run = |row: &&SimilarityRow| {
            (baseline(&row.run).map_or(row.run.clone(), |(run, _)| run.to_owned()), row.group.clone())
        };
        let several = rows.iter().any(|row| rows.first().is_some_and(|first| run(first) != run(row)));
        let colour = if several { "Pale, in their runs' colours" } else { "Grey" };
        notes.push(words::baseline_note(measure, &kinds, colour));
    }
    notes.extend(words::derived(measure));
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
        let said = "Pale, in their runs' colours, baselines – shuffled: tokens in random order.";
        assert!(chart.notes.iter().any(|note| note == said), "{:?}", chart.notes);
    }

    #[test]
    fn baselines_are_told_apart_by_run_and_by_group() {
        let mut with = vec![row("base", 1, "block", 0.2, None), row("base (shuffled)", 1, "block", 0.2, None)];
        let alone = similarity_chart(&with, &options(Depth::Layers, Shown::Mean));
        assert!(alone.notes.iter().any(|note| note.starts_with("Grey, baselines")), "{:?}", alone.notes);
        let grouped: Vec<SimilarityRow> =
            with.iter().map(|row| SimilarityRow { group: Some("sums".into()), ..row.clone() }).collect();
        with.extend(grouped);
        let chart = similarity_chart(&with, &options(Depth::Layers, Shown::Mean));
        let looks: Vec<(&str, usize)> = chart.panels[0].series.iter().map(|s| (s.label.as_str(), s.style)).collect();
        let expected =
            [("base", 0), ("base (shuffled)", baseline_of(0, 2)), ("sums", 1), ("sums (shuffled)", baseline_of(1, 2))];
        assert_eq!(looks, expected);
    }

    #[test]
    fn a_final_norm_far_outside_is_said_and_not_drawn() {
        let norms = |after: f64| -> Vec<SimilarityRow> {
            let rows = [row("base", 1, "block", 5.0, None), row("base", 2, "block", 12.0, None)];
            let after = [row("base", 2, "final_norm", after, None), row("base (shuffled)", 2, "final_norm", 1.0, None)];
            let all = rows.into_iter().chain(after);
            all.map(|row| SimilarityRow { measure: "norm_mean".into(), ..row }).collect()
        };
        let panels = vec![("norm_mean".to_owned(), "no_first".to_owned())];
        let options = CurveOptions { panels, ..options(Depth::Layers, Shown::Mean) };
        let near = similarity_chart(&norms(20.0), &options);
        assert_eq!(near.panels[0].series[0].hollow[0].y, Some(20.0));
        let far = similarity_chart(&norms(312.4), &options);
        assert!(far.panels[0].series.iter().all(|series| series.hollow.is_empty()));
        assert_eq!(far.notes.last().unwrap(), "After the final norm, outside the axis: base 312.");
        assert_eq!([665_223.0, 12.34, 0.5678].map(three_digits), ["6.65e5", "12.3", "0.568"]);
    }

    #[test]
    fn only_rows_with_a_value_are_counted_and_a_panel_names_what_differs() {
        let mut rows = rows();
        rows.push(SimilarityRow { mean: None, texts: 0, ..row("base", 3, "block", 0.1, None) });
        let chart = similarity_chart(&rows, &options(Depth::Layers, Shown::Mean));
        assert_eq!(chart.subtitle, "Without the first token; n = 98 to 100 texts");
        let panels = ["all", "no_first"].map(|tokens| ("cosine".to_owned(), tokens.to_owned())).to_vec();
        let both = similarity_chart(&rows, &CurveOptions { panels, ..options(Depth::Layers, Shown::Mean) });
        let titles: Vec<&str> = both.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["All tokens", "Without the first token"]);
        let blocks: Vec<&SimilarityRow> = rows.iter().filter(|row| row.layer > 0).collect();
        assert_eq!(x_label(&blocks, Depth::Layers), "layer (1…L = blocks)");
    }

    #[test]
    fn what_the_audit_cannot_tell_from_nothing_is_grey() {
        let mut chart = similarity_chart(&rows(), &options(Depth::Layers, Shown::Difference));
        let panel = &mut chart.panels[0];
        // Differences of 0 at layer 0 and −.1 at layer 4.
        let greyed = grey_below(panel, |layer, _| Some(if layer == 0.0 { 0.05 } else { 0.02 }));
        let [own, grey, band] = panel.series.as_slice() else { panic!("{panel:?}") };
        let drawn = |series: &Series| series.points.iter().map(|point| point.y).collect::<Vec<_>>();
        assert_eq!((own.style, drawn(own)), (1, vec![None, Some(-0.1)]));
        assert_eq!((grey.style, drawn(grey)), (GREY, vec![Some(0.0), None]));
        assert!(greyed);
        assert_eq!((band.style, drawn(band)), (GREY, vec![None, None]), "a band and no curve");
        let bands: Vec<_> = band.points.iter().map(|point| point.interval).collect();
        assert_eq!(bands, [Some((-0.05, 0.05)), Some((-0.02, 0.02))]);
        // Nothing that was audited, nothing grey; an endless error greys all and keeps the axis.
        let mut free = similarity_chart(&rows(), &options(Depth::Layers, Shown::Difference)).panels.remove(0);
        let mut lost = free.clone();
        assert!(!grey_below(&mut free, |_, _| None));
        assert_eq!(drawn(&free.series[0]), [Some(0.0), Some(-0.1)]);
        grey_below(&mut lost, |_, _| Some(f64::INFINITY));
        assert_eq!(drawn(&lost.series[0]), [None, None]);
        assert!(lost.series[2].points.iter().all(|p| p.interval.is_some_and(|(_, high)| (high - 0.11).abs() < 1e-12)));
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
