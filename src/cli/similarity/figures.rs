//! The figures of a similarity run.

use crate::analysis::audit::Audit;
use crate::analysis::convention::Convention;
use crate::measures::{Measure, Point, TokenSet};
use crate::probe::Site;
use crate::report::{
    Chart, CurveOptions, Depth, Panel, Shown, SimilarityRow, Width, baseline, grey_below, similarity_chart, site_chart,
};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// Sites that a run is measured at without asking.
pub(super) const USUAL: [&str; 3] = ["embedding", "block", "final_norm"];

/// A figure's stem, its title, and its panels: a measure and a token set each.
type Figure<'a> = (String, String, Vec<(Measure, &'a str)>);

/// Where figures are drawn, and how.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Look<'a> {
    /// The folder.
    pub(in crate::cli) out: &'a Path,
    /// Depth as a share of each model's layers.
    pub(in crate::cli) relative: bool,
    /// A panel for each run.
    pub(in crate::cli) panel_by_run: bool,
    /// Width at print.
    pub(in crate::cli) width: Width,
    /// What the figures of token similarity count.
    pub(in crate::cli) convention: Convention,
    /// Whether PNG files are wanted beside the SVG.
    pub(in crate::cli) png: bool,
}

impl Look<'_> {
    /// Writes a chart at this width.
    pub(in crate::cli) fn write(&self, stem: &str, chart: &Chart) -> Result<()> {
        let chart = Chart { width: self.width, ..chart.clone() };
        super::super::write_drawing(self.out, stem, &chart.draw(), self.png)
    }
}

/// `similarity.png` with both forms of the cosine, a figure for every other measure, and one for the sites inside a
/// block of each measure, all as PNG and SVG.
pub(in crate::cli) fn draw(
    args: &Look<'_>,
    measures: &[Measure],
    rows: &[SimilarityRow],
    audit: Option<&Audit>,
) -> Result<()> {
    let usual: Vec<SimilarityRow> = rows.iter().filter(|row| USUAL.contains(&row.site.as_str())).cloned().collect();
    let (usual, left_out) = if args.panel_by_run { (usual, None) } else { readable(usual) };
    let cosines = [(Measure::Cosine, "all"), (Measure::CosineCentred, "no_first")];
    let shi = args.convention == Convention::Shi2022;
    let counted = args.convention.rows(&usual);
    let cosines = if shi { vec![(Measure::Cosine, "all")] } else { cosines.to_vec() };
    let both: Vec<(Measure, &str)> = cosines.iter().copied().filter(|(m, _)| measures.contains(m)).collect();
    let (mut figures, mut compared): (Vec<Figure<'_>>, Vec<Figure<'_>>) = Default::default();
    if !both.is_empty() {
        compared.push((
            "differences".to_owned(),
            "Difference of token similarity over the layers".to_owned(),
            both.clone(),
        ));
        // A panel by run shows one of the two.
        let apart = both.get(1).filter(|_| args.panel_by_run).map(|&(measure, tokens)| {
            (measure.name().to_owned(), format!("{} · by layer", measure.title()), vec![(measure, tokens)])
        });
        figures.push(("similarity".to_owned(), "Token similarity over the layers".to_owned(), both));
        figures.extend(apart);
    }
    for &measure in measures.iter().filter(|m| !cosines.iter().any(|(c, _)| c == *m)) {
        let panels = vec![(measure, "all"), (measure, "no_first")];
        let title = format!("{} · difference by layer", measure.title());
        compared.push((format!("{}_differences", measure.name()), title, panels.clone()));
        figures.push((measure.name().to_owned(), format!("{} · by layer", measure.title()), panels));
    }
    // The others show what the table has, whatever is counted as token similarity.
    let rows_of = |stem: &str| if ["similarity", "differences"].contains(&stem) { &counted } else { &usual };
    let counting =
        |stem: &str| (shi && ["similarity", "differences"].contains(&stem)).then(|| args.convention.counted());
    for (stem, title, panels) in figures {
        let mut chart = match args.panel_by_run {
            true => by_run(rows_of(&stem), &options(args, title, &panels)),
            false => similarity_chart(rows_of(&stem), &options(args, title, &panels)),
        };
        chart.notes.extend(counting(&stem).map(str::to_owned));
        chart.notes.extend(audit.and_then(|audit| audit_note(audit, &panels, true)));
        chart.notes.extend(left_out.map(str::to_owned));
        if chart.panels.iter().any(|panel| !panel.series.is_empty()) {
            args.write(&stem, &chart)?;
        }
    }
    // Models side by side have layers of their own.
    for (stem, title, panels) in compared.into_iter().filter(|_| !args.panel_by_run) {
        let mut chart = differences(args, title, rows_of(&stem), &panels, audit);
        chart.notes.extend(counting(&stem).map(str::to_owned));
        if chart.panels.iter().any(|panel| !panel.series.is_empty()) {
            args.write(&stem, &chart)?;
        }
    }
    for &measure in measures {
        let title = format!("{} · inside the blocks", measure.title());
        if let Some(mut chart) = site_chart(rows, &options(args, title, &[(measure, "all")])) {
            chart.notes.extend(audit.and_then(|audit| audit_note(audit, &[(measure, "all")], false)));
            args.write(&format!("{}_sites", measure.name()), &chart)?;
        }
    }
    Ok(())
}

/// Most curves that a reader can tell apart in a panel.
const MOST_CURVES: usize = 12;

/// The rows that a figure can show, and what it says of the others: where there are too many curves, the groups of
/// baselines go first, then all groups.
fn readable(rows: Vec<SimilarityRow>) -> (Vec<SimilarityRow>, Option<&'static str>) {
    let fits = |rows: &[SimilarityRow]| {
        let curves: BTreeSet<_> = rows.iter().map(|row| (row.run.as_str(), row.group.as_deref())).collect();
        curves.len() <= MOST_CURVES
    };
    if fits(&rows) || rows.iter().all(|row| row.group.is_none()) {
        return (rows, None);
    }
    let some: Vec<SimilarityRow> =
        rows.iter().filter(|row| row.group.is_none() || baseline(&row.run).is_none()).cloned().collect();
    if fits(&some) {
        return (some, Some("Groups of baselines, too many for a figure: in similarity.csv and report.html."));
    }
    let all = rows.into_iter().filter(|row| row.group.is_none()).collect();
    (all, Some("Groups, too many for a figure: in similarity.csv and report.html."))
}

/// The name of every run in a panel of its own.
const MEASURED: &str = "measured";

/// A panel for each run, with its own baselines, of the figure's first measure and token set.
fn by_run(rows: &[SimilarityRow], options: &CurveOptions) -> Chart {
    let own = |run: &str| baseline(run).map_or(run, |(own, _)| own).to_owned();
    let mut runs: Vec<String> = rows.iter().map(|row| own(&row.run)).collect();
    let mut seen = BTreeSet::new();
    runs.retain(|run| seen.insert(run.clone()));
    let mut options = options.clone();
    options.panels.truncate(1);
    let mut whole: Option<Chart> = None;
    let mut notes: Vec<(String, Vec<String>)> = Vec::new();
    for run in &runs {
        let rename = |row: &SimilarityRow| {
            let suffix = row.run.strip_prefix(run.as_str()).unwrap_or_default();
            SimilarityRow { run: format!("{MEASURED}{suffix}"), ..row.clone() }
        };
        let rows: Vec<SimilarityRow> = rows.iter().filter(|row| own(&row.run) == *run).map(rename).collect();
        let mut chart = similarity_chart(&rows, &options);
        chart.panels.retain(|panel| !panel.series.is_empty());
        chart.panels.iter_mut().for_each(|panel| panel.title.clone_from(run));
        for note in std::mem::take(&mut chart.notes) {
            match notes.iter_mut().find(|(known, _)| *known == note) {
                Some((_, of)) => of.push(run.clone()),
                None => notes.push((note, vec![run.clone()])),
            }
        }
        match &mut whole {
            None => whole = Some(chart),
            Some(whole) => whole.panels.extend(chart.panels),
        }
    }
    let mut whole = whole.unwrap_or_else(|| similarity_chart(&[], &options));
    // A note of some runs only names them.
    let said = |(note, of): (String, Vec<String>)| match of.len() == runs.len() {
        true => note,
        false => format!("{}: {note}", of.join(", ")),
    };
    whole.notes = notes.into_iter().map(said).collect();
    whole
}

/// The differences of the runs to their reference; what is within the audit's error is grey.
fn differences(
    args: &Look<'_>,
    title: String,
    rows: &[SimilarityRow],
    panels: &[(Measure, &str)],
    audit: Option<&Audit>,
) -> Chart {
    let plain: Vec<SimilarityRow> = rows.iter().filter(|row| baseline(&row.run).is_none()).cloned().collect();
    let mut chart =
        similarity_chart(&plain, &CurveOptions { shown: Shown::Difference, ..options(args, title, panels) });
    let drawn = |panel: &Panel| !panel.series.is_empty();
    let Some(audit) = audit else {
        chart.panels.retain(drawn);
        return chart;
    };
    let mut greyed = false;
    for (panel, &(measure, tokens)) in chart.panels.iter_mut().zip(panels).filter(|(panel, _)| drawn(panel)) {
        let Some(tokens) = token_set(tokens) else { continue };
        greyed |= grey_below(panel, |x, last| match (args.relative, last) {
            // A relative depth is no layer: the measure's largest error stands for all.
            (true, _) => audit.largest(measure, tokens, true),
            (false, _) => {
                let layer = x.round() as usize;
                let site = match (last, layer) {
                    (true, _) => Site::FinalNorm,
                    (false, 0) => Site::Embedding,
                    (false, _) => Site::Block,
                };
                audit.error((measure, Point { site, layer }, tokens))
            }
        });
    }
    chart.panels.retain(drawn);
    chart.notes.extend(audit_note(audit, panels, true));
    let grey = "Grey band: the audit's error in each layer.";
    let points = if greyed { " Grey points lie within it: they say nothing." } else { "" };
    chart.notes.push(format!("{grey}{points}"));
    chart
}

fn token_set(name: &str) -> Option<TokenSet> {
    TokenSet::ALL.into_iter().find(|set| set.to_string() == name)
}

/// What the audit found for a figure's panels, at the usual sites or inside the blocks.
fn audit_note(audit: &Audit, panels: &[(Measure, &str)], usual: bool) -> Option<String> {
    let mut errors: Vec<(Measure, f64)> = Vec::new();
    for &(measure, tokens) in panels {
        let Some(error) = token_set(tokens).and_then(|set| audit.largest(measure, set, usual)) else { continue };
        match errors.iter_mut().find(|(known, _)| *known == measure) {
            Some((_, largest)) => *largest = largest.max(error),
            None => errors.push((measure, error)),
        }
    }
    let named = errors.iter().map(|(measure, error)| format!("{measure} {error:.1e}")).collect::<Vec<_>>().join(", ");
    let texts = audit.texts;
    (!errors.is_empty()).then(|| format!("Audit on {texts} texts, largest deviation of a text's value: {named}."))
}

fn options(args: &Look<'_>, title: String, panels: &[(Measure, &str)]) -> CurveOptions {
    CurveOptions {
        title,
        panels: panels.iter().map(|(measure, tokens)| (measure.name().to_owned(), (*tokens).to_owned())).collect(),
        depth: if args.relative { Depth::Relative } else { Depth::Layers },
        shown: Shown::Mean,
        width: args.width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_where_there_are_too_many_curves() {
        let row = |run: String, group: Option<&str>| SimilarityRow {
            run,
            group: group.map(str::to_owned),
            layer: 0,
            site: "block".into(),
            measure: "cosine".into(),
            tokens: "all".into(),
            mean: None,
            std: None,
            ci_low: None,
            ci_high: None,
            texts: 0,
            reference: None,
            diff: None,
            diff_ci_low: None,
            diff_ci_high: None,
        };
        let table = |runs: usize, baselines: usize| -> Vec<SimilarityRow> {
            let names = (0..runs).flat_map(|run| {
                let kinds = crate::report::BASELINE_SUFFIXES.iter().take(baselines);
                std::iter::once(format!("r{run}")).chain(kinds.map(move |suffix| format!("r{run}{suffix}")))
            });
            names.flat_map(|name| [None, Some("a"), Some("b")].map(|group| row(name.clone(), group))).collect()
        };
        let count = |runs, baselines| {
            let (rows, said) = readable(table(runs, baselines));
            (rows.len(), said.is_some())
        };
        assert_eq!(
            [count(4, 0), count(2, 1), count(2, 2), count(5, 2)],
            [(12, false), (12, false), (10, true), (15, true)]
        );
    }
}
