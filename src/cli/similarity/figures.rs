//! The figures of a similarity run.

use super::SimilarityArgs;
use crate::analysis::audit::Audit;
use crate::cli::write_chart;
use crate::measures::Measure;
use crate::report::{
    BASELINE_SUFFIXES, Chart, CurveOptions, Depth, Shown, SimilarityRow, Width, grey_below, similarity_chart,
    site_chart,
};
use anyhow::Result;

/// Sites that a run is measured at without asking.
const USUAL: [&str; 3] = ["embedding", "block", "final_norm"];

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
    let both_differ = both.clone();
    let mut figures: Vec<Figure<'_>> = Vec::new();
    if !both.is_empty() {
        figures.push(("similarity".to_owned(), "Token similarity over the layers".to_owned(), both));
    }
    for &measure in measures.iter().filter(|m| !cosines.iter().any(|(c, _)| c == *m)) {
        let panels = vec![(measure, "all"), (measure, "no_first")];
        figures.push((measure.name().to_owned(), format!("{} · by layer", measure.title()), panels));
    }
    for (stem, title, panels) in figures {
        let mut chart = similarity_chart(&usual, &options(args, title, &panels));
        chart.notes.extend(audit.and_then(|audit| audit_note(audit, &panels)));
        if chart.panels.iter().any(|panel| !panel.series.is_empty()) {
            write_chart(&args.out, &stem, &chart)?;
        }
    }
    if rows.iter().any(|row| row.diff.is_some()) && !both_differ.is_empty() {
        write_chart(&args.out, "differences", &differences(args, &usual, &both_differ, audit))?;
    }
    for &measure in measures {
        let title = format!("{} · inside the blocks", measure.title());
        if let Some(chart) = site_chart(rows, &options(args, title, &[(measure, "all")])) {
            write_chart(&args.out, &format!("{}_sites", measure.name()), &chart)?;
        }
    }
    Ok(())
}

/// The differences of the runs to their reference; what is within the audit's error is grey.
fn differences(
    args: &SimilarityArgs,
    rows: &[SimilarityRow],
    panels: &[(Measure, &str)],
    audit: Option<&Audit>,
) -> Chart {
    let plain: Vec<SimilarityRow> =
        rows.iter().filter(|row| !BASELINE_SUFFIXES.iter().any(|s| row.run.ends_with(s))).cloned().collect();
    let title = "Difference of token similarity over the layers".to_owned();
    let mut chart =
        similarity_chart(&plain, &CurveOptions { shown: Shown::Difference, ..options(args, title, panels) });
    let Some(audit) = audit else { return chart };
    for (panel, (measure, _)) in chart.panels.iter_mut().zip(panels) {
        let Some(error) = audit.error(*measure) else { continue };
        grey_below(panel, error);
    }
    chart.notes.extend(audit_note(audit, panels));
    chart.notes.push("Grey band: differences within it are smaller than that and say nothing.".to_owned());
    chart
}

fn audit_note(audit: &Audit, panels: &[(Measure, &str)]) -> Option<String> {
    let mut measures: Vec<Measure> = panels.iter().map(|&(measure, _)| measure).collect();
    measures.dedup();
    let errors = measures.into_iter().filter_map(|m| Some(format!("{m} {:.1e}", audit.error(m)?)));
    let errors = errors.collect::<Vec<_>>().join(", ");
    let texts = audit.texts;
    (!errors.is_empty()).then(|| format!("Audit on {texts} texts, largest deviation of a text's value: {errors}."))
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
