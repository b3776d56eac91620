//! Whether the initial residual helps on somebody's own data.

use crate::program::{assert_one_line, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::fs;
use std::path::{Path, PathBuf};

struct Setting {
    dir: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("model"));
        instructions(&dir.path().join("train.jsonl"), 40);
        instructions(&dir.path().join("test.jsonl"), 12);
        fs::write(dir.path().join("more.toml"), "rank = 2\nbatch-size = 4\naccumulate = 1\nval-size = 8\n").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn line(&self, out: &str, options: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        format!(
            "compare --quiet --model {} --train {} --test {} --out {} --config {} {options}",
            path("model"),
            path("train.jsonl"),
            path("test.jsonl"),
            path(out),
            path("more.toml")
        )
    }
}

fn cells(out: &Path) -> Vec<csv::StringRecord> {
    csv::Reader::from_path(out.join("cells.csv")).unwrap().records().map(Result::unwrap).collect()
}

#[test]
fn a_comparison_ends_in_one_line_and_goes_on_where_it_was() {
    let setting = Setting::new();
    let options = "--lambdas 0.2,0.5 --lrs 1e-2,3e-2 --seeds 2 --steps 4 --budget 1h";
    let said = succeed(&setting.line("out", options));
    let line = said.trim();
    assert!(line.starts_with("initial residual: too few seeds for a conclusion ("), "{line}");
    assert!(line.contains("2 seeds); a step takes ") && line.ends_with("runs everywhere"), "{line}");
    let out = setting.path("out");
    // The base model once, then three arms in two seeds; the search has 2 + 4 + 4 cells.
    let rows = cells(&out);
    let arms: Vec<&str> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(arms, ["base", "vanilla", "none", "sibo", "vanilla", "none", "sibo"]);
    let search: Vec<csv::StringRecord> =
        csv::Reader::from_path(out.join("search.csv")).unwrap().records().map(Result::unwrap).collect();
    assert_eq!(search.len(), 10);
    for kind in ["vanilla", "none", "sibo"] {
        let own: Vec<&csv::StringRecord> = search.iter().filter(|row| &row[0] == kind).collect();
        let best = own.iter().map(|row| row[3].parse::<f64>().unwrap()).fold(f64::INFINITY, f64::min);
        let chosen: Vec<_> = own.iter().filter(|row| &row[4] == "true").collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0][3].parse::<f64>().unwrap(), best);
        let used = rows.iter().find(|row| &row[0] == kind).unwrap();
        assert_eq!((&used[1], &used[2]), (&chosen[0][1], &chosen[0][2]));
    }
    // The difference that the line states is that of the table.
    let loss = |kind: &str| -> Vec<f64> {
        rows.iter().filter(|row| &row[0] == kind).map(|row| row[6].parse().unwrap()).collect()
    };
    let mean = loss("sibo").iter().zip(loss("none")).map(|(a, b)| a - b).sum::<f64>() / 2.0;
    let manifest = read_json(&out.join("manifest.json"));
    assert!((manifest["answer"]["difference"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(line.contains(&format!("({mean:+.4} ")), "{line}");
    let page = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(page.contains(line) && page.contains("| sibo − none |"), "{page}");
    // Nothing is trained twice, and one lost cell alone is trained again, to the same numbers.
    let before = fs::read(out.join("cells.csv")).unwrap();
    succeed(&setting.line("out", options));
    assert_eq!(fs::read(out.join("cells.csv")).unwrap(), before);
    let kept: Vec<PathBuf> = fs::read_dir(out.join("cells")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 17);
    fs::remove_file(&kept[3]).unwrap();
    succeed(&setting.line("out", options));
    let of = |rows: &[csv::StringRecord]| {
        rows.iter().map(|row| row.iter().take(10).map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    assert_eq!(of(&cells(&out)), of(&rows));
    // Another question does not mix with this one.
    assert_one_line(
        &run(&setting.line("out", &options.replace("0.5", "0.6"))),
        &["other settings, data or model", "another --out"],
        "another",
    );
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_written() {
    let setting = Setting::new();
    for (options, words) in [
        ("--budget soon", vec!["--budget is soon", "30m or 2h"]),
        ("--budget 1s --steps 5000", vec!["--budget 1 s", "cells of 5000 steps need about"]),
        ("--lambdas 0", vec!["--lambdas is 0", "above 0"]),
        ("--lrs 0", vec!["--lrs is 0"]),
        ("--seeds 0", vec!["--seeds is 0", "from 1 to 100"]),
        ("--margin 0", vec!["--margin is 0"]),
        ("--method full", vec!["not supported"]),
        ("--method bitfit", vec!["no module that could read the initial residual"]),
    ] {
        let line = setting.line("refused", options);
        let line = if options.contains("--method") {
            line.replace(&setting.path("more.toml").display().to_string(), &bare(&setting))
        } else {
            line
        };
        assert_one_line(&run(&line), &words, options);
        assert!(!setting.path("refused/cells").exists(), "{options}");
    }
    fs::write(setting.path("more.toml"), "lr = 0.1\n").unwrap();
    assert_one_line(&run(&setting.line("refused", "")), &["more.toml", "lr is decided by --lrs"], "lr");
}

/// A file of settings that suits every method.
fn bare(setting: &Setting) -> String {
    let path = setting.path("bare.toml");
    fs::write(&path, "batch-size = 4\naccumulate = 1\nval-size = 8\n").unwrap();
    path.display().to_string()
}
