//! Small model folders and data that the tests run on.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Words of the small tokenizer; other words are unknown to it.
const WORDS: &str = "Below is an instruction that describes a task . Write response appropriately completes the request \
    ### Instruction : Response add and give sum of numbers one two three four five six seven eight nine ten red \
    green blue cat dog bird says likes sees runs sleeps with without then now here there big small old new";

/// A folder of the tiny golden model with a tokenizer that puts BOS in front; room for 128 tokens.
pub fn tiny_model(folder: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gqa_tied");
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    folder.to_path_buf()
}

fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let mut vocab = serde_json::Map::new();
    for word in special.into_iter().chain(WORDS.split_whitespace()) {
        let id = vocab.len();
        vocab.entry(word).or_insert(json!(id));
    }
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
}

/// Writes `count` instruction records, no two alike, as JSON lines.
pub fn instructions(path: &Path, count: usize) -> PathBuf {
    let digits = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    let animals = ["cat", "dog", "bird"];
    let lines: String = (0..count)
        .map(|i| {
            let (a, b) = (digits[i % 8], digits[(i / 8) % 8]);
            let animal = animals[i % 3];
            let output = format!("the {animal} sees {a} red and {b} blue {animal} {}", "now then ".repeat(i % 4));
            format!(
                "{}\n",
                json!({"id": format!("t{i}"), "kind": animal,
                "instruction": format!("give {a} and {b} of the {animal}"), "output": output})
            )
        })
        .collect();
    fs::write(path, lines).unwrap();
    path.to_path_buf()
}

/// The real LLaMA of 260 thousand weights, where the shared folder is there.
pub fn stories260k() -> Option<PathBuf> {
    let shared = std::env::var("SMOOTH_PROBE_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(shared).join("models/stories260K");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("SKIPPED: {} is not there; set SMOOTH_PROBE_SHARED", folder.display());
    None
}
