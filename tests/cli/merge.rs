//! Adapters merged into their base model, written for Python, and converted from the released code.

use crate::program::{assert_one_line, assert_untouched, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// An adapter trained on the tiny model.
fn train(dir: &Path, name: &str, options: &str) -> (String, String) {
    let model = dir.join("model");
    if !model.exists() {
        tiny_model(&model);
    }
    let data = instructions(&dir.join("data.jsonl"), 12);
    let out = dir.join(name);
    succeed(&format!(
        "train --quiet --model {} --data {} --steps 6 --warmup-steps 1 --lr 2e-2 --val-size 0 {options} --out {}",
        model.display(),
        data.display(),
        out.display()
    ));
    (model.display().to_string(), out.join("adapter").display().to_string())
}

/// The cosine of the last layer, of a run.
fn last(dir: &Path, run: &str) -> f64 {
    let texts = dir.join("texts.txt");
    fs::write(&texts, "how many apples has tom\nben has 4 pears\n").unwrap();
    let out = dir.join("measured");
    succeed(&format!("similarity {run} --texts {} --measures cosine --out {}", texts.display(), out.display()));
    let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    rows.iter().rev().find(|row| &row[5] == "all").unwrap()[6].parse().unwrap()
}

#[test]
fn a_merged_model_is_the_tuned_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("lora", "--rank 4 --alpha 10 --rank-pattern q_proj=2"),
        ("dora", "--method dora --rank 3"),
        ("ia3", "--method ia3"),
        ("norms", "--method norms"),
        ("control", "--rank 4 --sibo-lambda 0.3 --sibo-policy all --residual none"),
    ] {
        let (model, adapter) = train(dir.path(), name, options);
        let out = dir.path().join(format!("{name}-merged"));
        let said = succeed(&format!("merge --adapter {adapter} --out {}", out.display()));
        assert!(said.contains("difference  logits of 4 random texts"), "{said}");
        let tuned = last(dir.path(), &format!("--run a={model}+{adapter}"));
        let merged = last(dir.path(), &format!("--model {}", out.display()));
        assert!((tuned - merged).abs() < 1e-5, "{name}: {tuned} {merged}");
        assert!((last(dir.path(), &format!("--model {model}")) - merged).abs() > 1e-4, "{name} must be felt");
        let again = run(&format!("merge --adapter {adapter} --out {}", out.display()));
        assert_one_line(&again, &["is there already"], name);
    }
}

#[test]
fn an_initial_residual_is_merged_in_part_and_never_run_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (model, adapter) = train(dir.path(), "sibo", "--rank 4 --sibo-lambda 0.3 --sibo-policy all");
    let out = dir.path().join("merged");
    let refused = run(&format!("merge --adapter {adapter} --out {}", out.display()));
    assert_one_line(&refused, &["depends on the token", "--partial"], "whole");
    assert_untouched(&out, "a refused merge");
    succeed(&format!("merge --adapter {adapter} --partial --tables --out {}", out.display()));
    assert!(out.join("tables.safetensors").is_file());
    let tuned = last(dir.path(), &format!("--run a={model}+{adapter}"));
    let merged = last(dir.path(), &format!("--run a={}+{}", out.join("base").display(), out.display()));
    assert!((tuned - merged).abs() < 1e-5, "{tuned} {merged}");
    let alone = run(&format!(
        "similarity --model {} --texts {} --out {}",
        out.join("base").display(),
        dir.path().join("texts.txt").display(),
        dir.path().join("alone").display()
    ));
    assert_one_line(&alone, &["in part", "adapter that stands beside them"], "alone");
    let (_, normed) = train(dir.path(), "normed", "--rank 4 --sibo-lambda 0.3 --sibo-policy all --residual h0-normed");
    let tables = run(&format!("merge --adapter {normed} --partial --tables --out {}", dir.path().join("x").display()));
    assert_one_line(&tables, &["--tables", "h0-normed", "token alone"], "tables");
    let (_, bottleneck) = train(dir.path(), "adapter", "--method adapter --bottleneck 4");
    let refused = run(&format!("merge --adapter {bottleneck} --out {}", dir.path().join("x").display()));
    assert_one_line(&refused, &["tanh", "cannot be merged"], "adapter");
}

#[test]
fn an_adapter_is_written_for_python() {
    let dir = tempfile::tempdir().unwrap();
    let (_, adapter) = train(dir.path(), "sibo", "--rank 4 --sibo-lambda 0.3");
    succeed(&format!("export --python --adapter {adapter}"));
    let adapter = PathBuf::from(adapter);
    let told = read_json(&adapter.join("sibo_modules.json"));
    assert_eq!(
        told["h0"],
        json!({"kind": "token", "module": "model.embed_tokens", "at": "output", "projection": null})
    );
    let up = told["modules"].as_array().unwrap().iter().find(|m| m["path"] == "model.layers.0.mlp.up_proj").unwrap();
    assert_eq!((&up["mixed"], &up["lambda"], &up["position"]), (&json!(true), &json!(0.3), &json!("beside")));
    assert!(fs::read_to_string(adapter.join("sibo_adapter.py")).unwrap().contains("def apply_adapter"));
    // MiniLM's kind of file: BERT without a head, which transformers puts behind `bert.` once it classifies.
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert/tiny_bert");
    let data = dir.path().join("classes.jsonl");
    let row = |i: usize| {
        let text = if i.is_multiple_of(2) { "the cat" } else { "two dogs" };
        format!("{}\n", json!({"text": text, "label": i % 2}))
    };
    fs::write(&data, (0..12).map(row).collect::<String>()).unwrap();
    let out = dir.path().join("classes");
    succeed(&format!(
        "train --quiet --model {} --data {} --label-field label --steps 2 --warmup-steps 1 --val-size 0 --sibo-lambda 0.2 \
         --out {}",
        bert.display(),
        data.display(),
        out.display()
    ));
    succeed(&format!("export --python --adapter {}", out.join("adapter").display()));
    let told = read_json(&out.join("adapter/sibo_modules.json"));
    assert_eq!(told["h0"]["module"], "bert.encoder.layer.0");
    assert!(told["modules"][0]["path"].as_str().unwrap().starts_with("bert.encoder.layer.0."), "{told}");
    let (_, factors) =
        train(dir.path(), "ia3", "--method ia3 --sibo-lambda 0.3 --feed-forward up_proj --targets up_proj");
    succeed(&format!("export --python --adapter {factors}"));
    let told = read_json(&Path::new(&factors).join("sibo_modules.json"));
    assert_eq!(
        (&told["modules"][0]["form"], &told["modules"][0]["position"]),
        (&json!("factors"), &json!("before")),
        "{told}"
    );
    let (_, norms) = train(dir.path(), "norms", "--method norms");
    assert_one_line(&run(&format!("export --python --adapter {norms}")), &["norms", "not supported"], "norms");
    let (_, remedied) = train(dir.path(), "remedied", "--rank 2 --neutreno 0.5");
    for verb in ["export --python", "merge --out merged"] {
        assert_one_line(&run(&format!("{verb} --adapter {remedied}")), &["remedies", "run"], verb);
    }
}

#[test]
fn a_checkpoint_of_the_released_code_needs_its_lambda() {
    let dir = tempfile::tempdir().unwrap();
    let (model, vanilla) = train(dir.path(), "vanilla", "--rank 4 --alpha 10");
    let released = dir.path().join("released");
    fs::create_dir(&released).unwrap();
    fs::copy(Path::new(&vanilla).join("adapter_model.safetensors"), released.join("adapter_model.safetensors"))
        .unwrap();
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 10, "lora_dropout": 0.05, "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"], "merge_weights": false,
        "enable_lora": null, "base_model_name_or_path": model});
    fs::write(released.join("adapter_config.json"), config.to_string()).unwrap();
    let out = dir.path().join("ours");
    let line = format!("export --from sibo --adapter {} --out {}", released.display(), out.display());
    assert_one_line(&run(&line), &["embedding_lambda is missing", "--sibo-lambda"], "no lambda");
    let said = succeed(&format!("{line} --sibo-lambda 0.1"));
    assert!(said.contains("lambda 0.1, policy official, h0 token"), "{said}");
    let ours = read_json(&out.join("adapter_config.json"));
    assert_eq!((&ours["peft_type"], &ours["sibo"]["lambda"]), (&json!("SIBO_LORA"), &json!(0.1)));
    assert!(
        (last(dir.path(), &format!("--run a={model}+{}", out.display()))
            - last(dir.path(), &format!("--run a={model}+{vanilla}")))
        .abs()
            > 1e-6
    );
}

#[test]
fn a_learned_lambda_stands_in_the_log_and_in_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let (_, adapter) = train(dir.path(), "learned", "--rank 4 --sibo-lambda 0.2 --learn-lambda layer");
    let log = crate::program::events(&dir.path().join("learned"));
    let lambda = |event: &serde_json::Value| event["lambda"]["model.layers.0"].as_f64().unwrap();
    assert!((lambda(&log[5]) - 0.2).abs() > 1e-3, "it must move: {}", log[5]);
    let config = read_json(&Path::new(&adapter).join("adapter_config.json"));
    assert_eq!(config["sibo"]["learned"], "layer");
    let (_, layers) = train(dir.path(), "layers", "--rank 4 --sibo-lambdas 0.1,0.3,0");
    let config = read_json(&Path::new(&layers).join("adapter_config.json"));
    assert_eq!(config["sibo"]["layers"], json!([0.1, 0.3, 0.0]));
    let (_, rises) = train(dir.path(), "rises", "--rank 4 --sibo-lambda 0.3 --lambda-schedule rise");
    let log = crate::program::events(&dir.path().join("rises"));
    let course: Vec<f64> = log.iter().map(|event| event["lambda"]["all"].as_f64().unwrap()).collect();
    assert!(course.iter().zip(1..).all(|(lambda, step)| (lambda - 0.05 * f64::from(step)).abs() < 1e-12), "{course:?}");
    let config = read_json(&Path::new(&rises).join("adapter_config.json"));
    assert_eq!((&config["peft_type"], &config["sibo"]["lambda"]), (&json!("SIBO_LORA"), &json!(0.3)));
    let (_, falls) = train(dir.path(), "falls", "--rank 4 --sibo-lambda 0.3 --lambda-schedule fall");
    let config = read_json(&Path::new(&falls).join("adapter_config.json"));
    assert_eq!((&config["peft_type"], config.get("sibo")), (&json!("LORA"), None));
    for (options, words) in [
        ("--lambda-schedule rise", "lambda-schedule is its course"),
        ("--sibo-lambda 1 --learn-lambda layer", "above 0 and below 1"),
        ("--sibo-lambdas 0.1", "1 values of lambda were given for 3 blocks"),
        ("--method bitfit --sibo-lambda 0.1", "no linear input"),
        ("--method ia3 --rslora", "it is for lora and dora"),
        ("--method ia3 --rank 4", "--rank is for the methods lora, dora"),
        ("--virtual-tokens 4", "--virtual-tokens is for the methods prefix, prompt"),
        ("--neutreno NaN", "neutreno"),
        ("--contranorm 0.1 --contranorm-temperature 0", "above 0"),
        ("--fusion max", "is a decoder"),
        ("--method full --attn-scale", "attn-scale is set; it must be left out"),
        ("--rank-pattern q_proj", "NAME=RANK"),
        ("--modules-to-save lm_heads", "matches no module"),
    ] {
        let line = format!(
            "train --quiet --model {} --data {} --steps 2 {options} --out {}",
            dir.path().join("model").display(),
            dir.path().join("data.jsonl").display(),
            dir.path().join("refused").display()
        );
        assert_one_line(&run(&line), &[words], options);
    }
}
