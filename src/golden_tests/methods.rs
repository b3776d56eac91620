//! Every PEFT method against real PEFT, or with the residual against a reference that is PEFT at λ = 0: states and logits,
//! gradients, ten steps of AdamW.

use super::*;
use crate::peft::Policy;

/// Cases of tests/golden/methods that no test reads yet.
const WAITING: &[&str] = &[
    "bitfit",
    "lambda_learnable_layer",
    "lambda_learnable_module",
    "lambda_per_layer",
    "ln_tuning",
    "lora_bias_all",
    "lora_bias_only",
    "prefix",
    "prefix_projection",
    "prompt",
];

fn folder(case: &str) -> PathBuf {
    golden("methods").join(case)
}

/// The adapter of a case: as PEFT wrote it, or with the residual that the case states.
fn peft_of(case: &str, stated: &Value, model: &Transformer) -> Peft {
    let residual = stated["lambda"].as_f64().map(|lambda| ResidualConfig {
        lambda,
        policy: Policy::All,
        arm: Arm::H0,
        h0_kind: model.architecture().h0_kind,
        seed: 0,
    });
    let start = match (stated["start_values_of"].as_str(), stated["method"].as_str().unwrap()) {
        (twin, "adapter") => {
            let first = stated["modules"].as_object().unwrap().values().next().unwrap();
            let method = Method::Adapter {
                bottleneck: first["bottleneck"].as_u64().unwrap() as usize,
                scale: first["scale"].as_f64().unwrap(),
                placement: Placement::Series,
            };
            let targets =
                stated["targets"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect();
            let mut peft = Peft::initial(model, PeftConfig::new(method, targets, None), 0).unwrap();
            let tensors = tensors(&folder(twin.unwrap_or(case)).join("adapter_model.safetensors"));
            for (name, variable) in peft.variables().unwrap() {
                variable.set(&tensors[&name].to_dtype(model.dtype()).unwrap()).unwrap();
            }
            peft.frozen()
        }
        (twin, _) => load_adapter(&folder(twin.unwrap_or(case)), model).unwrap(),
    };
    match residual {
        None => start,
        Some(residual) => start.with_residual(model, Some(residual)).unwrap(),
    }
}

/// States and logits in `dtype`.
fn forward(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>, dtype: DType, tolerance: f64) {
    let model = model(&folder("model"), dtype);
    let peft = peft_of(case, stated, &model);
    let batch = Packed::from_sequences(&sequences(values));
    let pass = Pass::inference(Some(&peft));
    let mut keep = Keep::default();
    model.hidden_states(&batch, &pass, &mut keep).unwrap();
    let logits = model.logits(&batch, &pass).unwrap();
    for s in 0..3 {
        for ((site, layer), states) in &keep.0 {
            let key = match site {
                Site::Block => format!("block_{layer}_{s}"),
                Site::FinalNorm => format!("final_norm_{s}"),
                _ => continue,
            };
            close(&format!("{case} {dtype:?} {key}"), &rows(states, &batch, s), &values[&key], tolerance);
        }
        close(
            &format!("{case} {dtype:?} logits"),
            &rows(&logits, &batch, s),
            &values[&format!("logits_{s}")],
            tolerance,
        );
    }
}

/// Gradients at the start, and the tensors after ten steps.
fn training(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>) {
    let model = model(&folder("model"), DType::F64);
    let peft = peft_of(case, stated, &model);
    for module in &peft.plan().modules {
        let told = &stated["modules"][&module.path];
        if let Some(scale) = told["scale"].as_f64() {
            assert!((module.form.scale() / scale - 1.0).abs() < 1e-12, "{case}: {}", module.path);
        }
        let mixed = module.residual == crate::peft::Mixing::Mixed;
        assert_eq!(mixed, told["mixed"].as_bool().unwrap_or(false), "{case}: {}", module.path);
    }
    assert_eq!(peft.plan().modules.len(), stated["modules"].as_object().unwrap().len(), "{case}");
    let subject = Subject::adapter(model, peft).unwrap();
    let examples = examples(&sequences(values));
    let (found, report) = gradients(&subject, &[examples.iter().collect()], None, 1).unwrap();
    let loss = stated["loss"].as_f64().unwrap();
    assert!((report.loss / loss - 1.0).abs() < 1e-10, "{case}: loss {} for {loss}", report.loss);
    let trainable: Vec<&str> =
        stated["trainable"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(found.len(), trainable.len(), "{case}");
    // (IA)³'s factors have another shape in the file.
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap();
    for name in &trainable {
        close(&format!("{case} {name}"), &flat(&found[*name]), &flat(&values[&format!("grad.{name}")]), 1e-8);
    }
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_vectors: true };
    let rate = stated["learning_rate"].as_f64().unwrap();
    let mut moments = Moments::default();
    for (step, loss) in stated["losses"].as_array().unwrap().iter().enumerate() {
        let micro = vec![examples.iter().collect()];
        let report = train_step(&subject, &mut moments, &settings, rate, 0.0, &micro, None, step as u64 + 1).unwrap();
        let loss = loss.as_f64().unwrap();
        assert!((report.loss / loss - 1.0).abs() < 1e-8, "{case} step {step}: {} for {loss}", report.loss);
    }
    for name in &trainable {
        let tensor = subject.variables()[*name].as_tensor();
        close(&format!("{case} {name} after"), &flat(tensor), &flat(&values[&format!("after.{name}")]), 1e-7);
    }
    // What is saved is what was trained, to the bit that f32 keeps, and computes the same.
    let saved = tempfile::tempdir().unwrap();
    subject.save(saved.path(), "model").unwrap();
    let again = load_adapter(saved.path(), subject.model()).unwrap();
    assert_eq!(again.plan(), subject.peft().unwrap().plan(), "{case}");
    let batch = Packed::from_sequences(&sequences(values));
    let logits = |peft: &Peft| subject.model().logits(&batch, &Pass::inference(Some(&peft.frozen()))).unwrap();
    close(&format!("{case} saved"), &logits(&again), &logits(subject.peft().unwrap()), 1e-12);
}

#[test]
fn every_method_trains_as_its_reference() {
    let mut cases: Vec<String> = std::fs::read_dir(golden("methods"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "model" && !WAITING.contains(&name.as_str()))
        .collect();
    cases.sort();
    assert!(cases.len() >= 11);
    for case in &cases {
        let stated = json(&folder(case).join("golden.json"));
        let values = tensors(&folder(case).join("golden.safetensors"));
        forward(case, &stated, &values, DType::F64, 2e-7);
        forward(case, &stated, &values, DType::F32, 1e-5);
        training(case, &stated, &values);
    }
}
