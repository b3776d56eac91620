//! `--json` of every verb, held to `docs/json.md`.

use crate::program::{run, succeed};
use crate::small_model::{instructions, tiny_model};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/json.md");

/// The words in backticks of the first column of a section's table.
fn documented(section: &str) -> BTreeSet<String> {
    let heading = format!("\n## {section}\n");
    let (_, text) = PAGE.split_once(&heading).unwrap_or_else(|| panic!("docs/json.md has no section {section}"));
    let text = text.split("\n## ").next().unwrap();
    let first = text.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").next().unwrap());
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Runs a verb with `--json --quiet`: one document on stdout with the documented keys, and nothing on stderr.
fn document(section: &str, line: &str) -> Value {
    let ended = run(&format!("{line} --json --quiet"));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{line}");
    let value: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{line}: {e}: {}", ended.stdout));
    let keys: BTreeSet<String> = value.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, documented(section), "{section}: what is printed, and docs/json.md");
    value
}

/// The keys of an object are those that a line of the page names.
fn assert_keys(value: &Value, row: &str) {
    let line = PAGE.lines().find(|line| line.starts_with(&format!("| `{row}` |"))).unwrap();
    let words: BTreeSet<&str> = line.split(" | ").nth(1).unwrap().split('`').skip(1).step_by(2).collect();
    let missing: Vec<&String> = value.as_object().unwrap().keys().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "{row}: {missing:?} are not documented");
}

#[test]
fn every_verb_has_it() {
    let help = succeed("--help");
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A verb stands two columns in; what it does goes on further right.
    let verbs: Vec<&str> = verbs
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(verbs.len() >= 10, "{help}");
    let without: Vec<&str> = verbs
        .into_iter()
        // Scripts for shells; a page, which has its tables beside it; CSV and the job files of clusters.
        .filter(|verb| !["help", "completions", "reproduce", "sweep"].contains(verb))
        .filter(|verb| !succeed(&format!("{verb} --help")).contains("--json"))
        .collect();
    assert_eq!(without, Vec::<&str>::new());
}

#[test]
fn of_each_verb_the_documented_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    tiny_model(Path::new(&path("model")));
    instructions(Path::new(&path("data.jsonl")), 24);
    let (model, data) = (path("model"), path("data.jsonl"));

    let value = document("inspect", &format!("inspect --model {model} --method lora --rank 4 --sibo-lambda 0.2"));
    assert_eq!((&value["layers"], &value["modules"][0]["reads"]), (&3.into(), &value["hidden_size"]));
    assert_keys(&value["modules"][0], "modules");
    assert_keys(&value["residual"], "residual");

    let train = format!("train --model {model} --data {data} --rank 4 --sibo-lambda 0.2 --warmup-steps 1");
    let value = document("train --dry-run", &format!("{train} --steps 4 --out {} --dry-run", path("dry")));
    assert_eq!((&value["steps"], &value["examples"]["train"]), (&4.into(), &22.into()));
    assert_eq!(value["bytes"]["moments"].as_u64().unwrap(), 8 * value["trainable"].as_u64().unwrap());
    assert!(!Path::new(&path("dry")).exists());

    let value = document("train", &format!("{train} --steps 4 --out {} --eval-every 2 --probe-every 3", path("run")));
    assert_eq!(value["result"], path("run/adapter"));
    assert_eq!((&value["outcome"]["steps"], &value["last"]["step"]), (&4.into(), &4.into()));
    let similarity = value["last"]["similarity"].as_array().unwrap();
    assert_eq!(similarity.len(), 5, "layers 0 to 3, and after the final norm");
    let events = crate::program::events(Path::new(&path("run")));
    let logged = |key: &str| events.iter().rev().find_map(|event| event.get(key)).unwrap();
    for key in ["loss", "lr", "val_loss", "val_accuracy", "similarity", "similarity_before"] {
        assert_eq!(&value["last"][key], logged(key), "{key}");
    }
    assert_keys(&value["outcome"], "outcome");
    assert_keys(&value["last"], "last");
    // Nothing is left to do: nothing was seen.
    let again =
        document("train", &format!("{train} --steps 4 --out {} --eval-every 2 --probe-every 3 --resume", path("run")));
    assert_eq!((&again["outcome"]["resumed_from"], &again["last"]["step"]), (&4.into(), &Value::Null));

    let adapter = path("run/adapter");
    let measured = format!("similarity --model {model} --texts {data} --field output --adapter tuned={adapter}");
    let value = document("similarity", &format!("{measured} --out {}", path("curves")));
    let curves = value["curves"].as_array().unwrap();
    assert_eq!(curves.len(), 2 * 2 * 3, "runs, measures, token sets");
    let table = std::fs::read_to_string(path("curves/similarity.csv")).unwrap();
    let cells: Vec<&str> = table.lines().nth(1).unwrap().split(',').collect();
    assert_eq!(cells[..6], ["base", "", "0", "embedding", "cosine", "all"]);
    assert_eq!(curves[0]["mean"][0].as_f64().unwrap(), cells[6].parse::<f64>().unwrap());
    assert_eq!(curves[0]["layer"], serde_json::json!([0, 1, 2, 3, 3]));
    let curve_keys = PAGE.split("A curve has ").nth(1).unwrap().split("which are").next().unwrap();
    let named: BTreeSet<&str> = curve_keys.split('`').skip(1).step_by(2).collect();
    assert_eq!(curves[0].as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>(), named);
    for file in value["files"].as_array().unwrap() {
        assert!(Path::new(&path("curves")).join(file.as_str().unwrap()).exists(), "{file}");
    }

    let value = document("report", &format!("report {}", path("curves")));
    assert_eq!((&value["page"], &value["verification"]), (&path("curves/report.html").into(), &Value::Null));
    let value = document("report", &format!("report {} --verify", path("curves")));
    assert_eq!(value["verification"]["differences"], serde_json::json!([]));
    assert_keys(&value["verification"], "verification");

    let dosed = format!("dose --model {model} --adapter {adapter} --texts {data} --field output --lambda 0:1:0.5");
    let value = document("dose", &format!("{dosed} --residual h0,none --out {}", path("dose")));
    let points = value["points"].as_array().unwrap();
    assert_eq!(points.len(), 2 * 4, "two arms at 0, 0.2 as trained, 0.5 and 1");
    assert_eq!(points.iter().filter(|point| point["trained"] == true).count(), 1);
    assert!(points.iter().any(|point| point["minus_none"]["texts"] == 24), "{points:?}");
    assert_keys(&points[0], "points");

    let value =
        document("merge", &format!("merge --model {model} --adapter {adapter} --partial --out {}", path("merged")));
    assert!(value["difference"]["largest"].as_f64().unwrap() < 1e-3 * value["difference"]["reach"].as_f64().unwrap());
    assert_eq!(value["left"]["base"], path("merged/base"));
    assert_keys(&value["difference"], "difference");
    assert_keys(&value["left"], "left");

    let value =
        document("export", &format!("export --model {model} --adapter {adapter} --python --out {}", path("python")));
    assert_eq!((&value["out"], &value["residual"]["lambda"]), (&path("python").into(), &0.2.into()));
    assert!(Path::new(&path("python/sibo_adapter.py")).exists());
}

#[test]
fn of_doctor() {
    let value = document("doctor", "doctor");
    assert_keys(&value["machine"], "machine");
    assert_keys(&value["kernels"][0], "kernels");
}

#[test]
fn a_failure_leaves_stdout_empty() {
    let ended = run("inspect --model /nowhere/at/all --json");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
