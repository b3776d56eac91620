//! Whole runs measured by the device's sums against the same by slices, on the CPU.

use super::*;
use crate::analysis::layers::Layers;
use crate::analysis::plan::{MeasurePlan, Sites};
use crate::analysis::run_values::RunValues;
use crate::analysis::similarity::{EncodedText, RunInput, RunModel, RunState, StateSource, Unwatched, measure_run};
use crate::measures::{Class, Scope};
use crate::model::LoadedModel;
use candle_core::Device;
use std::collections::BTreeSet;

/// Texts of several lengths, one of a single token, with a special token in front.
fn encoded() -> Vec<EncodedText> {
    let text = |(index, length): (u64, usize)| EncodedText {
        index,
        ids: (0..length).map(|i| 10 + ((i * 7 + index as usize * 13) % 80) as u32).collect(),
        special: (0..length).map(|i| i == 0).collect(),
        span: 0..length,
        ..EncodedText::default()
    };
    (0..).zip([12, 1, 40, 2, 25, 7]).map(text).collect()
}

fn measured(name: &str, dtype: DType, measures: Vec<Measure>) -> (RunValues, MeasurePlan) {
    let model = LoadedModel::embedded(dtype, &Device::Cpu).unwrap();
    let (texts, none) = (encoded(), BTreeSet::new());
    let plan = MeasurePlan::new(measures, &Sites::Usual, &Layers::All, model.transformer.architecture(), 0);
    let input = RunInput {
        name,
        source: StateSource::Model(RunModel { transformer: &model.transformer, peft: None }),
        reference: None,
        reference_means: None,
        texts: &texts,
        lookup: &none,
        means: None,
        other_texts: false,
        batch_size: 4,
        scratch: None,
    };
    (measure_run(&input, &plan, RunState::default(), &mut Unwatched).unwrap().0, plan)
}

/// The largest difference of each measure, in proportion to values above 1.
fn apart(dtype: DType, measures: &[Measure]) -> Vec<(Measure, f64)> {
    let (slices, plan) = measured("slices", dtype, measures.to_vec());
    let (products, _) = measured(BY_DEVICE_SUMS, dtype, measures.to_vec());
    let mut largest = vec![0.0_f64; measures.len()];
    let mut compared = 0;
    for text in 0..encoded().len() {
        for place in 0..plan.points.len() {
            for (slot, largest) in largest.iter_mut().enumerate() {
                for set in TokenSet::ALL {
                    let values = [&slices, &products].map(|run| run.value(text, place, slot, set));
                    match values {
                        [Some(a), Some(b)] => {
                            compared += 1;
                            *largest = largest.max((a - b).abs() / a.abs().max(1.0));
                        }
                        both => assert_eq!(both[0], both[1], "{:?} of text {text} at {place}", measures[slot]),
                    }
                }
            }
        }
    }
    assert!(compared > 200 * measures.len(), "{compared}");
    measures.iter().copied().zip(largest).collect()
}

fn summed() -> Vec<Measure> {
    let sums = |m: &Measure| m.class() == Class::Streaming && m.scope() == Scope::Text;
    Measure::ALL.into_iter().filter(sums).collect()
}

#[test]
fn similarity_is_that_of_slices() {
    let measures = summed();
    assert!(measures.contains(&Measure::CosineCentred) && measures.contains(&Measure::RankResidual));
    for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
        for (measure, away) in apart(dtype, &measures) {
            println!("{dtype:?} {measure}: {away:.1e}");
            assert!(away < bound, "{measure} in {dtype:?}: {away:e}");
        }
    }
}

#[test]
fn what_needs_rows_is_measured_of_rows() {
    let mixed = [Measure::Cosine, Measure::EffectiveRank];
    for (measure, away) in apart(DType::F32, &mixed) {
        assert_eq!(away, 0.0, "{measure} was measured by other sums");
    }
}
