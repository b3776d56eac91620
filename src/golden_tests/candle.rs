//! Our models against candle-transformers' own: another implementation than the one that made the golden values.
//!
//! Where candle computes otherwise than transformers, or lacks a switch, both are given a configuration on which they
//! must agree, and the case says why. What candle-transformers 0.11 was found to do:
//! - Mistral, Gemma 2 and 3, StarCoder 2: a window of n lets n + 1 tokens be seen, so candle gets one less.
//! - Qwen 2: the window holds even where `use_sliding_window` is false. Qwen 3: windows are refused.
//! - Gemma 2 and 3: `query_pre_attn_scalar` is read and ignored; Gemma 2's window holds in every block.
//! - Gemma 3: `rope_scaling` is ignored, and blocks that see all stop at a second key head (its cache wants values that lie
//!   in a row), so that both keep the first key head alone.
//! - Falcon: the base of the rotation is 10000 and the inner width four times the width, whatever the configuration says;
//!   the head must be in the file; GELU is the approximation, which is not transformers'.
//! - DistilBERT: GELU is the approximation, which is not transformers'.
//!
//! Left out: falcon_new and the falcon_alibi cases, whose switches candle does not compute (`Config::validate` says so);
//! ALBERT, ELECTRA, GPT-2, GPT-J, GPT-NeoX, BLOOM and OPT, which it does not have; bert_classification, which has BERT's
//! states; roberta_mlm, which candle has as XLM-RoBERTa alone and nobody has tried.

use super::each_family::{batch_of, load};
use super::*;
use candle_nn::VarBuilder;
use candle_transformers::models::{
    bert, distilbert, falcon, gemma, gemma2, gemma3, mistral, modernbert, olmo2, phi3, qwen2, qwen3, stable_lm,
    starcoder2, t5, vit,
};
use serde::de::DeserializeOwned;
use serde_json::json as value;
use std::collections::HashMap;

/// What candle says to one text of ids `[1, n]` and types `[1, n]`: logits or states of its last token, or of all.
type Answer = Box<dyn FnMut(&Tensor, &Tensor) -> candle_core::Result<Tensor>>;

/// A golden folder for both.
struct Case {
    name: &'static str,
    /// What both are told otherwise.
    both: Value,
    /// What candle is told otherwise.
    theirs: Value,
    /// Whether the last states are held against each other, where there is no head.
    states: bool,
    /// What is done to the file's tensors first.
    tensors: fn(&mut HashMap<String, Tensor>),
    answer: fn(Value, VarBuilder<'static>) -> Answer,
}

impl Case {
    fn new(name: &'static str, answer: fn(Value, VarBuilder<'static>) -> Answer) -> Self {
        Self { name, both: value!({}), theirs: value!({}), states: false, tensors: |_| {}, answer }
    }

    fn both(self, both: Value) -> Self {
        Self { both, ..self }
    }

    fn with(self, tensors: fn(&mut HashMap<String, Tensor>)) -> Self {
        Self { tensors, ..self }
    }

    fn theirs(self, theirs: Value) -> Self {
        Self { theirs, ..self }
    }
}

fn merge(config: &mut Value, changes: &Value) {
    for (key, change) in changes.as_object().unwrap() {
        config[key] = change.clone();
    }
}

fn read<C: DeserializeOwned>(config: Value) -> C {
    serde_json::from_value(config).unwrap()
}

/// The largest relative deviation over the folder's three texts.
fn deviation(case: &Case) -> f64 {
    let folder = golden("families").join(case.name);
    let mut config = json(&folder.join("config.json"));
    if let Some(theta) = config["rope_parameters"].get("rope_theta").cloned() {
        config["rope_theta"] = theta;
    }
    merge(&mut config, &case.both);
    let mut weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    (case.tensors)(&mut weights);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&weights, dir.path().join("model.safetensors")).unwrap();
    let ours = model(dir.path(), DType::F32);
    merge(&mut config, &case.theirs);
    let mut answer = (case.answer)(config, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu));
    let batch = batch_of(&tensors(&folder.join("golden.safetensors")), &ours);
    let expected = match case.states {
        true => {
            let mut keep = Keep::default();
            ours.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
            keep.0.pop().unwrap().1
        }
        false => ours.logits(&batch, &Pass::default()).unwrap(),
    };
    let mut largest = 0.0f64;
    for s in 0..3 {
        let one = |list: &[u32]| Tensor::new(list, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let ids = batch.sequence(s);
        let types = batch.types.get(batch.rows(s)).map_or_else(|| vec![0; ids.len()], <[u32]>::to_vec);
        let theirs = answer(&one(ids), &one(&types)).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let width = theirs.dims().last().copied().unwrap();
        let theirs = theirs.reshape(((), width)).unwrap();
        let (rows, count) = (rows(&expected, &batch, s), theirs.dims()[0]);
        let error = relative_error(&rows.narrow(0, rows.dims()[0] - count, count).unwrap(), &theirs);
        assert!(error.is_finite(), "{}", case.name);
        largest = largest.max(error);
    }
    largest
}

/// An answer of a model that keeps keys and values from one text to the next unless it is told not to.
macro_rules! decoder {
    ($config:ty, $new:expr, $forward:expr) => {
        |config, weights| {
            let config = read::<$config>(config);
            let mut model = $new(&config, weights).unwrap();
            Box::new(move |ids, _| {
                model.clear_kv_cache();
                $forward(&mut model, ids)
            })
        }
    };
}

fn decoders() -> Vec<Case> {
    let no_window = value!({"sliding_window": 64});
    vec![
        Case::new("mistral", decoder!(mistral::Config, mistral::Model::new, |m: &mut mistral::Model, ids| m.forward(ids, 0)))
            .theirs(value!({"sliding_window": 4})),
        Case::new(
            "qwen2",
            decoder!(qwen2::Config, qwen2::ModelForCausalLM::new, |m: &mut qwen2::ModelForCausalLM, ids| m.forward(ids, 0)),
        )
        .theirs(no_window),
        Case::new(
            "qwen3",
            decoder!(qwen3::Config, qwen3::ModelForCausalLM::new, |m: &mut qwen3::ModelForCausalLM, ids| m.forward(ids, 0)),
        ),
        // The golden file's exact GELU means the approximation (transformers), which candle wants to be told.
        Case::new(
            "gemma",
            decoder!(
                gemma::Config,
                |config: &gemma::Config, weights| gemma::Model::new(false, config, weights),
                |m: &mut gemma::Model, ids| m.forward(ids, 0)
            ),
        )
        .theirs(value!({"hidden_act": null, "hidden_activation": "gelu_pytorch_tanh"})),
        Case::new(
            "gemma2",
            decoder!(
                gemma2::Config,
                |config: &gemma2::Config, weights| gemma2::Model::new(false, config, weights),
                |m: &mut gemma2::Model, ids| m.forward(ids, 0)
            ),
        )
        .both(value!({"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"]}))
        .theirs(value!({"sliding_window": 4})),
        Case::new(
            "gemma3_text",
            decoder!(
                gemma3::Config,
                |config: &gemma3::Config, weights| gemma3::Model::new(false, config, weights),
                |m: &mut gemma3::Model, ids| m.forward(ids, 0)
            ),
        )
        .both(value!({"query_pre_attn_scalar": 8, "rope_scaling": null, "num_key_value_heads": 1}))
        .theirs(value!({"sliding_window": 4}))
        .with(|weights| {
            for layer in 0..3 {
                for name in ["k_proj", "v_proj"] {
                    let name = format!("model.layers.{layer}.self_attn.{name}.weight");
                    let first = weights[&name].narrow(0, 0, 8).unwrap().contiguous().unwrap();
                    weights.insert(name, first);
                }
            }
        }),
        Case::new("phi3", decoder!(phi3::Config, phi3::Model::new, |m: &mut phi3::Model, ids| m.forward(ids, 0))),
        Case::new("phi3_partial", decoder!(phi3::Config, phi3::Model::new, |m: &mut phi3::Model, ids| m.forward(ids, 0))),
        Case::new(
            "starcoder2",
            decoder!(starcoder2::Config, starcoder2::Model::new, |m: &mut starcoder2::Model, ids| m.forward(ids, 0)),
        ),
        Case::new("olmo2", decoder!(olmo2::Config, olmo2::Model::new, |m: &mut olmo2::Model, ids| m.forward(ids, 0))),
        Case::new("stablelm", |config, weights| {
            // Without a cache, since it cannot be emptied.
            let mut model = stable_lm::Model::new(&read(config), weights).unwrap();
            Box::new(move |ids, _| model.forward(ids, 0))
        }),
        Case {
            tensors: |weights| {
                let table = weights["transformer.word_embeddings.weight"].clone();
                weights.insert("lm_head.weight".to_owned(), table);
                // Inner units without weights change nothing.
                for layer in 0..2 {
                    for (name, dim) in [("dense_h_to_4h", 0), ("dense_4h_to_h", 1)] {
                        let name = format!("transformer.h.{layer}.mlp.{name}.weight");
                        let wider = weights[&name].pad_with_zeros(dim, 0, 4 * 30 - 41).unwrap();
                        weights.insert(name, wider);
                    }
                }
            },
            ..Case::new(
                "falcon",
                decoder!(
                    falcon::Config,
                    |config: &falcon::Config, weights| falcon::Falcon::load(weights, config.clone()),
                    |m: &mut falcon::Falcon, ids| m.forward(ids)
                ),
            )
            .both(value!({"rope_theta": 10000.0, "ffn_hidden_size": 120, "activation": "gelu_new"}))
        },
    ]
}

fn t5_encoder(config: Value, weights: VarBuilder<'static>) -> Answer {
    let mut model = t5::T5EncoderModel::load(weights, &read(config)).unwrap();
    Box::new(move |ids, _| model.forward(ids))
}

fn encoders() -> Vec<Case> {
    vec![
        Case {
            tensors: |weights| {
                let (table, bias) = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias");
                let head = [("weight", weights[table].clone()), ("bias", weights[bias].clone())];
                weights.extend(head.map(|(end, tensor)| (format!("cls.predictions.decoder.{end}"), tensor)));
            },
            ..Case::new("bert_mlm", |config, weights| {
                let model = bert::BertForMaskedLM::load(weights, &read(config)).unwrap();
                Box::new(move |ids, types| model.forward(ids, types, None))
            })
        },
        Case::new("distilbert", |config, weights| {
            let model = distilbert::DistilBertForMaskedLM::load(weights, &read(config)).unwrap();
            // Ones would hide.
            Box::new(move |ids, _| model.forward(ids, &ids.zeros_like()?.to_dtype(DType::U8)?))
        })
        .both(value!({"activation": "gelu_new"}))
        .theirs(value!({"activation": "gelu", "initializer_range": 0.02})),
        Case::new("modernbert", |config, weights| {
            let model = modernbert::ModernBertForMaskedLM::load(weights, &read(config)).unwrap();
            Box::new(move |ids, _| model.forward(ids, &ids.ones_like()?))
        })
        .theirs(value!({"layer_norm_eps": 1e-5})),
        Case { states: true, ..Case::new("t5_encoder", t5_encoder) },
        Case { states: true, ..Case::new("t5_gated", t5_encoder) },
    ]
}

#[test]
fn our_models_agree_with_candles() {
    for case in decoders().iter().chain(&encoders()) {
        let deviation = deviation(case);
        assert!(deviation < 1e-5, "{} deviates by {deviation:.1e}", case.name);
    }
}

#[test]
fn vit_answers_as_candles_does() {
    let folder = golden("families").join("vit");
    let values = tensors(&folder.join("golden.safetensors"));
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let config = read::<vit::Config>(json(&folder.join("config.json")));
    let theirs = vit::Model::new(&config, 3, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu)).unwrap();
    let ours = load("vit", DType::F32);
    let batch = batch_of(&values, &ours);
    let logits = ours.logits(&batch, &Pass::default()).unwrap();
    for s in 0..3 {
        let wanted = theirs.forward(&values[&format!("pixels_{s}")].unsqueeze(0).unwrap()).unwrap();
        close("vit", &rows(&logits, &batch, s).narrow(0, 0, 1).unwrap(), &wanted, 2e-6);
    }
}
