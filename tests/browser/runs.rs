//! Runs of the embedded model to make pages of, and their tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folders of a training run and of a similarity run over its adapter.
pub struct Runs {
    _dir: tempfile::TempDir,
    pub training: PathBuf,
    pub similarity: PathBuf,
}

/// The run's name holds what a page must not take for its own.
pub const TUNED: &str = "SIBO <b>&\"λ\"";

pub fn succeed(args: &[&str]) -> String {
    let program =
        std::env::var_os("SMOOTH_PROBE_CI_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_smooth-probe").into());
    let output = Command::new(program).args(args).arg("--quiet").output().unwrap();
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Runs {
    /// Trains an adapter for a few steps, and measures it beside its base.
    pub fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = ["lily", "tom", "ann", "ben", "max", "sam", "kim", "joe", "amy", "dan"];
        let (mut records, mut texts) = (String::new(), String::new());
        for (i, name) in names.iter().enumerate() {
            let other = names[(i + 1) % names.len()];
            let story = format!("{name} has {} apples . {other} has {} apples .", i + 3, i + 1);
            let line = serde_json::json!({"instruction": format!("{story} how many apples has {name} ?"), "output": (i + 3).to_string()});
            records.push_str(&format!("{line}\n"));
            for (kind, end) in [("now", format!("now {other} has {} apples .", i + 2)), ("plain", String::new())] {
                let line = serde_json::json!({"text": format!("{story} {end}").trim(), "kind": kind});
                texts.push_str(&format!("{line}\n"));
            }
        }
        fs::write(at("data.jsonl"), records).unwrap();
        fs::write(at("texts.jsonl"), texts).unwrap();
        let (training, similarity) = (at("run"), at("similarity"));
        let text = |path: &Path| path.display().to_string();
        succeed(&[
            "train",
            "--model",
            "embedded",
            "--data",
            &text(&at("data.jsonl")),
            "--out",
            &text(&training),
            "--template",
            "short",
            "--rank",
            "4",
            "--sibo-lambda",
            "0.3",
            "--sibo-policy",
            "all",
            "--steps",
            "6",
            "--batch-size",
            "4",
            "--accumulate",
            "1",
            "--warmup-steps",
            "1",
            "--lr",
            "0.01",
            "--val-size",
            "2",
            "--eval-every",
            "3",
            "--probe-every",
            "2",
            "--save-every",
            "6",
        ]);
        succeed(&["report", &text(&training)]);
        succeed(&[
            "similarity",
            "--model",
            "embedded",
            "--adapter",
            &format!("{TUNED}={}", text(&training.join("adapter"))),
            "--texts",
            &text(&at("texts.jsonl")),
            "--field",
            "text",
            "--group-by",
            "kind",
            "--measures",
            "cosine,cosine_centred,effective_rank,anisotropy",
            "--baselines",
            "texts,shuffled",
            "--audit",
            "2",
            "--token-classes",
            "--heatmap",
            "0,4",
            "--text",
            "0,1",
            "--sites",
            "embedding,block,final_norm,attention",
            "--out",
            &text(&similarity),
        ]);
        Self { _dir: dir, training, similarity }
    }
}

/// A CSV file's rows, each by its columns' names.
pub fn csv_rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

/// A number as the pages' scripts write it.
pub fn number(text: &str, signed: bool) -> String {
    let Ok(value) = text.parse::<f64>() else { return "–".to_owned() };
    let size = value.abs();
    let shown = if size != 0.0 && !(5e-4..1e5).contains(&size) {
        let whole = format!("{value:.2e}");
        let (digits, power) = whole.split_once('e').unwrap();
        format!("{digits}e{}{power}", if power.starts_with('-') { "" } else { "+" })
    } else {
        let decimals = if size >= 1000.0 {
            1
        } else if size >= 100.0 {
            2
        } else if size >= 10.0 {
            3
        } else {
            4
        };
        format!("{value:.decimals$}")
    };
    let sign = if signed && value > 0.0 { "+" } else { "" };
    format!("{sign}{shown}").replace('-', "−")
}

pub fn interval(low: &str, high: &str, signed: bool) -> String {
    if low.is_empty() { String::new() } else { format!("[{}, {}]", number(low, signed), number(high, signed)) }
}
