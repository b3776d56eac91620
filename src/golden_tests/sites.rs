//! The sites inside a block: against the written-out reference, and against each other.

use super::*;
use crate::peft::Policy;
use std::collections::BTreeSet;

/// Keeps everything that a forward pass can show.
#[derive(Default)]
struct KeepAll {
    states: BTreeMap<(Site, usize), Tensor>,
    maps: BTreeMap<usize, Vec<Tensor>>,
}

impl Probe for KeepAll {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        assert!(self.states.insert((site, layer), states.detach()).is_none(), "{site} {layer} twice");
        Ok(())
    }

    fn wants(&self, _: Site, _: usize) -> bool {
        true
    }

    fn wants_attention(&self, _: usize) -> bool {
        true
    }

    fn record_attention(&mut self, layer: usize, maps: &[Tensor], _: &Packed) -> Result<(), ModelError> {
        assert!(self.maps.insert(layer, maps.to_vec()).is_none(), "maps of {layer} twice");
        Ok(())
    }
}

impl KeepAll {
    fn of(model: &Transformer, peft: Option<&Peft>, batch: &Packed) -> Self {
        let mut keep = Self::default();
        model.hidden_states(batch, &Pass::inference(peft), &mut keep).unwrap();
        keep
    }

    fn at(&self, site: Site, layer: usize) -> &Tensor {
        &self.states[&(site, layer)]
    }
}

/// The modules of a case of `sibo/cases.json`, frozen.
fn case_peft(model: &Transformer, name: &str) -> Peft {
    let cases = json(&golden("sibo/cases.json"));
    let case = cases.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone();
    let mut peft = Peft::initial(model, case_config(&case), 0).unwrap();
    let file = golden("sibo").join(case["tensors"].as_str().unwrap());
    let values = load_adapter_file(&file).unwrap();
    for (name, variable) in peft.variables().unwrap() {
        variable.set(&values[&name].to_dtype(model.dtype()).unwrap()).unwrap();
    }
    peft.frozen()
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

#[test]
fn every_site_is_that_of_the_written_out_reference() {
    let expected = tensors(&golden("sites/golden.safetensors"));
    let batch = Packed::from_sequences(&gqa_sequences());
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 2e-7)] {
        let model = model(&golden("models/gqa_tied"), dtype);
        let peft = case_peft(&model, "lora_every_linear_all_h0");
        let keep = KeepAll::of(&model, Some(&peft), &batch);
        let mut compared = BTreeSet::new();
        for layer in 1..=3 {
            let heads = [0, 3, 5].map(Site::Head);
            let inner = Site::ALL.into_iter().filter(|s| !matches!(s, Site::Embedding | Site::FinalNorm));
            for site in inner.chain(heads) {
                let key = format!("{site}_{layer}");
                close(&format!("{dtype:?} {key}"), &rows(keep.at(site, layer), &batch, 1), &expected[&key], tolerance);
                compared.insert(key);
            }
            let key = format!("maps_{layer}");
            close(&key, &keep.maps[&layer][1], &expected[&key], tolerance);
            compared.insert(key);
        }
        assert_eq!(compared.len(), expected.len());
    }
}

#[test]
fn the_parts_add_up() {
    let model = model(&golden("models/gqa_tied"), DType::F64);
    let batch = Packed::from_sequences(&gqa_sequences());
    let close = |what: &str, a: Tensor, b: &Tensor| {
        let error = relative_error(&a, b);
        assert!(error < 1e-13, "{what}: {error:.1e}");
    };
    for name in ["lora_all_h0", "adapter_both_all_h0", "adapter_after_all_h0-normed", "parallel_official_h0"] {
        let peft = case_peft(&model, name);
        let keep = KeepAll::of(&model, Some(&peft), &batch);
        for layer in 1..=3 {
            let at = |site| keep.at(site, layer);
            let before = if layer == 1 { keep.at(Site::Embedding, 0) } else { keep.at(Site::Block, layer - 1) };
            close("after attention", (before + at(Site::Attention)).unwrap(), at(Site::AfterAttention));
            close("block", (at(Site::AfterAttention) + at(Site::FeedForward)).unwrap(), at(Site::Block));
            for (stream, other, difference) in [
                (Site::AfterAttention, Site::AfterAttentionNoPeft, Site::AttentionPeft),
                (Site::AfterAttention, Site::AfterAttentionNoH0, Site::AttentionH0),
                (Site::Block, Site::BlockNoPeft, Site::FeedForwardPeft),
                (Site::Block, Site::BlockNoH0, Site::FeedForwardH0),
            ] {
                close("difference", (at(other) + at(difference)).unwrap(), at(stream));
            }
            for map in &keep.maps[&layer] {
                let sums = map.sum(candle_core::D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-14));
            }
        }
    }
    // No PEFT on the output projection, which has no bias here: the heads are all of attention.
    let keep = KeepAll::of(&model, Some(&case_peft(&model, "lora_all_h0")), &batch);
    for layer in 1..=3 {
        let heads: Vec<&Tensor> = (0..6).map(|head| keep.at(Site::Head(head), layer)).collect();
        let sum = Tensor::stack(&heads, 0).unwrap().sum(0).unwrap();
        close("heads", sum, keep.at(Site::Attention, layer));
    }
}

#[test]
fn what_is_not_there_changes_exactly_nothing() {
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let batch = Packed::from_sequences(&gqa_sequences());
    let differences = [Site::AttentionPeft, Site::AttentionH0, Site::FeedForwardPeft, Site::FeedForwardH0];
    let zero_of = |keep: &KeepAll| -> Vec<[bool; 4]> {
        (1..=3).map(|layer| differences.map(|site| largest(keep.at(site, layer)) == 0.0)).collect()
    };
    assert_eq!(zero_of(&KeepAll::of(&model, None, &batch)), [[true; 4]; 3]);
    let official = case_peft(&model, "lora_official_h0");
    assert_eq!(zero_of(&KeepAll::of(&model, Some(&official), &batch)), [[false, true, false, false]; 3]);
    let none = case_peft(&model, "lora_all_none");
    assert_eq!(zero_of(&KeepAll::of(&model, Some(&none), &batch)), [[false, true, false, true]; 3]);
    let residual = official.config().residual.map(|r| ResidualConfig { lambda: 0.0, policy: Policy::All, ..r });
    let vanilla = official.with_residual(&model, residual).unwrap();
    let keep = KeepAll::of(&model, Some(&vanilla), &batch);
    assert_eq!(zero_of(&keep), [[false, true, false, true]; 3]);
    // The counterfactual of the whole pass and of each layer alone agree where nothing came before.
    let base = KeepAll::of(&model, None, &batch);
    let first = [keep.at(Site::AfterAttentionNoPeft, 1), base.at(Site::AfterAttention, 1)];
    assert_eq!(relative_error(first[0], first[1]), 0.0);
}

#[test]
fn what_is_not_asked_for_is_not_recorded_and_looking_changes_nothing() {
    let model = model(&golden("models/gqa_tied"), DType::F32);
    let batch = Packed::from_sequences(&gqa_sequences());
    let peft = case_peft(&model, "lora_all_h0");
    let mut usual = Keep::default();
    model.hidden_states(&batch, &Pass::inference(Some(&peft)), &mut usual).unwrap();
    let all = KeepAll::of(&model, Some(&peft), &batch);
    let sites: Vec<(Site, usize)> = usual.0.iter().map(|(at, _)| *at).collect();
    let blocks = (1..=3).map(|layer| (Site::Block, layer));
    let expected: Vec<_> =
        std::iter::once((Site::Embedding, 0)).chain(blocks).chain(std::iter::once((Site::FinalNorm, 3))).collect();
    assert_eq!(sites, expected);
    for ((site, layer), states) in &usual.0 {
        assert_eq!(relative_error(states, all.at(*site, *layer)), 0.0);
    }
    assert_eq!(all.states.len(), 3 * (12 + 6) + 2);
    assert_eq!(relative_error(&model.h0(&batch).unwrap(), all.at(Site::Embedding, 0)), 0.0);
}
