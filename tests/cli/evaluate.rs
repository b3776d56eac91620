//! `evaluate` and `train --task` from the command line.

use crate::program::{assert_one_line, read_json, run, succeed};
use crate::small_model::tiny_model;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A task of our own over the words of the small tokenizer, and its file.
fn own_task(dir: &Path, items: usize) -> String {
    let task = dir.join("own.toml");
    fs::write(
        &task,
        "name = \"own\"\nversion = 3\ntitle = \"Own\"\nsource = \"a test\"\nmodes = [\"loglikelihood\", \"template\"]\n\
         metrics = [\"accuracy\"]\ntemplate = \"{question} :\"\n[fields]\nquestion = [\"q\"]\nlabel = [\"a\"]\n[answer]\n\
         kind = \"word\"\nwords = [\"cat\", \"dog\", \"bird\"]\ndelimiter = \" \"\n[decoding]\nmax-new-tokens = 4\nbeams = 2\n",
    )
    .unwrap();
    let animals = ["cat", "dog", "bird"];
    let digits = ["one", "two", "three", "four", "five", "six", "seven"];
    let line = |i: usize| {
        format!(
            "{}\n",
            json!({"q": format!("the {} sees {}", animals[i % 3], digits[i % 7]), "a": animals[(i / 2) % 3]})
        )
    };
    let data = dir.join("own.jsonl");
    fs::write(&data, (0..items).map(line).collect::<String>()).unwrap();
    format!("--task {} --data {}", task.display(), data.display())
}

fn items(out: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(out.join("items").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn choices_are_scored_and_an_interrupted_evaluation_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (model, task) = (tiny_model(&dir.path().join("model")), own_task(dir.path(), 21));
    let out = dir.path().join("out");
    let line = format!("evaluate --quiet --model {} {task} --out {} --batch-size 4", model.display(), out.display());
    let found: Value = serde_json::from_str(&succeed(&format!("{line} --json"))).unwrap();
    assert_eq!(found, read_json(&out.join("results.json")));
    let rows = items(&out, "base/own.jsonl");
    assert_eq!(rows.len(), 21);
    // The scores are those of the items, and these of their likelihoods.
    let scores = &found["runs"][0]["tasks"][0];
    let right = rows.iter().filter(|row| row["right"] == true).count();
    let metric =
        |name: &str| scores["metrics"].as_array().unwrap().iter().find(|m| m["metric"] == name).unwrap().clone();
    assert_eq!(metric("accuracy")["value"], json!(right as f64 / 21.0));
    assert_eq!(
        (&scores["version"], &scores["items"], &scores["mode"]),
        (&json!(3), &json!(21), &json!("loglikelihood"))
    );
    for row in &rows {
        let choices = row["choices"].as_array().unwrap();
        let log = |choice: &Value| choice["log_probability"].as_f64().unwrap();
        let best = choices.iter().max_by(|a, b| log(a).total_cmp(&log(b))).unwrap();
        assert_eq!((best["name"] == row["label"], &best["name"]), (row["right"] == true, &row["extracted"]));
        let total: f64 = choices.iter().map(|choice| choice["probability"].as_f64().unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-9);
    }
    let nll = scores["calibration"]["nll"].as_f64().unwrap();
    let mean = |row: &Value| {
        let label = row["choices"].as_array().unwrap().iter().find(|choice| choice["name"] == row["label"]).unwrap();
        -label["probability"].as_f64().unwrap().ln()
    };
    assert!((nll - rows.iter().map(mean).sum::<f64>() / 21.0).abs() < 1e-9);
    for name in ["results.csv", "results.parquet", "reliability.csv", "manifest.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let harness = read_json(&out.join("lm_eval/base.json"));
    assert_eq!(harness["results"]["own"]["acc,none"], metric("accuracy")["value"]);
    assert_eq!(harness["versions"]["own"], json!(3));

    // Cut in the middle of line 10: ten items stay, nothing is asked twice, the results are the same.
    let file = out.join("items/base/own.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let ends: Vec<usize> = whole.match_indices('\n').map(|(end, _)| end + 1).collect();
    fs::write(&file, &whole.as_bytes()[..ends[9] + 40]).unwrap();
    let again: Value = serde_json::from_str(&succeed(&format!("{line} --json"))).unwrap();
    let rows_again = items(&out, "base/own.jsonl");
    assert_eq!(rows_again[..10], rows[..10], "what was there stays, its seconds too");
    let ids = |rows: &[Value]| rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&rows_again), ids(&rows));
    assert_eq!(again["runs"][0]["tasks"][0]["metrics"], scores["metrics"]);
    // A file of another task's version is not mixed in.
    let toml = dir.path().join("own.toml");
    fs::write(&toml, fs::read_to_string(&toml).unwrap().replace("version = 3", "version = 4")).unwrap();
    assert_one_line(&run(&line), &["own.jsonl", "differs in task", "choose another --out"], "another version");
}

#[test]
fn the_limit_may_grow() {
    let dir = tempfile::tempdir().unwrap();
    let (model, task) = (tiny_model(&dir.path().join("model")), own_task(dir.path(), 12));
    let out = dir.path().join("out");
    let line = format!("evaluate --quiet --model {} {task} --out {}", model.display(), out.display());
    succeed(&format!("{line} --limit 5"));
    let first = items(&out, "base/own.jsonl");
    assert_eq!(first.len(), 5);
    succeed(&line);
    let all = items(&out, "base/own.jsonl");
    assert_eq!((all.len(), &all[..5]), (12, &first[..]));
    let fewer: Value = serde_json::from_str(&succeed(&format!("{line} --limit 5 --json"))).unwrap();
    assert_eq!(fewer["runs"][0]["tasks"][0]["items"], json!(5));
    assert_eq!(items(&out, "base/own.jsonl"), all);
}

/// A short run of `train`; answers the folder of its adapter.
fn trained(out: &Path, options: &str) -> PathBuf {
    let steps = if options.contains("--steps") { "" } else { "--steps 8" };
    succeed(&format!(
        "train --quiet --out {} {steps} --warmup-steps 1 --rank 2 --batch-size 4 --accumulate 1 --val-size 0 \
         --probe-every 0 --lr 0.02 {options}",
        out.display()
    ));
    out.join("adapter")
}

#[test]
fn two_adapters_are_compared_and_their_cases_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (model, task) = (tiny_model(&dir.path().join("model")), own_task(dir.path(), 40));
    let options = format!("--model {} {task}", model.display());
    // The task trains on its own text: a file serves as both.
    let vanilla = trained(&dir.path().join("vanilla"), &options);
    let sibo = trained(&dir.path().join("sibo"), &format!("{options} --sibo-lambda 0.5 --sibo-policy all --seed 7"));
    let out = dir.path().join("out");
    let line = format!(
        "evaluate --quiet --adapter {} --adapter h0={} --base {task} --out {} --cases 3 --json",
        vanilla.display(),
        sibo.display(),
        out.display()
    );
    let found: Value = serde_json::from_str(&succeed(&line)).unwrap();
    let names: Vec<&Value> = found["runs"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    assert_eq!(names, [&json!("base"), &json!("vanilla"), &json!("h0")]);
    let rights =
        |run: &str| items(&out, &format!("{run}/own.jsonl")).iter().map(|r| r["right"] == true).collect::<Vec<_>>();
    let (base, tuned) = (rights("base"), rights("vanilla"));
    let count = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count();
    let comparison = &found["comparisons"][0];
    assert_eq!((&comparison["run"], &comparison["reference"]), (&json!("vanilla"), &json!("base")));
    assert_eq!(comparison["only_run"], json!(count(&tuned, &base)));
    assert_eq!(comparison["only_reference"], json!(count(&base, &tuned)));
    let sum = |rights: &[bool]| rights.iter().filter(|&&right| right).count() as f64;
    let difference = (sum(&tuned) - sum(&base)) / 40.0;
    assert!((comparison["difference"].as_f64().unwrap() - difference).abs() < 1e-12);
    assert!(base != tuned, "the adapter must be felt");
    let page = fs::read_to_string(out.join("cases.md")).unwrap();
    assert!(page.contains("| run | answer |") && page.contains("| vanilla |") && page.contains("final_norm"), "{page}");
    let mut reader = csv::Reader::from_path(out.join("case_curves.csv")).unwrap();
    let layers = reader.records().map(Result::unwrap).filter(|row| &row[2] == "h0" && &row[4] == "block").count();
    let cases = csv::Reader::from_path(out.join("cases.csv")).unwrap().records().count();
    assert!(cases > 0 && cases.is_multiple_of(3), "{cases}");
    let blocks = read_json(&model.join("config.json"))["num_hidden_layers"].as_u64().unwrap() as usize;
    assert_eq!(layers, cases / 3 * blocks);
}

#[test]
fn a_head_for_classes_is_trained_by_task_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("glue/CoLA");
    fs::create_dir_all(&folder).unwrap();
    // Without a header line, as CoLA is; some test items are training items too.
    let row = |i: usize| {
        let (label, text) = if i.is_multiple_of(2) { (1, "the cat sat on mat") } else { (0, "two dogs run mat on") };
        format!("gj04\t{label}\t\t{text} {}\n", ["the", "two", "cat", "dogs"][i / 2 % 4])
    };
    fs::write(folder.join("train.tsv"), (0..32).map(row).collect::<String>()).unwrap();
    let dev = (0..6).map(row).collect::<String>() + "gj04\t1\t\tthe mat sat on cat\ngj04\t0\t\tdogs run two\n";
    fs::write(folder.join("dev.tsv"), dev).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/tiny_bert");
    let data = format!("--task glue/cola --data {}", dir.path().display());
    let run_folder = dir.path().join("run");
    let adapter = trained(&run_folder, &format!("--model {} {data} --steps 60", model.display()));
    assert_eq!(read_json(&adapter.join("classes.json")), json!(["unacceptable", "acceptable"]));
    let manifest = read_json(&run_folder.join("manifest.json"));
    let overlap = json!([{"task": "glue/cola", "items": 8, "shared": 6}]);
    assert_eq!(manifest["task"]["overlap_with_test_items"], overlap);
    let out = dir.path().join("out");
    let line = format!("evaluate --quiet --adapter {} {data} --out {} --json", adapter.display(), out.display());
    let found: Value = serde_json::from_str(&succeed(&line)).unwrap();
    let scores = &found["runs"][0]["tasks"][0];
    let names: Vec<&Value> = scores["metrics"].as_array().unwrap().iter().map(|m| &m["metric"]).collect();
    assert_eq!(names, [&json!("matthews"), &json!("accuracy")]);
    assert!(scores["metrics"][1]["value"].as_f64().unwrap() >= 0.75, "{scores:#}");
    let rows = items(&out, "run/glue-cola.jsonl");
    assert_eq!((rows.len(), &rows[0]["prompt"]), (8, &json!("the cat sat on mat the")));
    assert_eq!(rows[0]["choices"].as_array().unwrap().len(), 2);
    // A model without a trained head has nothing to say.
    let refused = run(&format!("evaluate --model {} {data} --out {}", model.display(), out.display()));
    assert_one_line(&refused, &["glue/cola", "classify", "train --task glue/cola"], "no head");
}

#[test]
fn what_cannot_be_scored_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (model, task) = (tiny_model(&dir.path().join("model")), own_task(dir.path(), 3));
    let model = format!("--model {}", model.display());
    let out = format!("--out {}", dir.path().join("out").display());
    let refused =
        |options: &str, words: &[&str]| assert_one_line(&run(&format!("evaluate {options} {out}")), words, options);
    refused(&format!("{model} {task} --beams 2"), &["--beams", "writes no text"]);
    refused(&format!("{model} {task} --mode classify"), &["--mode classify", "it has loglikelihood, template"]);
    refused(&format!("{model} {task} --cases 3"), &["--cases compares runs"]);
    refused(&format!("{model} {task} --limit 0"), &["--limit is 0"]);
    refused(
        &format!("{model} --task maths --data {}", dir.path().display()),
        &["--task maths", "arithmetic, commonsense"],
    );
    refused(
        &format!("{model} --task boolq --data {}", dir.path().display()),
        &["boolq: no file of it", "boolq/test.json"],
    );
    refused(&format!("{model} --task glue --data {}", dir.path().display()), &["nothing to score", "left out"]);
    fs::write(dir.path().join("own.jsonl"), "{\"q\": \"the cat\", \"a\": \"cow\"}\n").unwrap();
    refused(&format!("{model} {task}"), &["own.jsonl:1", "the field a", "one of cat, dog, bird"]);
    fs::write(dir.path().join("own.jsonl"), "{\"q\": \"the cat\"}\n").unwrap();
    refused(&format!("{model} {task}"), &["own.jsonl:1", "no field label", "wanted is one of a"]);
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/tiny_bert");
    let _ = own_task(dir.path(), 3);
    refused(&format!("--model {} {task}", bert.display()), &["loglikelihood", "give a decoder"]);
    assert!(!dir.path().join("out/results.json").exists());
}

#[test]
fn a_preset_fills_in_and_options_win() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let record = |i: usize| json!({"instruction": format!("give {i} of the cat"), "input": "", "output": "the cat", "answer": "1.0"});
    let folder = dir.path().join("data");
    fs::create_dir_all(folder.join("train")).unwrap();
    fs::create_dir_all(folder.join("mawps")).unwrap();
    fs::write(folder.join("train/math_data.json"), json!((0..20).map(record).collect::<Vec<_>>()).to_string()).unwrap();
    fs::write(folder.join("mawps/test.json"), json!((15..30).map(record).collect::<Vec<_>>()).to_string()).unwrap();
    let out = dir.path().join("run");
    let ended = run(&format!(
        "train --model {} --data {} --preset sibo/gpt-j-6b/adapter-math --bottleneck 4 --steps 1 --val-size 0 --out {}",
        model.display(),
        folder.display(),
        out.display()
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("test items that the training data hold too: mawps 5 of 15"), "{}", ended.stderr);
    let manifest = read_json(&out.join("manifest.json"));
    let config = &manifest["config"];
    let set = |key: &str| config[key].clone();
    assert_eq!((set("sibo-lambda"), set("method"), set("bottleneck")), (json!(0.3), json!("adapter"), json!(4)));
    assert_eq!((set("template"), set("task"), set("steps")), (json!("released"), json!("arithmetic"), json!(1)));
    assert_eq!((set("base-dtype"), set("lr"), set("val-size")), (json!("f16"), json!(3e-4), json!(0)));
    let refused = run(&format!("train --model x --data y --out {} --preset sibo/gpt-2/lora-math", out.display()));
    assert_one_line(&refused, &["--preset sibo/gpt-2/lora-math", "sibo/gpt-j-6b/lora-math"], "preset");
}

#[test]
fn scores_are_learned_and_correlated() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("STS-B");
    fs::create_dir_all(&folder).unwrap();
    let row = |i: usize| {
        let other = if i.is_multiple_of(2) { "the cat sat on mat" } else { "two dogs run" };
        let score = if i.is_multiple_of(2) { 4.0 + (i % 4) as f64 / 4.0 } else { 0.5 };
        format!("{i}\tthe cat sat\t{other} {}\t{score}\n", ["the", "two", "cat", "dogs"][i % 4])
    };
    let table = |rows: std::ops::Range<usize>| {
        format!("index\tsentence1\tsentence2\tscore\n{}", rows.map(row).collect::<String>())
    };
    fs::write(folder.join("train.tsv"), table(0..40)).unwrap();
    fs::write(folder.join("dev.tsv"), table(40..52)).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/tiny_bert");
    let data = format!("--task glue/stsb --data {}", dir.path().display());
    let adapter = trained(&dir.path().join("run"), &format!("--model {} {data} --steps 60", model.display()));
    let events = fs::read_to_string(dir.path().join("run/events.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    let lines: Vec<&str> = events.lines().collect();
    assert!(loss(lines[0]) > 4.0 && loss(lines[59]) < 1.0, "{} {}", loss(lines[0]), loss(lines[59]));
    let out = dir.path().join("out");
    let line = format!("evaluate --quiet --adapter {} {data} --out {} --json", adapter.display(), out.display());
    let found: Value = serde_json::from_str(&succeed(&line)).unwrap();
    let metrics = &found["runs"][0]["tasks"][0]["metrics"];
    assert_eq!((&metrics[0]["metric"], &metrics[1]["metric"]), (&json!("pearson"), &json!("spearman")));
    assert!(metrics[0]["value"].as_f64().unwrap() > 0.9, "{metrics:#}");
    assert!(
        items(&out, "run/glue-stsb.jsonl").iter().all(|row| row["score"].is_number() && row.get("right").is_none())
    );
}

#[test]
fn generated_answers_are_those_of_generate_and_both_rules_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let (model, task) = (tiny_model(&dir.path().join("model")), own_task(dir.path(), 6));
    let adapter = trained(&dir.path().join("run"), &format!("--model {} {task} --steps 40", model.display()));
    let out = dir.path().join("out");
    let line = format!("evaluate --quiet --adapter {} {task} --out {}", adapter.display(), out.display());
    succeed(&format!("{line} --mode template --batch-size 4"));
    let rows = items(&out, "run/own.jsonl");
    let prompts = dir.path().join("prompts.jsonl");
    let lines = rows.iter().map(|row| format!("{}\n", json!({"text": row["prompt"]})));
    fs::write(&prompts, lines.collect::<String>()).unwrap();
    let written = succeed(&format!(
        "generate --quiet --adapter {} --prompts {} --beams 2 --max-new-tokens 4 --json",
        adapter.display(),
        prompts.display()
    ));
    let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((written.len(), rows.len()), (6, 6));
    let mut answered = 0;
    for (row, written) in rows.iter().zip(&written) {
        assert_eq!(row["output"], written["text"], "{row}");
        let (ours, theirs) = (row["log_probability"].as_f64().unwrap(), written["log_probability"].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-9);
        let output = row["output"].as_str().unwrap();
        let first = output.split_whitespace().find(|word| ["cat", "dog", "bird"].contains(word));
        assert_eq!((row["extracted"].as_str(), row["extracted_released"].as_str()), (first, first), "{output}");
        assert_eq!(row["right"], json!(first == row["label"].as_str()));
        answered += usize::from(first.is_some());
    }
    assert!(answered > 0, "an adapter that was trained on the task says a word of it");
    // Other decoding is another evaluation.
    assert_one_line(&run(&format!("{line} --mode template --beams 1")), &["differs in decoding"], "decoding");
    // Fewer tokens with another folder: every answer is cut.
    let short = dir.path().join("short");
    let line = format!("evaluate --quiet --adapter {} {task} --out {} --json", adapter.display(), short.display());
    let found: Value =
        serde_json::from_str(&succeed(&format!("{line} --mode template --beams 1 --max-new-tokens 1"))).unwrap();
    let scores = &found["runs"][0]["tasks"][0];
    let unfinished = items(&short, "run/own.jsonl").iter().filter(|row| row["ended"] == false).count();
    assert_eq!(scores["cut"], json!(unfinished));
}

#[test]
fn the_released_mode_scores_by_the_released_rule() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let folder = dir.path().join("data/boolq");
    fs::create_dir_all(&folder).unwrap();
    let record = |i: usize| json!({"instruction": format!("the cat {i}"), "input": "", "output": "", "answer": if i.is_multiple_of(2) { "true" } else { "false" }});
    fs::write(folder.join("test.json"), json!((0..3).map(record).collect::<Vec<_>>()).to_string()).unwrap();
    let out = dir.path().join("out");
    let line = format!(
        "evaluate --model {} --task commonsense --data {} --mode released --beams 2 --max-new-tokens 3 --out {} --json",
        model.display(),
        dir.path().join("data").display(),
        out.display()
    );
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("left out: piqa: no file of it"), "{}", ended.stderr);
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    let scores = &found["runs"][0]["tasks"][0];
    assert_eq!(scores["metrics"][0]["metric"], json!("accuracy_released"));
    assert_eq!(
        found["runs"][0]["groups"],
        json!([{"group": "commonsense", "mean": scores["metrics"][0]["value"], "sets": 1, "of": 8}])
    );
    assert!(found["defects_not_reproduced"].as_array().unwrap().len() == 5);
    let rows = items(&out, "base/boolq.jsonl");
    let indented = format!("\n\n{0}### Instruction:\n{0}the cat 0\n\n{0}### Response:\n{0}", " ".repeat(16));
    assert!(rows[0]["prompt"].as_str().unwrap().ends_with(&indented));
    assert!(rows.iter().all(|row| row["right_released"].is_boolean() && row["right"].is_boolean()));
}
