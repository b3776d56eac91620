//! Similarity curves: what is in the tables, and what they do not depend on.

use crate::program::{read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS: &str = "run,group,layer,site,measure,tokens,mean,std,ci_low,ci_high,texts,reference,diff,diff_ci_low,diff_ci_high,\
     n_tokens_pooled,diff_p_holm";

type Row = BTreeMap<String, String>;

fn rows(out: &Path) -> Vec<Row> {
    let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
    let names = reader.headers().unwrap().clone();
    let row = |r: csv::StringRecord| names.iter().map(str::to_owned).zip(r.iter().map(str::to_owned)).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

/// The means by everything that names them.
fn means(out: &Path) -> BTreeMap<String, Option<f64>> {
    let key = |r: &Row| ["run", "group", "layer", "site", "measure", "tokens"].map(|k| r[k].as_str()).join("|");
    rows(out).iter().map(|r| (key(r), r["mean"].parse().ok())).collect()
}

fn assert_close(a: &BTreeMap<String, Option<f64>>, b: &BTreeMap<String, Option<f64>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (key, left) in a {
        match (left, b[key]) {
            (Some(x), Some(y)) => assert!((x - y).abs() <= 1e-6, "{key}: {x} and {y}"),
            (left, right) => assert_eq!(*left, right, "{key}"),
        }
    }
}

struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
    texts: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(&dir.path().join("model"));
        let texts = instructions(&dir.path().join("texts.jsonl"), 12);
        Self { dir, model, texts }
    }

    fn measure(&self, name: &str, options: &str) -> PathBuf {
        let out = self.dir.path().join(name);
        let (model, texts) = (self.model.display(), self.texts.display());
        succeed(&format!("similarity --model {model} --texts {texts} --out {} {options}", out.display()));
        out
    }
}

fn distinct(rows: &[Row], column: &str) -> BTreeSet<String> {
    rows.iter().map(|r| r[column].clone()).collect()
}

#[test]
fn batch_size_and_order_change_no_text() {
    let place = Place::new();
    // A group for each text: the table then holds every text's own value.
    let options = "--field output --group-by id";
    let one = means(&place.measure("one", &format!("{options} --batch-size 1")));
    let eight = means(&place.measure("eight", &format!("{options} --batch-size 8")));
    assert_close(&one, &eight);
    let text = fs::read_to_string(&place.texts).unwrap();
    let reversed: String = text.lines().rev().map(|line| format!("{line}\n")).collect();
    fs::write(&place.texts, reversed).unwrap();
    assert_close(&one, &means(&place.measure("reversed", &format!("{options} --batch-size 5"))));
    assert_eq!(one.len(), 13 * 5 * 2 * 3, "13 groups, 5 points, 2 measures, 3 token sets");
    let defined: BTreeSet<String> = one.values().flatten().map(f64::to_string).collect();
    assert!(defined.len() > 200, "texts must differ for the test to say anything");
}

#[test]
fn the_folder_holds_every_table_and_figure() {
    let place = Place::new();
    let out = place.measure("out", "--field output --group-by kind");
    let text = fs::read_to_string(out.join("similarity.csv")).unwrap();
    assert_eq!(text.lines().next(), Some(COLUMNS));
    let rows = rows(&out);
    let set = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(distinct(&rows, "site"), set(&["embedding", "block", "final_norm"]));
    assert_eq!(distinct(&rows, "measure"), set(&["cosine", "cosine_centred"]));
    assert_eq!(distinct(&rows, "tokens"), set(&["all", "no_first", "no_special"]));
    assert_eq!(distinct(&rows, "group"), set(&["", "cat", "dog", "bird"]));
    let final_norm = rows.iter().filter(|r| r["site"] == "final_norm");
    assert!(final_norm.clone().count() == 4 * 6 && final_norm.clone().all(|r| r["layer"] == "3"));
    for row in &rows {
        let value = |key: &str| row[key].parse::<f64>().unwrap();
        assert!(value("ci_low") <= value("mean") + 1e-12 && value("mean") <= value("ci_high") + 1e-12, "{row:?}");
        assert!((-1.0..=1.0).contains(&value("mean")) && value("std") > 0.0, "{row:?}");
        assert_eq!(row["texts"], if row["group"].is_empty() { "12" } else { "4" });
        assert!(row["reference"].is_empty() && row["diff"].is_empty(), "one run has nothing to differ from");
    }
    let starts = |name: &str, magic: &[u8]| fs::read(out.join(name)).unwrap().starts_with(magic);
    assert!(starts("similarity.png", b"\x89PNG") && starts("similarity.parquet", b"PAR1"));
    assert!(starts("per_text.parquet", b"PAR1"));
    assert!(fs::read_to_string(out.join("similarity.svg")).unwrap().contains("</svg>"));
    let manifest = read_json(&out.join("manifest.json"));
    assert_eq!((&manifest["verb"], &manifest["runs"][0]["texts_measured"]), (&"similarity".into(), &12.into()));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 12, "and the pages with their summary, and nothing else");
}

#[test]
fn per_text_values_are_those_behind_the_means() {
    use polars::prelude::{ParquetReader, SerReader};
    let place = Place::new();
    let out = place.measure("out", "--field output --layers 3 --tokens 8");
    let file = fs::File::open(out.join("per_text.parquet")).unwrap();
    let table = ParquetReader::new(file).finish().unwrap();
    let text = |name: &str| -> Vec<String> {
        let column = table.column(name).unwrap().as_materialized_series().clone();
        column.iter().map(|v| v.to_string().trim_matches('"').to_owned()).collect()
    };
    let (sites, measures, tokens) = (text("site"), text("measure"), text("tokens"));
    let values = table.column("value").unwrap().f64().unwrap().clone();
    assert!(text("n_tokens").iter().all(|n| n == "8"), "--tokens cuts every text to the same length");
    let chosen: Vec<f64> = (0..table.height())
        .filter(|&i| sites[i] == "block" && measures[i] == "cosine" && tokens[i] == "all")
        .filter_map(|i| values.get(i))
        .collect();
    let mean = chosen.iter().sum::<f64>() / chosen.len() as f64;
    let table_mean = means(&out)["base||3|block|cosine|all"].unwrap();
    assert!((mean - table_mean).abs() < 1e-9, "{mean} and {table_mean}");
}

#[test]
fn a_text_of_one_word_is_wholly_similar_at_the_embedding() {
    let place = Place::new();
    let texts = place.dir.path().join("same.txt");
    fs::write(&texts, "cat cat cat cat\ndog dog dog\n").unwrap();
    let out = place.dir.path().join("out");
    succeed(&format!(
        "similarity --model {} --texts {} --out {} --layers 0",
        place.model.display(),
        texts.display(),
        out.display()
    ));
    let means = means(&out);
    let value = |tokens: &str| means[&format!("base||0|embedding|cosine|{tokens}")].unwrap();
    assert!((value("no_special") - 1.0).abs() < 1e-6 && (value("no_first") - 1.0).abs() < 1e-6);
    assert!(value("all") < 0.9, "BOS is another token");
}

#[test]
fn layers_spans_and_references() {
    let place = Place::new();
    let out = place.measure("layers", "--field output --layers 0,2");
    let layers: BTreeSet<String> = distinct(&rows(&out), "layer");
    assert_eq!(layers.into_iter().collect::<Vec<_>>(), ["0", "2"]);
    assert!(!distinct(&rows(&out), "site").contains("final_norm"), "it belongs to layer 3");
    let all = means(&place.measure("all", "--field output"));
    let restricted = means(&out);
    assert!(restricted.iter().all(|(key, mean)| mean == &all[key]), "a choice of layers changes no value");

    let whole = means(&place.measure("whole", "--template alpaca"));
    let response = means(&place.measure("response", "--template alpaca --span response"));
    let instruction = means(&place.measure("instruction", "--template alpaca --span instruction"));
    let key = "base||3|block|cosine|no_first";
    assert!((whole[key].unwrap() - response[key].unwrap()).abs() > 1e-3, "{:?} {:?}", whole[key], response[key]);
    assert!((instruction[key].unwrap() - response[key].unwrap()).abs() > 1e-3);

    let paths = format!("--data {} --model {}", place.texts.display(), place.model.display());
    let run = place.dir.path().join("run");
    let train = "train --quiet --steps 4 --warmup-steps 1 --lr 1e-2 --rank 4 --val-size 0 --sibo-lambda 0.2";
    succeed(&format!("{train} {paths} --out {}", run.display()));
    let adapter = run.join("adapter");
    let options = format!(
        "--field output --adapter tuned={} --run again={}+{} --reference tuned",
        adapter.display(),
        place.model.display(),
        adapter.display()
    );
    let compared = rows(&place.measure("compared", &options));
    assert_eq!(distinct(&compared, "run").into_iter().collect::<Vec<_>>(), ["again", "base", "tuned"]);
    for row in &compared {
        let own = row["run"] == "tuned";
        assert_eq!(row["reference"], if own { "" } else { "tuned" });
        if row["run"] == "again" {
            assert_eq!(row["diff"].parse::<f64>().unwrap(), 0.0, "the same adapter by another option");
        }
        if row["run"] == "base" {
            let same = |r: &&Row| ["layer", "site", "measure", "tokens"].iter().all(|k| r[*k] == row[*k]);
            let tuned = compared.iter().filter(same).find(|r| r["run"] == "tuned").unwrap();
            let difference = row["mean"].parse::<f64>().unwrap() - tuned["mean"].parse::<f64>().unwrap();
            assert!((difference - row["diff"].parse::<f64>().unwrap()).abs() < 1e-9, "{row:?}");
            let low = row["diff_ci_low"].parse::<f64>().unwrap();
            assert!(low <= difference + 1e-12, "{row:?}");
        }
    }
}

#[test]
fn models_of_other_depths_stand_in_one_table() {
    let place = Place::new();
    let out = place.measure("out", "--field output --run deep=embedded --limit 4 --relative");
    let rows = rows(&out);
    let deepest = |run: &str| rows.iter().filter(|r| r["run"] == run).map(|r| r["layer"].parse::<u32>().unwrap()).max();
    assert_eq!((deepest("base"), deepest("deep")), (Some(3), Some(16)));
    assert!(rows.iter().filter(|r| r["run"] == "deep" && r["layer"] == "9").all(|r| r["diff"].is_empty()));
    assert!(run("similarity --help").stdout.contains("hidden_states"), "the help gives transformers' index");
}
