//! A block: attention, then feed-forward, each read from the residual stream and added to it.

use super::ModelError;
use super::architecture::{Architecture, Role};
use super::attention_maps::attention_maps;
use super::linear::Linear;
use crate::data::Packed;
use crate::kernels::{self, AttentionShape};
use crate::peft::PassState;
use crate::probe::{Probe, Site};
use candle_core::Tensor;
use std::sync::Arc;

/// The weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Tensor,
    pub(super) feed_forward_norm: Tensor,
    pub(super) linears: [Linear; 7],
}

/// What the blocks of one forward pass share.
pub(super) struct Run<'a> {
    pub(super) architecture: &'a Architecture,
    pub(super) shape: AttentionShape,
    /// Cosines and sines, and the position of every token.
    pub(super) rotary: (Tensor, Tensor, Arc<[u32]>),
    pub(super) batch: &'a Packed,
    pub(super) state: &'a PassState<'a>,
}

/// A half of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubLayer {
    Attention,
    FeedForward,
}

/// The sites of a sub-layer, see [`Site`].
struct Sites {
    added: Site,
    stream: Site,
    /// Without PEFT, then without the λ term: what changes in the added vectors, and the stream.
    counterfactuals: [(Site, Site); 2],
}

impl SubLayer {
    fn sites(self) -> Sites {
        match self {
            Self::Attention => Sites {
                added: Site::Attention,
                stream: Site::AfterAttention,
                counterfactuals: [
                    (Site::AttentionPeft, Site::AfterAttentionNoPeft),
                    (Site::AttentionH0, Site::AfterAttentionNoH0),
                ],
            },
            Self::FeedForward => Sites {
                added: Site::FeedForward,
                stream: Site::Block,
                counterfactuals: [(Site::FeedForwardPeft, Site::BlockNoPeft), (Site::FeedForwardH0, Site::BlockNoH0)],
            },
        }
    }

    fn roles(self) -> &'static [Role] {
        match self {
            Self::Attention => &[Role::Query, Role::Key, Role::Value, Role::AttentionOutput],
            Self::FeedForward => &[Role::Gate, Role::Up, Role::Down],
        }
    }
}

/// A probe at one layer.
struct Watch<'a> {
    probe: &'a mut dyn Probe,
    layer: usize,
    batch: &'a Packed,
}

impl Watch<'_> {
    fn wants(&self, site: Site) -> bool {
        self.probe.wants(site, self.layer)
    }

    fn record(&mut self, site: Site, states: &Tensor) -> Result<(), ModelError> {
        self.probe.record(site, self.layer, states, self.batch)
    }
}

impl Block {
    /// The stream after the block whose number, from 1, is `layer`.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        layer: usize,
        run: &Run<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor, ModelError> {
        let mut watch = Watch { probe, layer, batch: run.batch };
        let h = self.sub_layer(SubLayer::Attention, h, run, &mut watch)?;
        self.sub_layer(SubLayer::FeedForward, &h, run, &mut watch)
    }

    fn sub_layer(
        &self,
        part: SubLayer,
        h: &Tensor,
        run: &Run<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor, ModelError> {
        let x = self.input(part, h, run)?;
        let added = match part {
            SubLayer::Attention => self.attention(&x, run, run.state, Some(watch))?,
            SubLayer::FeedForward => self.feed_forward(&x, run.state)?,
        };
        let sites = part.sites();
        if watch.wants(sites.added) {
            watch.record(sites.added, &added)?;
        }
        let stream = self.join(h, &added)?;
        if watch.wants(sites.stream) {
            watch.record(sites.stream, &stream)?;
        }
        for (index, (difference, other_stream)) in sites.counterfactuals.into_iter().enumerate() {
            let (wants_difference, wants_stream) = (watch.wants(difference), watch.wants(other_stream));
            if !wants_difference && !wants_stream {
                continue;
            }
            let other = self.counterfactual(part, index == 0, &x, &added, run)?;
            if wants_difference {
                watch.record(difference, &(&added - &other)?)?;
            }
            if wants_stream {
                watch.record(other_stream, &self.join(h, &other)?)?;
            }
        }
        Ok(stream)
    }

    /// What the sub-layer would add for the same `x` without PEFT (`no_peft`), else without the λ term; where
    /// there is nothing to leave out, `added` itself.
    fn counterfactual(
        &self,
        part: SubLayer,
        no_peft: bool,
        x: &Tensor,
        added: &Tensor,
        run: &Run<'_>,
    ) -> Result<Tensor, ModelError> {
        let layer = self.linears[0].layer;
        let state = match no_peft {
            true => run.state.without_peft(layer, part.roles()),
            false => run.state.without_h0(layer, part.roles()),
        };
        match (state, part) {
            (None, _) => Ok(added.clone()),
            (Some(state), SubLayer::Attention) => self.attention(x, run, &state, None),
            (Some(state), SubLayer::FeedForward) => Ok(self.feed_forward(x, &state)?),
        }
    }

    /// What the sub-layer reads of the stream.
    fn input(&self, part: SubLayer, h: &Tensor, run: &Run<'_>) -> candle_core::Result<Tensor> {
        let weight = match part {
            SubLayer::Attention => &self.attention_norm,
            SubLayer::FeedForward => &self.feed_forward_norm,
        };
        kernels::rms_norm(h, weight, run.architecture.norm_eps)
    }

    /// The stream after `added`.
    fn join(&self, h: &Tensor, added: &Tensor) -> candle_core::Result<Tensor> {
        kernels::scaled_add(h, added, 1.0)
    }

    fn attention(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        state: &PassState<'_>,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Tensor, ModelError> {
        let [query, key, value, output, ..] = &self.linears;
        let (cos, sin, positions) = &run.rotary;
        let q = kernels::rope(&query.forward(x, state)?, run.shape.heads, cos, sin, positions)?;
        let k = kernels::rope(&key.forward(x, state)?, run.shape.kv_heads, cos, sin, positions)?;
        let v = value.forward(x, state)?;
        let mixed = kernels::attention(&q, &k, &v, run.shape, &run.batch.offsets)?;
        if let Some(watch) = watch {
            if watch.probe.wants_attention(watch.layer) {
                let maps = attention_maps(&q, &k, run.shape, run.batch)?;
                watch.probe.record_attention(watch.layer, &maps, run.batch)?;
            }
            for head in 0..run.shape.heads {
                if watch.wants(Site::Head(head)) {
                    let added = output.base_columns(&mixed, head * run.shape.head_dim, run.shape.head_dim)?;
                    watch.record(Site::Head(head), &added)?;
                }
            }
        }
        Ok(output.forward(&mixed, state)?)
    }

    fn feed_forward(&self, x: &Tensor, state: &PassState<'_>) -> candle_core::Result<Tensor> {
        let [.., gate, up, down] = &self.linears;
        let inner = kernels::swiglu(&gate.forward(x, state)?, &up.forward(x, state)?)?;
        down.forward(&inner, state)
    }
}
