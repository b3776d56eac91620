//! Model folders that are damaged, hostile or of another kind.

use crate::program::{assert_one_line, assert_untouched, run};
use crate::small_model::{instructions, tiny_model};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

type Damage = Box<dyn Fn(&Path)>;

fn config(key: &'static str, value: Value) -> Damage {
    Box::new(move |model| {
        let path = model.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value.clone();
        fs::write(path, config.to_string()).unwrap();
    })
}

fn file(name: &'static str, bytes: &'static [u8]) -> Damage {
    Box::new(move |model| fs::write(model.join(name), bytes).unwrap())
}

fn gone(name: &'static str) -> Damage {
    Box::new(move |model| fs::remove_file(model.join(name)).unwrap())
}

/// Changes the bytes of the weights.
fn weights(change: impl Fn(Vec<u8>) -> Vec<u8> + 'static) -> Damage {
    Box::new(move |model| {
        let path = model.join("model.safetensors");
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
    })
}

/// Changes the JSON header of the weights.
fn header(change: impl Fn(&mut Value) + 'static) -> Damage {
    weights(move |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        let text = header.to_string();
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + length..]].concat()
    })
}

/// Damages a fresh copy of the tiny model and asks each verb for one line that holds `words`.
fn refused(what: &str, damage: &Damage, words: &[&str], verbs: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    damage(&model);
    let data = instructions(&dir.path().join("data.jsonl"), 6);
    let out = dir.path().join("out");
    for verb in verbs {
        let rest = match *verb {
            "train" => format!("--data {} --out {} --steps 1 --quiet", data.display(), out.display()),
            "similarity" => format!("--texts {} --field output --out {}", data.display(), out.display()),
            _ => "--method lora".to_owned(),
        };
        let started = std::time::Instant::now();
        let ended = run(&format!("{verb} --model {} {rest}", model.display()));
        assert_one_line(&ended, words, &format!("{verb}: {what}"));
        assert_untouched(&out, what);
        assert!(started.elapsed().as_secs() < 20, "{verb}: {what}: refused, but slowly");
    }
}

const LOADING: [&str; 2] = ["train", "similarity"];
const READING: [&str; 3] = ["train", "similarity", "inspect"];

#[test]
fn weights_missing_damaged_or_hostile() {
    let name = "model.safetensors";
    let first = "model.embed_tokens.weight";
    let length = |n: u64| weights(move |bytes| [&n.to_le_bytes(), &bytes[8..]].concat());
    let overlapping = header(|header| {
        let offsets = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"].clone();
        header["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = offsets;
    });
    let beyond = header(|header| {
        header["model.norm.weight"]["data_offsets"] = json!([1_u64 << 60, (1_u64 << 60) + 192]);
    });
    let huge_shape = header(|header| header["model.norm.weight"]["shape"] = json!([u64::MAX, 2]));
    let cases: Vec<(&str, Damage, Vec<&str>)> = vec![
        ("missing", gone(name), vec!["model", name, "expected"]),
        ("empty", file(name, b""), vec![name, ";"]),
        ("truncated", weights(|b| b[..b.len() / 2].to_vec()), vec![name, ";"]),
        ("seven bytes", weights(|b| b[..7].to_vec()), vec![name, ";"]),
        ("header of 2^63 bytes", length(1 << 63), vec![name, ";"]),
        ("header of 2^64-1 bytes", length(u64::MAX), vec![name, ";"]),
        ("header of 99 MB", length(99_000_000), vec![name, ";"]),
        ("overlapping offsets", overlapping, vec![name, "_proj.weight", ";"]),
        ("offsets beyond the end", beyond, vec![name, ";"]),
        ("a shape that overflows", huge_shape, vec![name, ";"]),
        ("a page of HTML", file(name, b"<!DOCTYPE html><html>not found</html>"), vec![name, ";"]),
        ("NaN", weights(nan_at_end), vec![name, "NaN"]),
        ("a tensor too few", header(|h| drop(h.as_object_mut().unwrap().shift_remove(first))), vec![name, ";"]),
        ("wrong shapes", config("intermediate_size", json!(81)), vec![name, "_proj.weight", "80", "81", "check"]),
        ("a layer too many", config("num_hidden_layers", json!(4)), vec!["model.layers.3", "config.json"]),
    ];
    for (what, damage, words) in &cases {
        refused(what, damage, words, &LOADING);
    }
}

fn nan_at_end(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes
}

#[test]
fn configurations_that_make_no_sense() {
    let cases: Vec<(&str, Damage, Vec<&str>)> = vec![
        ("no config", gone("config.json"), vec!["config.json"]),
        ("no JSON", file("config.json", b"{\"model_type\": "), vec!["config.json"]),
        ("a list", file("config.json", b"[]"), vec!["config.json"]),
        ("another architecture", config("model_type", json!("mamba")), vec!["config.json", "mamba", "llama"]),
        ("0 heads", config("num_attention_heads", json!(0)), vec!["config.json", "num_attention_heads"]),
        ("0 key heads", config("num_key_value_heads", json!(0)), vec!["config.json", "num_key_value_heads"]),
        ("4 key heads for 6", config("num_key_value_heads", json!(4)), vec!["config.json", "num_key_value_heads"]),
        ("10^9 layers", config("num_hidden_layers", json!(1_000_000_000)), vec!["config.json", "num_hidden_layers"]),
        ("a negative width", config("hidden_size", json!(-48)), vec!["config.json", "hidden_size"]),
        ("a width of half a token", config("hidden_size", json!(48.5)), vec!["config.json", "hidden_size"]),
        ("a word for a width", config("hidden_size", json!("wide")), vec!["config.json", "hidden_size"]),
        ("2^62 wide", config("intermediate_size", json!(1_u64 << 62)), vec!["config.json", "intermediate_size"]),
        ("no vocabulary", config("vocab_size", json!(0)), vec!["config.json", "vocab_size"]),
        ("a negative epsilon", config("rms_norm_eps", json!(-1.0)), vec!["config.json", "rms_norm_eps"]),
        ("theta 0", config("rope_theta", json!(0)), vec!["config.json", "rope_theta"]),
        ("unknown scaling", config("rope_scaling", json!({"type": "yarn", "factor": 4})), vec!["config.json", "yarn"]),
        ("no context", config("max_position_embeddings", json!(0)), vec!["config.json", "max_position_embeddings"]),
    ];
    for (what, damage, words) in &cases {
        refused(what, damage, words, &READING);
    }
}

#[test]
fn tokenizers_missing_or_of_another_model() {
    let model_only: Damage = Box::new(|model| {
        fs::rename(model.join("tokenizer.json"), model.join("tokenizer.model")).unwrap();
    });
    let larger: Damage = Box::new(|model| {
        let path = model.join("tokenizer.json");
        let text = fs::read_to_string(&path).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["model"]["vocab"]["cat"] = json!(5000);
        fs::write(path, json.to_string()).unwrap();
    });
    refused("none", &gone("tokenizer.json"), &["model", "no tokenizer", "expected tokenizer.json"], &LOADING);
    refused("no JSON", &file("tokenizer.json", b"{"), &["tokenizer.json", ";"], &LOADING);
    refused("no tokenizer in it", &file("tokenizer.json", b"{}"), &["tokenizer.json", ";"], &LOADING);
    refused("pieces only", &model_only, &["tokenizer.model", "convert", "python -c"], &LOADING);
    refused("ids beyond the table", &larger, &["5000", "vocabulary", "tokenizer"], &LOADING);
}
