//! BERT and RoBERTa against transformers: states, gradients, tokenizers, and a real model.

use super::*;
use crate::data::{Encoded, Sequence};
use crate::model::tokenizer::TextTokenizer;
use crate::model::{H0Kind, LoadedModel, Role};
use crate::peft::Policy;
use candle_core::Var;

const TINY: [&str; 2] = ["tiny_bert", "tiny_roberta"];

fn folder(name: &str) -> PathBuf {
    golden("bert").join(name)
}

fn expected(name: &str) -> BTreeMap<String, Tensor> {
    tensors(&folder(name).join("golden.safetensors"))
}

fn list(values: &BTreeMap<String, Tensor>, key: &str) -> Vec<Vec<u32>> {
    (0..3).map(|s| values[&format!("{key}_{s}")].to_vec1().unwrap()).collect()
}

fn batch(values: &BTreeMap<String, Tensor>) -> Packed {
    let (ids, types) = (list(values, "ids"), list(values, "types"));
    Packed::pack(ids.iter().zip(&types).map(|(ids, types)| Sequence { ids, types, image: None }))
}

/// The golden scalar: every number of the last block times its own weight.
fn weighed(model: &Transformer, pass: &Pass<'_>, values: &BTreeMap<String, Tensor>) -> Tensor {
    let weights: Vec<&Tensor> = (0..3).map(|s| &values[&format!("weights_{s}")]).collect();
    let states = model.hidden_states(&batch(values), pass, &mut Keep::default()).unwrap();
    (states * Tensor::cat(&weights, 0).unwrap()).unwrap().sum_all().unwrap()
}

#[test]
fn every_layer_is_that_of_transformers() {
    for name in TINY {
        let expected = expected(name);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 2e-7)] {
            let model = model(&folder(name), dtype);
            let layers = model.architecture().layers;
            let batch = batch(&expected);
            let mut keep = Keep::default();
            let last = model.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
            // No final norm: transformers' hidden_states[l] is our layer l throughout.
            assert_eq!(keep.0.len(), layers + 1);
            for ((site, layer), states) in &keep.0 {
                assert_eq!(*site == Site::Embedding, *layer == 0);
                for s in 0..3 {
                    let key = format!("layer_{layer}_{s}");
                    close(&format!("{name} {dtype:?} {key}"), &rows(states, &batch, s), &expected[&key], tolerance);
                }
            }
            assert_eq!(relative_error(&last, &keep.0[layers].1), 0.0);
            // Each sequence alone: packing does not let them meet.
            let types = &list(&expected, "types")[2];
            let alone = Packed::pack([Sequence { ids: batch.sequence(2), types, image: None }]);
            let alone = model.hidden_states(&alone, &Pass::default(), &mut Keep::default()).unwrap();
            close(name, &alone, &expected[&format!("layer_{layers}_2")], tolerance);
            assert_eq!(relative_error(&model.h0(&batch).unwrap(), &keep.0[0].1), 0.0);
            // One was saved without a head, the other with its head for masked tokens.
            match model.logits(&batch, &Pass::default()) {
                Ok(logits) => assert!(name == "tiny_roberta" && logits.dims().len() == 2),
                Err(error) => {
                    assert!(name == "tiny_bert" && error.to_string().contains("has no head for tokens"), "{error}")
                }
            }
        }
    }
}

#[test]
fn gradients_of_every_kind_of_weight_are_torchs() {
    for name in TINY {
        let expected = expected(name);
        let mut model = model(&folder(name), DType::F64);
        let prefix = model.architecture().names.prefix;
        let variables = model.make_trainable().unwrap();
        assert_eq!(variables.len(), model.architecture().tensors().len());
        let loss = weighed(&model, &Pass::default(), &expected);
        let stated = expected["loss"].to_vec1::<f64>().unwrap()[0];
        assert!((loss.to_scalar::<f64>().unwrap() - stated).abs() < 1e-10 * stated.abs().max(1.0), "{name}");
        let gradients = loss.backward().unwrap();
        let mut compared = 0;
        for (key, value) in expected.iter().filter_map(|(k, v)| Some((k.strip_prefix("full.")?, v))) {
            let found = gradients.get(&variables[&format!("{prefix}{key}")]).unwrap();
            close(&format!("{name} {key}"), found, value, 1e-8);
            compared += 1;
        }
        assert_eq!(compared, 9);
    }
}

#[test]
fn lora_with_the_initial_residual_has_torchs_gradients() {
    for name in TINY {
        let expected = expected(name);
        let model = model(&folder(name), DType::F64);
        let prefix = model.architecture().names.prefix;
        let config = PeftConfig {
            method: Method::Lora { rank: 3, alpha: 7.5, dropout: 0.0, rank_stabilised: false },
            targets: ["query", "value", "intermediate.dense", "output.dense"].map(str::to_owned).to_vec(),
            residual: Some(ResidualConfig {
                lambda: 0.3,
                policy: Policy::All,
                arm: Arm::H0,
                h0_kind: H0Kind::Input,
                seed: 0,
                learned: None,
            }),
            details: Default::default(),
        };
        let mut peft = Peft::initial(&model, config, 0).unwrap();
        let mixed = |role: Role| matches!(role, Role::Query | Role::Value | Role::Up);
        for module in &peft.plan().modules {
            assert_eq!(module.residual == crate::peft::Mixing::Mixed, mixed(module.role), "{}", module.path);
        }
        let variables: BTreeMap<String, Var> = peft.variables().unwrap();
        // Theirs is the encoder alone; ours has the prefix of the file.
        let plain = |key: &str| key.replacen(&format!("base_model.model.{prefix}"), "base_model.model.", 1);
        for (key, variable) in &variables {
            variable.set(&expected[&format!("lora.{}", plain(key))]).unwrap();
        }
        let loss = weighed(&model, &Pass::inference(Some(&peft)), &expected);
        let stated = expected["loss"].to_vec1::<f64>().unwrap()[1];
        assert!((loss.to_scalar::<f64>().unwrap() - stated).abs() < 1e-10 * stated.abs(), "{name}");
        let gradients = loss.backward().unwrap();
        for (key, variable) in &variables {
            let found = gradients.get(variable).unwrap();
            close(&format!("{name} {key}"), found, &expected[&format!("grad.{}", plain(key))], 1e-8);
        }
        assert_eq!(variables.len(), expected.keys().filter(|key| key.starts_with("grad.")).count());

        // Saved and loaded it computes the same bits, as does a residual that reads the token's embedding row.
        let loaded = |peft: &Peft| {
            let dir = tempfile::tempdir().unwrap();
            crate::peft::save_adapter(dir.path(), peft, &BTreeMap::new(), name).unwrap();
            load_adapter(dir.path(), &model).unwrap()
        };
        let states = |peft: &Peft| -> Vec<f64> {
            let pass = Pass::inference(Some(peft));
            let states = model.hidden_states(&batch(&expected), &pass, &mut Keep::default()).unwrap();
            states.flatten_all().unwrap().to_vec1().unwrap()
        };
        let frozen = peft.frozen();
        assert_eq!(states(&loaded(&frozen)), states(&frozen));
        let residual = frozen.config().residual.map(|r| ResidualConfig { h0_kind: H0Kind::Token, ..r });
        let token = frozen.with_residual(&model, residual).unwrap();
        assert_eq!(states(&loaded(&token)), states(&token));
        assert_ne!(states(&token), states(&frozen));
    }
}

#[test]
fn the_parts_of_a_post_norm_block_add_up() {
    struct All(BTreeMap<(Site, usize), Tensor>, Vec<Vec<Tensor>>);
    impl Probe for All {
        fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
            self.0.insert((site, layer), states.detach());
            Ok(())
        }
        fn wants(&self, _: Site, _: usize) -> bool {
            true
        }
        fn wants_attention(&self, _: usize) -> bool {
            true
        }
        fn record_attention(&mut self, _: usize, maps: &[Tensor], _: &Packed) -> Result<(), ModelError> {
            self.1.push(maps.to_vec());
            Ok(())
        }
    }
    let expected = expected("tiny_bert");
    let model = model(&folder("tiny_bert"), DType::F64);
    let weights = tensors(&folder("tiny_bert/model.safetensors"));
    let weight = |layer: usize, name: &str| -> Vec<f64> {
        let tensor = &weights[&format!("encoder.layer.{}.{name}", layer - 1)];
        tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    };
    let mut all = All(BTreeMap::new(), Vec::new());
    model.hidden_states(&batch(&expected), &Pass::default(), &mut all).unwrap();
    let values = |site: Site, layer: usize| all.0[&(site, layer)].to_vec2::<f64>().unwrap();
    let normed = |row: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
        let count = row.len() as f64;
        let mean = row.iter().sum::<f64>() / count;
        let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count + 1e-12).sqrt();
        row.iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| (x - mean) / deviation * w + b).collect()
    };
    let same = |what: &str, a: &[f64], b: &[f64]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{what}: {a:?} {b:?}");
    };
    for layer in 1..=3 {
        let before = if layer == 1 { values(Site::Embedding, 0) } else { values(Site::Block, layer - 1) };
        let steps = [
            (before, Site::Attention, Site::AfterAttention, "attention.output.LayerNorm"),
            (values(Site::AfterAttention, layer), Site::FeedForward, Site::Block, "output.LayerNorm"),
        ];
        for (before, added, after, norm) in steps {
            let (w, b) = (weight(layer, &format!("{norm}.weight")), weight(layer, &format!("{norm}.bias")));
            for ((before, added), after) in before.iter().zip(values(added, layer)).zip(values(after, layer)) {
                let sum: Vec<f64> = before.iter().zip(&added).map(|(a, b)| a + b).collect();
                same(norm, &normed(&sum, &w, &b), &after);
            }
        }
        // The bias of the output projection belongs to no head.
        let bias = weight(layer, "attention.output.dense.bias");
        let heads: Vec<Vec<Vec<f64>>> = (0..5).map(|head| values(Site::Head(head), layer)).collect();
        for (row, added) in values(Site::Attention, layer).iter().enumerate() {
            let sum: Vec<f64> = (0..30).map(|i| heads.iter().map(|h| h[row][i]).sum::<f64>() + bias[i]).collect();
            same("heads", &sum, added);
        }
        let map = all.1[layer - 1][2].to_vec3::<f64>().unwrap();
        assert!(map.iter().flatten().all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-14 && row[22] > 0.0));
        assert!(values(Site::AttentionPeft, layer).iter().flatten().all(|&x| x == 0.0));
        assert_eq!(values(Site::BlockNoPeft, layer), values(Site::Block, layer));
    }
    assert!(!all.0.contains_key(&(Site::FinalNorm, 3)));
}

#[test]
fn old_names_of_norms_and_a_missing_or_added_prefix_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let expected = expected("tiny_bert");
    let stored = tensors(&folder("tiny_bert/model.safetensors"));
    std::fs::copy(folder("tiny_bert/config.json"), dir.path().join("config.json")).unwrap();
    let old = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let renamed: std::collections::HashMap<String, Tensor> = stored.iter().map(|(k, v)| (old(k), v.clone())).collect();
    candle_core::safetensors::save(&renamed, dir.path().join("model.safetensors")).unwrap();
    let model = model(dir.path(), DType::F32);
    assert_eq!(model.architecture().linear_path(1, Role::Key), "bert.encoder.layer.1.attention.self.key");
    let states = model.hidden_states(&batch(&expected), &Pass::default(), &mut Keep::default()).unwrap();
    close("renamed", &rows(&states, &batch(&expected), 2), &expected["layer_3_2"], 1e-5);
}

#[test]
fn tokenizers_from_pieces_tokenise_as_in_transformers() {
    for name in TINY {
        let tokenizer = TextTokenizer::from_folder(&folder(name)).unwrap();
        let values = json(&folder(name).join("tokens.json"));
        let numbers = |value: &Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
        };
        for case in values["single"].as_array().unwrap() {
            let encoded = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
            assert_eq!(encoded.ids, numbers(&case["ids"]), "{name} {case}");
            assert_eq!((encoded.special[0], encoded.special.last(), encoded.types.len()), (true, Some(&true), 0));
        }
        for case in values["pairs"].as_array().unwrap() {
            let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str().unwrap());
            let Encoded { ids, types, .. } = tokenizer.encode_pair(text, pair).unwrap();
            assert_eq!((ids, types), (numbers(&case["ids"]), numbers(&case["types"])), "{name} {case}");
        }
    }
}

#[test]
fn all_minilm_has_the_states_of_transformers() {
    let shared = std::env::var("SMOOTH_PROBE_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let folder = Path::new(&shared).join("models/all-MiniLM-L6-v2");
    if !folder.exists() {
        println!("SKIPPED: {} is not there; set SMOOTH_PROBE_SHARED", folder.display());
        return;
    }
    let loaded = LoadedModel::from_folder(&folder, "MiniLM", DType::F32, &Device::Cpu).unwrap();
    for case in json(&golden("minilm.json")).as_array().unwrap() {
        let texts: Vec<&str> = case["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let encoded = match texts.as_slice() {
            [text, pair] => loaded.tokenizer().unwrap().encode_pair(text, pair).unwrap(),
            other => loaded.tokenizer().unwrap().encode(other[0], true).unwrap(),
        };
        assert_eq!(serde_json::json!(encoded.ids), case["ids"]);
        if texts.len() == 2 {
            assert_eq!(serde_json::json!(encoded.types), case["types"]);
        }
        let batch = Packed::pack([Sequence { ids: &encoded.ids, types: &encoded.types, image: None }]);
        let mut keep = Keep::default();
        loaded.transformer.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
        let layers = case["layers"].as_array().unwrap();
        assert_eq!(keep.0.len(), layers.len());
        for (((_, layer), states), stated) in keep.0.iter().zip(layers) {
            let states = states.to_dtype(DType::F64).unwrap();
            let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            let (found, whole) = (norm(&states), stated["norm"].as_f64().unwrap());
            assert!((found / whole - 1.0).abs() < 1e-5, "layer {layer}: norm {found} for {whole}");
            for (key, row) in [("first_token", 0), ("last_token", encoded.ids.len() - 1)] {
                let (row, stated) = (states.get(row).unwrap(), &stated[key]);
                let size = stated["norm"].as_f64().unwrap();
                assert!((norm(&row) / size - 1.0).abs() < 1e-5, "layer {layer} {key}");
                let first = row.narrow(0, 0, 4).unwrap().to_vec1::<f64>().unwrap();
                for (found, value) in first.iter().zip(stated["first"].as_array().unwrap()) {
                    let value = value.as_f64().unwrap();
                    assert!((found - value).abs() < 1e-5 * size, "layer {layer} {key}: {found} for {value}");
                }
            }
        }
    }
}
