//! Every PEFT method against real PEFT, or with the residual against a reference that is PEFT at λ = 0: states and logits,
//! gradients, ten steps of AdamW.

use super::*;
use serde_json::json as value;

/// Cases of tests/golden/methods that no test reads yet.
const WAITING: &[&str] = &["prefix", "prefix_projection", "prompt"];

fn folder(case: &str) -> PathBuf {
    golden("methods").join(case)
}

/// The adapter of a case: as PEFT wrote it, or where PEFT has no such method in our own format.
fn peft_of(case: &str, stated: &Value, model: &Transformer) -> Peft {
    let own = folder(case);
    if own.join("adapter_config.json").is_file() {
        return load_adapter(&own, model).unwrap();
    }
    let made = tempfile::tempdir().unwrap();
    std::fs::copy(own.join("adapter_model.safetensors"), made.path().join("adapter_model.safetensors")).unwrap();
    std::fs::write(made.path().join("adapter_config.json"), config_of(stated).to_string()).unwrap();
    load_adapter(made.path(), model).unwrap()
}

/// The configuration of a case by what its golden.json states.
fn config_of(stated: &Value) -> Value {
    let none = serde_json::Map::new();
    let modules = stated["modules"].as_object().unwrap_or(&none);
    let first = modules.values().next().unwrap_or(&Value::Null);
    let lambda = &stated["lambda"];
    let kind = match stated["method"].as_str().unwrap() {
        "ia3" => "IA3",
        "adapter" => "BOTTLENECK_ADAPTER",
        "bitfit" => "BITFIT",
        _ => "LORA",
    };
    let inputs: Vec<&String> = modules.iter().filter(|(_, m)| m["form"] == "input").map(|(path, _)| path).collect();
    let mut config = value!({
        "peft_type": kind, "target_modules": stated["targets"], "r": stated["rank"], "lora_alpha": stated["alpha"],
        "use_rslora": stated["use_rslora"], "use_dora": stated["method"] == "dora",
        "rank_pattern": stated["rank_pattern"], "alpha_pattern": stated["alpha_pattern"], "feedforward_modules": inputs,
        "bottleneck_size": first["bottleneck"], "scaling": first["scale"], "placement": "series",
    });
    if !lambda.is_null() {
        let learned = lambda.as_str().map(|text| text.trim_start_matches("learnable by "));
        let layers = lambda.as_array().cloned().unwrap_or_default();
        config["peft_type"] = value!(format!("SIBO_{kind}"));
        config["sibo"] = value!({
            "lambda": lambda.as_f64().unwrap_or(0.5), "policy": "all", "residual": "h0", "h0": "token", "learned": learned,
            "layers": layers,
        });
    }
    config
}

/// States and logits in `dtype`.
fn forward(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>, dtype: DType, tolerance: f64) {
    let model = model(&folder("model"), dtype);
    let peft = peft_of(case, stated, &model);
    let model = peft.tuned(&model).unwrap_or(model);
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
    if peft.config().method.has_modules() {
        assert_eq!(peft.plan().modules.len(), stated["modules"].as_object().unwrap().len(), "{case}");
    }
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
    let logits =
        |model: &Transformer, peft: &Peft| model.logits(&batch, &Pass::inference(Some(&peft.frozen()))).unwrap();
    let plain = self::model(&folder("model"), DType::F64);
    let tuned = again.tuned(&plain).unwrap_or(plain);
    let trained = logits(subject.model(), subject.peft().unwrap());
    close(&format!("{case} saved"), &logits(&tuned, &again), &trained.detach(), 1e-12);
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
