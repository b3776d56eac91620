//! The residual's table as a figure: share, part of the branch and input retention over the layers.

use super::residual_share::ResidualRow;
use crate::report::{Chart, Panel, Point, Scale, Series, Width};

/// What a panel shows of a row.
type Shown = fn(&ResidualRow) -> Option<f64>;

/// The figure of `rows`, of modules with h0 mixed in: one curve a run and role.
#[must_use]
pub fn residual_chart(rows: &[ResidualRow]) -> Chart {
    let mixed: Vec<&ResidualRow> = rows.iter().filter(|row| row.h0_mixed).collect();
    let mut curves: Vec<(&str, &str)> = Vec::new();
    for row in &mixed {
        let curve = (row.run.as_str(), row.role.as_str());
        if !curves.contains(&curve) {
            curves.push(curve);
        }
    }
    let one_run = curves.iter().all(|(run, _)| curves.first().is_some_and(|first| first.0 == *run));
    let panel = |title: &str, y_label: &str, shown: Shown| Panel {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        x_axis: None,
        series: curves
            .iter()
            .enumerate()
            .map(|(style, &(run, role))| Series {
                label: if one_run { role.replace('_', " ") } else { format!("{run}, {}", role.replace('_', " ")) },
                style,
                points: mixed
                    .iter()
                    .filter(|row| row.run == run && row.role == role)
                    .map(|row| Point { x: f64::from(row.layer), y: shown(row), interval: None })
                    .collect(),
                hollow: Vec::new(),
            })
            .collect(),
        y_range: Some((0.0, 0.0)),
    };
    let tokens = mixed.iter().map(|row| row.tokens).max().unwrap_or(0);
    Chart {
        title: "What the modules read of h0".to_owned(),
        subtitle: format!("Modules with h0 mixed in; mean over n = {tokens} tokens"),
        x_label: "block".to_owned(),
        x_scale: Scale::Whole,
        columns: None,
        panels: vec![
            panel("share of the mix", "‖λr‖ / ‖(1−λ)x‖", |row| row.share_mean),
            panel("part of the branch's output", "‖branch of λr‖ / ‖branch‖", |row| row.branch_share),
            panel("input retention", "cos(x, h0)", |row| row.input_retention),
        ],
        notes: vec!["x is the module's own input, r what the λ term reads; per token, then averaged.".to_owned()],
        width: Width::TwoColumn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(run: &str, layer: u32, role: &str, share: Option<f64>) -> ResidualRow {
        ResidualRow {
            run: run.into(),
            layer,
            module: format!("layers.{layer}.{role}"),
            role: role.into(),
            h0_mixed: share.is_some(),
            lambda: share.map(|_| 0.1),
            arm: share.map(|_| "h0".into()),
            share_mean: share,
            share_std: None,
            branch_share: share.map(|s| 2.0 * s),
            input_retention: Some(0.5),
            tokens: 12,
        }
    }

    #[test]
    fn only_mixed_modules_are_drawn_one_curve_a_role() {
        let rows = [row("a", 1, "up", Some(0.1)), row("a", 2, "up", Some(0.3)), row("a", 1, "down", None)];
        let chart = residual_chart(&rows);
        let [series] = chart.panels[1].series.as_slice() else { panic!("{chart:?}") };
        assert_eq!(series.label, "up");
        assert_eq!(series.points.iter().map(|p| (p.x, p.y)).collect::<Vec<_>>(), [(1.0, Some(0.2)), (2.0, Some(0.6))]);
        let two = [row("a", 1, "up", Some(0.1)), row("b", 1, "up", Some(0.1))];
        let labels: Vec<String> = residual_chart(&two).panels[0].series.iter().map(|s| s.label.clone()).collect();
        assert_eq!(labels, ["a, up", "b, up"]);
    }
}
