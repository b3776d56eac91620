use super::*;
use crate::model::H0Kind;
use crate::model::families;
use crate::model::weights::Weights;
use crate::peft::{Arm, Method, PeftConfig, Placement, Policy, ResidualConfig};
use std::path::Path;

const LAMBDA: f64 = 0.25;

fn model() -> Transformer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gqa_tied");
    let architecture = families::read_config(&folder).unwrap();
    Transformer::load("golden", architecture, &Weights::open(&folder).unwrap(), DType::F64, &Device::Cpu).unwrap()
}

fn texts() -> Vec<EncodedText> {
    let text = |index: u64, ids: &[u32]| EncodedText {
        index,
        ids: ids.to_vec(),
        special: vec![false; ids.len()],
        span: 1..ids.len(),
        ..EncodedText::default()
    };
    vec![text(0, &[1, 7, 9, 3, 3]), text(1, &[1, 4, 20])]
}

/// What an observer is shown, kept by module path.
#[derive(Debug, Default)]
struct Seen(Mutex<BTreeMap<String, [Vec<Vec<f64>>; 4]>>);

impl BranchObserver for Seen {
    fn observe(&self, branch: &BranchPass<'_>) -> candle_core::Result<()> {
        let values = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec2::<f64>();
        let output = branch.output(branch.mixed())?;
        let all = [values(branch.input())?, values(branch.h0())?, values(branch.mixed())?, values(&output)?];
        self.0.lock().unwrap().insert(branch.planned().path.clone(), all);
        Ok(())
    }
}

/// Four matrices of a branch's pass, row by row.
type Passed = [Vec<Vec<f64>>; 4];

fn measured(model: &Transformer, peft: &Peft) -> (Vec<ResidualRow>, BTreeMap<String, Passed>) {
    let texts = texts();
    let batch = Packed::from_sequences(&texts.iter().map(|t| t.ids.clone()).collect::<Vec<_>>());
    let (shares, seen) = (ResidualShares::default(), Seen::default());
    shares.expect(&batch, &texts);
    let pass = Pass::inference(Some(peft));
    let watched = model.hidden_states(&batch, &pass.observed_by(&shares), &mut Silent).unwrap();
    let plain = model.hidden_states(&batch, &pass, &mut Silent).unwrap();
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(bits(&watched), bits(&plain), "watching changes nothing");
    model.hidden_states(&batch, &pass.observed_by(&seen), &mut Silent).unwrap();
    (shares.rows("r"), seen.0.into_inner().unwrap())
}

fn peft(model: &Transformer, method: Method, arm: Arm, targets: &[&str]) -> Peft {
    let residual =
        ResidualConfig { lambda: LAMBDA, policy: Policy::All, arm, h0_kind: H0Kind::Token, seed: 3, learned: None };
    let targets = targets.iter().map(|&t| t.to_owned()).collect();
    let mut peft = Peft::initial(model, PeftConfig::new(method, targets, Some(residual)), 5).unwrap();
    // LoRA's B starts at 0, where a part of the branch is undefined.
    for (name, variable) in peft.variables().unwrap() {
        if name.contains("lora_B") {
            let (rows, columns) = variable.dims2().unwrap();
            let values: Vec<f64> = (0..rows * columns).map(|i| ((i * 31 % 17) as f64 - 8.0) / 20.0).collect();
            variable.set(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap();
        }
    }
    peft.frozen()
}

const LORA: Method = Method::Lora { rank: 2, alpha: 6.0, dropout: 0.0, rank_stabilised: false };

/// The rows of the two texts that lie in their spans.
const CHOSEN: [usize; 6] = [1, 2, 3, 4, 6, 7];

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn shares_and_retention_are_those_of_the_definition() {
    let model = model();
    let with = peft(&model, LORA, Arm::H0, &["v_proj", "down_proj"]);
    let (rows, seen) = measured(&model, &with);
    assert_eq!(rows.len(), 2 * model.architecture().layers);
    let row = rows.iter().find(|r| r.layer == 2 && r.role == "value").unwrap();
    // The same by the function that runs the model itself, in whatever batches.
    for batch_size in [1, 8] {
        let again = measure_residual("r", &model, &with, &texts(), batch_size, &mut |_| ()).unwrap();
        let share = |rows: &[ResidualRow]| rows.iter().map(|r| r.share_mean.unwrap_or(-1.0)).collect::<Vec<_>>();
        share(&again).iter().zip(share(&rows)).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
        assert_eq!(again.len(), rows.len());
    }
    let [x, h0, mixed, _] = &seen[&row.module];
    let share: Vec<f64> = CHOSEN.iter().map(|&t| LAMBDA * norm(&h0[t]) / ((1.0 - LAMBDA) * norm(&x[t]))).collect();
    let spread = share.iter().map(|s| (s - mean(&share)).powi(2)).sum::<f64>() / (share.len() - 1) as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let retention: Vec<f64> = CHOSEN.iter().map(|&t| dot(&x[t], &h0[t]) / (norm(&x[t]) * norm(&h0[t]))).collect();
    for &t in &CHOSEN {
        for ((x, h0), m) in x[t].iter().zip(&h0[t]).zip(&mixed[t]) {
            assert!((m - (0.75 * x + 0.25 * h0)).abs() < 1e-12);
        }
    }
    let close = |found: Option<f64>, wanted: f64| {
        let found = found.unwrap();
        assert!((found - wanted).abs() < 1e-12 * wanted.abs().max(1.0), "{found} for {wanted}");
    };
    close(row.share_mean, mean(&share));
    close(row.share_std, spread.sqrt());
    close(row.input_retention, mean(&retention));
    assert_eq!((row.tokens, row.lambda, row.arm.as_deref()), (6, Some(LAMBDA), Some("h0")));
    assert!(row.share_std.unwrap() > 0.0 && (mean(&share) - LAMBDA / (1.0 - LAMBDA)).abs() > 1e-2);
    let down = rows.iter().find(|r| r.layer == 2 && r.role == "down").unwrap();
    assert!(!down.h0_mixed && down.lambda.is_none() && down.share_mean.is_none());
    assert!(down.branch_share.is_none() && down.input_retention.is_none() && down.tokens == 6);
}

#[test]
fn the_branch_share_is_what_h0_adds_to_the_branchs_output() {
    let model = model();
    // Of a linear branch the two ways agree: the part of λr, and whole minus what (1−λ)x gives alone.
    let with = peft(&model, LORA, Arm::H0, &["up_proj"]);
    let (rows, seen) = measured(&model, &with);
    let without = peft(&model, LORA, Arm::None, &["up_proj"]);
    let (none, seen_none) = measured(&model, &without);
    // Block 1 reads the same input under both arms.
    let path = &rows[0].module;
    let shares: Vec<f64> = CHOSEN
        .iter()
        .map(|&t| {
            let (whole, kept) = (&seen[path][3][t], &seen_none[path][3][t]);
            let part: Vec<f64> = whole.iter().zip(kept).map(|(a, b)| a - b).collect();
            norm(&part) / norm(whole)
        })
        .collect();
    assert_eq!(seen[path][0], seen_none[path][0]);
    let found = rows[0].branch_share.unwrap();
    assert!((found - mean(&shares)).abs() < 1e-10, "{found} for {}", mean(&shares));
    assert!(found > 1e-3);
    assert_eq!((none[0].share_mean, none[0].branch_share), (Some(0.0), Some(0.0)), "nothing is added");

    let adapter = Method::Adapter { bottleneck: 3, scale: 2.0, placement: Placement::Parallel };
    let (rows, seen) = measured(&model, &peft(&model, adapter, Arm::H0, &["up_proj"]));
    let (_, seen_none) = measured(&model, &peft(&model, adapter, Arm::None, &["up_proj"]));
    let shares: Vec<f64> = CHOSEN
        .iter()
        .map(|&t| {
            let (whole, kept) = (&seen[path][3][t], &seen_none[path][3][t]);
            let part: Vec<f64> = whole.iter().zip(kept).map(|(a, b)| a - b).collect();
            norm(&part) / norm(whole)
        })
        .collect();
    let found = rows[0].branch_share.unwrap();
    assert!((found - mean(&shares)).abs() < 1e-10, "{found} for {}", mean(&shares));
}

#[test]
fn rows_without_a_direction_do_not_count() {
    let (part, whole) = ([3.0, 4.0, 1.0, 0.0, 0.0, 0.0], [0.0, 10.0, 0.0, 0.0, 2.0, 0.0]);
    assert_eq!(ratios(&part, &whole, 2).collect::<Vec<_>>(), [0.5, 0.0]);
    assert_eq!(cosines(&part, &whole, 2).collect::<Vec<_>>(), [0.8]);
    let mut moments = Moments::default();
    assert_eq!((moments.mean(), moments.std()), (None, None));
    [1.0, 2.0, 6.0].into_iter().for_each(|x| moments.add(x));
    assert_eq!((moments.mean(), moments.std()), (Some(3.0), Some(7.0f64.sqrt())));
    assert_eq!(snake_case("AttentionOutput"), "attention_output");
}
