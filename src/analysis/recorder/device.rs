//! States that live on another device than the CPU: measured there, where sums suffice.

use super::{Recorder, refused};
use crate::analysis::text_values::{TextResult, moves, values_of_sums};
use crate::data::Packed;
use crate::measures::device_sums::{BatchRows, References};
use crate::measures::{Measure, Need, Point, TokenSet};
use crate::model::ModelError;
use candle_core::{DType, Tensor};

/// A run of this name is measured by the device's sums on the CPU too.
#[cfg(test)]
pub(in crate::analysis) const BY_DEVICE_SUMS: &str = "by device sums";

/// Σ ĥ of the rows less the corpus mean, and of how many, for every text of a batch.
type Centred = (Measure, TokenSet, Vec<(Vec<f64>, usize)>);

impl Recorder<'_> {
    /// Whether what this pass measures of `states` is measured where they are.
    pub(super) fn measures_there(&self, states: &Tensor) -> bool {
        let elsewhere = self.by_device_sums || !states.device().is_cpu();
        elsewhere && self.partner.is_none() && self.plan.sums_suffice(self.stage.first, self.stage.means.is_some())
    }

    /// Measures the states of a batch at a point; their rows stay on their device.
    pub(super) fn record_there(&mut self, point: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        let Some(&at) = self.plan.points.get(point) else { return Ok(()) };
        let states = computed(states)?;
        let dtype = states.dtype();
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => {
                let texts: Vec<_> =
                    self.texts.iter().enumerate().map(|(index, text)| (batch.rows(index), &text.rows)).collect();
                BatchRows::new(&texts, dtype, states.device())?
            }
        };
        let reference = |tensor: &Option<Tensor>, need: Need| match tensor {
            Some(tensor) if self.plan.needs(need) => tensor.to_dtype(dtype)?.contiguous().map(Some),
            _ => Ok(None),
        };
        let mut sums = Vec::new();
        if self.stage.first {
            let (layer0, h0) = (reference(&self.layer0, Need::Layer0)?, reference(&self.h0, Need::H0)?);
            let references = References { layer0: layer0.as_ref(), h0: h0.as_ref() };
            sums = rows.text_sums(&states, references, self.stage.wanted)?;
        }
        let centred = self.centred(at, &rows, &states)?;
        let mut sums = sums.into_iter();
        let results: Vec<TextResult> = self
            .texts
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let whole = (at, &text.rows, batch.rows(index).len());
                values_of_sums(whole, sums.next(), self.plan, self.stage, |measure, set| {
                    let mut all = centred.iter();
                    let (_, _, own) = all.find(|(m, s, _)| (*m, *s) == (measure, set))?;
                    own.get(index).cloned()
                })
            })
            .collect();
        self.rows = Some(rows);
        self.keep(point, at, &results)?;
        let Some(pooled) = self.result.pooled.get_mut(point) else { return Ok(()) };
        for (pooled, set) in pooled.iter_mut().zip(TokenSet::ALL) {
            results.iter().filter_map(|result| result.sums.as_ref()).for_each(|sums| pooled.add(sums.set(set)));
        }
        Ok(())
    }

    /// What the measures of the second pass need.
    fn centred(&self, at: Point, rows: &BatchRows, states: &Tensor) -> Result<Vec<Centred>, ModelError> {
        let Some(means) = self.stage.means else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for &measure in self.plan.measures.iter().filter(|measure| measure.second_pass()) {
            for set in TokenSet::ALL {
                if let Some((mean, scale)) = moves(measure, (at, set), means, states.dim(1)?) {
                    all.push((measure, set, rows.centred_unit_sums(states, set, mean, scale.as_deref())?));
                }
            }
        }
        Ok(all)
    }
}

/// The states in the type that they are measured in: 16 bit in f32.
fn computed(states: &Tensor) -> Result<Tensor, ModelError> {
    match states.dtype() {
        DType::F32 | DType::F64 => Ok(states.contiguous()?),
        DType::BF16 | DType::F16 => Ok(states.to_dtype(DType::F32)?.contiguous()?),
        other => Err(refused(format!("hidden states are {other:?}; only floats of 16 bit and more are measured"))),
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
