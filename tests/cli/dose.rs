//! Doses of a frozen adapter: what is in the tables, and that the trained dose is the plain evaluation.

use crate::program::{assert_one_line, events, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS: &str = "run,dose_layer,lambda,arm,trained,real_share,layer,similarity,similarity_no_first,\
    effective_rank,loss,texts";

type Row = BTreeMap<String, String>;

fn table(path: &Path) -> Vec<Row> {
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
    model: PathBuf,
    data: PathBuf,
    run: PathBuf,
}

impl Place {
    /// A small model with an adapter that was trained for a few steps.
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(&dir.path().join("model"));
        let data = instructions(&dir.path().join("data.jsonl"), 40);
        let run = dir.path().join("run");
        succeed(&format!(
            "train --quiet --steps 6 --warmup-steps 1 --lr 1e-2 --rank 4 --val-size 8 --eval-every 6 --batch-size 4 \
             --accumulate 1 --model {} --data {} --out {} {options}",
            model.display(),
            data.display(),
            run.display()
        ));
        Self { dir, model, data, run }
    }

    fn line(&self, out: &str, options: &str) -> String {
        format!(
            "dose --model {} --adapter {} --texts {} --field output --out {} {options}",
            self.model.display(),
            self.run.join("adapter").display(),
            self.data.display(),
            self.dir.path().join(out).display()
        )
    }

    fn dose(&self, out: &str, options: &str) -> PathBuf {
        succeed(&self.line(out, options));
        self.dir.path().join(out)
    }
}

#[test]
fn the_trained_dose_is_the_plain_evaluation_and_the_folder_holds_everything() {
    let place = Place::new("--sibo-lambda 0.3 --sibo-policy all");
    let data = format!("--data {} --val-size 8 --batch-size 4", place.data.display());
    let out = place.dose("out", &format!("{data} --lambda 0:1:0.5 --residual h0,none"));
    let text = fs::read_to_string(out.join("dose.csv")).unwrap();
    let header = text.lines().next().unwrap();
    let spreads = header.strip_prefix(COLUMNS).unwrap();
    assert!(
        spreads.starts_with(",similarity_std,similarity_ci_low,similarity_ci_high,effective_rank_std,"),
        "{spreads}"
    );
    assert_eq!(spreads.split(',').count() - 1, 9 + 1 + 2 * 3 * 4, "deviations and intervals, n, differences");
    let rows = table(&out.join("dose.csv"));
    assert_eq!(rows.len(), 2 * 4 * 4, "two arms; 0, 0.3, 0.5 and 1; layers 0 to 3");

    // The trained λ is measured though the grid leaves it out, and gives what similarity and train gave.
    let trained: Vec<&Row> = rows.iter().filter(|r| r["trained"] == "true").collect();
    assert!(trained.len() == 4 && trained.iter().all(|r| r["lambda"] == "0.3" && r["arm"] == "h0"));
    let similarity = place.dir.path().join("similarity");
    succeed(&format!(
        "similarity --run a={}+{} --texts {} --field output --out {}",
        place.model.display(),
        place.run.join("adapter").display(),
        place.data.display(),
        similarity.display()
    ));
    let plain = table(&similarity.join("similarity.csv"));
    for row in &trained {
        for (column, tokens) in [("similarity", "all"), ("similarity_no_first", "no_first")] {
            let same = |r: &&Row| {
                r["layer"] == row["layer"]
                    && r["measure"] == "cosine"
                    && r["tokens"] == tokens
                    && r["site"] != "final_norm"
            };
            let mean = number(plain.iter().find(same).unwrap(), "mean");
            // `similarity` forms its batches by length: a matrix product of another shape rounds otherwise.
            assert!((number(row, column) - mean).abs() < 1e-6, "{row:?} {mean}");
        }
    }
    let held_out = events(&place.run).last().unwrap()["val_loss"].as_f64().unwrap();
    assert_eq!(number(trained[0], "loss"), held_out, "bit for bit what training computed");

    // λ = 0 is one setting, whatever the arm; nothing is read of h0 there, nor under the arm none.
    let zero = |arm: &str| rows.iter().filter(|r| r["lambda"] == "0.0" && r["arm"] == arm).collect::<Vec<_>>();
    for (a, b) in zero("h0").into_iter().zip(zero("none")) {
        assert!(["similarity", "loss", "real_share", "effective_rank"].iter().all(|k| a[*k] == b[*k]), "{a:?} {b:?}");
        assert_eq!(number(a, "real_share"), 0.0);
    }
    for row in &rows {
        let share = row["real_share"].parse::<f64>().ok();
        assert_eq!(share.is_none(), row["lambda"] == "1.0", "{row:?}");
        assert!(share.is_none_or(|s| (s > 0.0) == (row["arm"] == "h0" && row["lambda"] != "0.0")), "{row:?}");
        assert_eq!(row["effective_rank"].is_empty(), row["layer"] != "3");
        assert_eq!((row["texts"].as_str(), row["dose_layer"].as_str()), ("40", "all"));
    }
    // Each mean lies in its interval; a difference is that of the means, and there is none to a point itself.
    let at = |lambda: &str, arm: &str, layer: &str| {
        let chosen = |r: &&Row| r["lambda"] == lambda && r["arm"] == arm && r["layer"] == layer;
        rows.iter().find(chosen).unwrap()
    };
    for row in &rows {
        assert_eq!((row["examples"].as_str(), row["loss_std"].is_empty()), ("8", false));
        for name in ["similarity", "effective_rank", "loss"] {
            if row[name].is_empty() {
                assert!(row[&format!("{name}_ci_low")].is_empty() && row[&format!("{name}_diff_trained")].is_empty());
                continue;
            }
            let value = number(row, name);
            let [low, high] = ["ci_low", "ci_high"].map(|end| number(row, &format!("{name}_{end}")));
            assert!(low <= value && value <= high, "{row:?}");
            let none = at(&row["lambda"], "none", &row["layer"]);
            for (against, other) in [("trained", at("0.3", "h0", &row["layer"])), ("none", none)] {
                let column = format!("{name}_diff_{against}");
                let itself = if against == "none" { row["arm"] == "none" } else { row["trained"] == "true" };
                assert_eq!(row[&column].is_empty(), itself, "{column} {row:?}");
                if !itself {
                    assert!((number(row, &column) - (value - number(other, name))).abs() < 1e-9, "{column} {row:?}");
                    let [low, high] = ["ci_low", "ci_high"].map(|end| number(row, &format!("{column}_{end}")));
                    assert!(low <= number(row, &column) && number(row, &column) <= high, "{column} {row:?}");
                    assert_eq!(row[&format!("{column}_n")], if name == "loss" { "8" } else { "40" });
                }
            }
        }
    }
    let last = |lambda: &str, arm: &str| {
        let row = rows.iter().find(|r| r["lambda"] == lambda && r["arm"] == arm && r["layer"] == "3").unwrap();
        (number(row, "similarity"), number(row, "loss"))
    };
    assert!(
        last("0.5", "h0") != last("0.3", "h0") && last("0.5", "h0") != last("0.5", "none"),
        "a dose does something"
    );

    let residual = table(&out.join("residual.csv"));
    let mixed: Vec<&Row> = residual.iter().filter(|r| r["h0_mixed"] == "true").collect();
    assert_eq!((residual.len(), mixed.len()), (15, 12), "q, k, v, up and down of three blocks; down is not mixed");
    let mean = mixed.iter().map(|r| number(r, "share_mean")).sum::<f64>() / 12.0;
    assert!((mean / number(trained[0], "real_share") - 1.0).abs() < 1e-12);
    let starts = |name: &str, magic: &[u8]| fs::read(out.join(name)).unwrap().starts_with(magic);
    assert!(starts("dose.png", b"\x89PNG") && starts("dose.parquet", b"PAR1") && starts("residual.png", b"\x89PNG"));
    assert!(fs::read_to_string(out.join("dose.svg")).unwrap().contains("trained"));
    let manifest = read_json(&out.join("manifest.json"));
    assert_eq!((&manifest["verb"], &manifest["trained"]["lambda"]), (&"dose".into(), &0.3.into()));
    // λ = 0 once, and 0.3, 0.5, 1 under two arms, on 40 texts and 8 examples.
    assert_eq!(manifest["sequences"], 7 * 48);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 9, "and nothing else");
}

#[test]
fn one_block_at_a_time_and_what_it_is_read_from() {
    let place = Place::new("--sibo-lambda 0.3");
    let ended = run(&place.line("each", "--lambda 0,0.8 --layers each"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.starts_with("9 points, 560 sequences through the model: 40 texts and 40 examples"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stdout.lines().count(), 2 + 9);
    let rows = table(&place.dir.path().join("each/dose.csv"));
    let value = |block: &str, lambda: &str, layer: &str| {
        let chosen = |r: &&Row| r["dose_layer"] == block && r["lambda"] == lambda && r["layer"] == layer;
        rows.iter().find(chosen).map(|r| (r["similarity"].clone(), r["loss"].clone())).unwrap()
    };
    for block in ["1", "2", "3"] {
        assert_eq!(value(block, "0.3", "3"), value("1", "0.3", "3"), "the trained dose is one point");
        assert_ne!(value(block, "0.8", "3"), value(block, "0.3", "3"));
    }
    assert_eq!(value("3", "0.8", "2").0, value("3", "0.3", "2").0, "layer 2 lies below block 3");
    assert_ne!(value("2", "0.8", "2").0, value("2", "0.3", "2").0);

    // The adapter as it was trained is a point of every study.
    let rows = table(&place.dose("none", "--lambda 0.6 --residual none").join("dose.csv"));
    let points: Vec<String> =
        rows.iter().filter(|r| r["layer"] == "3").map(|r| format!("{} {}", r["arm"], r["lambda"])).collect();
    assert_eq!(points, ["none 0.3", "none 0.6", "h0 0.3"]);
}

#[test]
fn a_vanilla_adapter_is_dosed_where_the_policy_says() {
    let place = Place::new("");
    assert_one_line(
        &run(&place.line("a", "--quiet")),
        &["trained without an initial residual", "--sibo-policy"],
        "no policy",
    );
    let out = place.dose("b", "--sibo-policy official --lambda 0,0.5");
    let rows = table(&out.join("dose.csv"));
    let trained: Vec<&Row> = rows.iter().filter(|r| r["trained"] == "true").collect();
    assert!(trained.len() == 4 && trained.iter().all(|r| r["lambda"] == "0.0"));
    assert!(number(rows.last().unwrap(), "real_share") > 0.0);
    let residual = table(&out.join("residual.csv"));
    assert!(residual.iter().all(|r| (r["h0_mixed"] == "true") == (r["role"] == "up")));
}

#[test]
fn what_cannot_be_dosed_is_said_in_one_line() {
    let place = Place::new("--sibo-lambda 0.3");
    let other = run(&place.line("a", "--quiet --sibo-policy all"));
    assert_one_line(&other, &["--sibo-policy all", "trained under the policy official"], "another policy");
    for (options, words) in [
        ("--lambda 0:1.5:0.5", "lambda 1.5 is outside [0, 1]"),
        ("--lambda 0:1", "FIRST:LAST:STEP"),
        ("--layers some", "neither all"),
        ("--residual h1", "is not a residual"),
        ("--val-size 3", "--data"),
    ] {
        let ended = run(&place.line("b", options));
        assert!(ended.code == Some(2) && ended.stderr.contains(words), "{options}: {}", ended.stderr);
    }
    let none = run(&place.line("c", "--quiet --adapter nowhere"));
    assert_eq!(none.code, Some(2), "an option given twice");
}
