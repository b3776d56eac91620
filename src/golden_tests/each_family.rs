//! Every family against transformers, and docs/models.md, which says what was compared.

use super::*;
use crate::data::{Image, Sequence};
use crate::kernels::Gradients;
use crate::model::Backward;
use crate::peft::{Mixing, Policy};
use crate::train::{Objective, Occasion};
use candle_core::Var;

/// What one golden folder of tests/golden/families was held against; largest relative deviations.
struct Compared {
    case: String,
    kind: String,
    family: &'static str,
    /// In f32: layer 0, the blocks, the final norm.
    states: f64,
    /// In f32, where there is a head.
    logits: Option<f64>,
    /// In f64, of the loss with LoRA and the initial residual, and of all its gradients.
    gradient: Option<f64>,
    h0: String,
    mixed: String,
    last: &'static str,
}

const NO_LABEL: u32 = u32::MAX;

fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(golden("families")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(super) fn largest(deviations: impl IntoIterator<Item = f64>) -> f64 {
    deviations.into_iter().fold(0.0, |most, deviation| {
        assert!(deviation.is_finite());
        deviation.max(most)
    })
}

/// The texts of a case, or its images cut as `model` cuts them.
pub(super) fn batch_of(values: &BTreeMap<String, Tensor>, model: &Transformer) -> Packed {
    let list = |key: &str| (0..3).map(|s| values[&format!("{key}_{s}")].to_vec1().unwrap()).collect::<Vec<Vec<u32>>>();
    let Some(grid) = &model.architecture().patches else {
        let ids = list("ids");
        let types = if values.contains_key("types_0") { list("types") } else { vec![Vec::new(); 3] };
        return Packed::pack(ids.iter().zip(&types).map(|(ids, types)| Sequence { ids, types, image: None }));
    };
    let ids: Vec<u32> = (0..=grid.patches() as u32).collect();
    let pixels = |s| values[&format!("pixels_{s}")].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let images: Vec<Image> = (0..3).map(|s| Image::from_pixels(&pixels(s), grid)).collect();
    Packed::pack(images.iter().map(|image| Sequence { ids: &ids, types: &[], image: Some(image) }))
}

/// Targets and weights of the case's loss, a row a token.
pub(super) fn targets(
    kind: &str,
    causal: bool,
    batch: &Packed,
    values: &BTreeMap<String, Tensor>,
) -> Option<(Vec<u32>, Vec<f32>)> {
    match kind {
        "next_token" => {
            let sequences: Vec<Vec<u32>> = (0..3).map(|s| batch.sequence(s).to_vec()).collect();
            let examples = examples(&sequences);
            Some(crate::data::targets_and_weights(&examples.iter().collect::<Vec<_>>()))
        }
        "masked_token" => {
            let labels: Vec<u32> =
                (0..3).flat_map(|s| values[&format!("labels_{s}")].to_vec1::<u32>().unwrap()).collect();
            let weights = labels.iter().map(|&label| if label == NO_LABEL { 0.0 } else { 1.0 }).collect();
            Some((labels.iter().map(|&label| if label == NO_LABEL { 0 } else { label }).collect(), weights))
        }
        "class" => {
            let classes = |s: usize| match values.get("labels") {
                Some(labels) => labels.to_vec1::<u32>().unwrap()[s],
                None => values[&format!("classes_{s}")].to_vec1::<u32>().unwrap()[0],
            };
            let example =
                |s| Example { ids: batch.sequence(s).to_vec(), class: Some(classes(s)), ..Example::default() };
            let examples: Vec<Example> = (0..3).map(example).collect();
            let prepared = Objective::Classes { last: causal }.prepare(
                &examples.iter().collect::<Vec<_>>(),
                Occasion::Evaluation,
                0,
            );
            Some((prepared.targets, prepared.weights))
        }
        _ => None,
    }
}

/// The model of a case; a classifier's with its head for classes.
pub(super) fn load(name: &str, dtype: DType) -> Transformer {
    let folder = golden("families").join(name);
    if json(&folder.join("golden.json"))["loss_kind"] != "class" {
        return model(&folder, dtype);
    }
    let architecture = families::read_config(&folder).unwrap().classifying(3).unwrap();
    Transformer::load("golden", architecture, &Weights::open(&folder).unwrap(), dtype, &Device::Cpu).unwrap()
}

/// States and logits in `dtype`; the largest deviation of each.
fn forward(name: &str, dtype: DType, values: &BTreeMap<String, Tensor>) -> (f64, Option<f64>) {
    forward_of(&load(name, dtype), &format!("{name} {dtype:?}"), values)
}

/// States and logits of a model that may have come another way; the largest deviation of each.
pub(super) fn forward_of(model: &Transformer, name: &str, values: &BTreeMap<String, Tensor>) -> (f64, Option<f64>) {
    let batch = batch_of(values, model);
    let mut keep = Keep::default();
    model.hidden_states(&batch, &Pass::default(), &mut keep).unwrap();
    let a = model.architecture();
    assert_eq!(keep.0.len(), a.layers + 1 + usize::from(a.has_final_norm()), "{name}");
    let mut deviations = Vec::new();
    let h0 = model.h0(&batch).unwrap();
    for s in 0..3 {
        for ((site, layer), states) in &keep.0 {
            let key = match site {
                Site::Embedding => format!("embedding_{s}"),
                Site::Block => format!("block_{layer}_{s}"),
                Site::FinalNorm => format!("final_norm_{s}"),
                other => panic!("{other} was not asked for"),
            };
            deviations.push((relative_error(&rows(states, &batch, s), &values[&key]), key));
        }
        deviations.push((relative_error(&rows(&h0, &batch, s), &values[&format!("h0_{s}")]), format!("h0_{s}")));
    }
    for (deviation, key) in &deviations {
        assert!(*deviation < 1e-5, "{name}: {key} deviates by {deviation:.1e}");
    }
    let states = largest(deviations.into_iter().map(|(d, _)| d));
    let of_text = |logits: &Tensor, s: usize| {
        let own = rows(logits, &batch, s);
        match (model.architecture().classes, model.architecture().causal) {
            (None, _) => own,
            (Some(_), true) => own.get(own.dim(0).unwrap() - 1).unwrap(),
            (Some(_), false) => own.get(0).unwrap(),
        }
    };
    let logits = values.contains_key("logits_0").then(|| match model.logits(&batch, &Pass::default()) {
        Ok(logits) => largest((0..3).map(|s| relative_error(&of_text(&logits, s), &values[&format!("logits_{s}")]))),
        Err(error) => panic!("{name}: {error}"),
    });
    (states, logits)
}

/// The loss and the gradients of LoRA with the initial residual in f64: the largest deviation.
fn gradient(name: &str, stated: &Value, values: &BTreeMap<String, Tensor>) -> Option<f64> {
    let kind = stated["loss_kind"].as_str().unwrap();
    let model = load(name, DType::F64);
    let batch = batch_of(values, &model);
    let (targets, weights) = targets(kind, model.architecture().causal, &batch, values)?;
    let lora = &stated["lora"];
    let config = PeftConfig {
        method: Method::Lora { rank: 3, alpha: 7.5, dropout: 0.0, rank_stabilised: false },
        targets: lora["targets"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        residual: Some(ResidualConfig {
            lambda: lora["lambda"].as_f64().unwrap(),
            policy: Policy::All,
            arm: Arm::H0,
            h0_kind: model.architecture().h0_kind,
            seed: 0,
            learned: None,
        }),
        details: Default::default(),
    };
    assert_eq!(model.architecture().h0_kind.to_string(), lora["h0"].as_str().unwrap(), "{name}");
    let mut peft = Peft::initial(&model, config, 0).unwrap();
    let mixed: Vec<&str> = lora["mixed"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    for module in &peft.plan().modules {
        let wanted = mixed.iter().any(|m| module.path.ends_with(m)) && module.role.reads_stream();
        assert_eq!(module.residual == Mixing::Mixed, wanted, "{name}: {}", module.path);
    }
    let variables: BTreeMap<String, Var> = peft.variables().unwrap();
    for (key, variable) in &variables {
        variable.set(&values[&format!("lora.{key}")].to_dtype(DType::F64).unwrap()).unwrap();
    }
    assert_eq!(variables.len(), values.keys().filter(|key| key.starts_with("grad.")).count(), "{name}");
    let mut gradients = Gradients::default();
    let how = Backward {
        scale: 1.0 / weights.iter().map(|&w| f64::from(w)).sum::<f64>(),
        checkpointing: false,
        penalty: 0.0,
    };
    let pass = Pass::inference(Some(&peft));
    let loss = model.loss_gradients(&batch, (&targets, &weights), &pass, how, &mut gradients).unwrap().loss * how.scale;
    let of_loss = (loss / stated["loss"][1].as_f64().unwrap() - 1.0).abs();
    let each = variables.iter().map(|(key, variable)| {
        let found = gradients.take(variable).unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
        let wanted = &values[&format!("grad.{key}")];
        assert!(relative_error(wanted, &wanted.zeros_like().unwrap()) > 0.0, "{name}: {key}");
        relative_error(&found, wanted)
    });
    Some(largest(each.chain([of_loss])))
}

/// Where the initial residual enters under the policy `official`, by the default targets of LoRA.
fn official(model: &Transformer) -> String {
    let method = Method::Lora { rank: 1, alpha: 1.0, dropout: 0.0, rank_stabilised: false };
    let a = model.architecture();
    let residual = ResidualConfig {
        lambda: 0.1,
        policy: Policy::Official,
        arm: Arm::H0,
        h0_kind: a.h0_kind,
        seed: 0,
        learned: None,
    };
    let targets = method.default_targets(a);
    let config = PeftConfig::new(method, targets.clone(), Some(residual));
    let peft = Peft::initial(model, config, 0).unwrap();
    let first = peft.plan().modules.iter().filter(|m| m.layer == 0);
    let mixed: Vec<&str> = first.filter(|m| m.residual == Mixing::Mixed).map(|m| a.names.target(m.role)).collect();
    assert!(!mixed.is_empty());
    let marked = targets.iter().map(|t| if mixed.contains(&t.as_str()) { format!("**{t}**") } else { t.clone() });
    marked.collect::<Vec<_>>().join(", ")
}

fn compare(name: &str) -> Compared {
    let folder = golden("families").join(name);
    let stated = json(&folder.join("golden.json"));
    let values = tensors(&folder.join("golden.safetensors"));
    let newer = folder.join("config_v5.json");
    if newer.is_file() {
        let old = families::read_config(&folder).unwrap();
        assert_eq!(old, families::parse_config("config_v5.json", &json(&newer)).unwrap(), "{name}");
    }
    let model = model(&folder, DType::F32);
    let a = model.architecture();
    let (states, logits) = forward(name, DType::F32, &values);
    let (exact, exact_logits) = forward(name, DType::F64, &values);
    // What is stored is rounded to f32.
    assert!(exact < 2e-7 && exact_logits.is_none_or(|d| d < 2e-7), "{name}: f64 {exact:.1e} {exact_logits:?}");
    Compared {
        case: name.to_owned(),
        kind: stated["model_type"].as_str().unwrap().to_owned(),
        family: a.family,
        states,
        logits,
        gradient: gradient(name, &stated, &values),
        h0: a.h0_kind.to_string(),
        mixed: official(&model),
        last: if a.has_final_norm() { "`final_norm`" } else { "`block` L" },
    }
}

const BEGIN: &str = "<!-- what the tests compared; SMOOTH_PROBE_WRITE_DOCS=1 cargo test every_family writes it -->\n";
const END: &str = "<!-- end -->\n";

/// The table of docs/models.md.
fn table(compared: &[Compared]) -> String {
    let mut text = String::from(
        "| `model_type` | case | hidden states | logits | gradients | `hidden_states[L]` | h0 | LoRA's targets |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let number = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.0e}"));
    let mut rows: Vec<String> = Vec::new();
    for c in compared {
        let read_as = if c.kind == c.family { String::new() } else { format!(" (as `{}`)", c.family) };
        rows.push(format!(
            "| `{}`{read_as} | {} | {} | {} | {} | {} | {} | {} |\n",
            c.kind,
            c.case,
            number(Some(c.states)),
            number(c.logits),
            number(c.gradient),
            c.last,
            c.h0,
            c.mixed
        ));
    }
    rows.sort();
    rows.iter().for_each(|row| text.push_str(row));
    text
}

/// A table's cells, those that hold deviations apart.
fn cells(table: &str) -> Vec<(Vec<&str>, Vec<Option<f64>>)> {
    let mut lines = Vec::new();
    for line in table.lines() {
        let (mut words, mut numbers) = (Vec::new(), Vec::new());
        for (index, cell) in line.split('|').map(str::trim).enumerate() {
            match index {
                3..6 => numbers.push(cell.parse().ok()),
                _ => words.push(cell),
            }
        }
        lines.push((words, numbers));
    }
    lines
}

#[test]
fn every_family_is_transformers_own() {
    let mut compared = Vec::new();
    for name in &cases() {
        let c = compare(name);
        assert!(c.states < 1e-5, "{name}: states deviate by {:.1e}", c.states);
        assert!(c.logits.is_none_or(|d| d < 1e-5), "{name}: logits deviate by {:?}", c.logits);
        assert!(c.gradient.is_none_or(|d| d < 1e-8), "{name}: gradients deviate by {:?}", c.gradient);
        compared.push(c);
    }
    let made = table(&compared);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (front, rest) = page.split_once(BEGIN).unwrap();
    let (written, back) = rest.split_once(END).unwrap();
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{front}{BEGIN}{made}{END}{back}")).unwrap();
        return;
    }
    let (made, written) = (cells(&made), cells(written));
    assert_eq!(made.len(), written.len(), "docs/models.md has other rows than were compared");
    for ((words, numbers), (stated_words, stated)) in made.iter().zip(&written) {
        assert_eq!(words, stated_words, "docs/models.md says otherwise");
        for (found, stated) in numbers.iter().zip(stated) {
            // Another processor's kernels move the last digits.
            let fits =
                found.zip(*stated).map_or(found.is_none() && stated.is_none(), |(f, s)| f <= (5.0 * s).max(1e-12));
            assert!(fits, "docs/models.md states {stated:?} where {found:?} was found: {words:?}");
        }
    }
}
