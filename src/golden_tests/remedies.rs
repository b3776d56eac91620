//! Every remedy against a reference in PyTorch: states and logits, penalties, gradients, ten steps of AdamW.

use super::each_family::{batch_of, largest, targets};
use super::*;
use crate::kernels::Gradients;
use crate::model::{Backward, Losses};
use serde_json::json as value;

fn folder(case: &str) -> PathBuf {
    golden("remedies").join(case)
}

/// The adapter of a case: the reference's start values under a configuration of ours.
fn peft_of(case: &str, stated: &Value, model: &Transformer) -> Peft {
    let made = tempfile::tempdir().unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(folder(case).join(weights), made.path().join(weights)).unwrap();
    let mut remedies = stated["remedies"].clone();
    // The regulariser changes the loss alone, and the file does not hold it.
    remedies.as_object_mut().unwrap().remove("cosine");
    let remedied = !remedies.as_object().unwrap().is_empty();
    let lambda = stated["lambda"].as_f64();
    let kind =
        format!("{}{}LORA", if remedied { "REMEDIED_" } else { "" }, if lambda.is_some() { "SIBO_" } else { "" });
    let mut config = value!({
        "peft_type": kind, "target_modules": stated["targets"], "r": stated["rank"], "lora_alpha": stated["alpha"],
    });
    if remedied {
        config["remedies"] = remedies;
    }
    if let Some(lambda) = lambda {
        config["sibo"] = value!({"lambda": lambda, "policy": "all", "residual": "h0", "h0": stated["h0"]});
    }
    std::fs::write(made.path().join("adapter_config.json"), config.to_string()).unwrap();
    load_adapter(made.path(), model).unwrap()
}

/// States and logits in `dtype`: the largest deviation.
fn forward(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>, dtype: DType) -> f64 {
    let model = model(&golden(stated["model"].as_str().unwrap()), dtype);
    let peft = peft_of(case, stated, &model);
    let batch = batch_of(values, &model);
    let pass = Pass::inference(Some(&peft));
    let mut keep = Keep::default();
    model.hidden_states(&batch, &pass, &mut keep).unwrap();
    let logits = model.logits(&batch, &pass).unwrap();
    let mut deviations = Vec::new();
    for s in 0..3 {
        for ((site, layer), states) in &keep.0 {
            let key = match site {
                Site::Block => format!("block_{layer}_{s}"),
                Site::FinalNorm => format!("final_norm_{s}"),
                _ => continue,
            };
            deviations.push(relative_error(&rows(states, &batch, s), &values[&key]));
        }
        deviations.push(relative_error(&rows(&logits, &batch, s), &values[&format!("logits_{s}")]));
    }
    assert!(deviations.len() >= 9, "{case}");
    largest(deviations)
}

/// The largest deviation of the gradients at the start, and of the tensors after ten steps.
fn training(case: &str, stated: &Value, values: &BTreeMap<String, Tensor>) -> [f64; 2] {
    let model = model(&golden(stated["model"].as_str().unwrap()), DType::F64);
    let peft = peft_of(case, stated, &model);
    let causal = model.architecture().causal;
    let subject = Subject::adapter(model, peft).unwrap();
    let batch = batch_of(values, subject.model());
    let (ids, weights) = targets(stated["loss_kind"].as_str().unwrap(), causal, &batch, values).unwrap();
    let (counted, texts) = (weights.iter().map(|&w| f64::from(w)).sum::<f64>(), batch.sequences() as f64);
    let gamma = stated["remedies"]["cosine"].as_f64();
    let how = Backward { scale: 1.0 / counted, checkpointing: false, penalty: gamma.unwrap_or_default() / texts };
    let run = || {
        let mut found = Gradients::default();
        let pass = subject.pass(None);
        let losses = subject.model().loss_gradients(&batch, (&ids, &weights), &pass, how, &mut found).unwrap();
        let of = |(name, variable): (&String, &candle_core::Var)| (name.clone(), found.take(variable).unwrap());
        (losses, subject.variables().iter().map(of).collect::<BTreeMap<String, Tensor>>())
    };
    let agrees = |losses: Losses, loss: &Value, penalty: &Value| {
        let (found, wanted) = (losses.loss / counted, loss.as_f64().unwrap());
        assert!((found / wanted - 1.0).abs() < 1e-8, "{case}: loss {found} for {wanted}");
        if gamma.is_some() {
            let (found, wanted) = (losses.penalty / texts, penalty.as_f64().unwrap());
            assert!((found / wanted - 1.0).abs() < 1e-8, "{case}: penalty {found} for {wanted}");
        }
    };
    let trainable: Vec<&str> = stated["trainable"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let (losses, found) = run();
    agrees(losses, &stated["loss"], &stated["penalties"][0]);
    assert_eq!(
        found.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
        trainable.iter().copied().collect()
    );
    let of_gradients = trainable.iter().map(|name| relative_error(&found[*name], &values[&format!("grad.{name}")]));
    let of_gradients = largest(of_gradients);
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_vectors: true };
    let rate = stated["learning_rate"].as_f64().unwrap();
    let mut moments = Moments::default();
    for (step, loss) in stated["losses"].as_array().unwrap().iter().enumerate() {
        let (losses, found) = run();
        agrees(losses, loss, &stated["penalties"][step]);
        moments.update(&settings, rate, 1.0, subject.variables(), &found).unwrap();
    }
    let after = |name: &&str| relative_error(subject.variables()[*name].as_tensor(), &values[&format!("after.{name}")]);
    [of_gradients, largest(trainable.iter().map(after))]
}

const BEGIN: &str = "<!-- what the tests compared; SMOOTH_PROBE_WRITE_DOCS=1 cargo test every_remedy writes it -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn every_remedy_trains_as_its_reference() {
    let entries = std::fs::read_dir(golden("remedies")).unwrap();
    let mut cases: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    cases.retain(|case| folder(case).join("golden.json").is_file());
    cases.sort();
    assert_eq!(cases.len(), 17);
    let mut table = String::from(
        "| case | lambda | states, logits (f32) | gradients (f64) | ten steps of AdamW (f64) |\n|---|---|---|---|---|\n",
    );
    let mut all = Vec::new();
    for case in &cases {
        let stated = json(&folder(case).join("golden.json"));
        let values = tensors(&folder(case).join("golden.safetensors"));
        let exact = forward(case, &stated, &values, DType::F64);
        // What is stored is rounded to f32.
        assert!(exact < 2e-7, "{case}: f64 {exact:.1e}");
        let states = forward(case, &stated, &values, DType::F32);
        let [gradients, after] = training(case, &stated, &values);
        assert!(states < 1e-5 && gradients < 1e-8 && after < 1e-7, "{case}: {states:.1e} {gradients:.1e} {after:.1e}");
        let lambda = stated["lambda"].as_f64().map_or_else(|| "–".to_owned(), |lambda| lambda.to_string());
        table.push_str(&format!("| {case} | {lambda} | {states:.0e} | {gradients:.0e} | {after:.0e} |\n"));
        all.push([states, gradients, after]);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/remedies.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (front, rest) = page.split_once(BEGIN).unwrap();
    let (written, back) = rest.split_once(END).unwrap();
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{front}{BEGIN}{table}{END}{back}")).unwrap();
        return;
    }
    assert_eq!(written.lines().count(), table.lines().count(), "docs/remedies.md has other rows than were compared");
    for ((line, case), found) in written.lines().skip(2).zip(&cases).zip(all) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[1], case, "docs/remedies.md has other rows than were compared");
        // Another processor's kernels move the last digits.
        let fits = |(stated, found): (&&str, f64)| found <= (5.0 * stated.parse::<f64>().unwrap()).max(1e-12);
        assert!(cells[3..6].iter().zip(found).all(fits), "{line}: {found:?}");
    }
}
