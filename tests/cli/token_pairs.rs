//! Classes of tokens, distances and heat maps: each takes the mean cosine apart, and together they give it back.

use crate::program::{assert_one_line, read_json, run, succeed};
use crate::small_model::tiny_model;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

type Row = BTreeMap<String, String>;

const TEXTS: &str = "the cat sees one red and one blue cat . now then :\ngive two and three . cat\nred green blue\n";

fn rows(path: &Path) -> Vec<Row> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let names = reader.headers().unwrap().clone();
    let row = |r: csv::StringRecord| names.iter().map(str::to_owned).zip(r.iter().map(str::to_owned)).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

fn number(row: &Row, column: &str) -> f64 {
    row[column].parse().unwrap()
}

struct Place {
    dir: tempfile::TempDir,
    command: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(&dir.path().join("model"));
        let texts = dir.path().join("texts.txt");
        fs::write(&texts, TEXTS).unwrap();
        let command = format!("similarity --quiet --model {} --texts {}", model.display(), texts.display());
        Self { dir, command }
    }

    fn measure(&self, options: &str) -> PathBuf {
        let out = self.dir.path().join("out");
        succeed(&format!("{} --out {} {options}", self.command, out.display()));
        out
    }
}

/// The plain cosine over all tokens, by layer and site.
fn cosines(out: &Path) -> BTreeMap<(String, String), f64> {
    let all = rows(&out.join("similarity.csv"));
    let plain = all.iter().filter(|r| r["measure"] == "cosine" && r["tokens"] == "all");
    plain.map(|r| ((r["layer"].clone(), r["site"].clone()), number(r, "mean"))).collect()
}

/// Of the rows of one text: the mean over all pairs.
fn together(rows: &[Row]) -> BTreeMap<(String, String), f64> {
    let mut sums: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry((row["layer"].clone(), row["site"].clone())).or_default();
        *sum = (sum.0 + number(row, "mean") * number(row, "pairs"), sum.1 + number(row, "pairs"));
    }
    sums.into_iter().map(|(key, (sum, pairs))| (key, sum / pairs)).collect()
}

fn assert_close(found: &BTreeMap<(String, String), f64>, wanted: &BTreeMap<(String, String), f64>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, value) in found {
        assert!((value - wanted[key]).abs() < 1e-9, "{key:?}: {value} and {}", wanted[key]);
    }
}

#[test]
fn the_pairs_of_one_text_together_are_its_cosine() {
    let place = Place::new();
    let out = place.measure("--limit 1 --token-classes --distance --heatmap 0..3");
    let wanted = cosines(&out);
    assert_eq!(wanted.len(), 5, "embedding, three blocks, final norm");
    assert_close(&together(&rows(&out.join("token_classes.csv"))), &wanted);
    assert_close(&together(&rows(&out.join("distance.csv"))), &wanted);
    for layer in ["0", "1", "2", "3"] {
        let cells = rows(&out.join(format!("heatmap/base_text0_layer{layer}.csv")));
        assert_eq!(cells.len(), 14 * 14, "BOS, 11 words, 2 signs");
        let off: Vec<f64> = cells.iter().filter(|c| c["row"] != c["column"]).map(|c| number(c, "cosine")).collect();
        let mean = off.iter().sum::<f64>() / off.len() as f64;
        let site = if layer == "0" { "embedding" } else { "block" };
        assert!((mean - wanted[&(layer.to_owned(), site.to_owned())]).abs() < 1e-9);
        assert_eq!((cells[1]["token_row"].as_str(), cells[1]["token_column"].as_str()), ("<s>", "␣the"));
    }
    for name in ["token_classes", "distance", "heatmap/base_text0_layer3"] {
        assert!(fs::read(out.join(format!("{name}.png"))).unwrap().starts_with(b"\x89PNG"));
    }
    assert!(fs::read_to_string(out.join("heatmap/base_text0_layer3.svg")).unwrap().contains("␣blue"));
    assert!(fs::read(out.join("distance.parquet")).unwrap().starts_with(b"PAR1"));
    assert_eq!(read_json(&out.join("manifest.json"))["token_pairs"]["distance_texts"], 50);
}

#[test]
fn tables_count_pairs_and_texts() {
    let place = Place::new();
    let out = place.measure("--layers 2 --token-classes --distance --max-texts 2");
    let classes = rows(&out.join("token_classes.csv"));
    let counted: Vec<String> =
        classes.iter().map(|r| format!("{}-{} {} {}", r["class_a"], r["class_b"], r["pairs"], r["texts"])).collect();
    // Texts of 11, 5 and 3 words, the first two with 2 and 1 signs besides, each behind BOS.
    let wanted = [
        "first-punctuation 3 2",
        "first-words 19 3",
        "punctuation-punctuation 1 1",
        "punctuation-words 27 2",
        "words-words 68 3",
    ];
    assert_eq!(counted, wanted);
    let distances = rows(&out.join("distance.csv"));
    let counted: Vec<String> = distances
        .iter()
        .map(|r| format!("{}-{} {} {}", r["distance_from"], r["distance_to"], r["pairs"], r["texts"]))
        .collect();
    // 14 and 7 tokens: 14 − k and 7 − k pairs at distance k.
    assert_eq!(counted, ["1-1 19 2", "2-2 17 2", "3-3 15 2", "4-4 13 2", "5-8 33 2", "9-16 15 1"]);
    assert!(!out.join("heatmap").exists());
}

#[test]
fn what_is_not_there_is_refused_in_one_line() {
    let place = Place::new();
    let out = place.dir.path().join("bad");
    let with = |options: &str| run(&format!("{} --out {} {options}", place.command, out.display()));
    assert_one_line(&with("--heatmap 1 --text 7"), &["--text 7", "the first is 0, the last 2"], "no such text");
    assert_one_line(&with("--heatmap 9"), &["--heatmap 9", "0 (embedding) to 3"], "no such layer");
    assert_one_line(&with("--distance --max-texts 0"), &["--max-texts"], "no texts");
    assert_eq!(with("--text 0").code, Some(2), "--text says which heat map");
}
