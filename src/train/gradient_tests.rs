//! The block-by-block backward pass against candle's own graph over the whole loss.

use super::{Subject, gradients};
use crate::data::{Example, Packed, targets_and_weights};
use crate::model::weights::Weights;
use crate::model::{H0Kind, Precision, Transformer, families};
use crate::peft::{Arm, DropoutKey, Method, Peft, PeftConfig, Placement, Policy, ResidualConfig};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

pub(super) fn model(name: &str, precision: impl Into<Precision>) -> Transformer {
    let folder = golden(name);
    let architecture = families::read_config(&folder).unwrap();
    Transformer::load(name, architecture, &Weights::open(&folder).unwrap(), precision, &Device::Cpu).unwrap()
}

pub(super) fn examples() -> Vec<Example> {
    let example = |length: usize, first: usize| Example {
        ids: (0..length).map(|i| ((i * 7 + first) % 40) as u32).collect(),
        loss: (0..length).map(|i| i > first % 3).collect(),
        response: 0,
        special: vec![false; length],
        ..Example::default()
    };
    vec![example(9, 1), example(4, 5), example(13, 3), example(2, 0)]
}

/// Every method, placement, policy and arm; none is full fine-tuning.
pub(super) fn configs() -> Vec<Option<PeftConfig>> {
    let lora = Method::Lora { rank: 3, alpha: 7.0, dropout: 0.2, rank_stabilised: false };
    let adapter = |placement| Method::Adapter { bottleneck: 3, scale: 1.5, placement };
    let methods = [lora, adapter(Placement::Series), adapter(Placement::Parallel)];
    let targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
    let arms = [Arm::H0, Arm::None, Arm::H0Normed, Arm::Shuffled, Arm::Random];
    let mut residuals = vec![None];
    for policy in [Policy::Official, Policy::All] {
        residuals.extend(arms.map(|arm| {
            Some(ResidualConfig { lambda: 0.3, policy, arm, h0_kind: H0Kind::Token, seed: 5, learned: None })
        }));
    }
    let pairs = methods.iter().flat_map(|method| residuals.iter().map(move |residual| (*method, *residual)));
    let peft = pairs.map(|(method, residual)| Some(PeftConfig::new(method, targets.clone(), residual)));
    std::iter::once(None).chain(peft).collect()
}

fn subject(name: &str, config: Option<&PeftConfig>, dtype: DType) -> Subject {
    subject_of(model(name, dtype), config)
}

/// `model` whole, or with modules whose matrices are not zero.
pub(super) fn subject_of(model: Transformer, config: Option<&PeftConfig>) -> Subject {
    let Some(config) = config else { return Subject::full(model).unwrap() };
    let peft = Peft::initial(&model, config.clone(), 3).unwrap();
    let subject = Subject::adapter(model, peft).unwrap();
    // LoRA's B starts at zero, where A gets no gradient.
    for (index, variable) in subject.variables().values().enumerate() {
        let count = variable.elem_count();
        let values: Vec<f64> = (0..count).map(|i| (((i * 31 + index * 17) % 23) as f64 - 11.0) / 60.0).collect();
        let values = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap();
        variable.set(&values.to_dtype(variable.dtype()).unwrap()).unwrap();
    }
    subject
}

/// The gradients by candle's graph over the whole loss, and the loss.
fn by_one_graph(subject: &Subject, micro: &[Vec<&Example>], seed: u64) -> (BTreeMap<String, Tensor>, f64) {
    let targets: usize = micro.iter().flatten().map(|e| e.loss.iter().filter(|&&l| l).count()).sum();
    let (mut sums, mut total) = (BTreeMap::<String, Tensor>::new(), 0.0);
    for (index, examples) in micro.iter().enumerate() {
        let batch = Packed::from_sequences(&examples.iter().map(|e| e.ids.as_slice()).collect::<Vec<_>>());
        let (ids, weights) = targets_and_weights(examples);
        let key = DropoutKey { seed, step: 4, micro_batch: index as u64 };
        let sum = subject.model().loss_sum(&batch, &ids, &weights, &subject.pass(Some(key))).unwrap();
        total += sum.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        let mut store = (sum / targets as f64).unwrap().backward().unwrap();
        for (name, variable) in subject.variables() {
            let gradient = store.remove(variable.as_tensor()).unwrap();
            let sum = match sums.remove(name) {
                Some(before) => (before + gradient).unwrap(),
                None => gradient,
            };
            sums.insert(name.clone(), sum);
        }
    }
    (sums, total / targets as f64)
}

pub(super) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn block_by_block_has_the_gradients_of_one_graph_over_all() {
    let examples = examples();
    for (name, dtype) in [("gqa_tied", DType::F32), ("gqa_tied", DType::F64), ("mha_untied", DType::F32)] {
        for config in configs() {
            for micro in
                [vec![examples.iter().collect::<Vec<_>>()], examples.chunks(3).map(|c| c.iter().collect()).collect()]
            {
                let subject = subject(name, config.as_ref(), dtype);
                let (want, loss) = by_one_graph(&subject, &micro, 9);
                let (found, report) = gradients(&subject, &micro, Some((9, 4)), 1).unwrap();
                assert_eq!(report.loss, loss, "{name} {config:?}");
                assert_eq!(found.len(), want.len());
                // The same sums in another order of roundings: in f64 as good as none, in f32 some tens of 6e-8.
                let tolerance = if dtype == DType::F64 { 1e-12 } else { 3e-6 };
                for (tensor, gradient) in &want {
                    let (found, want) = (flat(&found[tensor]), flat(gradient));
                    let largest = want.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
                    assert!(largest > 0.0, "{name} {config:?}: {tensor} has no gradient");
                    let error = found.iter().zip(&want).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
                    assert!(error <= tolerance * largest, "{name} {config:?} {tensor}: {error:e} of {largest:e}");
                    // A tied table's four gradients are added one by one where one graph a micro-batch adds two sums
                    // of two. What a module owes to its input is added as it is multiplied by 1 - λ, rounded once.
                    let tied = tensor == "model.embed_tokens.weight" && micro.len() > 1;
                    let other_order = config.is_some() || tied;
                    assert!(found == want || other_order, "{name} {config:?} {tensor}: other bits");
                }
            }
        }
    }
}

#[test]
fn recomputed_blocks_have_the_same_bits() {
    let examples = examples();
    let micro: Vec<Vec<&Example>> = examples.chunks(3).map(|c| c.iter().collect()).collect();
    for config in configs() {
        let subject = subject("gqa_tied", config.as_ref(), DType::F32);
        let (kept, report) = gradients(&subject, &micro, Some((9, 4)), 1).unwrap();
        let subject = subject.checkpointing(true);
        let (again, second) = gradients(&subject, &micro, Some((9, 4)), 1).unwrap();
        assert_eq!(report, second);
        for (name, gradient) in &kept {
            assert_eq!(flat(gradient), flat(&again[name]), "{config:?} {name}");
        }
    }
}

/// The examples with a token behind them up to the longest's length; it is no target.
fn padded(examples: &[Example], pad: u32) -> Vec<Example> {
    let longest = examples.iter().map(|e| e.ids.len()).max().unwrap();
    let mut padded = examples.to_vec();
    for example in &mut padded {
        example.ids.resize(longest, pad);
        example.loss.resize(longest, false);
        example.special.resize(longest, true);
    }
    padded
}

#[test]
fn a_packed_batch_has_the_loss_and_the_gradients_of_the_padded_form() {
    let packed = examples();
    // A causal token sees nothing behind it: whatever stands there, it changes nothing.
    let forms = [0, 39].map(|pad| padded(&packed, pad));
    assert!(forms[0].iter().map(|e| e.ids.len()).sum::<usize>() > packed.iter().map(|e| e.ids.len()).sum());
    let plain = |config: &&Option<PeftConfig>| {
        let residual = config.as_ref().and_then(|config| config.residual);
        residual.is_none_or(|residual| matches!(residual.arm, Arm::H0 | Arm::H0Normed))
    };
    for config in configs().iter().filter(plain) {
        let subject = subject("gqa_tied", config.as_ref(), DType::F64);
        let (want, report) = gradients(&subject, &[packed.iter().collect()], None, 1).unwrap();
        for form in &forms {
            let (found, other) = gradients(&subject, &[form.iter().collect()], None, 1).unwrap();
            assert!((other.loss / report.loss - 1.0).abs() < 1e-12, "{config:?}: {} for {}", other.loss, report.loss);
            assert_eq!(other.targets, report.targets);
            for (name, gradient) in &want {
                let (found, want) = (flat(&found[name]), flat(gradient));
                let largest = want.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
                let error = found.iter().zip(&want).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
                assert!(error <= 1e-11 * largest, "{config:?} {name}: {error:e} of {largest:e}");
            }
        }
    }
}

#[test]
fn nothing_below_the_lowest_trainable_tensor_is_kept() {
    use crate::kernels;
    use crate::model::Pass;
    use crate::probe::Silent;
    let batch = Packed::from_sequences(&[vec![1_u32, 2, 3]]);
    let frozen = model("gqa_tied", DType::F32);
    let (states, tape) = kernels::record(|| frozen.hidden_states(&batch, &Pass::default(), &mut Silent));
    assert_eq!(tape.len(), 0);
    assert!(!states.unwrap().track_op());
}

#[test]
fn stochastic_depth_is_drawn_by_the_step_and_has_its_gradient() {
    let config = configs().into_iter().flatten().next().unwrap();
    let subject = subject("gqa_tied", Some(&config), DType::F64).dropping_depth(0.6);
    let examples = examples();
    let all = || vec![examples.iter().collect::<Vec<_>>()];
    let run = |subject: &Subject, step| gradients(subject, &all(), Some((3, step)), 1).unwrap();
    let losses: Vec<f64> = (0..6).map(|step| run(&subject, step).1.loss).collect();
    assert_eq!(losses[2], run(&subject, 2).1.loss, "the same step drops the same blocks");
    assert!(losses.iter().any(|loss| (loss - losses[0]).abs() > 1e-3), "{losses:?}");
    let layers = subject.model().architecture().layers;
    // Checkpointing draws the same, and the gradients are those of the loss.
    let checkpointed = super::gradient_tests::subject("gqa_tied", Some(&config), DType::F64).dropping_depth(0.6);
    let checkpointed = checkpointed.checkpointing(true);
    for step in 0..6 {
        let (found, _) = run(&subject, step);
        let (again, _) = run(&checkpointed, step);
        for (name, gradient) in &found {
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(values(gradient), values(&again[name]), "{name}");
        }
        let name = found.keys().next().unwrap();
        let variable = &subject.variables()[name];
        let start = variable.as_detached_tensor().copy().unwrap();
        let direction = found[name].clone();
        let at = |factor: f64| {
            variable.set(&(&start + (&direction * factor).unwrap()).unwrap()).unwrap();
            run(&subject, step).1.loss
        };
        let h = 1e-5;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        variable.set(&start).unwrap();
        let wanted = direction.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((slope - wanted).abs() <= 1e-6 * (1.0 + wanted), "step {step} of {layers} layers: {slope} {wanted}");
    }
}
