//! An encoder from the command line: measured, inspected, and refused where it cannot be trained.

use crate::program::{assert_one_line, run, succeed};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert").join(name)
}

#[test]
fn pairs_run_through_bert_with_their_token_types() {
    let dir = tempfile::tempdir().unwrap();
    let texts = dir.path().join("pairs.jsonl");
    let measure = |model: &str, lines: &[serde_json::Value], options: &str| -> Vec<(String, String, f64)> {
        fs::write(&texts, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
        let out = dir.path().join("out");
        let model = golden(model);
        succeed(&format!(
            "similarity --model {} --texts {} --out {} {options}",
            model.display(),
            texts.display(),
            out.display()
        ));
        let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
        let names = reader.headers().unwrap().clone();
        let at = |name: &str| names.iter().position(|n| n == name).unwrap();
        let rows = reader.records().map(Result::unwrap);
        rows.filter(|r| &r[at("measure")] == "cosine" && &r[at("tokens")] == "all")
            .map(|r| (r[at("site")].to_owned(), r[at("layer")].to_owned(), r[at("mean")].parse().unwrap()))
            .collect()
    };
    let pair = [json!({"sentence1": "the cat sat", "sentence2": "two dogs run"})];
    let rows = measure("tiny_bert", &pair, "");
    let sites: BTreeSet<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    assert_eq!(sites, BTreeSet::from(["block", "embedding"]), "there is no final norm");
    assert_eq!(rows.len(), 4);
    // The same tokens as one text have one type: another sum of embeddings, and so another similarity.
    let one = measure("tiny_bert", &[json!({"text": "the cat sat [SEP] two dogs run"})], "");
    assert!((rows[0].2 - one[0].2).abs() > 1e-3, "{rows:?} {one:?}");
    assert_eq!(measure("tiny_roberta", &pair, "").len(), 3);
    // Longer than the 40 learned positions: cut there.
    let long = [json!({"text": "the cat sat on the mat ".repeat(20)})];
    assert_eq!(measure("tiny_bert", &long, ""), measure("tiny_bert", &long, "--max-tokens 40"));
}

#[test]
fn the_plan_of_bert_names_its_modules_and_what_is_mixed() {
    let model = golden("tiny_bert");
    let plan =
        |options: &str| succeed(&format!("inspect --model {} --method lora --rank 2 {options}", model.display()));
    let official = plan("--sibo-lambda 0.2");
    let line = |text: &str, module: &str| text.lines().find(|l| l.starts_with(module)).unwrap().to_owned();
    assert!(line(&official, "encoder.layer.2.intermediate.dense").ends_with("  yes"), "{official}");
    assert!(line(&official, "encoder.layer.0.attention.self.query").contains("no: policy official"), "{official}");
    assert!(official.contains("mixed into 3 of 12 modules") && official.contains("h0          input"), "{official}");
    assert!(official.contains("hidden_states[l] is layer l for every l"), "{official}");
    assert!(plan("--sibo-lambda 0.2 --sibo-policy all").contains("mixed into 12 of 12 modules"));
    let down = plan("--targets output.dense --sibo-lambda 0.2 --sibo-policy all");
    assert!(line(&down, "encoder.layer.1.output.dense").contains("no: its input is the feed-forward's"), "{down}");
    assert!(line(&down, "encoder.layer.1.attention.output.dense").contains("no: its input is attention's"), "{down}");
    let ended = run(&format!("inspect --model {} --method lora --targets up_proj", model.display()));
    assert_one_line(&ended, &["up_proj", "query, key, value, attention.output.dense, intermediate.dense"], "targets");
}

#[test]
fn an_encoder_is_not_trained_on_a_next_token_loss() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    fs::write(&data, format!("{}\n", json!({"instruction": "the cat", "output": "sat"}))).unwrap();
    let out = dir.path().join("out");
    let model = golden("tiny_bert");
    let ended = run(&format!("train --model {} --data {} --out {}", model.display(), data.display(), out.display()));
    assert_one_line(&ended, &["tiny_bert", "this bert model has no head for tokens"], "train");
    assert!(!out.exists(), "a model that cannot be trained leaves no folder");
}

#[test]
fn a_final_norm_that_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let texts = dir.path().join("texts.tsv");
    fs::write(&texts, "sentence\tlabel\nthe \"cat sat\t1\ntwo dogs run\t0\n").unwrap();
    let (out, model) = (dir.path().join("out"), golden("tiny_bert"));
    let with = |sites: &str| {
        run(&format!(
            "similarity --model {} --texts {} --field sentence --sites {sites} --out {}",
            model.display(),
            texts.display(),
            out.display()
        ))
    };
    let ended = with("final_norm");
    assert_one_line(&ended, &["--sites final_norm", "tiny_bert", "has no final norm", "block"], "nothing is left");
    assert!(!out.join("similarity.csv").exists());
    let ended = with("block,final_norm");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("has no final norm; its other sites are measured"), "{}", ended.stderr);
    assert!(out.join("similarity.csv").exists());
}

#[test]
fn an_unknown_family_is_told_the_nearest_ones() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), json!({"model_type": "qwen3_next"}).to_string()).unwrap();
    let ended = run(&format!("inspect --model {}", dir.path().display()));
    assert_one_line(&ended, &["qwen3_next", "nearest that are: qwen3, qwen2", "docs/models.md"], "family");
}

/// A short run of `train` with its options, into `out`.
fn trained(out: &std::path::Path, options: &str) -> Vec<Value> {
    let ended = run(&format!(
        "train --out {} --steps 6 --warmup-steps 1 --rank 2 --batch-size 4 --accumulate 1 --val-size 4 --eval-every 3 \
         --save-every 3 --probe-every 0 {options}",
        out.display()
    ));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let log = fs::read_to_string(out.join("events.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_encoder_learns_hidden_tokens_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("texts.txt");
    fs::write(&data, (0..24).map(|i| format!("the cat sat on mat {i}\n")).collect::<String>()).unwrap();
    let options = format!(
        "--model {} --data {} --sibo-lambda 0.2 --sibo-policy all --lr 0.01",
        golden("tiny_roberta").display(),
        data.display()
    );
    let whole = dir.path().join("whole");
    let events = trained(&whole, &options);
    assert!(events[5]["val_loss"].as_f64().unwrap() < events[2]["val_loss"].as_f64().unwrap());
    let bytes = |out: &std::path::Path| fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    // In another number of micro-batches the same tokens are hidden.
    let parts = trained(&dir.path().join("parts"), &format!("{options} --micro-batch 2"));
    let loss = |events: &[Value]| events[0]["loss"].as_f64().unwrap();
    assert!((loss(&events) / loss(&parts) - 1.0).abs() < 1e-5);
    let config: Value = serde_json::from_slice(&fs::read(whole.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["task_type"], Value::Null);
    assert!(!bytes(&whole).is_empty());
    let refused = run(&format!("train --mask-share 0 --out {} {options}", dir.path().join("x").display()));
    assert_one_line(&refused, &["--mask-share 0", "above 0"], "share");
}

#[test]
fn texts_are_classified_with_a_head_that_travels_with_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.tsv");
    let row = |i: usize| format!("{}\t{}\n", if i.is_multiple_of(2) { "the cat sat" } else { "two dogs run" }, i % 2);
    fs::write(&data, format!("sentence\tlabel\n{}", (0..24).map(row).collect::<String>())).unwrap();
    let options = |model: &str| {
        format!(
            "--model {model} --data {} --label-field label --field sentence --lr 0.02 --sibo-lambda 0.2",
            data.display()
        )
    };
    for model in [golden("tiny_bert").display().to_string(), golden("tiny_roberta").display().to_string()] {
        let out = dir.path().join(model.rsplit('/').next().unwrap());
        let events = trained(&out, &options(&model));
        let loss = |i: usize| events[i]["val_loss"].as_f64().unwrap();
        assert!(loss(5) < loss(2), "{} {}", loss(2), loss(5));
        let config: Value =
            serde_json::from_slice(&fs::read(out.join("adapter/adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["task_type"], &config["modules_to_save"][0]), (&json!("SEQ_CLS"), &json!("classifier")));
        let manifest: Value = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["classes"], json!(["0", "1"]));
        // Its hidden states need no head.
        let texts = dir.path().join("texts.txt");
        fs::write(&texts, "the cat sat\ntwo dogs run\n").unwrap();
        let measured = run(&format!(
            "similarity --adapter a={} --texts {} --out {}",
            out.join("adapter").display(),
            texts.display(),
            out.join("similarity").display()
        ));
        assert_eq!(measured.code, Some(0), "{}", measured.stderr);
    }
}
