//! A model that reads images, from folders of pictures.

use crate::program::{assert_one_line, assert_untouched, command, events, read_json, run, succeed};
use crate::resume::kill_at;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tiny ViT with its image processor, and a folder of pictures of two classes.
fn setting(folder: &Path) -> (String, String) {
    let (model, images) = (folder.join("vit"), folder.join("images"));
    fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("families/vit").join(name), model.join(name)).unwrap();
    }
    let processor = json!({"do_resize": true, "size": {"height": 12, "width": 12}, "resample": 2});
    fs::write(model.join("preprocessor_config.json"), processor.to_string()).unwrap();
    for (class, picture) in [("coloured", "photo.png"), ("grey", "grey.png")] {
        fs::create_dir_all(images.join(class)).unwrap();
        for copy in 0..6 {
            fs::copy(golden("images").join(picture), images.join(class).join(format!("{copy}.png"))).unwrap();
        }
    }
    fs::copy(golden("images/wide.jpg"), images.join("coloured/last.jpg")).unwrap();
    (model.display().to_string(), images.display().to_string())
}

#[test]
fn images_are_measured_folder_by_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (model, images) = setting(dir.path());
    let out = dir.path().join("out");
    let options = "--group-by folder --baselines texts,untrained,shuffled --heatmap 1 --measures cosine,effective_rank";
    succeed(&format!("similarity --model {model} --images {images} {options} --out {}", out.display()));
    let mut reader = csv::Reader::from_path(out.join("similarity.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let groups: BTreeSet<&str> = rows.iter().map(|row| &row[1]).collect();
    assert_eq!(groups, BTreeSet::from(["", "coloured", "grey"]));
    let runs: BTreeSet<&str> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(runs.len(), 4);
    let manifest = read_json(&out.join("manifest.json"));
    assert_eq!(manifest["runs"][0]["tokens_measured"], 13 * 10);
    let map = fs::read_to_string(out.join("heatmap/base_text0_layer1.csv")).unwrap();
    assert!(map.contains("cls") && map.contains("\"2,1\""), "{map}");
    // The same tokens from stored states.
    let states = dir.path().join("states");
    let saved = dir.path().join("saved");
    let command = format!("similarity --model {model} --texts {images} --save-states {} --limit 3", states.display());
    succeed(&format!("{command} --out {}", saved.display()));
    let again = dir.path().join("again");
    succeed(&format!("similarity --states base={} --measures cosine --out {}", states.display(), again.display()));
    let means = |folder: &Path| -> Vec<String> {
        let mut reader = csv::Reader::from_path(folder.join("similarity.csv")).unwrap();
        let rows = reader.records().map(Result::unwrap);
        rows.filter(|row| &row[4] == "cosine").map(|row| row[6].chars().take(7).collect()).collect()
    };
    assert_eq!(means(&saved), means(&again));
}

#[test]
fn classes_of_images_are_learned_and_a_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, images) = setting(dir.path());
    let line = |out: &Path, options: &str| {
        format!(
            "train --model {model} --data {images} --warmup-steps 2 --lr 0.02 --batch-size 4 --accumulate 1 \
             --val-size 3 --eval-every 3 --save-every 3 --probe-every 3 --quiet {options} --out {}",
            out.display()
        )
    };
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let sibo = "--steps 240 --rank 4 --sibo-lambda 0.2";
    succeed(&line(&whole, sibo));
    let log = events(&whole);
    assert!(log[239]["loss"].as_f64().unwrap() < log[0]["loss"].as_f64().unwrap());
    let config = read_json(&whole.join("adapter/adapter_config.json"));
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["classifier"])));
    assert_eq!(read_json(&whole.join("manifest.json"))["classes"], json!(["coloured", "grey"]));
    // The head for classes and its moments go on as the modules do.
    let words = line(&killed, sibo);
    let moment = || killed.join("last/trainer_state.json").is_file();
    assert!(kill_at(command(&words.split_whitespace().collect::<Vec<_>>()), moment), "it ended before it was killed");
    succeed(&format!("{words} --resume"));
    let bytes = |out: &Path| fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(bytes(&whole), bytes(&killed));
    let measure = |what: &str, out: &str| {
        succeed(&format!("similarity {what} --texts {images} --out {}", dir.path().join(out).display()));
    };
    measure(&format!("--adapter sibo={}", whole.join("adapter").display()), "of_adapter");
    let full = dir.path().join("full");
    succeed(&line(&full, "--method full --steps 3"));
    measure(&format!("--model {}", full.join("model").display()), "of_full");
}

#[test]
fn texts_and_images_are_not_taken_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (model, images) = setting(dir.path());
    let texts = dir.path().join("a.txt");
    fs::write(&texts, "how many apples\n").unwrap();
    let texts = texts.display();
    let cases = [
        (
            format!("similarity --model {model} --texts {texts}"),
            "is no folder, and a vit model reads a folder of images",
        ),
        (
            format!("similarity --model embedded --texts {images}"),
            "is a folder, and a llama model reads a file of texts",
        ),
        (format!("similarity --model {model} --texts {images} --tokens 4"), "--tokens is for texts"),
        (format!("similarity --model {model} --texts {images} --group-by label"), "--group-by folder"),
        (format!("similarity --model {model} --texts {images} --measures all"), "nearest_embedding is for texts"),
        (format!("train --model {model} --data {texts}"), "learns from a folder of images"),
        (format!("train --model {model} --data {images}/grey"), "lies in no folder that names its class"),
        (format!("train --model {model} --data {images} --label-field folder"), "label-field is for texts"),
        (
            format!("train --model {model} --data {images} --sibo-lambda 0.1 --residual random"),
            "a model of images has none",
        ),
    ];
    for (line, words) in cases {
        let out = dir.path().join("out");
        let quiet = format!("{line} --quiet --out {}", out.display());
        assert_one_line(&run(&quiet), &[words], &line);
        if line.starts_with("similarity") {
            assert_untouched(&out, &line);
        }
    }
}
