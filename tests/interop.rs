//! Adapter folders against the real PEFT, both ways, and its refusal of a SIBO adapter; event files in the real TensorBoard;
//! likelihoods against lm-evaluation-harness.
//!
//! Runs when `SMOOTH_PROBE_PYTHON` names an interpreter that has torch, transformers, peft and tensorboard; the likelihoods
//! of choices need lm_eval (lm-evaluation-harness 0.4) too.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "what the tests share is part of the tests")]

#[path = "cli/small_model.rs"]
mod small_model;

use candle_core::{DType, Device, Tensor};
use smooth_probe::data::Packed;
use smooth_probe::model::weights::Weights;
use smooth_probe::model::{Pass, Transformer, families};
use smooth_probe::peft::load_adapter;
use smooth_probe::train::{Observer, StepEvent, TensorBoard, read_events};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The interpreter, or a line that says that the test did not run.
fn python() -> Option<PathBuf> {
    let path = std::env::var_os("SMOOTH_PROBE_PYTHON").map(PathBuf::from);
    if path.is_none() {
        println!("SKIPPED: SMOOTH_PROBE_PYTHON is not set");
    }
    path
}

/// Runs a verb of `peft_files.py`.
fn peft_files(python: &Path, arguments: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peft_files.py");
    Command::new(python).arg(script).args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap()
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Trains a LoRA on the tiny model; answers its folder.
fn train(dir: &Path, model: &Path, name: &str, options: &str) -> PathBuf {
    let data = small_model::instructions(&dir.join("data.jsonl"), 12);
    let out = dir.join(name);
    let line = "train --quiet --steps 6 --warmup-steps 1 --lr 2e-2";
    let has_rank = !options.contains("--method") || options.contains("--method dora");
    let sizes = if has_rank { "--rank 4 --alpha 10" } else { "" };
    let held_out = if options.contains("--val-size") { "" } else { "--val-size 0" };
    let output = Command::new(env!("CARGO_BIN_EXE_smooth-probe"))
        .args(line.split(' '))
        .args(sizes.split_whitespace())
        .args(held_out.split_whitespace())
        .args(options.split_whitespace())
        .args([Path::new("--model"), model, Path::new("--data"), &data, Path::new("--out"), &out])
        .output()
        .unwrap();
    assert_success(&output);
    out.join("adapter")
}

/// Our logits of the ids of `expected`, with the adapter and without, against PEFT's.
fn assert_logits(model: &Path, adapter: &Path, expected: &Path) {
    let expected: HashMap<String, Tensor> = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let ids = expected["ids"].to_vec1::<u32>().unwrap();
    let weights = Weights::open(model).unwrap();
    let architecture = families::read_config(model).unwrap();
    let transformer = Transformer::load("tiny", architecture, &weights, DType::F32, &Device::Cpu).unwrap();
    let peft = load_adapter(adapter, &transformer).unwrap();
    let batch = Packed::from_sequences(&[ids]);
    let mut logits = Vec::new();
    let tuned = peft.tuned(&transformer).unwrap_or_else(|| transformer.clone());
    for (name, model, peft) in [("base_logits", &transformer, None), ("logits", &tuned, Some(&peft))] {
        let ours = model.logits(&batch, &Pass::inference(peft)).unwrap();
        let (ours, theirs) = (values(&ours), values(&expected[name]));
        let error = distance(&ours, &theirs) / norm(&theirs);
        println!("{name}: relative error {error:.1e}");
        assert!(error <= 1e-5, "{name}: relative error {error}");
        logits.push(theirs);
    }
    let moved = distance(&logits[0], &logits[1]) / norm(&logits[0]);
    assert!(moved > 1e-2, "the adapter must be felt: {moved}");
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

#[test]
fn real_peft_loads_our_adapters_and_gives_our_logits() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = small_model::tiny_model(&dir.path().join("model"));
    for (name, options) in [
        ("lora", ""),
        ("rslora", "--rslora --rank-pattern q_proj=2,layers.1.mlp.up_proj=6 --alpha-pattern down_proj=3"),
        ("dora", "--method dora"),
        ("ia3", "--method ia3"),
        ("norms", "--method norms"),
        ("prefix", "--method prefix --virtual-tokens 5"),
        ("prompt", "--method prompt --virtual-tokens 3"),
    ] {
        let adapter = train(dir.path(), &model, name, options);
        let out = dir.path().join("logits.safetensors");
        println!("{name}, ours in PEFT");
        assert_success(&peft_files(&python, &[Path::new("load"), &adapter, &model, &out]));
        assert_logits(&model, &adapter, &out);
    }
}

#[test]
fn real_peft_refuses_our_sibo_lora() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = small_model::tiny_model(&dir.path().join("model"));
    for (name, options) in [
        ("sibo", "--sibo-lambda 0.2"),
        ("control", "--sibo-lambda 0.2 --residual none"),
        ("dora", "--method dora --sibo-lambda 0.2"),
        ("ia3", "--method ia3 --targets k_proj,up_proj --sibo-lambda 0.2"),
    ] {
        let adapter = train(dir.path(), &model, name, options);
        let output = peft_files(&python, &[Path::new("refuse"), &adapter, &model]);
        assert_success(&output);
        println!("{name}: {}", String::from_utf8_lossy(&output.stdout).trim_end());
    }
}

#[test]
fn adapters_of_real_peft_load_here_and_give_its_logits() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = small_model::tiny_model(&dir.path().join("model"));
    for kind in ["lora", "patterns", "dora", "ia3", "norms", "prefix", "prompt"] {
        let adapter = dir.path().join(kind);
        println!("{kind}, PEFT's here");
        assert_success(&peft_files(&python, &[Path::new("make"), &adapter, &model, Path::new(kind)]));
        assert_logits(&model, &adapter, &adapter.join("expected.safetensors"));
        // And training goes on from it.
        let modules = !["norms", "prefix", "prompt"].contains(&kind);
        let residual = if modules { "--sibo-lambda 0.2" } else { "" };
        let options = format!("--init-adapter {} {residual}", adapter.display());
        let further = train(dir.path(), &model, &format!("{kind}-further"), &options);
        let config = std::fs::read_to_string(further.join("adapter_config.json")).unwrap();
        assert_eq!(config.contains("SIBO_"), modules, "{config}");
    }
}

/// The module that `export --python` writes, on transformers models of several families: hidden states, generation with a
/// cache, refusals. What it is told comes from `export` itself.
#[test]
fn the_python_module_computes_what_the_program_does() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/sibo_module.py");
    let program = env!("CARGO_BIN_EXE_smooth-probe");
    let output =
        Command::new(python).arg(script).args(["--program", program]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert_success(&output);
}

/// What TensorBoard reads of a folder: steps and values by tag; every checksum is checked.
fn scalars(python: &Path, folder: &Path) -> BTreeMap<String, Vec<(u64, f64)>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/event_files.py");
    let output = Command::new(python).arg(script).arg(folder).output().unwrap();
    assert_success(&output);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(value["scalars"].clone()).unwrap()
}

#[test]
fn tensorboard_reads_what_the_event_log_has() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = small_model::tiny_model(&dir.path().join("model"));
    let log = dir.path().join("log");
    let options = "--val-size 3 --eval-every 2 --probe-every 3 --sibo-lambda 0.2 --lambda-schedule rise --tensorboard";
    train(dir.path(), &model, "run", &format!("{options} {}", log.display()));
    let found = scalars(&python, &log);
    let events = read_events(&dir.path().join("run/events.jsonl")).unwrap();
    assert_eq!(events.len(), 6);
    let mut expected: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    let mut add = |tag: &str, step: u64, value: Option<f64>| {
        if let Some(value) = value {
            expected.entry(tag.to_owned()).or_default().push((step, value));
        }
    };
    for event in &events {
        for (step, similarity) in [(0, &event.similarity_before), (event.step, &event.similarity)] {
            let Some(similarity) = similarity else { continue };
            assert_eq!(similarity.len(), 5, "layers 0 to 3, and after the final norm");
            for (layer, value) in similarity.iter().enumerate() {
                let tag =
                    if layer == 4 { "similarity/final_norm".to_owned() } else { format!("similarity/layer_{layer}") };
                add(&tag, step, *value);
            }
        }
        add("loss", event.step, Some(event.loss));
        add("lr", event.step, Some(event.lr));
        add("grad_norm", event.step, Some(event.grad_norm));
        add("tokens_per_second", event.step, Some(event.tokens as f64 / event.seconds));
        add("val_loss", event.step, event.val_loss);
        add("val_accuracy", event.step, event.val_accuracy);
        add("lambda/all", event.step, event.lambda.get("all").copied());
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (tag, expected) in &expected {
        let found = &found[tag];
        assert_eq!(
            found.iter().map(|(step, _)| step).collect::<Vec<_>>(),
            expected.iter().map(|(s, _)| s).collect::<Vec<_>>(),
            "{tag}"
        );
        for ((step, found), (_, expected)) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{tag} at {step}: {found}, {expected}");
        }
    }
    println!("{} tags of {} steps", found.len(), events.len());
}

#[test]
fn tensorboard_drops_what_a_resumed_run_writes_again() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let event = |step: u64, loss: f64| StepEvent {
        step,
        loss,
        penalty: None,
        lr: 0.5,
        tokens: 8,
        seconds: 0.5,
        grad_norm: 1.0,
        epoch: 1.0,
        lambda: BTreeMap::new(),
        val_loss: None,
        val_accuracy: None,
        similarity: None,
        similarity_before: None,
        phase_seconds: None,
    };
    let mut log = TensorBoard::create(dir.path(), false).unwrap();
    (1..=5).for_each(|step| log.step(&event(step, 10.0), 7));
    log.finish().unwrap();
    // The last checkpoint was that of step 3.
    let mut log = TensorBoard::create(dir.path(), true).unwrap();
    (4..=7).for_each(|step| log.step(&event(step, 20.0), 7));
    log.finish().unwrap();
    let expected: Vec<(u64, f64)> = (1..=7).map(|step| (step, if step < 4 { 10.0 } else { 20.0 })).collect();
    assert_eq!(scalars(&python, dir.path())["loss"], expected);
}

/// A terminal of some width, in which Python runs the program: one line of progress, the dashboard, without colours.
#[cfg(unix)]
#[test]
fn on_a_terminal_what_was_drawn_before_does_not_stay() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = small_model::tiny_model(&dir.path().join("model"));
    let data = small_model::instructions(&dir.path().join("data.jsonl"), 24);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/on_terminal.py");
    for (columns, name, options) in
        [("60", "line", ""), ("60", "curves", "--dashboard"), ("110", "wide", "--dashboard")]
    {
        let line = "train --rank 4 --steps 8 --warmup-steps 1 --val-size 4 --cutoff 128 --eval-every 2 --probe-every 2";
        let output = Command::new(&python)
            .arg(&script)
            .args([columns, env!("CARGO_BIN_EXE_smooth-probe")])
            .args(line.split(' '))
            .args(options.split_whitespace())
            .args([
                Path::new("--model"),
                &model,
                Path::new("--data"),
                &data,
                Path::new("--out"),
                &dir.path().join(name),
            ])
            .env("NO_COLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm")
            .output()
            .unwrap();
        assert_success(&output);
        let screen = String::from_utf8(output.stdout).unwrap();
        println!("{screen}");
        assert!(screen.contains("8/8 steps") && screen.contains(&format!("{name}/adapter")), "{screen}");
        let curves = ["similarity by layer, 0 to 3, drawn from", "lowest ", "  last block", "  before", "  step 8"];
        let shown = curves.iter().filter(|words| screen.contains(**words)).count();
        assert_eq!(shown, if options.is_empty() { 0 } else { curves.len() }, "{screen}");
        // The bar or the nine lines of the curves, and the result: nothing of what was drawn before is left.
        assert_eq!(screen.trim().lines().count(), if options.is_empty() { 2 } else { 10 }, "{screen}");
    }
}

/// Two tasks of local files, as the harness reads them and as we do.
fn local_tasks(folder: &Path) {
    let digits = ["one", "two", "three", "four", "five"];
    let animals = ["cat", "dog", "bird"];
    let (mut listed, mut fixed) = (String::new(), String::new());
    for i in 0..24_usize {
        let (digit, animal) = (digits[i % 5], animals[i % 3]);
        let choices = [format!("the {animal} sees {digit}"), "red".to_owned(), format!("{digit} {digit} blue")];
        let choices = if i % 4 == 0 { &choices[..2] } else { &choices[..] };
        let question = format!("give {digit} of the {animal}{}", if i % 6 == 0 { "\n" } else { "" });
        listed += &format!("{}\n", serde_json::json!({"question": question, "choices": choices, "gold": i % 2}));
        let asked = format!("the {animal} says {digit} then {}", digits[i % 4]);
        fixed += &format!("{}\n", serde_json::json!({"question": asked, "gold": i % 3}));
    }
    let yaml = |name: &str, choices: &str, text: &str| {
        let data = folder.join(format!("{name}.jsonl"));
        format!(
            "task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n\
             output_type: multiple_choice\ndoc_to_text: \"{text}\"\ndoc_to_choice: {choices}\ndoc_to_target: gold\n\
             metric_list:\n  - metric: acc\n  - metric: acc_norm\n  - metric: acc_bytes\nmetadata:\n  version: 1\n",
            data.display()
        )
    };
    let toml = |name: &str, text: &str, fields: &str, answer: &str| {
        format!(
            "name = \"{name}\"\nversion = 1\ntitle = \"{name}\"\nsource = \"a test\"\nmodes = [\"loglikelihood\"]\n\
             metrics = [\"accuracy\"]\ntemplate = \"{text}\"\n[fields]\nquestion = [\"question\"]\nlabel = [\"gold\"]\n\
             {fields}\n[answer]\n{answer}\ndelimiter = \" \"\n"
        )
    };
    let write = |name: &str, content: &str| std::fs::write(folder.join(name), content).unwrap();
    write("listed.jsonl", &listed);
    write("listed.yaml", &yaml("listed", "choices", "{{question}}"));
    let answer = "kind = \"choice\"\nchoices = \"choices\"";
    write("listed.toml", &toml("listed", "{question}", "choices = [\"choices\"]", answer));
    write("fixed.jsonl", &fixed);
    let text = "Instruction : {{question}}\\nResponse :";
    write("fixed.yaml", &yaml("fixed", "[\"red\", \"green cat\", \"old\"]", text));
    let answer = "kind = \"class\"\nclasses = [\"a\", \"b\", \"c\"]\nwords = [\"red\", \"green cat\", \"old\"]";
    write("fixed.toml", &toml("fixed", "Instruction : {question}\\nResponse :", "", answer));
}

#[test]
fn lm_evaluation_harness_finds_our_likelihoods() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let copied = |from: PathBuf| {
        let to = dir.path().join("stories");
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    };
    let tiny = small_model::tiny_model(&dir.path().join("model"));
    let models = [Some(("tiny", tiny)), small_model::stories260k().map(|folder| ("stories", copied(folder)))];
    for (name, model) in models.into_iter().flatten() {
        let adapter = train(dir.path(), &model, &format!("{name}-lora"), "");
        let folder = dir.path().join(format!("{name}-tasks"));
        std::fs::create_dir_all(&folder).unwrap();
        local_tasks(&folder);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/harness.py");
        let theirs = folder.join("theirs.json");
        let output = Command::new(&python)
            .arg(script)
            .args([&model, &adapter, &folder, &theirs])
            .envs([("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")])
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert_success(&output);
        let theirs: serde_json::Value = serde_json::from_slice(&std::fs::read(theirs).unwrap()).unwrap();
        for task in ["listed", "fixed"] {
            let out = folder.join(format!("{task}-ours"));
            let line = "evaluate --quiet --mode loglikelihood --json --batch-size 5";
            let output = Command::new(env!("CARGO_BIN_EXE_smooth-probe"))
                .args(line.split(' '))
                .args([Path::new("--model"), &model, Path::new("--adapter"), &adapter, Path::new("--out"), &out])
                .args([Path::new("--task"), &folder.join(format!("{task}.toml"))])
                .args([Path::new("--data"), &folder.join(format!("{task}.jsonl"))])
                .output()
                .unwrap();
            assert_success(&output);
            let ours: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            for metric in ours["runs"][0]["tasks"][0]["metrics"].as_array().unwrap() {
                let key = format!("{},none", metric["harness"].as_str().unwrap());
                assert_eq!(metric["value"], theirs[task]["results"][&key], "{name} {task} {key}");
            }
            let file = out.join(format!("items/{name}-lora/{task}.jsonl"));
            let items = std::fs::read_to_string(file).unwrap();
            let mut largest = 0.0_f64;
            assert_eq!(items.lines().count(), 24);
            for (line, expected) in items.lines().zip(theirs[task]["items"].as_array().unwrap()) {
                let item: serde_json::Value = serde_json::from_str(line).unwrap();
                let choices = item["choices"].as_array().unwrap();
                assert_eq!(choices.len(), expected.as_array().unwrap().len());
                for (choice, pair) in choices.iter().zip(expected.as_array().unwrap()) {
                    let (ours, theirs) = (choice["log_probability"].as_f64().unwrap(), pair[0].as_f64().unwrap());
                    largest = largest.max((ours - theirs).abs());
                    assert_eq!(choice["greedy"], pair[1], "{name} {task}: {line}");
                }
            }
            println!("{name}, {task}: log-likelihoods deviate by {largest:.1e}");
            assert!(largest <= 1e-4, "{name} {task}: {largest}");
        }
    }
}
