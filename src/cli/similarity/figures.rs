//! The figures of a similarity run.

use super::SimilarityArgs;
use crate::analysis::audit::Audit;
use crate::cli::write_chart;
use crate::measures::{Measure, Point, TokenSet};
use crate::probe::Site;
use crate::report::{
    Chart, CurveOptions, Depth, Panel, Shown, SimilarityRow, Width, baseline, grey_below, similarity_chart, site_chart,
};
use anyhow::Result;
use std::collections::BTreeSet;

/// Sites that a run is measured at without asking.
pub(super) const USUAL: [&str; 3] = ["embedding", "block", "final_norm"];

/// A figure's stem, its title, and its panels: a measure and a token set each.
type Figure<'a> = (String, String, Vec<(Measure, &'a str)>);

/// `similarity.png` with both forms of the cosine, a figure for every other measure, and one for the sites inside a
/// block of each measure, all as PNG and SVG.
pub(super) fn draw(
    args: &SimilarityArgs,
    measures: &[Measure],
    rows: &[SimilarityRow],
    audit: Option<&Audit>,
) -> Result<()> {
    let usual: Vec<SimilarityRow> = rows.iter().filter(|row| USUAL.contains(&row.site.as_str())).cloned().collect();
    let cosines = [(Measure::Cosine, "all"), (Measure::CosineCentred, "no_first")];
    let both: Vec<(Measure, &str)> = cosines.into_iter().filter(|(m, _)| measures.contains(m)).collect();
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
    for (stem, title, panels) in figures {
        let mut chart = match args.panel_by_run {
            true => by_run(&usual, &options(args, title, &panels)),
            false => similarity_chart(&usual, &options(args, title, &panels)),
        };
        chart.notes.extend(audit.and_then(|audit| audit_note(audit, &panels, true)));
        if chart.panels.iter().any(|panel| !panel.series.is_empty()) {
            write_chart(&args.out, &stem, &chart)?;
        }
    }
    // Models side by side have layers of their own.
    for (stem, title, panels) in compared.into_iter().filter(|_| !args.panel_by_run) {
        let chart = differences(args, title, &usual, &panels, audit);
        if chart.panels.iter().any(|panel| !panel.series.is_empty()) {
            write_chart(&args.out, &stem, &chart)?;
        }
    }
    for &measure in measures {
        let title = format!("{} · inside the blocks", measure.title());
        if let Some(mut chart) = site_chart(rows, &options(args, title, &[(measure, "all")])) {
            chart.notes.extend(audit.and_then(|audit| audit_note(audit, &[(measure, "all")], false)));
            write_chart(&args.out, &format!("{}_sites", measure.name()), &chart)?;
        }
    }
    Ok(())
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
    args: &SimilarityArgs,
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

fn options(args: &SimilarityArgs, title: String, panels: &[(Measure, &str)]) -> CurveOptions {
    CurveOptions {
        title,
        panels: panels.iter().map(|(measure, tokens)| (measure.name().to_owned(), (*tokens).to_owned())).collect(),
        depth: if args.relative { Depth::Relative } else { Depth::Layers },
        shown: Shown::Mean,
        width: Width::TwoColumn,
    }
}
