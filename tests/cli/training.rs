//! What a training run writes.

use crate::program::{assert_one_line, assert_untouched, events, read_json, run, succeed};
use crate::small_model::{instructions, stories260k, tiny_model};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The keys of PEFT's LoraConfig, as far as we write them.
const PEFT_KEYS: [&str; 17] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "target_modules",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
];

struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(&dir.path().join("model"));
        let data = instructions(&dir.path().join("data.jsonl"), 24);
        Self { dir, model, data }
    }

    fn line(&self, out: &str, options: &str) -> String {
        format!(
            "train --model {} --data {} --out {} --rank 4 --quiet {options}",
            self.model.display(),
            self.data.display(),
            self.out(out).display()
        )
    }

    fn train(&self, out: &str, options: &str) -> PathBuf {
        succeed(&self.line(out, options));
        self.out(out)
    }

    fn out(&self, out: &str) -> PathBuf {
        self.dir.path().join(out)
    }
}

fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

fn adapter_config(out: &Path) -> Value {
    read_json(&out.join("adapter/adapter_config.json"))
}

#[test]
fn the_event_log_holds_a_line_a_step_and_the_warm_up_starts_at_zero() {
    let place = Place::new();
    let out = place.train("run", "--steps 6 --warmup-steps 2 --lr 4e-3 --batch-size 2 --accumulate 2 --val-size 4");
    let events = events(&out);
    assert_eq!(events.len(), 6);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["step"].as_u64(), Some(i as u64 + 1));
        assert!(event["loss"].as_f64().unwrap() > 0.0 && event["tokens"].as_u64().unwrap() > 40, "{event}");
        assert!(event["seconds"].as_f64().unwrap() >= 0.0);
    }
    let rates: Vec<f64> = events.iter().map(|e| e["lr"].as_f64().unwrap()).collect();
    let expected = [0.0, 2e-3, 4e-3, 3e-3, 2e-3, 1e-3];
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
    let manifest = read_json(&out.join("manifest.json"));
    assert_eq!((&manifest["status"], &manifest["steps"]), (&"finished".into(), &6.into()));
    assert_eq!(manifest["model_sha256"]["model.safetensors"].as_str().unwrap().len(), 64);
    for folder in ["adapter", "best", "last"] {
        assert!(out.join(folder).join("adapter_model.safetensors").is_file(), "{folder}");
    }
    let left = fs::read_dir(&out).unwrap().count();
    assert_eq!(left, 5, "events.jsonl, manifest.json, adapter, best, last and nothing else");
}

#[test]
fn lambda_zero_is_vanilla_and_lambda_above_is_a_type_of_its_own() {
    let place = Place::new();
    let options = "--steps 4 --warmup-steps 1 --val-size 0";
    let vanilla = place.train("vanilla", options);
    let zero = place.train("zero", &format!("{options} --sibo-lambda 0 --residual none --sibo-policy all"));
    assert!(adapter(&vanilla) == adapter(&zero), "lambda 0 must give vanilla's bytes");
    assert_eq!(adapter_config(&vanilla), adapter_config(&zero));
    let config = adapter_config(&vanilla);
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&"LORA".into(), &4.into(), &8.into()));
    for key in config.as_object().unwrap().keys() {
        assert!(PEFT_KEYS.contains(&key.as_str()), "{key} is not PEFT's");
    }

    let sibo = place.train("sibo", &format!("{options} --sibo-lambda 0.2 --sibo-policy all --residual h0-normed"));
    let config = adapter_config(&sibo);
    assert_eq!(config["peft_type"], "SIBO_LORA");
    let section = &config["sibo"];
    assert_eq!(section["lambda"].as_f64(), Some(0.2));
    assert_eq!((&section["policy"], &section["residual"]), (&"all".into(), &"h0-normed".into()));
    assert_eq!(section["h0"], "token");
    assert!(adapter(&vanilla) != adapter(&sibo), "the residual must change what is learnt");
}

#[test]
fn an_adapter_is_started_from_and_given_the_residual() {
    let place = Place::new();
    let first = place.train("first", "--steps 5 --warmup-steps 1 --val-size 0");
    // One step of a warm-up has rate 0: what comes out is what went in, under a new configuration.
    let start = format!("--steps 1 --warmup-steps 9 --val-size 0 --init-adapter {}", first.join("adapter").display());
    let second = place.train("second", &format!("{start} --sibo-lambda 0.3"));
    assert!(adapter(&first) == adapter(&second), "the matrices are those of the adapter that it started from");
    let config = adapter_config(&second);
    assert_eq!((&config["peft_type"], &config["sibo"]["policy"]), (&"SIBO_LORA".into(), &"official".into()));
    assert_eq!(config["sibo"]["lambda"].as_f64(), Some(0.3));
    let loss = |out: &Path| events(out)[0]["loss"].as_f64().unwrap();
    let third = place.train("third", &start);
    assert_eq!(adapter_config(&third)["peft_type"], "LORA");
    assert!((loss(&second) - loss(&third)).abs() > 1e-6, "the residual is felt in the first loss");
}

#[test]
fn a_model_trained_whole_loads_again() {
    let Some(model) = stories260k() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = instructions(&dir.path().join("data.jsonl"), 12);
    let texts = dir.path().join("texts.txt");
    fs::write(&texts, "Once upon a time there was a big dog.\nThe cat saw a red ball.\n").unwrap();
    let curve = |model: &Path, out: &str| -> Vec<f64> {
        let out = dir.path().join(out);
        let line = format!("similarity --quiet --texts {} --out {}", texts.display(), out.display());
        succeed(&format!("{line} --model {}", model.display()));
        let mut table = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
        table.records().filter_map(|row| row.unwrap()[6].parse().ok()).collect()
    };
    let train = |out: &str, lr: &str| -> PathBuf {
        let out = dir.path().join(out);
        let line = format!("train --quiet --method full --steps 3 --warmup-steps 0 --val-size 0 --lr {lr}");
        let paths = format!("--model {} --data {} --out {}", model.display(), data.display(), out.display());
        succeed(&format!("{line} {paths}"));
        out.join("model")
    };
    let base = curve(&model, "base");
    let still = curve(&train("still", "0"), "still-curve");
    assert!(base.len() > 12 && base.len() == still.len());
    assert!(base.iter().zip(&still).all(|(a, b)| (a - b).abs() < 1e-6), "rate 0 leaves the model as it was");
    let moved = curve(&train("moved", "1e-3"), "moved-curve");
    assert!(base.iter().zip(&moved).any(|(a, b)| (a - b).abs() > 1e-4), "rate 1e-3 moves it");
}

#[test]
fn chat_data_need_a_chat_template() {
    let place = Place::new();
    let record = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}"#;
    fs::write(&place.data, format!("{record}\n{record}\n")).unwrap();
    let ended = run(&place.line("run", "--steps 1"));
    assert_one_line(&ended, &["data.jsonl", "chat template", "tokenizer_config.json"], "no template");
    assert_untouched(&place.out("run"), "no template");
}

#[test]
fn a_run_that_diverges_says_so_and_leaves_no_adapter() {
    let place = Place::new();
    let options = "--steps 6 --warmup-steps 0 --lr 1e30 --val-size 4 --eval-every 3 --save-every 2";
    let ended = run(&place.line("run", options));
    assert_one_line(&ended, &["step 2", "NaN", "lower --lr"], "divergence");
    let left = ["adapter", "best", "last"].map(|name| place.out("run").join(name).exists());
    assert_eq!(left, [false; 3], "nothing that is not finite is kept");
}

#[test]
fn a_dry_run_writes_nothing_and_tells_modules_memory_and_time() {
    let place = Place::new();
    let text = succeed(&place.line("run", "--steps 3 --dry-run --sibo-lambda 0.2"));
    assert_untouched(&place.out("run"), "dry run");
    for word in ["model.layers.2.mlp.up_proj", "h0 mixed in", "trainable", "AdamW moments", "steps            3"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn a_config_file_stands_behind_the_command_line() {
    let place = Place::new();
    let toml = place.out("run.toml");
    fs::write(&toml, "steps = 2\nval-size = 0\nsibo-lambda = 0.4\nwarmup-steps = 0\nrank = 2\n").unwrap();
    let out = place.train("run", &format!("--config {}", toml.display()));
    assert_eq!(events(&out).len(), 2);
    let config = adapter_config(&out);
    assert_eq!((config["sibo"]["lambda"].as_f64(), config["r"].as_u64()), (Some(0.4), Some(4)));
}

#[test]
fn checkpointing_changes_no_byte_of_the_result() {
    let place = Place::new();
    let options = "--steps 3 --batch-size 3 --accumulate 2 --val-size 2 --warmup-steps 0 --sibo-lambda 0.2";
    let kept = place.train("kept", options);
    let again = place.train("again", &format!("{options} --checkpointing --profile"));
    let file = "adapter/adapter_model.safetensors";
    assert!(fs::read(kept.join(file)).unwrap() == fs::read(again.join(file)).unwrap());
    let manifest = read_json(&again.join("manifest.json"));
    assert_eq!(manifest["config"]["checkpointing"], true);
    // The profile covers most of the steps.
    let profile = &manifest["profile"];
    let seconds = |phase: &str| profile["seconds"][phase].as_f64().unwrap();
    assert!(seconds("forward") > 0.0 && seconds("backward") > 0.0 && seconds("optimizer") > 0.0);
    let steps: f64 = events(&again).iter().map(|e| e["seconds"].as_f64().unwrap()).sum();
    let phases = ["data", "forward", "backward", "optimizer"].map(seconds).iter().sum::<f64>();
    assert!(phases <= steps && phases > 0.5 * steps, "{phases} of {steps}");
    assert!(profile["product_gflop"].as_f64().unwrap() > 0.0);
    let attention = profile["attention_seconds"].as_f64().unwrap();
    assert!(attention > 0.0 && attention < seconds("forward") + seconds("backward"), "{attention}");
    assert!(profile["attention_gflop"].as_f64().unwrap() > 0.0);
    // Each step has its own share, and the shares make up the whole.
    for phase in ["data", "forward", "backward", "optimizer", "validation", "probe"] {
        let sum: f64 = events(&again).iter().map(|e| e["phase_seconds"][phase].as_f64().unwrap()).sum();
        let whole = seconds(phase);
        // The similarity before the first step belongs to no step.
        assert!(sum <= whole + 1e-9 && (phase == "probe" || sum > whole - 1e-9), "{phase}: {sum} of {whole}");
    }
    assert!(events(&kept).iter().all(|event| event.get("phase_seconds").is_none()));
    assert!(read_json(&kept.join("manifest.json")).get("profile").is_none());
}

#[test]
fn micro_batches_and_batches_by_tokens_have_the_losses_of_the_plain_road() {
    let place = Place::new();
    let common = "--dropout 0 --val-size 2 --warmup-steps 0 --dtype f64 --steps 4 --no-shuffle";
    let losses = |out: &str, options: &str| -> Vec<(f64, u64)> {
        let lines = events(&place.train(out, &format!("{common} {options}")));
        lines.iter().map(|e| (e["loss"].as_f64().unwrap(), e["tokens"].as_u64().unwrap())).collect()
    };
    let plain = losses("plain", "--batch-size 6 --accumulate 1");
    for (out, options) in [
        ("two", "--batch-size 6 --accumulate 1 --micro-batch 2"),
        ("four", "--batch-size 3 --accumulate 2 --micro-batch 4"),
    ] {
        for (found, want) in losses(out, options).iter().zip(&plain) {
            assert!((found.0 / want.0 - 1.0).abs() < 1e-9 && found.1 == want.1, "{options}: {found:?} for {want:?}");
        }
    }
    // As many tokens as the first plain step has: the same first batch.
    let limit = plain[0].1;
    let by_tokens = losses("tokens", &format!("--batch-tokens {limit}"));
    assert!((by_tokens[0].0 / plain[0].0 - 1.0).abs() < 1e-9);
    assert!(by_tokens.iter().all(|(_, tokens)| *tokens <= limit));
    let split = losses("split", &format!("--batch-tokens {limit} --micro-batch 1"));
    for (found, want) in split.iter().zip(&by_tokens) {
        assert!((found.0 / want.0 - 1.0).abs() < 1e-9 && found.1 == want.1);
    }
}
