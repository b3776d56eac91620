//! Every measure through `similarity`: what stands in the tables, and what no batch, thread or interruption changes.

use crate::program::{assert_one_line, command, progress, read_json, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

type Row = BTreeMap<String, String>;

fn rows(out: &Path) -> Vec<Row> {
    let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
    let names = reader.headers().unwrap().clone();
    let row = |r: csv::StringRecord| names.iter().map(str::to_owned).zip(r.iter().map(str::to_owned)).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

/// The mean of a run's measure at a layer (site block) over all tokens.
fn mean(rows: &[Row], run: &str, measure: &str, layer: &str, site: &str) -> Option<f64> {
    let wanted = [("run", run), ("measure", measure), ("layer", layer), ("site", site), ("tokens", "all")];
    let found = rows.iter().find(|r| r["group"].is_empty() && wanted.iter().all(|(k, v)| r[*k] == *v));
    found.unwrap_or_else(|| panic!("{wanted:?}"))["mean"].parse().ok()
}

struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
    texts: PathBuf,
}

impl Place {
    fn new(texts: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(&dir.path().join("model"));
        let texts = instructions(&dir.path().join("texts.jsonl"), texts);
        Self { dir, model, texts }
    }

    fn line(&self, name: &str, options: &str) -> (String, PathBuf) {
        let out = self.dir.path().join(name);
        let (model, texts) = (self.model.display(), self.texts.display());
        let line =
            format!("similarity --model {model} --texts {texts} --field output --out {} {options}", out.display());
        (line, out)
    }

    fn measure(&self, name: &str, options: &str) -> PathBuf {
        let (line, out) = self.line(name, options);
        succeed(&line);
        out
    }

    /// A trained adapter.
    fn adapter(&self) -> PathBuf {
        let run = self.dir.path().join("run");
        let (model, data) = (self.model.display(), self.texts.display());
        succeed(&format!(
            "train --quiet --steps 4 --warmup-steps 1 --lr 1e-2 --rank 4 --val-size 0 --sibo-lambda 0.2 --data {data} \
             --model {model} --out {}",
            run.display()
        ));
        run.join("adapter")
    }
}

/// Every table, byte for byte.
fn tables(out: &Path) -> Vec<Vec<u8>> {
    ["similarity.csv", "similarity.parquet", "per_text.parquet", "means.safetensors"]
        .map(|name| fs::read(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
        .to_vec()
}

#[test]
fn every_measure_stands_in_the_tables_with_its_figure() {
    let place = Place::new(40);
    let options =
        format!("--measures all --sites usual --lookup-texts 5 --adapter tuned={}", place.adapter().display());
    let out = place.measure("out", &options);
    let rows = rows(&out);
    let measures: BTreeSet<&str> = rows.iter().map(|r| r["measure"].as_str()).collect();
    assert_eq!(measures.len(), 29, "{measures:?}");
    for row in rows.iter().filter(|r| r["run"] == "base" && r["site"] == "block" && r["tokens"] == "all") {
        let (measure, filled) = (row["measure"].as_str(), !row["mean"].is_empty());
        // The reference is not compared with itself.
        assert_eq!(filled, measure != "cka_base", "{row:?}");
        let corpus = ["anisotropy", "cka_layer0", "cka_base", "intrinsic_dimension"].contains(&measure);
        assert_eq!(row["ci_low"].is_empty(), corpus || !filled, "{row:?}");
        assert_eq!(row["n_tokens_pooled"].is_empty(), !corpus || !filled, "{row:?}");
        let lookup = ["nearest_embedding", "attention_entropy", "attention_entropy_normalised", "dirichlet_attention"];
        let texts = if lookup.contains(&measure) {
            "5"
        } else if measure == "cka_base" {
            "0"
        } else {
            "40"
        };
        assert_eq!(row["texts"], texts, "{row:?}");
    }
    let at = |run: &str, measure: &str, layer: &str| {
        mean(&rows, run, measure, layer, if layer == "0" { "embedding" } else { "block" })
    };
    let pooled = |measure: &str, tokens: &str| -> u64 {
        let chosen =
            |r: &&Row| r["run"] == "tuned" && r["measure"] == measure && r["tokens"] == tokens && r["layer"] == "2";
        rows.iter().find(chosen).unwrap()["n_tokens_pooled"].parse().unwrap()
    };
    for measure in ["anisotropy", "cka_layer0", "cka_base", "intrinsic_dimension"] {
        assert_eq!(pooled(measure, "all"), pooled("cka_layer0", "all"), "{measure}");
        assert_eq!(pooled(measure, "all") - pooled(measure, "no_first"), 40, "{measure}: a first token a text");
    }
    for row in &rows {
        assert_eq!(row["diff_p_holm"].is_empty(), row["diff_ci_low"].is_empty(), "{row:?}");
    }
    let cosine = at("base", "cosine", "2").unwrap();
    assert!((at("base", "mad", "2").unwrap() - (1.0 - cosine)).abs() < 1e-12);
    for measure in ["retention", "retention_h0", "cka_layer0", "nearest_embedding"] {
        let own = at("base", measure, "0").unwrap();
        assert!((own - 1.0).abs() < 1e-6, "layer 0 with itself: {measure} {own}");
        assert!(at("base", measure, "3").unwrap() < 0.999, "{measure}");
    }
    let cka = at("tuned", "cka_base", "3").unwrap();
    assert!(cka > 0.5 && cka < 1.0 - 1e-9, "{cka}");
    assert!((at("tuned", "cka_base", "0").unwrap() - 1.0).abs() < 1e-9, "no adapter changes layer 0");
    assert!(at("base", "attention_entropy_normalised", "1").unwrap() <= 1.0);
    assert_eq!(at("base", "attention_entropy", "0"), None, "the embedding has no attention");
    let tuned = rows.iter().find(|r| r["run"] == "tuned" && r["measure"] == "anisotropy" && r["layer"] == "3").unwrap();
    assert!(!tuned["diff"].is_empty() && tuned["diff_ci_low"].is_empty(), "{tuned:?}");
    for measure in measures.iter().filter(|m| !["cosine", "cosine_centred"].contains(m)) {
        assert!(fs::read(out.join(format!("{measure}.png"))).unwrap().starts_with(b"\x89PNG"), "{measure}");
        assert!(fs::read_to_string(out.join(format!("{measure}.svg"))).unwrap().contains("</svg>"), "{measure}");
    }
    assert!(out.join("similarity.png").is_file() && out.join("differences.png").is_file());
    assert!(!out.join("progress").exists());
}

#[test]
fn sites_inside_a_block_are_measured_on_request() {
    let place = Place::new(6);
    let adapter = place.adapter();
    let options =
        format!("--sites block,after_attention,feed_forward,feed_forward_peft --adapter tuned={}", adapter.display());
    let out = place.measure("sites", &options);
    let rows = rows(&out);
    let sites: BTreeSet<&str> = rows.iter().map(|r| r["site"].as_str()).collect();
    assert_eq!(sites, BTreeSet::from(["after_attention", "block", "feed_forward", "feed_forward_peft"]));
    assert_eq!(mean(&rows, "base", "cosine", "2", "feed_forward_peft"), None, "without an adapter nothing is added");
    assert!(mean(&rows, "tuned", "cosine", "2", "feed_forward_peft").is_some());
    let plain = self::rows(&place.measure("plain", ""));
    let (a, b) = (mean(&rows, "base", "cosine", "2", "block"), mean(&plain, "base", "cosine", "2", "block"));
    assert_eq!(a, b, "looking inside changes nothing");
    assert!(out.join("cosine_sites.png").is_file());
}

#[test]
fn a_layers_change_is_split_among_its_parts() {
    let place = Place::new(24);
    let out = place.measure("split", &format!("--split --adapter tuned={}", place.adapter().display()));
    let similarity = rows(&out);
    let split = {
        let mut reader = csv::Reader::from_path(out.join("split.csv")).unwrap();
        reader.deserialize::<Row>().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let change = |run: &str, layer: &str, part: &str| -> f64 {
        let wanted = [("run", run), ("layer", layer), ("part", part), ("measure", "cosine"), ("tokens", "all")];
        let found: Vec<&Row> = split.iter().filter(|r| wanted.iter().all(|(k, v)| r[*k] == *v)).collect();
        assert_eq!(found.len(), 1, "{wanted:?}");
        found[0]["change"].parse().unwrap()
    };
    let parts = ["attention", "attention_peft", "attention_h0", "feed_forward", "feed_forward_peft", "feed_forward_h0"];
    for run in ["base", "tuned"] {
        for layer in 1..=2 {
            let before = if layer == 1 { ("0", "embedding") } else { ("1", "block") };
            let (from, to) = (
                mean(&similarity, run, "cosine", before.0, before.1).unwrap(),
                mean(&similarity, run, "cosine", &layer.to_string(), "block").unwrap(),
            );
            let layer = layer.to_string();
            let total = change(run, &layer, "total");
            assert!((total - (to - from)).abs() < 1e-12, "the change that similarity.csv shows");
            let sum: f64 = parts.iter().map(|part| change(run, &layer, part)).sum();
            assert!((sum - total).abs() < 1e-12);
            let peft = change(run, &layer, "feed_forward_peft");
            assert_eq!(peft != 0.0, run == "tuned", "{run} {layer} {peft}");
            assert_eq!(change(run, &layer, "feed_forward_h0") != 0.0, run == "tuned");
        }
    }
    assert!(out.join("cosine_split.png").is_file());
    let (line, _) = place.line("apart", "--split --layers 0,2");
    assert_one_line(&run(&line), &["--split", "--layers"], "layers apart");
}

#[test]
fn heads_are_every_head() {
    let place = Place::new(6);
    let rows = rows(&place.measure("heads", "--sites heads --layers 2 --measures cosine"));
    let sites: BTreeSet<&str> = rows.iter().map(|r| r["site"].as_str()).collect();
    assert_eq!(sites, BTreeSet::from(["head_0", "head_1", "head_2", "head_3", "head_4", "head_5"]));
    let one = self::rows(&place.measure("one", "--sites head_3 --layers 2 --measures cosine"));
    let at = |rows: &[Row]| mean(rows, "base", "cosine", "2", "head_3");
    assert!(at(&one).is_some() && at(&rows) == at(&one));
}

#[test]
fn the_cost_of_lookups_is_said_beforehand() {
    let place = Place::new(9);
    let (line, out) = place.line("out", "--measures nearest_embedding,attention_entropy --baselines shuffled,texts");
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("comparisons")).collect();
    let tokens = read_json(&out.join("manifest.json"))["runs"][0]["tokens_measured"].as_u64().unwrap();
    let config = read_json(&place.model.join("config.json"));
    let [rows, heads] = ["vocab_size", "num_attention_heads"].map(|key| config[key].as_u64().unwrap());
    let comparisons = tokens * rows * 5 * 3;
    let cost = format!(
        "base: nearest_embedding, attention_entropy on 9 of 9 texts; {tokens} tokens × {rows} embedding rows × 5 points \
         × 3 runs = {comparisons} comparisons; attention maps of {heads} heads, up to "
    );
    assert!(said.len() == 1 && said[0].starts_with(&cost) && said[0].ends_with("kB in all"), "{said:?}\n{cost}");
}

#[test]
fn no_thread_changes_a_byte_and_no_batch_size_more_than_rounding() {
    let place = Place::new(70);
    let options = "--measures all --lookup-texts 6 --group-by kind";
    let eight = place.measure("eight", &format!("{options} --batch-size 8 --threads 2"));
    let alone = place.measure("alone", &format!("{options} --batch-size 8 --threads 1"));
    for (table, (left, right)) in tables(&eight).iter().zip(&tables(&alone)).enumerate() {
        assert!(left == right, "table {table} differs for one thread");
    }
    // Without CKA each worker has a chunk of its own, and the second pass reads what the first one kept: all of it,
    // a part, or nothing.
    let shared = "--measures streaming,intrinsic_dimension --baselines texts,shuffled";
    let three = tables(&place.measure("three", &format!("{shared} --threads 3")));
    for other in ["--threads 1", "--threads 2 --scratch-gib 0", "--threads 3 --scratch-gib 2e-5"] {
        let name = other.replace(' ', "");
        assert!(three == tables(&place.measure(&name, &format!("{shared} {other}"))), "{other}");
    }
    let eight = rows(&eight);
    for (name, size) in [("one", 1), ("all", 32)] {
        let other = rows(&place.measure(name, &format!("{options} --batch-size {size}")));
        assert_eq!(eight.len(), other.len());
        for (left, right) in eight.iter().zip(&other) {
            for column in ["mean", "std", "ci_low", "ci_high"] {
                let (a, b): (Option<f64>, Option<f64>) = (left[column].parse().ok(), right[column].parse().ok());
                assert_eq!(a.is_some(), b.is_some(), "{left:?} {right:?}");
                let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
                assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "batches of {size}, {column}: {left:?} {right:?}");
            }
        }
    }
}

#[test]
fn killed_work_goes_on_and_ends_with_the_same_bytes() {
    let place = Place::new(600);
    let options = "--measures streaming,intrinsic_dimension,cka_layer0 --baselines shuffled --save-every 0";
    let whole = tables(&place.measure("whole", options));
    let (line, out) = place.line("killed", options);
    for (number, file) in ["0.safetensors", "1.safetensors"].iter().enumerate() {
        let mut child = command(&line.split_whitespace().collect::<Vec<_>>());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        // Some chunks after the first save.
        while !out.join("progress").join(file).is_file() && started.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(5 * number as u64));
        child.kill().unwrap();
        assert!(child.wait().unwrap().code().is_none(), "it ended before it could be killed: give it more texts");
        assert!(!out.join("similarity.csv").exists());
    }
    let ended = run(&format!("{line} --progress-every 0"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("base: goes on after 600 texts"), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nbase: 1200/2400 texts\n"), "done before, at no speed: {}", ended.stderr);
    assert_eq!(progress(&ended.stderr).last(), Some(&("base (shuffled)".to_owned(), 2400, 2400)), "{}", ended.stderr);
    assert!(whole == tables(&out), "the tables of a killed run differ");
    assert!(!out.join("progress").exists());
}

#[test]
fn unfinished_work_of_another_command_is_left_behind() {
    let place = Place::new(40);
    let (line, out) = place.line("out", "--save-every 0");
    fs::create_dir_all(out.join("progress")).unwrap();
    fs::write(out.join("progress/0.safetensors"), b"not a state").unwrap();
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("is damaged; it starts anew"), "{}", ended.stderr);
    assert!(tables(&out) == tables(&place.measure("other", "")));
}

#[test]
fn frozen_means_centre_as_the_run_that_made_them() {
    let place = Place::new(20);
    let measures = "--measures cosine_centred,cosine_standardised,cka_layer0";
    let own = place.measure("own", measures);
    let file = own.join("means.safetensors");
    let frozen = place.measure("frozen", &format!("{measures} --means {}", file.display()));
    assert!(tables(&own) == tables(&frozen), "one pass with the means gives what two passes give");
    let half = place.measure("half", &format!("{measures} --limit 10 --means {}", file.display()));
    let (half, alone) = (rows(&half), rows(&place.measure("alone", &format!("{measures} --limit 10"))));
    let value = |rows: &[Row]| mean(rows, "base", "cosine_centred", "2", "block").unwrap();
    assert!((value(&half) - value(&alone)).abs() > 1e-4, "the means are those of 20 texts");
    let (line, _) =
        place.line("bad", &format!("{measures} --run other={} --means {}", place.model.display(), file.display()));
    assert_one_line(&run(&line), &["--means", "other", "it has the runs base"], "a run without means");
    let (line, _) = place.line("bad", &format!("{measures} --means {}", place.texts.display()));
    assert_one_line(&run(&line), &["--means", "means.safetensors of an earlier"], "a file without means");
}

#[test]
fn baselines_stand_beside_their_run() {
    let place = Place::new(40);
    let out =
        place.measure("out", "--measures cosine,retention,attention_entropy --baselines texts,untrained,shuffled");
    let rows = rows(&out);
    let names: BTreeSet<&str> = rows.iter().map(|r| r["run"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["base", "base (other texts)", "base (shuffled)", "base (untrained)"]));
    assert!(rows.iter().all(|r| r["reference"] == if r["run"] == "base" { "" } else { "base" }));
    let embedding = |run: &str| mean(&rows, run, "cosine", "0", "embedding").unwrap();
    let last = |run: &str| mean(&rows, run, "cosine", "3", "block").unwrap();
    assert!((embedding("base") - embedding("base (shuffled)")).abs() < 1e-12, "order is nothing to the embedding");
    assert!((last("base") - last("base (shuffled)")).abs() > 1e-4);
    assert!((embedding("base") - embedding("base (untrained)")).abs() > 1e-3);
    assert!((last("base") - last("base (other texts)")).abs() > 1e-4);
    let kept = mean(&rows, "base (other texts)", "retention", "0", "embedding").unwrap();
    assert!((kept - 1.0).abs() < 1e-9, "a row still stands beside its own embedding: {kept}");
    assert_eq!(mean(&rows, "base (other texts)", "attention_entropy", "1", "block"), None, "they never met");
    assert!(fs::read_to_string(out.join("similarity.svg")).unwrap().contains("tokens that never met"));
    let apart = place.measure("apart", "--baselines shuffled --panel-by-run");
    for figure in ["similarity.svg", "cosine_centred.svg"] {
        let svg = fs::read_to_string(apart.join(figure)).unwrap();
        assert!(svg.contains("measured (shuffled)") && !svg.contains("base (shuffled)"), "{figure}");
    }
    // One text has no other whose tokens could stand in.
    let (line, _) = place.line("alone", "--limit 1 --baselines texts");
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("base (other texts): no values; no 32 texts in a row hold two"), "{}", ended.stderr);
}

#[test]
fn an_audit_says_how_far_the_numbers_are_off() {
    let place = Place::new(20);
    let options = format!("--audit 4 --adapter tuned={}", place.adapter().display());
    let out = place.measure("out", &options);
    let audit = &read_json(&out.join("manifest.json"))["audit"];
    assert_eq!(audit["texts"], 4);
    for road in ["alone_against_batch", "f64_against_compute_type", "all_pairs_against_one_sweep"] {
        for measure in ["cosine", "cosine_centred"] {
            let found = audit[road][measure].as_f64().unwrap();
            assert!(found < 1e-5, "{road} {measure}: {found}");
        }
    }
    assert!(audit["f64_against_compute_type"]["cosine"].as_f64().unwrap() > 0.0);
    let svg = fs::read_to_string(out.join("differences.svg")).unwrap();
    assert!(svg.contains("Audit on 4 texts") && svg.contains("Grey band"), "{svg}");
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let place = Place::new(4);
    for (options, words) in [
        ("--measures cosin", vec!["--measures", "`cosin`", "`cosine`"]),
        ("--measures cka_base", vec!["cka_base", "--adapter"]),
        ("--means nowhere.safetensors", vec!["--means", "nowhere.safetensors"]),
    ] {
        let (line, out) = place.line("bad", options);
        assert_one_line(&run(&line), &words, options);
        assert!(!out.join("similarity.csv").exists(), "{options}");
    }
    for (options, word) in [("--sites nose", "after_attention"), ("--baselines none", "shuffled")] {
        let (line, _) = place.line("bad", options);
        let ended = run(&line);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
    let (line, _) = place.line("layers", "--measures cosine,cka_layer0 --layers 2");
    let ended = run(&line);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("cka_layer0: no value anywhere; it compares with layer 0"), "{}", ended.stderr);
}
