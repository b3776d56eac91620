//! The study's figures.

use super::StudyError;
use super::cell::{Cell, CellResult};
use super::file::{Arm, Study};
use super::page::write_chart;
use super::schema::{ArmValue, Figure, LayerValue, Outcome};
use super::summary::{costs, over_seeds, values};
use super::verdicts::{Paired, is_interpreted, last_block};
use crate::report::{Bar, BarChart, BarGroup, Chart, Panel, Point, Reference, Scale, Series, Width};
use std::path::Path;

/// A value of every seed at every point.
type Curve = fn(&CellResult) -> &[Option<f64>];

/// What a figure says of itself: its title, the methods it shows and the lines below it.
struct Words<'f> {
    title: &'f str,
    groups: &'f [String],
    notes: &'f [String],
}

/// Draws a figure of the report; the one that needs no cell was drawn before the first of them.
pub(super) fn write_figure(
    folder: &Path,
    figure: &Figure,
    study: &Study,
    cells: &[Cell],
    compared: &[Paired],
) -> Result<(), StudyError> {
    let drawing = match figure {
        Figure::Phenomenon { .. } => return Ok(()),
        Figure::Curves { title, value, columns, groups, notes, .. } => {
            Chart { columns: *columns, ..curves(study, cells, &Words { title, groups, notes }, *value) }.draw()
        }
        Figure::Bars { title, value, groups, notes, .. } => {
            bars(study, cells, &Words { title, groups, notes }, *value).draw()
        }
        Figure::Differences { title, outcome, groups, notes, .. } => {
            differences(study, cells, compared, &Words { title, groups, notes }, *outcome).draw()
        }
    };
    let (file, _, _) = figure.place();
    write_chart(folder, file, &drawing.png()?, &drawing.svg()?)
}

/// The methods of a figure: those it names, or all.
fn groups<'a>(study: &'a Study, named: &'a [String]) -> Vec<&'a str> {
    if named.is_empty() { study.groups() } else { named.iter().map(String::as_str).collect() }
}

fn subtitle(study: &Study) -> String {
    let seeds = if study.seeds == 1 { "1 seed".to_owned() } else { format!("{} paired seeds", study.seeds) };
    format!("embedded model, {}, {seeds}", study.task_words())
}

fn series(study: &Study, cells: &[Cell], arm: &Arm, curve: Curve) -> Series {
    let own: Vec<&[Option<f64>]> = cells.iter().filter(|c| c.arm == arm.name).map(|c| curve(&c.result)).collect();
    let length = own.first().map_or(0, |c| c.len());
    let point = |layer: usize, at: usize| {
        let values: Vec<f64> = own.iter().filter_map(|c| c.get(at).copied().flatten()).collect();
        let (y, interval) = over_seeds(&values);
        Point { x: layer as f64, y, interval }
    };
    let depth = length.saturating_sub(2);
    Series {
        label: arm.label.clone(),
        style: study.style(&arm.label),
        points: (0..length.saturating_sub(1)).map(|l| point(l, l)).collect(),
        hollow: if length > 1 { vec![point(depth, length - 1)] } else { Vec::new() },
    }
}

/// A value over the layers: a panel a method, with what is not tuned in each.
fn curves(study: &Study, cells: &[Cell], words: &Words, value: LayerValue) -> Chart {
    let (y_label, curve): (&str, Curve) = match value {
        LayerValue::Similarity => ("mean token cosine (all tokens)", |c| &c.similarity),
        LayerValue::EffectiveRank => ("effective rank (all tokens)", |c| &c.effective_rank),
    };
    let panel = |group: &str| Panel {
        title: group.to_owned(),
        y_label: y_label.to_owned(),
        series: study
            .arms
            .iter()
            .filter(|arm| arm.group == group || (!arm.is_tuned() && study.task_of(group) == Some(arm.task)))
            .filter(|arm| cells.iter().any(|c| c.arm == arm.name))
            .map(|arm| series(study, cells, arm, curve))
            .collect(),
        x_axis: None,
        y_range: None,
    };
    let mut panels: Vec<Panel> = groups(study, words.groups).into_iter().map(panel).collect();
    // Many panels are read against one another.
    if panels.len() > 2 {
        let range = common_range(&panels);
        panels.iter_mut().for_each(|panel| panel.y_range = range);
    }
    let bands = "Bands: 95 % t-interval over seeds. Hollow: after the final norm.".to_owned();
    Chart {
        title: words.title.to_owned(),
        subtitle: format!("{}; the same steps in every arm", subtitle(study)),
        x_label: "layer (0 = embedding)".to_owned(),
        x_scale: Scale::Whole,
        columns: None,
        panels,
        notes: std::iter::once(bands).chain(words.notes.iter().cloned()).collect(),
        width: Width::TwoColumn,
    }
}

/// What the values of all panels lie between, 0 among them.
fn common_range(panels: &[Panel]) -> Option<(f64, f64)> {
    let points =
        panels.iter().flat_map(|panel| &panel.series).flat_map(|series| series.points.iter().chain(&series.hollow));
    let values =
        points.flat_map(|point| point.y.into_iter().chain(point.interval.into_iter().flat_map(|(a, b)| [a, b])));
    values.filter(|value| value.is_finite()).fold(None, |range: Option<(f64, f64)>, value| {
        let (low, high) = range.unwrap_or((0.0, 0.0));
        Some((low.min(value), high.max(value)))
    })
}

/// A value of every arm with that of each seed: a group a method.
fn bars(study: &Study, cells: &[Cell], words: &Words, value: ArmValue) -> BarChart {
    let of = |arm: &str| match value {
        ArmValue::Accuracy => values(cells, arm, |c| Some(100.0 * c.accuracy)),
        ArmValue::LastBlockSimilarity => values(cells, arm, last_block),
        ArmValue::Cost => costs(study, cells, arm),
    };
    let bar = |arm: &Arm| {
        let dots = of(&arm.name);
        let (value, interval) = over_seeds(&dots);
        Bar { label: arm.label.clone(), style: study.style(&arm.label), value, interval, dots }
    };
    let group = |label: &str| BarGroup {
        label: label.to_owned(),
        bars: study.arms.iter().filter(|arm| arm.group == label).map(bar).collect(),
    };
    // A line across is one for all methods: there is none where they have different tasks.
    let one_task = study.arms.iter().all(|arm| arm.task == study.task);
    let untuned: Vec<&Arm> = study.arms.iter().filter(|arm| one_task && !arm.is_tuned()).collect();
    let mut references: Vec<Reference> = Vec::new();
    if value != ArmValue::Cost {
        let base = |arm: &&Arm| {
            Some(Reference { label: format!("{} model", arm.label), value: over_seeds(&of(&arm.name)).0? })
        };
        references.extend(untuned.iter().filter_map(base));
    }
    if value == ArmValue::Accuracy {
        let commonest = untuned.iter().flat_map(|arm| values(cells, &arm.name, |c| Some(100.0 * c.majority)));
        let value = over_seeds(&commonest.collect::<Vec<_>>()).0;
        references.extend(value.map(|value| Reference { label: "commonest answer".to_owned(), value }));
    }
    let (y_label, decimals) = match value {
        ArmValue::Accuracy => ("accuracy (%)".to_owned(), 1),
        ArmValue::LastBlockSimilarity => ("last block's mean token cosine".to_owned(), 2),
        ArmValue::Cost => {
            (format!("CPU time of a step over {}'s", study.page.cost_reference.as_deref().unwrap_or_default()), 2)
        }
    };
    BarChart {
        title: words.title.to_owned(),
        subtitle: format!("{}; dots are seeds, whiskers the 95 % t-interval over them", study.task_words()),
        y_label,
        groups: groups(study, words.groups).into_iter().map(group).collect(),
        references,
        decimals,
        notes: words.notes.to_vec(),
        width: width(study, words),
    }
}

/// A bar a comparison, with the difference of every seed: a group a method.
fn differences(study: &Study, cells: &[Cell], compared: &[Paired], words: &Words, outcome: Outcome) -> BarChart {
    let scale = if outcome == Outcome::Accuracy { 100.0 } else { 1.0 };
    let own: Vec<(&Paired, &Arm, String)> = compared
        .iter()
        .filter(|paired| paired.outcome == outcome)
        .filter_map(|paired| {
            let (a, b) = (study.arm(&paired.entry.treatment)?, study.arm(&paired.entry.control)?);
            Some((paired, a, format!("{} − {}", a.label, b.label)))
        })
        .collect();
    let mut kinds: Vec<&str> = Vec::new();
    for (_, _, label) in &own {
        if !kinds.contains(&label.as_str()) {
            kinds.push(label);
        }
    }
    let bar = |(paired, _, label): &(&Paired, &Arm, String)| {
        let dots: Vec<f64> = paired.differences.iter().map(|value| scale * value).collect();
        let (value, interval) = over_seeds(&dots);
        // The colours of arms are left to arms.
        let style = 4 + kinds.iter().position(|kind| kind == label).unwrap_or_default();
        Bar { label: label.clone(), style, value, interval, dots }
    };
    let mut notes = words.notes.to_vec();
    let mut groups: Vec<BarGroup> = Vec::new();
    let mut marked = false;
    for group in self::groups(study, words.groups) {
        let bars: Vec<Bar> = own.iter().filter(|(_, arm, _)| arm.group == group).map(bar).collect();
        if bars.is_empty() {
            continue;
        }
        let unread = is_interpreted(study, cells, group) == Some(false);
        marked |= unread;
        groups.push(BarGroup { label: if unread { format!("{group} *") } else { group.to_owned() }, bars });
    }
    if marked {
        let above = 100.0 * study.margins.above_base.unwrap_or_default();
        notes.push(format!(
            "* not interpreted: no arm is more than {above:.0} points above base model and commonest answer."
        ));
    }
    BarChart {
        title: words.title.to_owned(),
        subtitle: format!("{}; dots are seeds, whiskers the 95 % t-interval over them", subtitle(study)),
        y_label: match outcome {
            Outcome::Accuracy => "difference in accuracy (points)",
            Outcome::SimilarityAtEqualSteps => "difference in last-block cosine",
            Outcome::SimilarityAtEqualLoss => "difference in last-block cosine at equal loss",
        }
        .to_owned(),
        groups,
        references: Vec::new(),
        decimals: if outcome == Outcome::Accuracy { 1 } else { 2 },
        notes,
        width: width(study, words),
    }
}

/// Two methods of three arms fit a column.
fn width(study: &Study, words: &Words) -> Width {
    if groups(study, words.groups).len() > 2 { Width::TwoColumn } else { Width::OneColumn }
}
