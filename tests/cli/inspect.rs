//! The plan, before anyone trains.

use crate::program::succeed;
use serde_json::{Value, json};

fn llama_7b(folder: &std::path::Path) -> String {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "tie_word_embeddings": false});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.display().to_string()
}

#[test]
fn trainable_counts_of_llama_7b_are_those_of_the_released_runs() {
    let dir = tempfile::tempdir().unwrap();
    let model = llama_7b(dir.path());
    let count = |options: &str| -> Value {
        let text = succeed(&format!("inspect --json --model {model} {options}"));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let lora = "--method lora --targets q_proj,k_proj,v_proj,up_proj,down_proj --rank";
    assert_eq!(count(&format!("{lora} 8"))["trainable"], 14_024_704);
    assert_eq!(count(&format!("{lora} 32"))["trainable"], 56_098_816);
    let adapters = count("--method adapter --bottleneck 256 --targets gate_proj,up_proj");
    assert_eq!(adapters["trainable"], 134_217_728);
    assert_eq!(adapters["weights"], 6_738_415_616_u64);
    assert_eq!(adapters["modules"].as_array().unwrap().len(), 64);
}

#[test]
fn official_sibo_says_what_is_mixed_where_why_not_elsewhere_and_that_it_cannot_be_merged() {
    let dir = tempfile::tempdir().unwrap();
    let model = llama_7b(dir.path());
    let text = succeed(&format!("inspect --model {model} --method lora --rank 8 --sibo-lambda 0.2"));
    let line = |module: &str| text.lines().find(|line| line.starts_with(module)).unwrap().to_owned();
    assert!(line("model.layers.3.mlp.up_proj").ends_with("  yes"), "{text}");
    assert!(line("model.layers.3.mlp.up_proj").contains("4096->11008"), "{text}");
    assert!(line("model.layers.3.self_attn.q_proj").contains("no: policy official"), "{text}");
    assert!(line("model.layers.3.mlp.down_proj").contains("no: its input is the feed-forward's inner"), "{text}");
    assert!(text.contains("mixed into 32 of 160 modules") && text.contains("14,024,704"), "{text}");
    assert!(line("deployment").contains("cannot be merged whole"), "{text}");

    let all = succeed(&format!("inspect --model {model} --method lora --sibo-lambda 0.2 --sibo-policy all"));
    assert!(all.contains("mixed into 128 of 160 modules"), "{all}");
    let control = succeed(&format!("inspect --model {model} --method lora --sibo-lambda 0.2 --residual none"));
    assert!(control.contains("mergeable: the control"), "{control}");
    let vanilla = succeed(&format!("inspect --model {model} --method lora"));
    assert!(vanilla.contains("mergeable: W'") && vanilla.contains("none: vanilla"), "{vanilla}");
}

#[test]
fn the_embedded_model_is_inspected_without_any_file() {
    let text = succeed("inspect --model embedded --method adapter --bottleneck 16 --sibo-lambda 0.3");
    assert!(text.contains("16 layers, width 96") && text.contains("cannot be merged"), "{text}");
}
