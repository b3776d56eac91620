//! An output folder that an earlier run used: what stands beside the manifest belongs to it.

use crate::program::{read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::fs;

#[test]
fn figures_of_an_earlier_run_do_not_stay_beside_the_new_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let texts = instructions(&dir.path().join("texts.jsonl"), 6);
    let out = dir.path().join("out");
    let line = format!(
        "similarity --model {} --texts {} --field output --out {}",
        model.display(),
        texts.display(),
        out.display()
    );
    let again = format!("--run again={} --token-classes --heatmap 1 --measures cosine,effective_rank", model.display());
    succeed(&format!("{line} {again}"));
    let first = ["differences.png", "effective_rank.svg", "token_classes.csv", "heatmap/base_text0_layer1.png"];
    assert!(first.iter().all(|name| out.join(name).is_file()));
    fs::write(out.join("notes.csv"), "mine").unwrap();
    fs::write(out.join("heatmap/notes.png"), "mine").unwrap();

    let ended = run(&format!("{line} --measures cosine"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(first.iter().all(|name| !out.join(name).exists()), "{}", ended.stderr);
    let said = ended.stderr.lines().find(|line| line.starts_with("removed what an earlier run wrote")).unwrap();
    assert!(first.iter().all(|name| said.contains(name)) && !said.contains("similarity.csv"), "{said}");
    assert!(out.join("notes.csv").is_file() && out.join("heatmap/notes.png").is_file(), "what is not ours stays");
    let files = read_json(&out.join("manifest.json"))["files"].clone();
    let wanted = [
        "per_text.parquet",
        "report.html",
        "report.md",
        "similarity.csv",
        "similarity.parquet",
        "similarity.png",
        "similarity.svg",
        "summary.csv",
        "summary.parquet",
        "summary.tex",
    ];
    assert_eq!(files, serde_json::json!(wanted));
    assert!(wanted.iter().all(|name| out.join(name).is_file()) && !out.join("progress").exists());

    fs::remove_dir_all(out.join("heatmap")).unwrap();
    succeed(&format!("{line} --heatmap 1"));
    succeed(&line);
    assert!(!out.join("heatmap").exists(), "a folder goes with its last file");
}
