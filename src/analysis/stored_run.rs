//! Similarity and pairs of tokens of states that were made elsewhere.

use super::layers::Layers;
use super::similarity::{CosineForm, EncodedText, RunValues};
use super::states::{StatesError, StoredStates};
use super::token_pairs::{PairError, PairProbe, PairRequest, RunPairs};
use crate::measures::{CosineProbe, Point};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The stored texts as the analyses take them.
#[must_use]
pub fn encoded_texts(states: &StoredStates) -> Vec<EncodedText> {
    let texts = states.texts().iter().enumerate();
    texts
        .map(|(place, text)| EncodedText {
            index: text.text,
            group: text.group.clone(),
            ids: states.ids(place).to_vec(),
            special: text.special.clone(),
            offsets: text.offsets.clone().unwrap_or_default(),
            span: text.rows(),
        })
        .collect()
}

/// Refuses a layer that is asked for by name (with the option `option`) and not stored.
///
/// # Errors
/// Names the layer and those that there are.
pub fn check_layers(states: &StoredStates, layers: &Layers, option: &str, folder: &str) -> Result<(), String> {
    let stored: BTreeSet<usize> = states.points().map(|point| point.layer).collect();
    match layers {
        Layers::Some(list) => match list.iter().find(|layer| !stored.contains(layer)) {
            Some(layer) => {
                let there: Vec<String> = stored.iter().map(usize::to_string).collect();
                Err(format!(
                    "{option} {layer}: {folder} holds states of layers {}; choose among those",
                    there.join(", ")
                ))
            }
            None => Ok(()),
        },
        Layers::All => Ok(()),
    }
}

/// Batches of places of `count` texts.
fn batches(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| start..(start + size).min(count))
}

/// Measures stored states as [`super::similarity::measure_run`] does a model; only stored points are in the result.
/// `tick` hears how many texts each batch held.
///
/// # Errors
/// The states cannot be read.
pub fn measure_stored(
    run: &str,
    states: &StoredStates,
    layers: &Layers,
    batch_size: usize,
    tick: &mut dyn FnMut(usize),
) -> Result<RunValues, StatesError> {
    let texts = encoded_texts(states);
    let stored: Vec<Point> = states.points().filter(|point| layers.contains(*point)).collect();
    let (mut forms, mut centre, mut points) = (BTreeMap::new(), None, Vec::new());
    for form in [CosineForm::Plain, CosineForm::Centred] {
        let mut probe = CosineProbe::new(states.depth(), centre.take()).only(|point| stored.contains(&point));
        for places in batches(texts.len(), batch_size) {
            let group = texts.get(places.clone()).unwrap_or_default();
            probe.expect(group.iter().map(|text| (text.special.as_slice(), text.span.clone())));
            states.replay(places, &mut probe)?;
            tick(group.len());
        }
        centre = Some(probe.corpus_means());
        let kept: Vec<bool> = probe.points().iter().map(|point| stored.contains(point)).collect();
        points = probe.points().iter().copied().filter(|point| stored.contains(point)).collect();
        let values = probe.values().iter().map(|text| {
            let own = text.iter().zip(&kept).filter(|(_, kept)| **kept);
            own.map(|(value, _)| *value).collect()
        });
        forms.insert(form, values.collect());
    }
    let texts = texts.iter().map(|text| (text.index, text.group.clone(), text.span.len())).collect();
    Ok(RunValues { run: run.to_owned(), points, texts, values: forms })
}

/// Measures the pairs of tokens of stored states.
///
/// # Errors
/// A heat map is asked of a text that is not there or too long, or the states cannot be read.
pub fn measure_stored_pairs(
    run: &str,
    states: &StoredStates,
    layers: &Layers,
    request: &PairRequest,
    batch_size: usize,
) -> Result<RunPairs, PairError> {
    let texts = encoded_texts(states);
    request.check(&texts)?;
    let mut probe = PairProbe::new(request, layers);
    let tokens = states.texts();
    for places in batches(texts.len(), batch_size) {
        let announced =
            places.clone().filter_map(|place| Some(request.text(place, texts.get(place)?, &tokens.get(place)?.tokens)));
        probe.expect(announced.collect());
        states.replay(places, &mut probe).map_err(|source| PairError::States { run: run.to_owned(), source })?;
    }
    Ok(probe.finish(run))
}
