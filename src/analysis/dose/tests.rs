use std::collections::BTreeMap;

use super::*;
use crate::analysis::dose_grid::{DosedLayers, dose_points};
use crate::model::families;
use crate::model::weights::Weights;
use crate::model::{H0Kind, Transformer};
use crate::peft::{Arm, Method, PeftConfig, Policy, save_adapter};
use crate::train::{Subject, evaluate};
use std::path::Path;

fn model() -> Transformer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gqa_tied");
    let architecture = families::read_config(&folder).unwrap();
    Transformer::load("golden", architecture, &Weights::open(&folder).unwrap(), DType::F32, &Device::Cpu).unwrap()
}

fn residual(lambda: f64, arm: Arm) -> ResidualConfig {
    ResidualConfig { lambda, policy: Policy::All, arm, h0_kind: H0Kind::Token, seed: 3, learned: None }
}

/// A LoRA whose B is not zero.
fn adapter(model: &Transformer, residual: Option<ResidualConfig>) -> Peft {
    let method = Method::Lora { rank: 4, alpha: 8.0, dropout: 0.1, rank_stabilised: false };
    let targets = ["q_proj", "v_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
    let mut peft = Peft::initial(model, PeftConfig::new(method, targets, residual), 5).unwrap();
    for variable in peft.variables().unwrap().into_values() {
        let count = variable.elem_count();
        let values: Vec<f32> = (0..count).map(|i| ((i * 31 % 17) as f32 - 8.0) / 30.0).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    peft.frozen()
}

fn texts() -> Vec<EncodedText> {
    let text = |index: u64, length: u32| {
        let ids: Vec<u32> = (0..length).map(|i| (i * 7 + index as u32 * 3) % 40).collect();
        EncodedText { index, special: vec![false; ids.len()], span: 0..ids.len(), ids, ..EncodedText::default() }
    };
    (0..7).map(|i| text(i, 5 + 3 * i as u32)).collect()
}

fn examples() -> Vec<Example> {
    let example = |text: EncodedText| Example {
        loss: (0..text.ids.len()).map(|i| i > 1).collect(),
        response: 2,
        special: text.special,
        ids: text.ids,
        ..Example::default()
    };
    texts().into_iter().rev().map(example).collect()
}

/// What the plain evaluation gives: the cosine probe, and the loss as training computes it.
fn plain(peft: Peft) -> (Vec<Option<f64>>, f64) {
    let (texts, examples) = (texts(), examples());
    let subject = Subject::adapter(model(), peft).unwrap();
    let frozen = subject.peft().unwrap().frozen();
    let mut probe = CosineProbe::new(subject.model().architecture().layers, None);
    for group in texts.chunks(3) {
        let batch = Packed::from_sequences(&group.iter().map(|t| t.ids.clone()).collect::<Vec<_>>());
        probe.expect(group.iter().map(|t| (t.special.as_slice(), t.span.clone())));
        subject.model().hidden_states(&batch, &Pass::inference(Some(&frozen)), &mut probe).unwrap();
    }
    let mut curve = probe.curve(TokenSet::All);
    curve.pop();
    (curve, evaluate(&subject, &examples.iter().collect::<Vec<_>>(), 3).unwrap().0)
}

fn dosed(peft: &Peft, layer: Option<usize>, lambda: f64, arm: Arm) -> Measured {
    let (model, texts, examples) = (model(), texts(), examples());
    let mut study = DoseStudy::new(&model, peft, &texts, &examples, 3).unwrap();
    study.measure(&DosePoint { layer, dose: Dose { lambda, arm } }, &mut |_| ()).unwrap()
}

fn curve(measured: &Measured) -> Vec<Option<f64>> {
    measured.layers.iter().map(|l| l.similarity).collect()
}

#[test]
fn the_trained_dose_is_the_plain_evaluation_bit_for_bit() {
    let model = model();
    for arm in [Arm::H0, Arm::None, Arm::H0Normed, Arm::Shuffled, Arm::Random] {
        let trained = adapter(&model, Some(residual(0.3, arm)));
        let (similarity, loss) = plain(trained.clone());
        for layer in [None, Some(2)] {
            let found = dosed(&trained, layer, 0.3, arm);
            assert_eq!((curve(&found), found.loss), (similarity.clone(), loss), "{arm}, {layer:?}");
        }
    }
}

#[test]
fn a_dose_is_the_evaluation_of_an_adapter_saved_with_it() {
    let model = model();
    let trained = adapter(&model, Some(residual(0.3, Arm::H0)));
    // λ = 0 is the vanilla adapter with the same matrices.
    let (similarity, loss) = plain(adapter(&model, None));
    for arm in [Arm::H0, Arm::Shuffled] {
        let zero = dosed(&trained, None, 0.0, arm);
        assert_eq!((curve(&zero), zero.loss), (similarity.clone(), loss));
        assert_eq!(zero.real_share(None), Some(0.0));
    }
    for (lambda, arm) in [(0.7, Arm::H0), (1.0, Arm::Shuffled), (0.3, Arm::Random), (0.5, Arm::None)] {
        let (similarity, loss) = plain(adapter(&model, Some(residual(lambda, arm))));
        let found = dosed(&trained, None, lambda, arm);
        assert_eq!((curve(&found), found.loss), (similarity, loss), "{lambda} {arm}");
    }
}

#[test]
fn one_dosed_block_leaves_the_layers_below_alone() {
    let model = model();
    let trained = adapter(&model, Some(residual(0.3, Arm::H0)));
    let plain = curve(&dosed(&trained, None, 0.3, Arm::H0));
    let found = dosed(&trained, Some(2), 0.9, Arm::Shuffled);
    let second = curve(&found);
    assert_eq!(second[..2], plain[..2], "layers 0 and 1 lie below block 2");
    assert!((2..=3).all(|layer| second[layer] != plain[layer]), "{second:?} {plain:?}");
    // Its real share is block 2's own: 0.9/0.1 against 0.3/0.7 of the trained ones, on norms of the same order.
    let (own, other) = (found.real_share(Some(2)).unwrap(), found.real_share(Some(1)).unwrap());
    assert!(own > 5.0 * other, "{own} {other}");
    assert_eq!(dosed(&trained, None, 1.0, Arm::H0).real_share(None), None);
    assert_eq!(dosed(&trained, None, 0.5, Arm::None).real_share(None), Some(0.0));
}

#[test]
fn points_that_compute_the_same_run_once() {
    let model = model();
    let trained = residual(0.3, Arm::H0);
    let peft = adapter(&model, Some(trained));
    let (texts, examples) = (texts(), examples());
    let mut study = DoseStudy::new(&model, &peft, &texts, &examples, 3).unwrap();
    let grid = "0,0.6".parse().unwrap();
    let points = dose_points(peft.plan(), &trained, &grid, DosedLayers::Each, &[Arm::H0, Arm::None]);
    assert_eq!(points.len(), 2 * 3 * 3, "arms, blocks, and the grid with the trained λ");
    // Trained once; per block: 0 for both arms, 0.6 h0, 0.6 none, 0.3 none.
    assert_eq!(study.cost(&points), (1 + 3 * 4) * 14);
    let mut ran = 0;
    for point in &points {
        study.measure(point, &mut |n| ran += n).unwrap();
    }
    assert_eq!(ran, (1 + 3 * 4) * 14);
}

#[test]
fn doses_change_no_file_and_are_refused_where_they_make_no_sense() {
    let model = model();
    let peft = adapter(&model, Some(residual(0.3, Arm::H0)));
    let dose = |lambda| Dose { lambda, arm: Arm::None };
    let doses = vec![dose(0.9); 3];
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_adapter(a.path(), &peft, &BTreeMap::new(), "m").unwrap();
    save_adapter(b.path(), &peft.with_doses(&doses).unwrap(), &BTreeMap::new(), "m").unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert_eq!(std::fs::read(a.path().join(name)).unwrap(), std::fs::read(b.path().join(name)).unwrap());
    }
    let error = |peft: &Peft, doses: &[Dose]| peft.with_doses(doses).unwrap_err().to_string();
    assert_eq!(error(&peft, &doses[..2]), "2 values of lambda were given for 3 blocks; give one for each");
    assert_eq!(error(&peft, &[dose(0.1), dose(1.5), dose(0.1)]), "lambda is 1.5; it must be in [0, 1]");
    assert!(error(&peft, &[dose(f64::NAN); 3]).starts_with("lambda is NaN"));
    assert!(error(&adapter(&model, None), &doses).contains("name the policy"));
    let only_down = PeftConfig { targets: vec!["down_proj".to_owned()], ..peft.config().clone() };
    let unmixed = Peft::initial(&model, only_down, 1).unwrap();
    assert!(matches!(DoseStudy::new(&model, &unmixed, &[], &[], 3), Err(DoseError::NothingMixed)));
}

/// The largest value at the sites where the λ term changes what the feed-forward adds, by layer.
#[derive(Default)]
struct H0Terms(Vec<f64>);

impl Probe for H0Terms {
    fn record(&mut self, _: Site, _: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        let values: Vec<f32> = states.flatten_all()?.to_vec1()?;
        self.0.push(values.iter().fold(0.0, |most, v| most.max(f64::from(v.abs()))));
        Ok(())
    }

    fn wants(&self, site: Site, _: usize) -> bool {
        site == Site::FeedForwardH0
    }
}

#[test]
fn the_sites_inside_a_block_see_its_own_dose() {
    let model = model();
    let peft = adapter(&model, Some(residual(0.3, Arm::H0)));
    let dose = |lambda, arm| Dose { lambda, arm };
    let terms = |doses: [Dose; 3]| {
        let (peft, mut terms) = (peft.with_doses(&doses).unwrap(), H0Terms::default());
        let batch = Packed::from_sequences(&[texts().remove(2).ids]);
        model.hidden_states(&batch, &Pass::inference(Some(&peft)), &mut terms).unwrap();
        terms.0
    };
    // The arm `none` adds nothing to take away, and at λ = 0 nothing is read.
    let found = terms([dose(0.3, Arm::H0), dose(0.6, Arm::None), dose(0.0, Arm::Shuffled)]);
    assert!(found[0] > 1e-4 && found[1..] == [0.0, 0.0], "{found:?}");
    let found = terms([dose(0.0, Arm::H0), dose(0.6, Arm::Random), dose(0.3, Arm::None)]);
    assert!(found[0] == 0.0 && found[1] > 1e-4 && found[2] == 0.0, "{found:?}");
}
