//! The data of the page's explorer: curves of every run, group, measure and token set, and the differences of every two
//! runs.
//!
//! A page is small, a table need not be: what does not fit is left out in a stated order, and the reader is told. Numbers
//! are rounded to seven digits, here alone.

use super::curves::token_name;
use super::measure_words::{self as words, BASELINE_SUFFIXES, baseline};
use super::rows::SimilarityRow;
use crate::measures::{Measure, Scope};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Sites of the residual stream, which are shown together.
const STREAM: [&str; 3] = ["embedding", "block", "final_norm"];
/// Bytes that the explorer's data may take.
const MOST_BYTES: usize = 900_000;

/// The difference of two runs, over the same texts.
#[derive(Debug, Clone, PartialEq)]
pub struct DifferenceRow {
    /// The row: `run` minus `reference`, `texts` those that have both values.
    pub row: SimilarityRow,
    /// The two-sided p-value that the difference is 0, adjusted over the layers.
    pub p_holm: Option<f64>,
}

/// What stands beside the curves.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Beside {
    /// Whether depth begins as a share of each model's layers.
    pub relative: bool,
    /// The audit's largest deviation of a text's value, by measure, layer, site and token set.
    pub errors: BTreeMap<(String, u32, String, String), f64>,
    /// The document's warnings, numbered as there, of which each measure shows its own.
    pub warnings: Vec<super::document::Warning>,
}

/// What of the table the page shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    inner_sites: bool,
    no_special: bool,
    groups: bool,
    pairs: bool,
    baselines: bool,
}

impl Kept {
    /// From everything to the least, in the order in which things are given up.
    const STEPS: [(Self, &'static str); 6] = [
        (Self { inner_sites: true, no_special: true, groups: true, pairs: true, baselines: true }, ""),
        (
            Self { inner_sites: false, no_special: true, groups: true, pairs: true, baselines: true },
            "sites inside the blocks",
        ),
        (
            Self { inner_sites: false, no_special: false, groups: true, pairs: true, baselines: true },
            "sites inside the blocks and the tokens without special ones",
        ),
        (
            Self { inner_sites: false, no_special: false, groups: false, pairs: true, baselines: true },
            "sites inside the blocks, the tokens without special ones, and groups",
        ),
        (
            Self { inner_sites: false, no_special: false, groups: false, pairs: false, baselines: true },
            "sites inside the blocks, the tokens without special ones, groups, and differences of two runs",
        ),
        (
            Self { inner_sites: false, no_special: false, groups: false, pairs: false, baselines: false },
            "sites inside the blocks, the tokens without special ones, groups, differences of two runs, and baselines",
        ),
    ];

    fn keeps(self, row: &SimilarityRow) -> bool {
        (self.inner_sites || STREAM.contains(&row.site.as_str()))
            && (self.no_special || row.tokens != "no_special")
            && (self.groups || row.group.is_none())
            && (self.baselines || baseline(&row.run).is_none())
    }
}

/// The data of the explorer; `None` if not even the residual stream of the runs fits.
#[must_use]
pub fn explorer_data(rows: &[SimilarityRow], pairs: &[DifferenceRow], beside: &Beside) -> Option<Value> {
    Kept::STEPS.into_iter().find_map(|(kept, left_out)| {
        let data = Explorer::new(rows, kept).data(pairs, beside, left_out);
        (data.to_string().len() <= MOST_BYTES).then_some(data)
    })
}

/// Names in order of appearance, and the places of rows among them.
struct Explorer<'a> {
    kept: Kept,
    rows: Vec<&'a SimilarityRow>,
    runs: Vec<&'a str>,
    groups: Vec<Option<&'a str>>,
    measures: Vec<&'a str>,
    tokens: Vec<&'a str>,
    points: Vec<(u32, &'a str)>,
}

/// Run, group, measure and token set by number.
type Key = (usize, usize, usize, usize);

impl<'a> Explorer<'a> {
    fn new(rows: &'a [SimilarityRow], kept: Kept) -> Self {
        let rows: Vec<&SimilarityRow> = rows.iter().filter(|row| kept.keeps(row)).collect();
        let mut points = distinct(rows.iter().map(|row| (row.layer, row.site.as_str())));
        points.sort_by_key(|(layer, site)| (*layer, *site == "final_norm"));
        Self {
            kept,
            runs: distinct(rows.iter().map(|row| row.run.as_str())),
            groups: distinct(rows.iter().map(|row| row.group.as_deref())),
            measures: distinct(rows.iter().map(|row| row.measure.as_str())),
            tokens: distinct(rows.iter().map(|row| row.tokens.as_str())),
            points,
            rows,
        }
    }

    fn key(&self, row: &SimilarityRow) -> Option<(Key, usize)> {
        let run = place(&self.runs, &row.run.as_str())?;
        let group = place(&self.groups, &row.group.as_deref())?;
        let measure = place(&self.measures, &row.measure.as_str())?;
        let tokens = place(&self.tokens, &row.tokens.as_str())?;
        Some(((run, group, measure, tokens), place(&self.points, &(row.layer, row.site.as_str()))?))
    }

    fn data(&self, pairs: &[DifferenceRow], beside: &Beside, left_out: &str) -> Value {
        let mut series: BTreeMap<Key, Columns<4>> = BTreeMap::new();
        for row in &self.rows {
            let Some((key, point)) = self.key(row) else { continue };
            let cells = [row.mean, row.ci_low, row.ci_high, Some(row.texts as f64)];
            series.entry(key).or_insert_with(|| Columns::new(self.points.len())).set(point, cells);
        }
        let mut differences: BTreeMap<(usize, Key), Columns<5>> = BTreeMap::new();
        for DifferenceRow { row, p_holm } in pairs.iter().filter(|_| self.kept.pairs) {
            let reference = row.reference.as_deref().and_then(|run| place(&self.runs, &run));
            let Some((reference, (key, point))) = reference.zip(self.key(row)) else { continue };
            let cells = [row.diff, row.diff_ci_low, row.diff_ci_high, Some(row.texts as f64), *p_holm];
            differences.entry((reference, key)).or_insert_with(|| Columns::new(self.points.len())).set(point, cells);
        }
        json!({
            "runs": self.described_runs(),
            "groups": self.groups,
            "measures": self.measures.iter().map(|name| described_measure(name)).collect::<Vec<_>>(),
            "tokens": self.tokens.iter().map(|name| json!([name, token_name(name)])).collect::<Vec<_>>(),
            "points": self.points,
            "series": written(&series, ["mean", "low", "high", "n"], |key| json!(key)),
            "pairs": written(&differences, ["diff", "low", "high", "n", "p"], |(reference, key)| {
                json!([key.0, reference, key.1, key.2, key.3])
            }),
            "errors": self.errors(beside),
            "relative": beside.relative,
            "warnings": beside.warnings,
            "left_out": left_out,
        })
    }

    /// Runs with the number of their colour and, of a baseline, its kind.
    fn described_runs(&self) -> Vec<Value> {
        let own: Vec<&str> = self.runs.iter().copied().filter(|run| baseline(run).is_none()).collect();
        let described = self.runs.iter().map(|run| {
            let (of, kind) = baseline(run).map_or((*run, None), |(of, kind)| (of, Some(kind)));
            let style = place(&own, &of).unwrap_or_default();
            let said = kind.and_then(|kind| BASELINE_SUFFIXES.get(kind)).map(|suffix| suffix.trim());
            json!({"name": run, "style": style, "kind": kind, "of": kind.map(|_| of), "said": said})
        });
        described.collect()
    }

    /// The audit's errors of a measure and token set at every point; those of no use are left out.
    fn errors(&self, beside: &Beside) -> Vec<Value> {
        let mut found = Vec::new();
        for (m, measure) in self.measures.iter().enumerate() {
            for (t, tokens) in self.tokens.iter().enumerate() {
                let error = |(layer, site): &(u32, &str)| {
                    let key = ((*measure).to_owned(), *layer, (*site).to_owned(), (*tokens).to_owned());
                    beside.errors.get(&key).copied()
                };
                let errors: Vec<Option<f64>> = self.points.iter().map(error).collect();
                if errors.iter().any(Option::is_some) {
                    found.push(json!([m, t, errors.into_iter().map(rounded).collect::<Vec<_>>()]));
                }
            }
        }
        found
    }
}

fn described_measure(name: &str) -> Value {
    let known = Measure::from_name(name);
    let corpus = known.is_some_and(|measure| measure.scope() == Scope::Corpus);
    json!({
        "name": name, "short": words::short(name), "axis": words::axis(name), "corpus": corpus,
        "note": words::derived(name),
        "hides": known.map(|measure| format!("What it hides: {}.", measure.hides())),
    })
}

/// Values at every point, column by column.
struct Columns<const N: usize> {
    cells: [Vec<Option<f64>>; N],
}

impl<const N: usize> Columns<N> {
    fn new(points: usize) -> Self {
        Self { cells: std::array::from_fn(|_| vec![None; points]) }
    }

    fn set(&mut self, point: usize, values: [Option<f64>; N]) {
        for (column, value) in self.cells.iter_mut().zip(values) {
            if let Some(cell) = column.get_mut(point) {
                *cell = value;
            }
        }
    }

    /// The columns by name; one that is the same number wherever the first has a value is written once.
    fn json(&self, names: [&str; N]) -> Map<String, Value> {
        let mut object = Map::new();
        let first = self.cells.first();
        let defined = |at: usize| first.and_then(|cells| cells.get(at)).copied().flatten().is_some();
        for (name, column) in names.into_iter().zip(&self.cells) {
            let seen: Vec<f64> =
                column.iter().enumerate().filter(|(at, _)| defined(*at)).filter_map(|(_, v)| *v).collect();
            let alike = seen.first().filter(|one| name == "n" && seen.iter().all(|v| v == *one));
            let value = match alike {
                Some(one) => json!(*one as u64),
                None if name == "n" => json!(column.iter().map(|v| v.map(|v| v as u64)).collect::<Vec<_>>()),
                None if seen.is_empty() => Value::Null,
                None => json!(column.iter().copied().map(rounded).collect::<Vec<_>>()),
            };
            object.insert(name.to_owned(), value);
        }
        object
    }
}

/// One object a key; one that equals an earlier one says which.
fn written<K: Ord, const N: usize>(
    all: &BTreeMap<K, Columns<N>>,
    names: [&str; N],
    key: impl Fn(&K) -> Value,
) -> Vec<Value> {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (place, (own, columns)) in all.iter().enumerate() {
        let mut object = columns.json(names);
        let text = Value::Object(object.clone()).to_string();
        match known.get(&text) {
            Some(earlier) => object = Map::from_iter([("as".to_owned(), json!(earlier))]),
            None => {
                known.insert(text, place);
            }
        }
        object.insert("key".to_owned(), key(own));
        found.push(Value::Object(object));
    }
    found
}

/// Seven digits.
fn rounded(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite()).and_then(|value| format!("{value:.6e}").parse().ok())
}

fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for item in items {
        // Rows of a run stand together, so that the last one found is mostly the one.
        if found.last() != Some(&item) && !found.contains(&item) {
            found.push(item);
        }
    }
    found
}

fn place<T: PartialEq>(all: &[T], item: &T) -> Option<usize> {
    all.iter().position(|other| other == item)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(run: &str, layer: u32, site: &str, tokens: &str, mean: f64) -> SimilarityRow {
        SimilarityRow {
            run: run.into(),
            group: None,
            layer,
            site: site.into(),
            measure: "cosine".into(),
            tokens: tokens.into(),
            mean: Some(mean),
            std: None,
            ci_low: Some(mean - 0.1),
            ci_high: Some(mean + 0.1),
            texts: 9,
            reference: Some("base".into()),
            diff: None,
            diff_ci_low: None,
            diff_ci_high: None,
        }
    }

    #[test]
    fn values_stand_at_their_points_and_equal_series_once() {
        let mut rows = Vec::new();
        for (run, shift) in [("base", 0.0), ("base (shuffled)", 0.1), ("a", 0.2)] {
            for tokens in ["all", "no_first"] {
                rows.push(row(run, 0, "embedding", tokens, 0.123_456_789 + shift));
                rows.push(row(run, 1, "block", tokens, 1.0 / 3.0 + shift));
                rows.push(row(run, 1, "final_norm", tokens, 0.5 + shift));
            }
        }
        let mut apart = row("a", 1, "block", "all", 0.0);
        (apart.diff, apart.diff_ci_low, apart.diff_ci_high, apart.texts) = (Some(0.2), Some(0.1), Some(0.3), 8);
        let pairs = [DifferenceRow { row: apart, p_holm: Some(0.01) }];
        let errors = BTreeMap::from([(("cosine".into(), 1, "block".into(), "all".into()), 1e-7)]);
        let data = explorer_data(&rows, &pairs, &Beside { errors, ..Beside::default() }).unwrap();
        assert_eq!(data["points"], json!([[0, "embedding"], [1, "block"], [1, "final_norm"]]));
        assert_eq!(
            data["runs"][1],
            json!({"name": "base (shuffled)", "style": 0, "kind": 2, "of": "base", "said": "(shuffled)"})
        );
        assert_eq!(data["runs"][2]["style"], 1);
        let first = &data["series"][0];
        assert_eq!((&first["key"], &first["n"]), (&json!([0, 0, 0, 0]), &json!(9)));
        assert_eq!(first["mean"], json!([0.123_456_8, 0.333_333_3, 0.5]));
        assert_eq!(data["series"][1], json!({"as": 0, "key": [0, 0, 0, 1]}));
        let pair = &data["pairs"][0];
        assert_eq!((&pair["key"], &pair["diff"]), (&json!([2, 0, 0, 0, 0]), &json!([null, 0.2, null])));
        assert_eq!((&pair["n"], &pair["p"]), (&json!(8), &json!([null, 0.01, null])));
        assert_eq!(data["errors"], json!([[0, 0, [null, 1e-7, null]]]));
        assert_eq!(data["left_out"], "");
    }

    #[test]
    fn what_does_not_fit_is_left_out_in_order_and_said() {
        let sites: Vec<String> = (0..400).map(|head| format!("head_{head}")).collect();
        let mut rows: Vec<SimilarityRow> = Vec::new();
        for layer in 1..=60 {
            rows.extend(sites.iter().map(|site| row("base", layer, site, "all", 0.1 / f64::from(layer))));
            rows.push(row("base", layer, "block", "all", 0.1));
        }
        let data = explorer_data(&rows, &[], &Beside::default()).unwrap();
        assert_eq!(data["left_out"], "sites inside the blocks");
        assert_eq!(data["points"].as_array().unwrap().len(), 60);
    }
}
