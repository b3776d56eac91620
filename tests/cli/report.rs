//! `report`: views from the tables alone, and their verification.

use crate::program::{assert_one_line, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::fs;
use std::path::{Path, PathBuf};

/// A similarity run of two models, whose model and texts are gone.
fn measured(dir: &Path, options: &str) -> PathBuf {
    let (model, out) = (tiny_model(&dir.join("model")), dir.join("out"));
    let texts = instructions(&dir.join("texts.jsonl"), 8);
    succeed(&format!(
        "similarity --model {m} --run again={m} --texts {} --field output --out {} {options}",
        texts.display(),
        out.display(),
        m = model.display()
    ));
    fs::remove_dir_all(&model).unwrap();
    fs::remove_file(&texts).unwrap();
    out
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn views_come_back_to_the_same_bytes_without_model_or_texts() {
    let dir = tempfile::tempdir().unwrap();
    let options = "--measures cosine,cosine_centred,effective_rank,anisotropy --audit 2 --split --token-classes --distance --heatmap 1";
    let out = measured(dir.path(), options);
    let views = [
        "report.html",
        "report.md",
        "summary.csv",
        "summary.tex",
        "similarity.svg",
        "similarity.png",
        "differences.svg",
        "effective_rank.svg",
        "cosine_split.svg",
        "token_classes.svg",
        "distance.svg",
        "heatmap/base_text0_layer1.svg",
    ];
    let before: Vec<Vec<u8>> = views.iter().map(|name| bytes(&out, name)).collect();
    views.iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
    let said = succeed(&format!("report {}", out.display()));
    assert!(said.trim_end().ends_with("report.html"), "{said}");
    for (name, before) in views.iter().zip(before) {
        assert_eq!(bytes(&out, name), before, "{name}");
    }
    let width = |name: &str| u32::from_be_bytes(bytes(&out, name)[16..20].try_into().unwrap());
    assert_eq!((width("similarity.png"), width("one_column/similarity.png")), (2100, 1050));
    assert!(out.join("one_column/heatmap_base_text0_layer1.png").is_file());
    let files = read_json(&out.join("manifest.json"))["files"].clone();
    let files: Vec<String> = serde_json::from_value(files).unwrap();
    assert!(
        files.iter().any(|name| name == "one_column/similarity.svg")
            && files.iter().any(|name| name == "per_text.parquet")
    );

    let ended = run(&format!("report {} --verify", out.display()));
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.starts_with("verified: ") && ended.stdout.contains("no difference"), "{}", ended.stdout);
    for unchecked in ["model of base", "texts:", "anisotropy"] {
        assert!(ended.stderr.contains(unchecked), "{unchecked} is not in {}", ended.stderr);
    }
}

#[test]
fn a_number_that_was_changed_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = measured(dir.path(), "--measures cosine");
    let line = format!("report {} --verify", out.display());
    assert_eq!(run(&line).code, Some(0));
    let change = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(out.join(name)).unwrap();
        assert!(text.contains(from), "{from} is not in {name}");
        fs::write(out.join(name), text.replacen(from, to, 1)).unwrap();
        text
    };
    for (name, from, to, found) in [
        (
            "similarity.csv",
            ",8,base,",
            ",9,base,",
            "similarity.csv: again, layer 0 (embedding), cosine, all: not as in similarity.parquet",
        ),
        ("report.html", "\"mean\":[", "\"mean\":[9", "report.html: line "),
        ("report.md", "| cosine | base", "| cosine | Base", "report.md: line "),
        ("summary.tex", "cosine & base & ", "cosine & base & 9", "summary.tex: line "),
        ("similarity.svg", "n = 8 texts", "n = 9 texts", "similarity.svg: line "),
        ("manifest.json", "\"seed\": 42", "\"seed\": 43", "ci_low is "),
    ] {
        let whole = change(name, from, to);
        let ended = run(&line);
        assert_eq!(ended.code, Some(1), "{name}");
        assert!(ended.stdout.lines().any(|line| line.contains(found)), "{name}: {found:?} is not in\n{}", ended.stdout);
        assert_eq!(
            ended.stderr.lines().filter(|line| line.starts_with("smooth-probe: ")).count(),
            1,
            "{}",
            ended.stderr
        );
        fs::write(out.join(name), whole).unwrap();
    }
    assert_eq!(run(&line).code, Some(0));
    fs::remove_file(out.join("report.md")).unwrap();
    assert!(run(&line).stdout.contains("report.md: is missing"));
}

#[test]
fn what_is_no_run_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("report {}", dir.path().display());
    assert_one_line(&run(&line), &["manifest.json", "cannot read"], "no manifest");
    let write = |text: &str| fs::write(dir.path().join("manifest.json"), text).unwrap();
    write("{\"program\": \"smooth-probe\", \"verb\": \"dose\"}");
    assert_one_line(&run(&line), &["`dose`", "`similarity`"], "another verb");
    write("{\"program\": \"smooth-probe\", \"verb\": \"similarity\"}");
    assert_one_line(&run(&line), &["similarity.parquet", "cannot read"], "no tables");
    fs::write(dir.path().join("similarity.parquet"), "PAR1").unwrap();
    assert_one_line(&run(&line), &["similarity.parquet"], "a damaged table");
    write("{\"program\": \"smooth-probe\", \"verb\": \"train\"}");
    assert_one_line(&run(&line), &["events.jsonl"], "no events");
    fs::write(dir.path().join("events.jsonl"), "").unwrap();
    assert_one_line(&run(&line), &["events.jsonl", "no step"], "no step");
}

#[test]
fn a_convention_names_what_was_counted() {
    let dir = tempfile::tempdir().unwrap();
    let out = measured(dir.path(), "--convention shi2022");
    let manifest = read_json(&out.join("manifest.json"));
    assert_eq!(manifest["convention"]["name"], "shi2022");
    let svg = fs::read_to_string(out.join("similarity.svg")).unwrap();
    assert!(svg.contains("Counted as Shi et al.") && !svg.contains("Hollow"), "{svg}");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("Counted as Shi et al. (2022)"));
    let model = tiny_model(&dir.path().join("model"));
    let texts = instructions(&dir.path().join("texts.jsonl"), 3);
    let line = format!("similarity --model {} --texts {} --field output", model.display(), texts.display());
    let refused = run(&format!("{line} --measures mad --convention shi2022 --out {}", dir.path().join("o").display()));
    assert_one_line(&refused, &["--convention shi2022", "cosine"], "no cosine");
}
