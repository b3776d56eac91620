//! What every remedy holds to: causality, packing, nothing at the start, gradients, files.

use super::{ContraNorm, Fusion, Neutreno, Remedies};
use crate::data::{Example, Packed};
use crate::kernels::Gradients;
use crate::model::weights::Weights;
use crate::model::{Backward, Head, Pass, Transformer, families};
use crate::peft::{Arm, Details, Method, Peft, PeftConfig, Policy, ResidualConfig, load_adapter, save_adapter};
use crate::probe::Silent;
use crate::train::{Subject, gradients};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const ALL: Remedies = Remedies {
    contranorm: Some(ContraNorm { strength: 0.3, temperature: 0.8 }),
    neutreno: Some(Neutreno { mu: 0.6 }),
    attn_scale: true,
    feat_scale: true,
    fusion: None,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn model(folder: &Path) -> Transformer {
    let architecture = families::read_config(folder).unwrap();
    Transformer::load("model", architecture, &Weights::open(folder).unwrap(), DType::F64, &Device::Cpu).unwrap()
}

/// The tiny models of every family that reads texts.
fn every_model() -> Vec<(String, Transformer)> {
    let folders = std::fs::read_dir(golden().join("families")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("config.json").is_file()).collect();
    folders.push(golden().join("models/gqa_tied"));
    folders.sort();
    let named = folders.iter().map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), model(path)));
    let texts: Vec<_> = named.filter(|(_, model)| model.architecture().patches.is_none()).collect();
    assert!(texts.len() > 20);
    texts
}

/// LoRA with the initial residual and `remedies`, all of whose tensors are set to what is not zero.
fn subject(model: Transformer, remedies: Remedies) -> Subject {
    let architecture = model.architecture();
    let method = Method::Lora { rank: 2, alpha: 3.0, dropout: 0.0, rank_stabilised: false };
    let residual = ResidualConfig {
        lambda: 0.3,
        policy: Policy::All,
        arm: Arm::H0,
        h0_kind: architecture.h0_kind,
        seed: 5,
        learned: None,
    };
    let targets = method.default_targets(architecture);
    let details = Details { remedies, ..Details::default() };
    let config = PeftConfig { method, targets, residual: Some(residual), details };
    let peft = Peft::initial(&model, config, 3).unwrap();
    let subject = Subject::adapter(model, peft).unwrap();
    for (index, variable) in subject.variables().values().enumerate() {
        let count = variable.elem_count();
        let values: Vec<f64> = (0..count).map(|i| (((i * 31 + index * 17) % 23) as f64 - 11.0) / 40.0).collect();
        let values = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap();
        variable.set(&values.to_dtype(variable.dtype()).unwrap()).unwrap();
    }
    subject
}

fn ids(length: usize, first: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7 + first) % 23 + 1) as u32).collect()
}

/// The last states of texts that run together, row by row.
fn states(subject: &Subject, texts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let peft = subject.peft().unwrap().frozen();
    let batch = Packed::from_sequences(texts);
    let states = subject.model().hidden_states(&batch, &Pass::inference(Some(&peft)), &mut Silent).unwrap();
    states.detach().to_vec2::<f64>().unwrap()
}

fn apart(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn no_token_sees_a_later_one_and_texts_do_not_meet() {
    for (name, model) in every_model() {
        let causal = model.architecture().causal;
        let subject = subject(model, ALL);
        let (text, other) = (ids(9, 2), ids(5, 11));
        let mut changed = text.clone();
        changed[8] = 3;
        let (before, after) = (states(&subject, std::slice::from_ref(&text)), states(&subject, &[changed]));
        assert!(apart(&before[8..], &after[8..]) > 1e-6, "{name}");
        if causal {
            assert!(apart(&before[..8], &after[..8]) < 1e-13, "{name}");
        }
        let together = states(&subject, &[other.clone(), text]);
        assert!(apart(&together[5..], &before) < 1e-12, "{name}");
        assert!(apart(&together[..5], &states(&subject, &[other])) < 1e-12, "{name}");
    }
}

#[test]
fn each_does_something_and_nothing_at_its_start() {
    let none = Remedies::default();
    let scales = Remedies { attn_scale: true, feat_scale: true, ..none };
    let strengths = Remedies {
        contranorm: Some(ContraNorm { strength: 0.0, temperature: 1.0 }),
        neutreno: Some(Neutreno { mu: 0.0 }),
        ..none
    };
    let single = [
        Remedies { contranorm: ALL.contranorm, ..none },
        Remedies { neutreno: ALL.neutreno, ..none },
        Remedies { attn_scale: true, ..none },
        Remedies { feat_scale: true, ..none },
    ];
    let text = [ids(9, 2)];
    for (name, model) in every_model() {
        let plain = states(&subject(model.clone(), none), &text);
        assert!(apart(&states(&subject(model.clone(), strengths), &text), &plain) < 1e-12, "{name}");
        let started = subject(model.clone(), scales);
        for (key, variable) in started.variables().iter().filter(|(key, _)| key.contains("_scale.")) {
            assert!(key.starts_with("base_model.model."), "{key}");
            variable.set(&variable.zeros_like().unwrap()).unwrap();
        }
        // The other tensors have other values, since they are filled by their place.
        let fresh = |remedies| {
            let peft = subject(model.clone(), remedies).peft().unwrap().frozen();
            let method = peft.config().method;
            let config = PeftConfig { method, ..peft.config().clone() };
            Peft::initial(&model, config, 3).unwrap()
        };
        let start = |remedies| {
            let batch = Packed::from_sequences(&text);
            let peft = fresh(remedies).frozen();
            model.hidden_states(&batch, &Pass::inference(Some(&peft)), &mut Silent).unwrap().to_vec2::<f64>().unwrap()
        };
        assert!(apart(&start(scales), &start(none)) == 0.0, "{name}");
        for remedies in single {
            let moved = apart(&states(&subject(model.clone(), remedies), &text), &plain);
            assert!(moved > 1e-6, "{name} {remedies:?}: {moved}");
        }
    }
}

fn examples() -> Vec<Example> {
    let example = |length: usize, first: usize| Example {
        ids: ids(length, first),
        loss: (0..length).map(|i| i > first % 3).collect(),
        response: 0,
        special: vec![false; length],
        ..Example::default()
    };
    vec![example(9, 1), example(4, 5), example(11, 3)]
}

#[test]
fn gradients_are_those_of_differences_and_of_checkpoints() {
    for folder in ["models/gqa_tied", "families/gpt2", "families/gemma2", "families/gptj"] {
        let gamma = 0.7;
        let subject = subject(model(&golden().join(folder)), ALL).regularised(gamma);
        let examples = examples();
        let micro = [examples[..2].iter().collect::<Vec<_>>(), examples[2..].iter().collect()];
        let total = |subject: &Subject| {
            let (found, report) = gradients(subject, &micro, None, 1).unwrap();
            (found, report.loss + gamma * report.penalty.unwrap())
        };
        let (found, _) = total(&subject);
        // Texts of 9, 4 and 11 tokens run in one piece or in two.
        let together = gradients(&subject, &[examples.iter().collect()], None, 1).unwrap().0;
        for (name, gradient) in &found {
            let variable = &subject.variables()[name];
            let middle = variable.as_detached_tensor().copy().unwrap();
            let square = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let at = |step: f64| {
                variable.set(&(&middle + (gradient * step).unwrap()).unwrap()).unwrap();
                total(&subject).1
            };
            let h = 1e-5 / square.sqrt();
            let slope = (at(h) - at(-h)) / (2.0 * h);
            variable.set(&middle).unwrap();
            assert!((slope / square - 1.0).abs() < 1e-5, "{folder} {name}: {slope} for {square}");
            let off = (gradient - &together[name]).unwrap().abs().unwrap().flatten_all().unwrap();
            assert!(off.max(0).unwrap().to_scalar::<f64>().unwrap() < 1e-12, "{folder} {name}");
        }
        assert!(found.keys().any(|name| name.ends_with("attn_scale.omega")));
        assert!(found.keys().any(|name| name.ends_with("feat_scale.t")));
        let again = gradients(&subject.checkpointing(true), &micro, None, 1).unwrap().0;
        for (name, gradient) in &found {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(flat(&again[name]), flat(gradient), "{folder} {name}");
        }
    }
}

#[test]
fn every_fusion_has_its_gradient() {
    let folder = golden().join("families/bert_mlm");
    for fusion in [Fusion::Max, Fusion::Concat, Fusion::Gate] {
        let remedies = Remedies { fusion: Some(fusion), ..ALL };
        let subject = subject(model(&folder), remedies);
        assert!(subject.model().architecture().head != Head::Absent);
        let batch = Packed::from_sequences(&[ids(7, 2), ids(4, 9)]);
        let (targets, weights) = (batch.ids.to_vec(), vec![1.0; batch.ids.len()]);
        let run = |checkpointing| {
            let mut found = Gradients::default();
            let how = Backward { scale: 1.0, checkpointing, penalty: 0.5 };
            let pass = subject.pass(None);
            let losses = subject.model().loss_gradients(&batch, (&targets, &weights), &pass, how, &mut found).unwrap();
            let of = |(name, variable): (&String, &candle_core::Var)| (name.clone(), found.take(variable).unwrap());
            let gradients: BTreeMap<String, Tensor> = subject.variables().iter().map(of).collect();
            (gradients, losses.loss + 0.5 * losses.penalty)
        };
        let ((found, _), (again, _)) = (run(false), run(true));
        for (name, gradient) in &found {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(flat(gradient), flat(&again[name]), "{fusion:?} {name}");
            let variable = &subject.variables()[name];
            let middle = variable.as_detached_tensor().copy().unwrap();
            let square = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let at = |step: f64| {
                variable.set(&(&middle + (gradient * step).unwrap()).unwrap()).unwrap();
                run(false).1
            };
            let h = 1e-6 / square.sqrt();
            let slope = (at(h) - at(-h)) / (2.0 * h);
            variable.set(&middle).unwrap();
            assert!((slope / square - 1.0).abs() < 1e-5, "{fusion:?} {name}: {slope} for {square}");
        }
        let learned = found.keys().filter(|name| name.contains(".fusion.")).count();
        let layers = subject.model().architecture().layers;
        assert_eq!(learned, layers * [0, 1, 2][fusion as usize], "{fusion:?}");
    }
    let decoder = model(&golden().join("models/gqa_tied"));
    let refused = Remedies { fusion: Some(Fusion::Max), ..Remedies::default() }.check(decoder.architecture());
    assert!(refused.unwrap_err().to_string().contains("is a decoder"));
}

#[test]
fn a_file_computes_what_was_saved_and_is_no_peft_type() {
    for (folder, fusion) in
        [("models/gqa_tied", None), ("families/bert_mlm", Some(Fusion::Gate)), ("families/albert", None)]
    {
        let folder = golden().join(folder);
        let subject = subject(model(&folder), Remedies { fusion, ..ALL });
        let saved = tempfile::tempdir().unwrap();
        save_adapter(saved.path(), subject.peft().unwrap(), &BTreeMap::new(), "model").unwrap();
        let text = std::fs::read_to_string(saved.path().join("adapter_config.json")).unwrap();
        assert!(text.contains("\"REMEDIED_SIBO_LORA\""), "{text}");
        let plain = model(&folder);
        let again = load_adapter(saved.path(), &plain).unwrap();
        assert_eq!(again.config().details, subject.peft().unwrap().config().details);
        let batch = Packed::from_sequences(&[ids(9, 4)]);
        let of = |peft: &Peft| {
            let peft = peft.frozen();
            let states = plain.hidden_states(&batch, &Pass::inference(Some(&peft)), &mut Silent).unwrap();
            states.detach().to_vec2::<f64>().unwrap()
        };
        assert_eq!(of(&again), of(subject.peft().unwrap()));
        // A vanilla type cannot carry them.
        let vanilla = text.replace("REMEDIED_", "");
        std::fs::write(saved.path().join("adapter_config.json"), vanilla).unwrap();
        let error = load_adapter(saved.path(), &plain).unwrap_err().to_string();
        assert!(error.contains("remedies is present"), "{error}");
    }
}
