//! States in files: what was saved measures as the model did, and states made elsewhere as their maker says.

use crate::program::{assert_one_line, assert_untouched, command, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The rows of a table without the columns named, every number by its row's names.
fn table(path: &Path, without: &[&str]) -> BTreeMap<String, Vec<(String, String)>> {
    const NUMBERS: [&str; 9] =
        ["mean", "std", "ci_low", "ci_high", "texts", "pairs", "diff", "diff_ci_low", "diff_ci_high"];
    let mut reader = csv::Reader::from_path(path).unwrap();
    let names = reader.headers().unwrap().clone();
    let mut rows = BTreeMap::new();
    for record in reader.records() {
        let record = record.unwrap();
        let cells = names.iter().zip(&record).filter(|(name, _)| !without.contains(name));
        let (numbers, key): (Vec<_>, Vec<_>) = cells.partition(|(name, _)| NUMBERS.contains(name));
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        rows.insert(format!("{key:?}"), numbers.into_iter().map(owned).collect());
    }
    rows
}

#[test]
fn saved_states_measure_as_the_model_did() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let texts = instructions(&dir.path().join("texts.jsonl"), 12);
    let [first, second, states] = ["first", "second", "states"].map(|name| dir.path().join(name));
    let measure = "similarity --token-classes --distance --heatmap 3 --text 2";
    let ended = run(&format!(
        "{measure} --model {} --texts {} --template alpaca --span response --group-by kind --save-states {} --out {}",
        model.display(),
        texts.display(),
        states.display(),
        first.display()
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("saving states: 5 files of"), "the size is said: {}", ended.stderr);
    succeed(&format!("{measure} --quiet --states base={} --out {}", states.display(), second.display()));
    for name in ["similarity", "token_classes", "distance"] {
        let [a, b] = [&first, &second].map(|out| table(&out.join(format!("{name}.csv")), &[]));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (key, cells) in &a {
            for ((column, x), (_, y)) in cells.iter().zip(&b[key]) {
                match (x.parse::<f64>(), y.parse::<f64>()) {
                    (Ok(x), Ok(y)) => assert!((x - y).abs() <= 1e-12 * x.abs().max(1.0), "{key} {column}: {x} and {y}"),
                    _ => assert_eq!(x, y, "{key} {column}"),
                }
            }
        }
    }
    let [a, b] = [&first, &second].map(|out| fs::read_to_string(out.join("heatmap/base_text2_layer3.csv")).unwrap());
    assert_eq!(
        a.lines().map(|l| l.rsplit_once(',').unwrap().0).collect::<Vec<_>>(),
        b.lines().map(|l| l.rsplit_once(',').unwrap().0).collect::<Vec<_>>()
    );
    let manifest = read_json(&second.join("manifest.json"));
    assert_eq!(manifest["runs"][0]["states_sha256"].as_object().unwrap().len(), 6, "tokens.jsonl and five points");
}

#[test]
fn a_layer_that_is_not_stored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let texts = instructions(&dir.path().join("texts.jsonl"), 5);
    let [out, states, bad] = ["out", "states", "bad"].map(|name| dir.path().join(name));
    let save = format!(
        "similarity --quiet --field output --model {} --texts {} --out {} --layers 0,2 --max-texts 3 --save-states {}",
        model.display(),
        texts.display(),
        out.display(),
        states.display()
    );
    succeed(&save);
    let lines = fs::read_to_string(states.join("tokens.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 3);
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&line["tokens"][1], &line["offsets"][1]), (&" the".into(), &serde_json::json!([0, 3])));
    let mut names: Vec<String> =
        fs::read_dir(&states).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["block_2.safetensors", "embedding_0.safetensors", "manifest.json", "tokens.jsonl"]);
    let with =
        |options: &str| run(&format!("similarity --states {} --out {} {options}", states.display(), bad.display()));
    assert_one_line(&with("--layers 1"), &["--layers 1", "layers 0, 2"], "not stored");
    assert_one_line(&with("--heatmap 3"), &["--heatmap 3", "layers 0, 2"], "not stored");
    for other in [save.replace("0,2", "0,3"), save.replace("max-texts 3", "max-texts 2"), format!("{save} --dtype f64")]
    {
        assert_one_line(&run(&other), &["is not an empty folder", "name a new one"], &other);
    }
    assert_one_line(&with(&format!("--texts {}", texts.display())), &["--texts needs --model"], "texts unread");
    assert_eq!(with("--limit 2").code, Some(2), "an option about texts without texts");
    assert_one_line(&with("--max-texts 2"), &["--max-texts belongs to --distance"], "an option without effect");
    fs::write(states.join("block_2.safetensors"), [1; 30]).unwrap();
    assert_one_line(&with(""), &["block_2.safetensors"], "broken");
    assert_untouched(&bad, "a refusal");
}

#[test]
fn states_that_are_there_already_stop_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let texts = instructions(&dir.path().join("texts.jsonl"), 600);
    let [out, states] = ["out", "states"].map(|name| dir.path().join(name));
    let line = format!(
        "similarity --field output --model {} --texts {} --out {} --save-every 0 --save-states {}",
        model.display(),
        texts.display(),
        out.display(),
        states.display()
    );
    let mut child = command(&line.split_whitespace().collect::<Vec<_>>());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !out.join("progress/0.safetensors").is_file() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    assert!(child.wait().unwrap().code().is_none(), "it ended before it could be killed: give it more texts");
    let saved = |name: &str| fs::metadata(states.join(name)).unwrap().modified().unwrap();
    let before = saved("block_1.safetensors");
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("holds these states already; they stay as they are"), "{}", ended.stderr);
    assert!(ended.stderr.contains("base: goes on after"), "{}", ended.stderr);
    assert_eq!(saved("block_1.safetensors"), before);
    // What is no longer whole is not taken for what it was.
    fs::write(states.join("block_1.safetensors"), b"cut").unwrap();
    assert_one_line(&run(&format!("{line} --quiet")), &["is not an empty folder"], "a damaged file");
}

#[test]
fn states_made_by_the_documented_writer_measure_as_their_maker_says() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/states");
    let wanted = read_json(&golden.join("golden.json"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(&format!("similarity --quiet --token-classes --states gpt={} --out {}", golden.display(), out.display()));
    let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
    let mut compared = 0;
    for record in reader.records().map(Result::unwrap) {
        let [layer, site, measure, tokens, mean] = [2, 3, 4, 5, 6].map(|column| record[column].to_owned());
        if (measure.as_str(), tokens.as_str()) == ("cosine", "all") {
            let golden = wanted["cosine"][format!("{site}_{layer}")].as_f64().unwrap();
            assert!((mean.parse::<f64>().unwrap() - golden).abs() < 1e-12, "{site} {layer}: {mean} and {golden}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3, "only what is stored is in the table");
    let mut reader = csv::Reader::from_path(out.join("token_classes.csv")).unwrap();
    let mut compared = 0;
    for record in reader.records().map(Result::unwrap) {
        let key = format!("{}_{} {} {}", &record[2], &record[1], &record[3], &record[4]);
        let golden = wanted["classes"][&key].as_f64().unwrap();
        assert!((record[5].parse::<f64>().unwrap() - golden).abs() < 1e-12, "{key}: {} and {golden}", &record[5]);
        compared += 1;
    }
    assert_eq!(compared, wanted["classes"].as_object().unwrap().len());
}
