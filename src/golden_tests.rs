//! The engine against values from torch, transformers and peft (`tests/golden`, made by its `make.py`).

mod bert;
mod candle;
mod deberta;
mod each_family;
mod generation;
mod gguf;
mod methods;
mod remedies;
mod sites;

use crate::data::{Example, Packed};
use crate::measures::{CosineProbe, TokenSet};
use crate::model::weights::{Weights, load_adapter_file};
use crate::model::{ModelError, Pass, Transformer, families};
use crate::peft::{Arm, Method, Peft, PeftConfig, Placement, ResidualConfig, load_adapter};
use crate::probe::{Probe, Site};
use crate::train::{AdamW, Moments, Subject, gradients, learning_rate, train_step};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn model(folder: &Path, dtype: DType) -> Transformer {
    let architecture = families::read_config(folder).unwrap();
    Transformer::load("golden", architecture, &Weights::open(folder).unwrap(), dtype, &Device::Cpu).unwrap()
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn sequences(values: &BTreeMap<String, Tensor>) -> Vec<Vec<u32>> {
    (0..3).map(|s| values[&format!("ids_{s}")].to_vec1().unwrap()).collect()
}

fn gqa_sequences() -> Vec<Vec<u32>> {
    sequences(&tensors(&golden("models/gqa_tied/golden.safetensors")))
}

/// ‖a − b‖ / ‖b‖.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (values(a), values(b));
    let square: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
    (square / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

fn close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = relative_error(a, b);
    assert!(error <= tolerance, "{what}: relative error {error:.2e} above {tolerance:.0e}");
}

/// Keeps every state.
#[derive(Default)]
struct Keep(Vec<((Site, usize), Tensor)>);

impl Probe for Keep {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        self.0.push(((site, layer), states.detach()));
        Ok(())
    }
}

fn rows(tensor: &Tensor, batch: &Packed, sequence: usize) -> Tensor {
    let span = batch.rows(sequence);
    tensor.narrow(0, span.start, span.len()).unwrap()
}

/// Targets and weights of the next-token loss over all tokens.
fn examples(sequences: &[Vec<u32>]) -> Vec<Example> {
    let example = |ids: &Vec<u32>| Example {
        loss: (0..ids.len()).map(|i| i > 0).collect(),
        response: 0,
        special: vec![false; ids.len()],
        ids: ids.clone(),
        ..Example::default()
    };
    sequences.iter().map(example).collect()
}

fn mean_loss(model: &Transformer, pass: &Pass<'_>, sequences: &[Vec<u32>]) -> f64 {
    let examples = examples(sequences);
    let refs: Vec<&Example> = examples.iter().collect();
    let (targets, weights) = crate::data::targets_and_weights(&refs);
    let sum = model.loss_sum(&Packed::from_sequences(sequences), &targets, &weights, pass).unwrap();
    sum.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap() / weights.iter().map(|&w| f64::from(w)).sum::<f64>()
}

const MODELS: [(&str, &str); 7] = [
    ("gqa_tied", "gqa_tied"),
    ("mha_untied", "mha_untied"),
    ("rope31", "rope31"),
    ("mha_untied_bf16", "mha_untied_bf16"),
    ("mha_untied_f16", "mha_untied_f16"),
    ("mha_untied_sharded", "mha_untied"),
    ("mha_untied_bin", "mha_untied"),
];

#[test]
fn hidden_states_logits_and_loss_are_those_of_transformers() {
    for (folder, values) in MODELS {
        let expected = tensors(&golden(&format!("models/{values}/golden.safetensors")));
        let loss = json(&golden(&format!("models/{values}/golden.json")))["loss"].as_f64().unwrap();
        let sequences = sequences(&expected);
        let batch = Packed::from_sequences(&sequences);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 2e-7)] {
            let model = model(&golden(&format!("models/{folder}")), dtype);
            let mut keep = Keep::default();
            let last = model.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
            for s in 0..3 {
                for ((site, layer), states) in &keep.0 {
                    let key = match site {
                        Site::Embedding => format!("layer0_{s}"),
                        Site::Block => format!("block_{layer}_{s}"),
                        Site::FinalNorm => format!("final_norm_{s}"),
                        other => panic!("{other} was not asked for"),
                    };
                    let what = format!("{folder} {dtype:?} {key}");
                    close(&what, &rows(states, &batch, s), &expected[&key], tolerance);
                }
                let logits = model.logits(&batch, &Pass::default()).unwrap();
                close("logits", &rows(&logits, &batch, s), &expected[&format!("logits_{s}")], tolerance);
            }
            assert_eq!(keep.0.len(), model.architecture().layers + 2);
            assert!(relative_error(&last, &keep.0.last().unwrap().1) == 0.0);
            let found = mean_loss(&model, &Pass::default(), &sequences);
            assert!((found / loss - 1.0).abs() <= tolerance, "{folder}: loss {found} for {loss}");
        }
    }
}

#[test]
fn both_spellings_of_a_config_read_the_same() {
    let folder = golden("models/rope31");
    let old = families::read_config(&folder).unwrap();
    let new = families::parse_config("config_v5.json", &json(&folder.join("config_v5.json"))).unwrap();
    assert_eq!(old, new);
}

#[test]
fn our_final_state_is_that_of_candle_transformers() {
    use candle_nn::VarBuilder;
    use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
    let folder = golden("models/gqa_tied");
    let config: LlamaConfig = serde_json::from_value(json(&folder.join("config.json"))).unwrap();
    let config = config.into_config(false);
    let loaded = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let theirs = Llama::load(VarBuilder::from_tensors(loaded, DType::F32, &Device::Cpu), &config).unwrap();
    let ids = gqa_sequences().remove(2);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let expected = theirs.forward(&input, 0, &mut cache).unwrap();
    let batch = Packed::from_sequences(&[ids]);
    let ours = model(&folder, DType::F32).logits(&batch, &Pass::default()).unwrap();
    let last = ours.narrow(0, ours.dim(0).unwrap() - 1, 1).unwrap();
    close("last logits", &last, &expected, 1e-5);
}

#[test]
fn similarity_is_that_of_the_definition() {
    for name in ["gqa_tied", "mha_untied", "rope31"] {
        let model = model(&golden(&format!("models/{name}")), DType::F32);
        let sequences = sequences(&tensors(&golden(&format!("models/{name}/golden.safetensors"))));
        let expected = json(&golden(&format!("models/{name}/golden.json")));
        let depth = model.architecture().layers;
        // One batch of three, three batches of one: the same values.
        for size in [3, 1] {
            let mut centre = None;
            for measure in ["cosine", "cosine_centred"] {
                let mut probe = CosineProbe::new(depth, centre.take());
                for group in sequences.chunks(size) {
                    let specials: Vec<Vec<bool>> = group.iter().map(|ids| vec![false; ids.len()]).collect();
                    probe.expect(specials.iter().map(|s| (s.as_slice(), 0..s.len())));
                    model.hidden_states(&Packed::from_sequences(group), &Pass::default(), &mut probe).unwrap();
                }
                for row in expected["similarity"].as_array().unwrap().iter().filter(|r| r["measure"] == measure) {
                    let tokens = if row["tokens"] == "all" { TokenSet::All } else { TokenSet::NoFirst };
                    let is_row = |p: &&crate::measures::Point| {
                        row["site"] == p.site.to_string() && row["layer"].as_u64() == Some(p.layer as u64)
                    };
                    let point = probe.points().iter().position(|p| is_row(&p)).unwrap();
                    for (text, value) in row["per_text"].as_array().unwrap().iter().enumerate() {
                        let found = probe.values()[text][point][tokens as usize].value;
                        match (found, value.as_f64()) {
                            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-6, "{name} {row}: {a} for {b}"),
                            (a, b) => assert_eq!(a, b, "{name} {row}"),
                        }
                    }
                }
                centre = Some(probe.corpus_means());
            }
        }
    }
}

#[test]
fn lora_saved_by_peft_computes_what_peft_computes() {
    for name in ["peft_lora", "peft_rslora"] {
        let model = model(&golden("models/gqa_tied"), DType::F32);
        let peft = load_adapter(&golden(name), &model).unwrap();
        let expected = tensors(&golden(&format!("{name}/golden.safetensors")));
        let values = json(&golden(&format!("{name}/golden.json")));
        assert_eq!(peft.config().method.scale(), values["scale"].as_f64().unwrap());
        let sequences = gqa_sequences();
        let batch = Packed::from_sequences(&sequences);
        let mut keep = Keep::default();
        model.hidden_states(&batch, &Pass::inference(Some(&peft)), &mut keep).unwrap();
        let logits = model.logits(&batch, &Pass::inference(Some(&peft))).unwrap();
        for s in 0..3 {
            for ((site, layer), states) in keep.0.iter().filter(|((site, _), _)| *site == Site::Block) {
                let key = format!("block_{layer}_{s}");
                close(&format!("{name} {site} {key}"), &rows(states, &batch, s), &expected[&key], 1e-5);
            }
            close(name, &rows(&logits, &batch, s), &expected[&format!("logits_{s}")], 1e-5);
        }
    }
}

fn case_config(case: &Value) -> PeftConfig {
    let number = |key: &str| case[key].as_f64().unwrap();
    let method = match case["method"].as_str().unwrap() {
        "lora" => {
            Method::Lora { rank: number("rank") as usize, alpha: number("alpha"), dropout: 0.0, rank_stabilised: false }
        }
        kind => Method::Adapter {
            bottleneck: number("bottleneck") as usize,
            scale: number("scale"),
            placement: if kind == "adapter" { Placement::Series } else { Placement::Parallel },
        },
    };
    let lambda = number("lambda");
    let residual = (lambda > 0.0).then(|| ResidualConfig {
        lambda,
        policy: case["policy"].as_str().unwrap().parse().unwrap(),
        arm: case["residual"].as_str().unwrap().parse().unwrap(),
        h0_kind: crate::model::H0Kind::Token,
        seed: 0,
        learned: None,
    });
    let targets = case["targets"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
    PeftConfig::new(method, targets, residual)
}

/// What the λ term reads, where the golden files state it rather than our seeded draw.
fn stated_source(arm: Option<Arm>, model: &Transformer, batch: &Packed) -> Option<Tensor> {
    let controls = tensors(&golden("sibo/controls.safetensors"));
    match arm? {
        Arm::Random => {
            let vector = controls["random_vector"].to_dtype(model.dtype()).unwrap();
            let shape = (batch.ids.len(), vector.elem_count());
            Some(vector.broadcast_as(shape).unwrap().contiguous().unwrap())
        }
        Arm::Shuffled => {
            let mut from = Vec::new();
            for s in 0..batch.sequences() {
                let shuffle: Vec<u32> = controls[&format!("shuffle_{s}")].to_vec1().unwrap();
                from.extend(shuffle.iter().map(|&i| batch.ids[batch.offsets[s] + i as usize]));
            }
            Some(model.embedding().unwrap().index_select(&Tensor::new(from, &Device::Cpu).unwrap(), 0).unwrap())
        }
        _ => None,
    }
}

#[test]
fn every_arm_policy_and_placement_computes_the_written_out_reference() {
    let cases = json(&golden("sibo/cases.json"));
    let sequences = gqa_sequences();
    let batch = Packed::from_sequences(&sequences);
    assert!(cases.as_array().unwrap().len() >= 20);
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let model = model(&golden("models/gqa_tied"), DType::F64);
        let config = case_config(case);
        let arm = config.residual.map(|r| r.arm);
        let mut peft = Peft::initial(&model, config, 0).unwrap();
        peft.set_stated_source(stated_source(arm, &model, &batch));
        let subject = Subject::adapter(model, peft).unwrap();
        let file = |key: &str| {
            golden("sibo").join(format!("{}.safetensors", case[key].as_str().unwrap().trim_end_matches(".safetensors")))
        };
        subject.restore(&load_adapter_file(&file("tensors")).unwrap()).unwrap();
        let expected = tensors(&file("results"));

        let examples = examples(&sequences);
        let (gradients, report) = gradients(&subject, &[examples.iter().collect()], None, 1).unwrap();
        let loss = case["loss"].as_f64().unwrap();
        assert!((report.loss / loss - 1.0).abs() < 1e-10, "{name}: loss {} for {loss}", report.loss);
        let mut compared = 0;
        for (key, value) in expected.iter().filter_map(|(k, v)| Some((k.strip_prefix("grad.")?, v))) {
            let found = &gradients[key];
            assert!(relative_error(found, &found.zeros_like().unwrap()) > 0.0, "{name}: {key} is zero");
            close(&format!("{name} {key}"), found, value, 1e-8);
            compared += 1;
        }
        assert_eq!(compared, gradients.len(), "{name}");
        let mut keep = Keep::default();
        let pass = subject.pass(None);
        subject.model().hidden_states(&batch, &pass, &mut keep).unwrap();
        let last = &keep.0[keep.0.len() - 2].1;
        close(name, &rows(last, &batch, 2), &expected["last_block_2"], 1e-9);
        let logits = subject.model().logits(&batch, &pass).unwrap();
        close(name, &rows(&logits, &batch, 2), &expected["logits_2"], 1e-9);
    }
}

#[test]
fn twenty_steps_of_adamw_end_where_torch_ends() {
    let training = json(&golden("training/training.json"));
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decay_vectors: true };
    let sequences = gqa_sequences();
    let examples = examples(&sequences);
    let rates: Vec<f64> = training["learning_rates"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
    for (step, rate) in rates.iter().enumerate() {
        let ours = learning_rate(crate::train::Schedule::Linear, 3e-3, 0.0, 5, 20, step as u64);
        assert!((ours - rate).abs() < 1e-17, "step {step}: {ours} for {rate}");
    }
    let cases = training["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 1e-4)] {
            let model = model(&golden("models/gqa_tied"), dtype);
            let subject = if name == "full" {
                Subject::full(model).unwrap()
            } else {
                let peft = Peft::initial(&model, case_config(case), 0).unwrap();
                let subject = Subject::adapter(model, peft).unwrap();
                let initial = golden("training").join(case["initial"].as_str().unwrap());
                subject.restore(&load_adapter_file(&initial).unwrap()).unwrap();
                subject
            };
            let mut moments = Moments::default();
            for (step, &rate) in rates.iter().enumerate() {
                let micro = vec![examples.iter().collect()];
                let report =
                    train_step(&subject, &mut moments, &settings, rate, 1.0, &micro, None, step as u64 + 1).unwrap();
                let number = |key: &str| case[key][step].as_f64().unwrap();
                let (loss, norm) = (number("losses"), number("grad_norms"));
                assert!(
                    (report.loss / loss - 1.0).abs() < tolerance,
                    "{name} {dtype:?} step {step}: {} for {loss}",
                    report.loss
                );
                let error = (report.gradient_norm / norm - 1.0).abs();
                assert!(error < tolerance, "{name} {dtype:?} step {step}: norm off by {error:.1e}");
            }
            for (key, value) in tensors(&golden("training").join(case["final"].as_str().unwrap())) {
                let found = subject.variables()[&key].as_tensor();
                close(&format!("{name} {dtype:?} {key}"), found, &value, tolerance);
            }
        }
    }
}

#[test]
fn token_weighted_accumulation_is_one_large_batch() {
    let model = || model(&golden("models/gqa_tied"), DType::F64);
    let sequences = gqa_sequences();
    let examples = examples(&sequences);
    let run = |micro: &[Vec<&Example>]| {
        let subject = Subject::full(model()).unwrap();
        gradients(&subject, micro, None, 1).unwrap()
    };
    let (whole, report) = run(&[examples.iter().collect()]);
    let (split, split_report) = run(&[vec![&examples[2]], vec![&examples[0], &examples[1]]]);
    assert!((report.loss - split_report.loss).abs() < 1e-12);
    whole.iter().for_each(|(name, gradient)| close(name, &split[name], gradient, 1e-11));
}

#[test]
fn lambda_zero_is_vanilla_to_the_bit() {
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let batch = Packed::from_sequences(&gqa_sequences());
    let vanilla = load_adapter(&golden("peft_lora"), &model).unwrap();
    let residual = |lambda| {
        let config = ResidualConfig {
            lambda,
            policy: crate::peft::Policy::All,
            arm: Arm::H0,
            h0_kind: crate::model::H0Kind::Token,
            seed: 1,
            learned: None,
        };
        vanilla.with_residual(&model, Some(config)).unwrap()
    };
    let logits = |peft: &Peft| -> Vec<f32> {
        model.logits(&batch, &Pass::inference(Some(peft))).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(logits(&residual(0.0)), logits(&vanilla));
    assert_ne!(logits(&residual(0.3)), logits(&vanilla));
}

#[test]
fn adapters_come_back_from_disk_as_they_were() {
    let cases = json(&golden("sibo/cases.json"));
    let batch = Packed::from_sequences(&gqa_sequences());
    for case in cases.as_array().unwrap().iter().filter(|c| c["residual"] != "shuffled") {
        let model = model(&golden("models/gqa_tied"), DType::F32);
        let peft = Peft::initial(&model, case_config(case), 3).unwrap();
        let subject = Subject::adapter(model, peft).unwrap();
        let file = golden("sibo").join(case["tensors"].as_str().unwrap());
        subject.restore(&load_adapter_file(&file).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        subject.save(dir.path(), "gqa_tied").unwrap();
        let loaded = load_adapter(dir.path(), subject.model()).unwrap();
        assert_eq!(loaded.config(), &PeftConfig { targets: loaded.config().targets.clone(), ..case_config(case) });
        let logits = |peft: &Peft| -> Vec<f32> {
            let pass = Pass::inference(Some(peft));
            subject.model().logits(&batch, &pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(logits(&loaded), logits(subject.peft().unwrap()), "{}", case["name"]);
    }
}

/// A real model with 30 layers, from GGUF: interleaved rotary rows read in the wrong order would make it only
/// somewhat worse, so its states are held to those that transformers computes from the same file.
#[test]
fn smollm2_from_gguf_has_the_states_of_transformers() {
    let shared = std::env::var("SMOOTH_PROBE_SHARED").unwrap_or_else(|_| "../shared".to_owned());
    let path = Path::new(&shared).join("models/SmolLM2-135M/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("SKIPPED: {} is not there; set SMOOTH_PROBE_SHARED", path.display());
        return;
    }
    let loaded = crate::model::LoadedModel::from_gguf(&path, "SmolLM2", DType::F32, &Device::Cpu).unwrap();
    let expected = json(&golden("smollm2.json"));
    let ids: Vec<u32> = expected["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
    let batch = Packed::from_sequences(&[&ids]);
    let mut keep = Keep::default();
    loaded.transformer.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
    let mut compared = 0;
    for (key, value) in expected["last_token"].as_object().unwrap() {
        // Their block_l counts from 0, our layers of blocks from 1.
        let point = match key.strip_prefix("block_") {
            Some(block) => (Site::Block, block.parse::<usize>().unwrap() + 1),
            None if key == "embedding" => (Site::Embedding, 0),
            None => (Site::FinalNorm, 30),
        };
        let states = &keep.0.iter().find(|(at, _)| *at == point).unwrap().1;
        let last: Vec<f32> = states.get(ids.len() - 1).unwrap().to_vec1().unwrap();
        let norm = last.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let stated = value["norm"].as_f64().unwrap();
        assert!((norm / stated - 1.0).abs() < 1e-4, "{key}: norm {norm} for {stated}");
        for (found, value) in last.iter().zip(value["first"].as_array().unwrap()) {
            let value = value.as_f64().unwrap();
            assert!((f64::from(*found) - value).abs() < 1e-4 * stated, "{key}: {found} for {value}");
        }
        compared += 1;
    }
    assert_eq!(compared, 6);
}
