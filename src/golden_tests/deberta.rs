//! DeBERTa beyond what every family is held to: all its weights trained, its table apart from tokens, files without a head.

use super::*;
use crate::kernels::{Gradients, instead_of_fused};
use crate::model::weights::{TensorSource, WeightsError};
use crate::model::{Backward, Head};
use crate::peft::{BranchObserver, BranchPass, Policy};
use candle_core::Var;
use std::sync::Mutex;

fn folder(name: &str) -> PathBuf {
    golden("families").join(name)
}

fn batch(name: &str) -> Packed {
    Packed::from_sequences(&sequences(&tensors(&folder(name).join("golden.safetensors"))))
}

#[test]
fn whole_training_reaches_every_weight_the_table_and_its_projections_among_them() {
    for (name, table) in [
        ("deberta_v2", &["encoder.rel_embeddings.weight", "encoder.LayerNorm.weight", "encoder.LayerNorm.bias"][..]),
        (
            "deberta_v2_own",
            &[
                "encoder.rel_embeddings.weight",
                "encoder.layer.0.attention.self.pos_key_proj.weight",
                "encoder.layer.1.attention.self.pos_key_proj.weight",
            ][..],
        ),
    ] {
        let mut model = model(&folder(name), DType::F64);
        let variables: BTreeMap<String, Var> = model.make_trainable().unwrap();
        let batch = batch(name);
        let (targets, weights) = (batch.ids.to_vec(), vec![1.0; batch.ids.len()]);
        let gradients = |checkpointing: bool| {
            let (mut found, how) = (Gradients::default(), Backward { scale: 1.0, checkpointing, penalty: 0.0 });
            model.loss_gradients(&batch, (&targets, &weights), &Pass::default(), how, &mut found).unwrap();
            variables
                .iter()
                .map(|(key, variable)| {
                    let gradient = found.take(variable).unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
                    (key.as_str(), gradient)
                })
                .collect::<BTreeMap<&str, Tensor>>()
        };
        let (kept, again, composed) = (gradients(false), gradients(true), instead_of_fused(|| gradients(false)));
        for (key, gradient) in &kept {
            assert_eq!(relative_error(&again[key], gradient), 0.0, "{name}: {key}");
            let off =
                (&composed[key] - gradient).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(off < 1e-9, "{name}: {key} is off by {off:.1e} where it is composed");
        }
        let loss = || {
            let how = Backward { scale: 1.0, checkpointing: false, penalty: 0.0 };
            let found = &mut Gradients::default();
            model.loss_gradients(&batch, (&targets, &weights), &Pass::default(), how, found).unwrap().loss
        };
        for key in table {
            let key = format!("deberta.{key}");
            let (variable, gradient) = (&variables[&key], &kept[key.as_str()]);
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            let middle = variable.as_tensor().copy().unwrap().detach();
            let at = |step: f64| {
                variable.set(&(&middle + (gradient * (step / length)).unwrap()).unwrap()).unwrap();
                loss()
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            variable.set(&middle).unwrap();
            assert!((slope / length - 1.0).abs() < 1e-6, "{name}: {key} has the slope {slope} where {length} is said");
        }
    }
}

#[derive(Debug, Default)]
struct Seen(Mutex<Vec<(String, usize)>>);

impl BranchObserver for Seen {
    fn observe(&self, branch: &BranchPass<'_>) -> candle_core::Result<()> {
        self.0.lock().unwrap().push((branch.planned().path.clone(), branch.input().dim(0)?));
        Ok(())
    }
}

#[test]
fn branches_are_watched_over_tokens_alone() {
    let (model, batch) = (model(&folder("deberta_v2"), DType::F32), batch("deberta_v2"));
    let residual = ResidualConfig {
        lambda: 0.3,
        policy: Policy::All,
        // It needs a row of h0 for every row it is mixed into: with the table's it would fail.
        arm: Arm::H0Normed,
        h0_kind: model.architecture().h0_kind,
        seed: 0,
        learned: None,
    };
    let config = PeftConfig {
        method: Method::Lora { rank: 2, alpha: 4.0, dropout: 0.0, rank_stabilised: false },
        targets: vec!["query_proj".to_owned(), "key_proj".to_owned()],
        residual: Some(residual),
        details: Default::default(),
    };
    let peft = Peft::initial(&model, config, 0).unwrap();
    let seen = Seen::default();
    let pass = Pass::inference(Some(&peft)).observed_by(&seen);
    model.hidden_states(&batch, &pass, &mut Keep::default()).unwrap();
    let wanted: Vec<(String, usize)> =
        peft.plan().modules.iter().map(|module| (module.path.clone(), batch.ids.len())).collect();
    assert_eq!(*seen.0.lock().unwrap(), wanted);
}

/// A file whose head is that of `legacy: false`, or of Microsoft's own files.
struct OtherHead(Weights);

const OTHER: &str = "lm_predictions.lm_head.";

impl TensorSource for OtherHead {
    fn contains(&self, name: &str) -> bool {
        self.names().iter().any(|other| other == name)
    }

    fn names(&self) -> Vec<String> {
        self.0.names().iter().map(|name| name.replace("cls.predictions.", OTHER)).collect()
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        self.0.load(name, shape, dtype, device)
    }
}

#[test]
fn a_file_with_another_head_is_read_without_one() {
    let folder = folder("deberta_v2");
    let source = OtherHead(Weights::open(&folder).unwrap());
    let architecture = families::read_config(&folder).unwrap();
    let unread = architecture.clone().of_file(&source).unread(&source);
    assert!(unread.len() == 5 && unread.iter().all(|name| name.starts_with(OTHER)), "{unread:?}");
    let model = Transformer::load("other", architecture, &source, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(model.architecture().head, Head::Absent);
    assert!(model.head().unwrap_err().to_string().starts_with("this deberta-v2 model has no head"));
}
