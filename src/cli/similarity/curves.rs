//! What `similarity` shows of its curves: a line of blocks a run on a terminal, all of them as JSON for machines.

use super::figures::USUAL;
use crate::analysis::manifest::Manifest;
use crate::analysis::results::FILES;
use crate::cli::sparkline::{fit, range, sparkline};
use crate::cli::terminal::Charset;
use crate::report::SimilarityRow;
use serde_json::{Value, json};
use std::path::Path;

/// Every run's curve of the first measure over the embedding and the blocks, all on one scale; at most `columns` wide.
pub(super) fn print(rows: &[SimilarityRow], columns: Option<usize>, charset: Charset) {
    for line in lines(rows, columns, charset) {
        say!("{line}");
    }
}

fn lines(rows: &[SimilarityRow], columns: Option<usize>, charset: Charset) -> Vec<String> {
    let Some(measure) = rows.first().map(|row| row.measure.as_str()) else { return Vec::new() };
    // The final norm is no step of depth.
    let [embedding, block, _] = USUAL;
    let shown = |row: &&SimilarityRow| {
        let usual = row.site == embedding || row.site == block;
        row.group.is_none() && row.measure == measure && row.tokens == "all" && usual
    };
    let rows: Vec<&SimilarityRow> = rows.iter().filter(shown).collect();
    let mut curves: Vec<(&str, Vec<Option<f64>>)> = Vec::new();
    for row in &rows {
        match curves.iter_mut().find(|(run, _)| *run == row.run) {
            Some((_, values)) => values.push(row.mean),
            None => curves.push((&row.run, vec![row.mean])),
        }
    }
    let layers = || rows.iter().map(|row| row.layer);
    let (Some(first), Some(last)) = (layers().min(), layers().max()) else { return Vec::new() };
    let values = || curves.iter().flat_map(|(_, values)| values);
    let Some((low, high)) = range(values()).filter(|_| first < last) else { return Vec::new() };
    let wide = curves.iter().map(|(run, _)| run.chars().count()).max().unwrap_or(0);
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(wide + 4).max(8));
    let mut lines = vec![format!("\n{measure} over layers {first} to {last}, drawn from {low:.4} to {high:.4}")];
    lines.extend(curves.iter().map(|(run, values)| {
        let line = format!("  {run:<wide$}  {}", sparkline(&fit(values, room), (low, high), charset));
        line.trim_end().to_owned()
    }));
    lines
}

/// All curves, a run, measure, token set and group each: `docs/json.md`.
pub(super) fn json(out: &Path, reference: &str, manifest: &Manifest, rows: &[SimilarityRow]) -> Value {
    let mut curves: Vec<Vec<&SimilarityRow>> = Vec::new();
    for row in rows {
        let same = |curve: &Vec<&SimilarityRow>| {
            curve.first().is_some_and(|known| {
                (&known.run, &known.group, &known.measure, &known.tokens)
                    == (&row.run, &row.group, &row.measure, &row.tokens)
            })
        };
        // Rows of a curve mostly follow each other.
        match curves.iter_mut().rev().find(|curve| same(curve)) {
            Some(curve) => curve.push(row),
            None => curves.push(vec![row]),
        }
    }
    let described: Vec<Value> = curves.iter().filter_map(|curve| described(curve)).collect();
    json!({
        "out": out.display().to_string(),
        "reference": reference,
        "device": manifest.get("device"),
        "dtype": manifest.get("dtype"),
        "files": manifest.get(FILES),
        "curves": described,
    })
}

fn described(curve: &[&SimilarityRow]) -> Option<Value> {
    let first = curve.first()?;
    let numbers = |of: fn(&SimilarityRow) -> Option<f64>| curve.iter().map(|row| of(row)).collect::<Vec<_>>();
    Some(json!({
        "run": first.run,
        "group": first.group,
        "measure": first.measure,
        "tokens": first.tokens,
        "reference": curve.iter().find_map(|row| row.reference.as_deref()),
        "layer": curve.iter().map(|row| row.layer).collect::<Vec<_>>(),
        "site": curve.iter().map(|row| row.site.as_str()).collect::<Vec<_>>(),
        "texts": curve.iter().map(|row| row.texts).collect::<Vec<_>>(),
        "mean": numbers(|row| row.mean),
        "ci_low": numbers(|row| row.ci_low),
        "ci_high": numbers(|row| row.ci_high),
        "diff": numbers(|row| row.diff),
        "diff_ci_low": numbers(|row| row.diff_ci_low),
        "diff_ci_high": numbers(|row| row.diff_ci_high),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(run: &str, layer: u32, site: &str, mean: Option<f64>) -> SimilarityRow {
        SimilarityRow {
            run: run.to_owned(),
            group: None,
            layer,
            site: site.to_owned(),
            measure: "cosine".to_owned(),
            tokens: "all".to_owned(),
            mean,
            std: None,
            ci_low: None,
            ci_high: None,
            texts: 3,
            reference: (run != "base").then(|| "base".to_owned()),
            diff: None,
            diff_ci_low: None,
            diff_ci_high: None,
        }
    }

    fn two_runs() -> Vec<SimilarityRow> {
        vec![
            row("base", 0, "embedding", Some(0.0)),
            row("base", 1, "block", Some(0.3)),
            row("base", 2, "block", Some(1.0)),
            row("base", 2, "final_norm", Some(5.0)),
            row("tuned", 0, "embedding", None),
            row("tuned", 1, "block", Some(0.6)),
            row("tuned", 2, "block", Some(0.9)),
            SimilarityRow { tokens: "no_first".to_owned(), ..row("tuned", 0, "embedding", Some(-9.0)) },
        ]
    }

    #[test]
    fn a_line_a_run_on_one_scale() {
        let expected = ["\ncosine over layers 0 to 2, drawn from 0.0000 to 1.0000", "  base   ▁▃█", "  tuned   ▅█"];
        assert_eq!(lines(&two_runs(), None, Charset::Unicode), expected);
        let ascii = lines(&two_runs(), Some(80), Charset::Ascii);
        assert_eq!(ascii[1..], ["  base   .-@", "  tuned   +@"]);
    }

    #[test]
    fn one_layer_is_no_curve() {
        assert_eq!(lines(&[row("base", 3, "block", Some(0.5))], None, Charset::Unicode), Vec::<String>::new());
        assert_eq!(lines(&[], None, Charset::Unicode), Vec::<String>::new());
    }

    #[test]
    fn json_has_a_curve_for_each_run_and_token_set() {
        let value = json(Path::new("out"), "base", &Manifest::new("similarity"), &two_runs());
        let curves = value["curves"].as_array().unwrap();
        assert_eq!(curves.len(), 3);
        assert_eq!(curves[0]["mean"], json!([0.0, 0.3, 1.0, 5.0]));
        assert_eq!(curves[0]["site"], json!(["embedding", "block", "block", "final_norm"]));
        assert_eq!((&curves[0]["reference"], &curves[1]["reference"]), (&Value::Null, &json!("base")));
        assert_eq!(curves[1]["mean"], json!([null, 0.6, 0.9]));
        assert_eq!((&curves[2]["tokens"], &curves[2]["layer"]), (&json!("no_first"), &json!([0])));
    }
}
