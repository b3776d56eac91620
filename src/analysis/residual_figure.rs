//! The residual's table as a figure: share, part of the branch and input retention over the layers.

use super::residual_share::ResidualRow;
use crate::report::{Chart, Panel, Point, Scale, Series, Width};

/// What a panel shows of a row: a value, and the deviation around it.
type Shown = fn(&ResidualRow) -> (Option<f64>, Option<f64>);

/// The figure of `rows`, of modules with h0 mixed in: one curve a run and role. Roles with the same curve (query, key
/// and value read the same x) are drawn once, under all their names.
#[must_use]
pub fn residual_chart(rows: &[ResidualRow]) -> Chart {
    let mixed: Vec<&ResidualRow> = rows.iter().filter(|row| row.h0_mixed).collect();
    let runs = distinct(mixed.iter().map(|row| row.run.as_str()));
    let one_run = runs.len() < 2;
    let series = |shown: Shown| -> Vec<(String, Vec<Point>)> {
        let named = |run: &str, roles: String| if one_run { roles } else { format!("{run}, {roles}") };
        let of_run = |run: &&str| {
            curves(&mixed, run, shown)
                .into_iter()
                .map(|(roles, points)| (named(run, roles), points))
                .collect::<Vec<_>>()
        };
        runs.iter().flat_map(of_run).collect()
    };
    let ratio = series(|row| (row.share_mean, row.share_std));
    let branch = series(|row| (row.branch_share, None));
    let retention = series(|row| (row.input_retention, None));
    // One name, one look; a curve of several roles is another one than that of its first.
    let names = distinct([&branch, &ratio, &retention].into_iter().flatten().map(|(name, _)| name.as_str()));
    let panel = |title: &str, y_label: &str, curves: &[(String, Vec<Point>)]| Panel {
        title: title.to_owned(),
        y_label: y_label.to_owned(),
        x_axis: None,
        series: curves
            .iter()
            .map(|(name, points)| Series {
                label: name.clone(),
                style: names.iter().position(|other| other == name).unwrap_or_default(),
                points: points.clone(),
                hollow: Vec::new(),
            })
            .collect(),
        y_range: Some((0.0, 0.0)),
    };
    let tokens = mixed.iter().map(|row| row.tokens).max().unwrap_or(0);
    let band = if mixed.iter().any(|row| row.share_std.is_some()) { "; band: one deviation" } else { "" };
    Chart {
        title: "What the modules read of h0".to_owned(),
        subtitle: format!("Modules with h0 mixed in; mean over n = {tokens} tokens"),
        x_label: "block".to_owned(),
        x_scale: Scale::Whole,
        panels: vec![
            panel("ratio in the mix, r to x", "‖λr‖ / ‖(1−λ)x‖", &ratio),
            panel("part of the branch's output", "‖branch of λr‖ / ‖branch‖", &branch),
            panel("input retention", "cos(x, h0)", &retention),
        ],
        columns: None,
        notes: vec![format!(
            "x: the module's own input; r: what the λ term reads. Means over tokens{band}. Ratio and part may exceed 1."
        )],
        width: Width::TwoColumn,
    }
}

/// The curves of a run that have a value, with the roles that each stands for.
fn curves(mixed: &[&ResidualRow], run: &str, shown: Shown) -> Vec<(String, Vec<Point>)> {
    let own = || mixed.iter().filter(|row| row.run == run);
    let mut found: Vec<(String, Vec<Point>)> = Vec::new();
    for role in distinct(own().map(|row| row.role.as_str())) {
        let points: Vec<Point> = own()
            .filter(|row| row.role == role)
            .map(|row| {
                let (y, deviation) = shown(row);
                // A ratio of lengths is not negative.
                let interval = y.zip(deviation).map(|(y, deviation)| ((y - deviation).max(0.0), y + deviation));
                Point { x: f64::from(row.layer), y, interval }
            })
            .collect();
        if points.iter().all(|point| point.y.is_none()) {
            continue;
        }
        let role = role.replace('_', " ");
        match found.iter_mut().find(|(_, other)| *other == points) {
            Some((roles, _)) => *roles = format!("{roles}, {role}"),
            None => found.push((role, points)),
        }
    }
    found
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    names.for_each(|name| {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    });
    distinct
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
            share_std: share.map(|s| s / 2.0),
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

    #[test]
    fn roles_that_read_the_same_are_one_curve_where_they_are_and_the_ratio_has_its_band() {
        let mut rows = [row("a", 1, "query", Some(0.2)), row("a", 1, "key", Some(0.2)), row("a", 1, "down", Some(0.4))];
        rows[1].branch_share = Some(0.9);
        rows[2].input_retention = None;
        let chart = residual_chart(&rows);
        let drawn = |panel: usize| -> Vec<(&str, usize)> {
            chart.panels[panel].series.iter().map(|s| (s.label.as_str(), s.style)).collect()
        };
        assert_eq!(drawn(0), [("query, key", 3), ("down", 2)]);
        assert_eq!(drawn(1), [("query", 0), ("key", 1), ("down", 2)]);
        assert_eq!(drawn(2), [("query, key", 3)]);
        let (low, high) = chart.panels[0].series[0].points[0].interval.unwrap();
        assert!((low - 0.1).abs() < 1e-15 && (high - 0.3).abs() < 1e-15);
        assert!(chart.notes[0].contains("band: one deviation"), "{:?}", chart.notes);
    }
}
