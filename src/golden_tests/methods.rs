//! Every PEFT method against real PEFT, or with the residual against a reference that is PEFT at λ = 0: states and logits,
//! gradients, ten steps of AdamW.

use super::*;
use crate::peft::save_adapter;
use serde_json::json as value;

/// A prefix that PEFT trains through a projection, of which an adapter file holds the result alone.
const PROJECTED: &str = "prefix_projection";

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

/// States and logits in `dtype`: the largest deviation.
fn forward(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>, dtype: DType) -> f64 {
    let model = model(&folder("model"), dtype);
    let peft = peft_of(case, stated, &model);
    let model = peft.tuned(&model).unwrap_or(model);
    let batch = Packed::from_sequences(&sequences(values));
    let pass = Pass::inference(Some(&peft));
    let mut keep = Keep::default();
    model.hidden_states(&batch, &pass, &mut keep).unwrap();
    let logits = model.logits(&batch, &pass).unwrap();
    let mut largest = 0.0_f64;
    for s in 0..3 {
        for ((site, layer), states) in &keep.0 {
            let key = match site {
                Site::Block => format!("block_{layer}_{s}"),
                Site::FinalNorm => format!("final_norm_{s}"),
                _ => continue,
            };
            largest = largest.max(relative_error(&rows(states, &batch, s), &values[&key]));
        }
        largest = largest.max(relative_error(&rows(&logits, &batch, s), &values[&format!("logits_{s}")]));
    }
    largest
}

/// The largest deviation of the gradients at the start, and of the tensors after ten steps.
fn training(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>) -> [f64; 2] {
    let model = model(&folder("model"), DType::F64);
    let peft = peft_of(case, stated, &model);
    check_plan(case, stated, &peft);
    let subject = Subject::adapter(model, peft).unwrap();
    let examples = examples(&sequences(values));
    let (found, report) = gradients(&subject, &[examples.iter().collect()], None, 1).unwrap();
    let loss = stated["loss"].as_f64().unwrap();
    assert!((report.loss / loss - 1.0).abs() < 1e-10, "{case}: loss {} for {loss}", report.loss);
    let trainable: Vec<&str> =
        stated["trainable"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(found.len(), trainable.len(), "{case}");
    // (IA)³'s factors have another shape in the file.
    let apart = |found: &Tensor, wanted: &Tensor| {
        let error = relative_error(&found.flatten_all().unwrap(), &wanted.flatten_all().unwrap());
        assert!(error.is_finite(), "{case}");
        error
    };
    let largest = |all: &mut dyn Iterator<Item = f64>| all.fold(0.0, f64::max);
    let of_gradients =
        largest(&mut trainable.iter().map(|name| apart(&found[*name], &values[&format!("grad.{name}")])));
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_vectors: true };
    let rate = stated["learning_rate"].as_f64().unwrap();
    let mut moments = Moments::default();
    for (step, loss) in stated["losses"].as_array().unwrap().iter().enumerate() {
        let micro = vec![examples.iter().collect()];
        let report = train_step(&subject, &mut moments, &settings, rate, 0.0, &micro, None, step as u64 + 1).unwrap();
        let loss = loss.as_f64().unwrap();
        assert!((report.loss / loss - 1.0).abs() < 1e-8, "{case} step {step}: {} for {loss}", report.loss);
    }
    let after = largest(
        &mut trainable
            .iter()
            .map(|name| apart(subject.variables()[*name].as_tensor(), &values[&format!("after.{name}")])),
    );
    check_saved(case, &subject, &sequences(values));
    [of_gradients, after]
}

/// The modules, their scales and where h0 is mixed in are those that the case states.
fn check_plan(case: &str, stated: &Value, peft: &Peft) {
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
}

/// What is saved is what was trained, and computes the same when it is read again.
fn check_saved(case: &str, subject: &Subject, sequences: &[Vec<u32>]) {
    let saved = tempfile::tempdir().unwrap();
    subject.save(saved.path(), "model").unwrap();
    let again = load_adapter(saved.path(), subject.model()).unwrap();
    assert_eq!(again.plan(), subject.peft().unwrap().plan(), "{case}");
    let batch = Packed::from_sequences(sequences);
    let logits =
        |model: &Transformer, peft: &Peft| model.logits(&batch, &Pass::inference(Some(&peft.frozen()))).unwrap();
    let plain = self::model(&folder("model"), DType::F64);
    let tuned = again.tuned(&plain).unwrap_or(plain);
    let trained = logits(subject.model(), subject.peft().unwrap());
    close(&format!("{case} saved"), &logits(&tuned, &again), &trained.detach(), 1e-12);
}

const BEGIN: &str = "<!-- what the tests compared; SMOOTH_PROBE_WRITE_DOCS=1 cargo test every_method writes it -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn every_method_trains_as_its_reference() {
    let mut cases: Vec<String> = std::fs::read_dir(golden("methods"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "model")
        .collect();
    cases.sort();
    assert!(cases.len() >= 21);
    let mut table = String::from(
        "| case | method | against | lambda | states, logits (f32) | gradients (f64) | ten steps of AdamW (f64) |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut found = Vec::new();
    let number = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.0e}"));
    for case in &cases {
        let stated = json(&folder(case).join("golden.json"));
        let values = tensors(&folder(case).join("golden.safetensors"));
        let exact = forward(case, &stated, &values, DType::F64);
        // What is stored is rounded to f32.
        assert!(exact < 2e-7, "{case}: f64 {exact:.1e}");
        let states = forward(case, &stated, &values, DType::F32);
        let trained = (case != PROJECTED).then(|| training(case, &stated, &values));
        let [gradients, after] = trained.map_or([None; 2], |trained| trained.map(Some));
        assert!(states < 1e-5, "{case}: {states:.1e}");
        assert!(
            gradients.is_none_or(|d| d < 1e-8) && after.is_none_or(|d| d < 1e-7),
            "{case}: {gradients:?} {after:?}"
        );
        let real = folder(case).join("adapter_config.json").is_file();
        let lambda = match &stated["lambda"] {
            Value::Null => "–".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.push_str(&format!(
            "| {case} | {} | {} | {lambda} | {states:.0e} | {} | {} |\n",
            stated["method"].as_str().unwrap(),
            if real { "peft 0.21" } else { "PyTorch, peft at lambda 0" },
            number(gradients),
            number(after),
        ));
        found.push([Some(states), gradients, after]);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (front, rest) = page.split_once(BEGIN).unwrap();
    let (written, back) = rest.split_once(END).unwrap();
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{front}{BEGIN}{table}{END}{back}")).unwrap();
        return;
    }
    let named = |text: &str| text.lines().map(|line| line.split('|').take(5).collect::<String>()).collect::<Vec<_>>();
    assert_eq!(named(&table), named(written), "docs/methods.md has other rows than were compared");
    for (line, found) in written.lines().skip(2).zip(found) {
        let stated = line.split('|').skip(5).take(3).map(|cell| cell.trim().parse::<f64>().ok());
        // Another processor's kernels move the last digits.
        let fits = |(stated, found): (Option<f64>, Option<f64>)| {
            stated.zip(found).map_or(stated.is_none() && found.is_none(), |(s, f)| f <= (5.0 * s).max(1e-12))
        };
        assert!(stated.zip(found).all(fits), "{line}: {found:?}");
    }
}

#[test]
fn merged_weights_compute_what_the_modules_do() {
    let base = model(&folder("model"), DType::F64);
    let mut merged = 0;
    for (case, whole) in [
        ("lora_patterns", Some(true)),
        ("lora_bias_all", Some(true)),
        ("dora", Some(true)),
        ("ia3", Some(true)),
        ("ia3_up", Some(true)),
        ("ln_tuning", Some(true)),
        ("bitfit", Some(true)),
        ("lora_sibo_patterns", Some(false)),
        ("lambda_per_layer", Some(false)),
        ("lambda_learnable_layer", Some(false)),
        ("lambda_learnable_module", Some(false)),
        ("dora_sibo", None),
        ("ia3_up_sibo", None),
        ("houlsby", None),
    ] {
        let stated = json(&folder(case).join("golden.json"));
        let batch = Packed::from_sequences(&sequences(&tensors(&folder(case).join("golden.safetensors"))));
        let peft = peft_of(case, &stated, &base);
        let of = |model: &Transformer, peft: Option<&Peft>| model.logits(&batch, &Pass::inference(peft)).unwrap();
        let wanted = of(&peft.tuned(&base).unwrap_or_else(|| base.clone()), Some(&peft));
        match whole {
            Some(true) => {
                let made = peft.merged(&base, false).unwrap();
                assert!(made.remainder.is_none());
                close(case, &of(&made.model, None), &wanted, 1e-12);
            }
            Some(false) => {
                let refused = peft.merged(&base, false).unwrap_err().to_string();
                assert!(refused.contains("read h0, which depends on the token"), "{case}: {refused}");
                let made = peft.merged(&base, true).unwrap();
                let left = made.remainder.unwrap();
                close(case, &of(&made.model, Some(&left)), &wanted, 1e-11);
                assert!(relative_error(&of(&made.model, None), &wanted) > 1e-2, "{case}: the remainder matters");
                // What is left reads the token alone: its tables hold all of it.
                let tables = left.tables(&base).unwrap();
                assert_eq!(tables.len(), left.plan().modules.len());
                let again = tempfile::tempdir().unwrap();
                save_adapter(again.path(), &left, &BTreeMap::new(), "base").unwrap();
                let saved = load_adapter_file(&again.path().join("adapter_model.safetensors")).unwrap();
                let ids = Tensor::new(&[7u32, 3, 60], &Device::Cpu).unwrap();
                let rows = base.embedding().unwrap().index_select(&ids, 0).unwrap();
                for module in &left.plan().modules {
                    let a = &saved[&format!("base_model.model.{}.lora_A.weight", module.path)];
                    let wanted = (rows.matmul(&a.t().unwrap()).unwrap() * module.form.scale()).unwrap();
                    let table = &tables[&format!("{}.table", module.path)];
                    close(case, &table.index_select(&ids, 0).unwrap(), &wanted, 1e-6);
                }
                let read = load_adapter(again.path(), &base).unwrap();
                close(case, &of(&made.model, Some(&read)), &wanted, 1e-11);
            }
            None => assert!(peft.merged(&base, true).is_err(), "{case}"),
        }
        merged += 1;
    }
    assert_eq!(merged, 14);
}

#[test]
fn a_token_without_an_embedding_has_no_direction_and_no_number_is_lost() {
    let base = model(&folder("model"), DType::F32);
    let mut rows = base.embedding().unwrap().to_vec2::<f32>().unwrap();
    rows[7].fill(0.0);
    let width = rows[0].len();
    let table = Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu).unwrap();
    let model = base.with_tensors(&BTreeMap::from([("model.embed_tokens.weight".to_owned(), table)]));
    let peft = peft_of("lora_sibo_patterns", &json(&folder("lora_sibo_patterns").join("golden.json")), &model);
    let normed = peft.config().residual.map(|residual| ResidualConfig { arm: Arm::H0Normed, ..residual });
    let peft = peft.with_residual(&model, normed).unwrap();
    let logits = model.logits(&Packed::from_sequences(&[vec![5, 7, 9]]), &Pass::inference(Some(&peft))).unwrap();
    assert!(values_of(&logits).iter().all(|x| x.is_finite()));
}

fn values_of(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn a_quantised_base_is_the_model_of_its_blocks() {
    use crate::model::{LoadedModel, Precision, Role};
    use candle_core::quantized::GgmlDType;
    for (dtype, most) in [(GgmlDType::Q8_0, 0.35), (GgmlDType::Q4_0, 0.22)] {
        let precision = Precision { base: DType::F32, compute: DType::F32, quantised: Some(dtype) };
        let quantised = LoadedModel::embedded(precision, &Device::Cpu).unwrap().transformer;
        let whole = LoadedModel::embedded(DType::F32, &Device::Cpu).unwrap().transformer;
        let a = whole.architecture();
        let mut numbers = BTreeMap::new();
        let mut bytes = [0usize; 2];
        for layer in 0..a.layers {
            for role in Role::ALL.into_iter().filter(|role| a.has(*role)) {
                let linear = quantised.linear(layer, role).unwrap();
                bytes[0] += linear.quantised_bytes();
                bytes[1] += 4 * linear.weight().unwrap().elem_count();
                numbers.insert(format!("{}.weight", a.linear_path(layer, role)), linear.weight().unwrap());
            }
        }
        assert!(bytes[0] > 0 && (bytes[0] as f64) < most * bytes[1] as f64, "{bytes:?}");
        let plain = whole.with_tensors(&numbers);
        let sequences: Vec<Vec<u32>> = vec![vec![1, 9, 17, 4, 30], vec![1, 5, 8]];
        let batch = Packed::from_sequences(&sequences);
        let logits = |model: &Transformer| model.logits(&batch, &Pass::default()).unwrap();
        close("quantised", &logits(&quantised), &logits(&plain), 1e-6);
        assert!(relative_error(&logits(&plain), &logits(&whole)) > 1e-5, "the blocks round");
        // h0 is mixed in here too, and every gradient is that of the numbers.
        let method = Method::Lora { rank: 4, alpha: 10.0, dropout: 0.0, rank_stabilised: false };
        let residual = ResidualConfig {
            lambda: 0.3,
            policy: crate::peft::Policy::All,
            arm: Arm::H0,
            h0_kind: a.h0_kind,
            seed: 0,
            learned: None,
        };
        let config = PeftConfig::new(method, method.default_targets(a), Some(residual));
        let found = |model: Transformer| {
            let peft = Peft::initial(&model, config.clone(), 3).unwrap();
            let subject = Subject::adapter(model, peft).unwrap();
            let examples = examples(&sequences);
            gradients(&subject, &[examples.iter().collect()], None, 1).unwrap().0
        };
        let (of_blocks, of_numbers) = (found(quantised), found(plain));
        for (name, gradient) in of_numbers.iter().filter(|(name, _)| name.ends_with("lora_B.weight")) {
            close(name, &of_blocks[name], gradient, 1e-4);
        }
    }
}
