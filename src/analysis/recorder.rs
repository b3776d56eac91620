//! The probe of a measuring run: what a batch's hidden states give, folded into the chunk they belong to.

mod device;

#[cfg(test)]
pub(super) use device::BY_DEVICE_SUMS;

use super::partner::Partner;
use super::plan::MeasurePlan;
use super::pooled::Pooled;
use super::similarity::EncodedText;
use super::text_values::{Stage, TextAt, TextResult, gather, text_values};
use crate::data::Packed;
use crate::kernels;
use crate::measures::device_sums::BatchRows;
use crate::measures::streaming::{States, TextRows};
use crate::measures::{AttentionMaps, EmbeddingTable, Need, Point, Real, Rows, TokenSet};
use crate::model::ModelError;
use crate::probe::{Probe, Site};
use candle_core::{DType, Device, Layout, Storage, Tensor, WithDType};
use rayon::prelude::*;
use std::ops::Deref;
use std::sync::Arc;

/// What a chunk of texts gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChunkResult {
    /// By text (in the order of the chunk), point, measure, token set; NaN is undefined.
    pub values: Vec<f64>,
    /// By point and token set.
    pub pooled: Vec<[Pooled; 3]>,
}

/// A text of the batch at hand.
#[derive(Debug)]
struct BatchText {
    /// Its place in the chunk.
    place: usize,
    index: u64,
    rows: TextRows,
    ids: Vec<u32>,
    /// Whether lookup measures are taken of it.
    lookup: bool,
}

/// The probe of one chunk.
pub(super) struct Recorder<'a> {
    plan: &'a MeasurePlan,
    stage: Stage<'a>,
    table: Option<&'a EmbeddingTable<'a>>,
    causal: bool,
    /// The same batch in the reference run, for CKA between the two.
    pub(super) partner: Option<Partner>,
    /// Whether states on the CPU are measured as those on another device are.
    pub(super) by_device_sums: bool,
    texts: Vec<BatchText>,
    /// Which rows of the batch are measured, once states on a device have come.
    rows: Option<BatchRows>,
    /// For each row of the batch the row that stands in for it, where tokens of different texts are put together.
    stand_ins: Option<Arc<[u32]>>,
    layer0: Option<Tensor>,
    h0: Option<Tensor>,
    /// The attention maps of a layer, a tensor a text of the batch.
    maps: Option<(usize, Vec<Tensor>)>,
    result: ChunkResult,
}

impl<'a> Recorder<'a> {
    /// A recorder for a chunk of `texts` texts; `pooled` are empty accumulators.
    pub(super) fn new(
        plan: &'a MeasurePlan,
        stage: Stage<'a>,
        table: Option<&'a EmbeddingTable<'a>>,
        causal: bool,
        texts: usize,
        pooled: Vec<[Pooled; 3]>,
    ) -> Self {
        let values = vec![f64::NAN; texts * plan.values_a_text()];
        Self {
            plan,
            stage,
            table,
            causal,
            partner: None,
            by_device_sums: false,
            texts: Vec::new(),
            rows: None,
            stand_ins: None,
            layer0: None,
            h0: None,
            maps: None,
            result: ChunkResult { values, pooled },
        }
    }

    /// Announces the texts of the next batch, what the initial residual reads for them, and their stand-ins.
    pub(super) fn expect(
        &mut self,
        chunk: &[EncodedText],
        batch: &[usize],
        h0: Option<Tensor>,
        lookup: impl Fn(u64) -> bool,
        stand_ins: Option<Arc<[u32]>>,
    ) -> Result<(), ModelError> {
        self.texts = batch
            .iter()
            .filter_map(|&place| chunk.get(place).map(|text| (place, text)))
            .map(|(place, text)| BatchText {
                place,
                index: text.index,
                rows: TextRows { special: text.special.clone(), span: text.span.clone() },
                ids: text.ids.clone(),
                lookup: lookup(text.index),
            })
            .collect();
        (self.h0, self.layer0, self.maps, self.stand_ins, self.rows) = (h0, None, None, stand_ins, None);
        if let Some(stand_ins) = &self.stand_ins {
            self.h0 = self.h0.as_ref().map(|h0| moved(h0, stand_ins)).transpose()?;
            // The ids move with the rows, so that a token still stands beside its own embedding.
            let all: Vec<u32> = self.texts.iter().flat_map(|text| text.ids.iter().copied()).collect();
            let mut others = stand_ins.iter().map(|&row| all.get(row as usize).copied().unwrap_or_default());
            for text in &mut self.texts {
                text.ids.iter_mut().zip(&mut others).for_each(|(id, other)| *id = other);
            }
        }
        Ok(())
    }

    /// What the chunk gave.
    pub(super) fn finish(self) -> ChunkResult {
        self.result
    }

    fn uses_layer0(&self) -> bool {
        let retention = self.stage.first && self.plan.needs(Need::Layer0);
        retention || (self.stage.means.is_some() && self.plan.needs(Need::CentredLayer0))
    }

    fn record_as<T: Real + WithDType>(
        &mut self,
        point: usize,
        tensors: &Tensors,
        batch: &Packed,
    ) -> Result<(), ModelError> {
        let width = tensors.states.dim(1)?;
        let own = tensors.states.storage_and_layout();
        let layer0 = tensors.layer0.as_ref().map(Tensor::storage_and_layout);
        let h0 = tensors.h0.as_ref().map(Tensor::storage_and_layout);
        let partner = tensors.partner.as_ref().map(Tensor::storage_and_layout);
        let maps = tensors.maps.iter().map(|map| {
            let heads = map.dim(0)?;
            Ok((heads, map.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?))
        });
        let others = Others {
            layer0: layer0.as_ref().map(|guard| values(guard)).transpose()?,
            h0: h0.as_ref().map(|guard| values(guard)).transpose()?,
            partner: match (&partner, &tensors.partner) {
                (Some(guard), Some(tensor)) => Some((values(guard)?, tensor.dim(1)?)),
                _ => None,
            },
            maps: &maps.collect::<Result<Vec<_>, ModelError>>()?,
        };
        self.measure(point, values(&own)?, others, width, batch)
    }

    fn measure<T: Real>(
        &mut self,
        point: usize,
        states: &[T],
        others: Others<'_, T>,
        width: usize,
        batch: &Packed,
    ) -> Result<(), ModelError> {
        let Some(&at) = self.plan.points.get(point) else { return Ok(()) };
        let (plan, stage, causal, table) = (self.plan, self.stage, self.causal, self.table);
        let of = |index: usize, from: &'_ [T], width: usize| -> std::ops::Range<usize> {
            let rows = batch.rows(index);
            (rows.start * width).min(from.len())..(rows.end * width).min(from.len())
        };
        let results: Vec<TextResult> = self
            .texts
            .par_iter()
            .enumerate()
            .map(|(index, text)| {
                let rows = batch.rows(index).len();
                let map = others.maps.get(index).filter(|_| text.lookup);
                let text_at = TextAt {
                    point: at,
                    states: States {
                        values: states.get(of(index, states, width)).unwrap_or_default(),
                        width,
                        layer0: others.layer0.and_then(|from| from.get(of(index, from, width))),
                        h0: others.h0.and_then(|from| from.get(of(index, from, width))),
                    },
                    text: &text.rows,
                    ids: &text.ids,
                    maps: map.and_then(|(heads, values)| Some((AttentionMaps::new(values, *heads, rows)?, causal))),
                    table: table.filter(|_| text.lookup),
                };
                text_values(&text_at, plan, stage)
            })
            .collect();
        self.keep(point, at, &results)?;
        let texts = &self.texts;
        let Some(pooled) = self.result.pooled.get_mut(point) else { return Ok(()) };
        pooled.par_iter_mut().zip(TokenSet::ALL).for_each(|(pooled, set)| {
            for (index, (text, result)) in texts.iter().zip(&results).enumerate() {
                if let Some(sums) = &result.sums {
                    pooled.add(sums.set(set));
                }
                let positions = text.rows.of(set, batch.rows(index).len());
                let part = |from: &'_ [T], width: usize| -> Vec<T> {
                    gather(from.get(of(index, from, width)).unwrap_or_default(), width, &positions).into_owned()
                };
                if stage.first
                    && let Some(sample) = &mut pooled.sample
                {
                    sample.add(text.index, &positions, Rows::new(&part(states, width), width));
                }
                if let (Some(cka), Some(layer0)) = (&mut pooled.cka_layer0, others.layer0) {
                    cka.add(Rows::new(&part(layer0, width), width), Rows::new(&part(states, width), width));
                }
                if let (Some(cka), Some((partner, other))) = (&mut pooled.cka_base, others.partner) {
                    cka.add(Rows::new(&part(partner, other), other), Rows::new(&part(states, width), width));
                }
            }
        });
        Ok(())
    }
}

impl Recorder<'_> {
    /// Puts the values of the batch's texts at a point in their places, unless a state is not finite.
    fn keep(&mut self, point: usize, at: Point, results: &[TextResult]) -> Result<(), ModelError> {
        let plan = self.plan;
        for (text, result) in self.texts.iter().zip(results) {
            if result.sums.as_ref().is_some_and(|sums| !sums.finite) {
                let (site, layer) = (at.site, at.layer);
                return Err(ModelError::NotFinite { text: text.index as usize, site, layer });
            }
            let start = text.place * plan.values_a_text() + point * plan.values_a_point();
            if let Some(cells) = self.result.values.get_mut(start..start + plan.values_a_point()) {
                cells.iter_mut().zip(&result.values).filter(|(_, v)| !v.is_nan()).for_each(|(cell, v)| *cell = *v);
            }
        }
        Ok(())
    }
}

/// What the states of a point are compared with.
#[derive(Clone, Copy)]
struct Others<'a, T> {
    layer0: Option<&'a [T]>,
    h0: Option<&'a [T]>,
    /// The reference run's states and their width.
    partner: Option<(&'a [T], usize)>,
    /// Heads and values, a text of the batch each; empty without.
    maps: &'a [(usize, Vec<T>)],
}

impl Probe for Recorder<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        if self.texts.len() != batch.sequences() {
            let (texts, sequences) = (self.texts.len(), batch.sequences());
            return Err(refused(format!("{texts} texts were announced for {sequences} sequences")));
        }
        let states = match &self.stand_ins {
            Some(rows) => moved(states, rows)?,
            None => states.clone(),
        };
        if site == Site::Embedding && self.uses_layer0() {
            self.layer0 = Some(states.clone());
        }
        let Some(point) = self.plan.point(site, layer) else { return Ok(()) };
        if self.measures_there(&states) {
            return self.record_there(point, &states, batch);
        }
        let partner = match &mut self.partner {
            Some(partner) => partner.at(Point { site, layer }),
            None => None,
        };
        // What was computed in 16 bits is measured in f32.
        let dtype = kernels::wide(states.dtype());
        let on_cpu = |tensor: Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(dtype)?.contiguous();
        let tensors = Tensors {
            states: on_cpu(states)?,
            layer0: self.layer0.clone().map(on_cpu).transpose()?,
            h0: self.h0.clone().map(on_cpu).transpose()?,
            partner: match (partner, &self.stand_ins) {
                (Some(partner), Some(rows)) => Some(on_cpu(moved(&partner.to_dtype(dtype)?, rows)?)?),
                (Some(partner), None) => Some(on_cpu(partner.to_dtype(dtype)?)?),
                (None, _) => None,
            },
            maps: match &self.maps {
                // A layer has one map: it stands at the layer's end and not at every site inside.
                Some((of, maps)) if *of == layer && site == Site::Block => maps.clone(),
                _ => Vec::new(),
            },
        };
        match dtype {
            DType::F32 => self.record_as::<f32>(point, &tensors, batch),
            DType::F64 => self.record_as::<f64>(point, &tensors, batch),
            other => Err(refused(format!("hidden states are {other:?}; only f32 and f64 are measured"))),
        }
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.plan.point(site, layer).is_some() || (site == Site::Embedding && self.uses_layer0())
    }

    fn wants_attention(&self, layer: usize) -> bool {
        let measured = self.plan.point(Site::Block, layer).is_some();
        // Tokens of different texts have no attention among them.
        let whole = self.stage.first && self.stand_ins.is_none();
        whole && measured && self.plan.needs(Need::Attention) && self.texts.iter().any(|text| text.lookup)
    }

    fn record_attention(&mut self, layer: usize, maps: &[Tensor], _: &Packed) -> Result<(), ModelError> {
        self.maps = Some((layer, maps.to_vec()));
        Ok(())
    }
}

/// The tensors behind [`Others`], on the CPU and contiguous.
struct Tensors {
    states: Tensor,
    layer0: Option<Tensor>,
    h0: Option<Tensor>,
    partner: Option<Tensor>,
    maps: Vec<Tensor>,
}

/// The values of a contiguous tensor on the CPU.
fn values<'g, T: WithDType, G: Deref<Target = Storage>>(
    (storage, layout): &'g (G, &Layout),
) -> Result<&'g [T], ModelError> {
    let Storage::Cpu(cpu) = &**storage else {
        return Err(refused("hidden states are not on the CPU".to_owned()));
    };
    let range = layout.contiguous_offsets().and_then(|(start, end)| cpu.as_slice::<T>().ok()?.get(start..end));
    range.ok_or_else(|| refused("hidden states are not contiguous or of two types".to_owned()))
}

/// The rows of `states` that stand in for its own.
fn moved(states: &Tensor, stand_ins: &[u32]) -> Result<Tensor, ModelError> {
    Ok(states.index_select(&Tensor::new(stand_ins, states.device())?, 0)?)
}

fn refused(reason: String) -> ModelError {
    ModelError::Tensor(candle_core::Error::Msg(reason))
}
