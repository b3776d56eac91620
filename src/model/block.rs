//! A block: attention, then feed-forward, each read from the residual stream and added to it.

use super::ModelError;
use super::architecture::{Names, NormPlace, Role};
use super::attention_maps::attention_maps;
use super::linear::Linear;
use super::norm::Norm;
use crate::data::Packed;
use crate::kernels::{self, Activation, AttentionShape};
use crate::peft::PassState;
use crate::probe::{Probe, Site};
use candle_core::Tensor;
use std::sync::Arc;

/// The weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    /// Its place, from 0.
    pub(super) index: usize,
    pub(super) norm_place: NormPlace,
    pub(super) attention_norm: Norm,
    pub(super) feed_forward_norm: Norm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) inner: Inner,
    pub(super) down: Linear,
}

/// What a feed-forward does before its last linear.
#[derive(Debug)]
pub(super) enum Inner {
    /// `silu(gate(x)) · up(x)`.
    Gated { gate: Linear, up: Linear },
    /// `activation(up(x))`.
    Plain { up: Linear, activation: Activation },
}

/// What the blocks of one forward pass share.
pub(super) struct Run<'a> {
    pub(super) shape: AttentionShape,
    /// Cosines and sines, and the position of every token; where queries and keys are rotated.
    pub(super) rotary: Option<(Tensor, Tensor, Arc<[u32]>)>,
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
    /// Every tensor by its full name.
    pub(super) fn tensors_mut(&mut self, names: &Names) -> Vec<(String, &mut Tensor)> {
        let Self { index, attention_norm, feed_forward_norm, query, key, value, output, inner, down, .. } = self;
        let mut all = Vec::new();
        for (name, norm) in [(names.attention_norm, attention_norm), (names.feed_forward_norm, feed_forward_norm)] {
            let path = names.in_block(*index, name);
            all.extend(norm.tensors_mut().map(|(tensor, value)| (format!("{path}.{tensor}"), value)));
        }
        let (gate, up) = match inner {
            Inner::Gated { gate, up } => (Some(gate), up),
            Inner::Plain { up, .. } => (None, up),
        };
        for linear in [query, key, value, output].into_iter().chain(gate).chain([up, down]) {
            let path = names.in_block(*index, names.linear(linear.role));
            all.push((format!("{path}.weight"), &mut linear.weight));
            all.extend(linear.bias.as_mut().map(|bias| (format!("{path}.bias"), bias)));
        }
        all
    }

    /// The stream after the block.
    pub(super) fn forward(&self, h: &Tensor, run: &Run<'_>, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let mut watch = Watch { probe, layer: self.index + 1, batch: run.batch };
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
        let x = self.input(part, h)?;
        let added = match part {
            SubLayer::Attention => self.attention(&x, run, run.state, Some(watch))?,
            SubLayer::FeedForward => self.feed_forward(&x, run.state)?,
        };
        let sites = part.sites();
        if watch.wants(sites.added) {
            watch.record(sites.added, &added)?;
        }
        let stream = self.join(part, h, &added)?;
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
                watch.record(other_stream, &self.join(part, h, &other)?)?;
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
        let state = match no_peft {
            true => run.state.without_peft(self.index, part.roles()),
            false => run.state.without_h0(self.index, part.roles()),
        };
        match (state, part) {
            (None, _) => Ok(added.clone()),
            (Some(state), SubLayer::Attention) => self.attention(x, run, &state, None),
            (Some(state), SubLayer::FeedForward) => Ok(self.feed_forward(x, &state)?),
        }
    }

    fn norm(&self, part: SubLayer) -> &Norm {
        match part {
            SubLayer::Attention => &self.attention_norm,
            SubLayer::FeedForward => &self.feed_forward_norm,
        }
    }

    /// What the sub-layer reads of the stream.
    fn input(&self, part: SubLayer, h: &Tensor) -> candle_core::Result<Tensor> {
        match self.norm_place {
            NormPlace::Before => self.norm(part).forward(h),
            NormPlace::After => Ok(h.clone()),
        }
    }

    /// The stream after `added`.
    fn join(&self, part: SubLayer, h: &Tensor, added: &Tensor) -> candle_core::Result<Tensor> {
        let sum = kernels::scaled_add(h, added, 1.0)?;
        match self.norm_place {
            NormPlace::Before => Ok(sum),
            NormPlace::After => self.norm(part).forward(&sum),
        }
    }

    fn attention(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        state: &PassState<'_>,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Tensor, ModelError> {
        let rotated = |x: Tensor, heads: usize| match &run.rotary {
            Some((cos, sin, positions)) => kernels::rope(&x, heads, cos, sin, positions),
            None => Ok(x),
        };
        let q = rotated(self.query.forward(x, state)?, run.shape.heads)?;
        let k = rotated(self.key.forward(x, state)?, run.shape.kv_heads)?;
        let v = self.value.forward(x, state)?;
        let mixed = kernels::attention(&q, &k, &v, run.shape, &run.batch.offsets)?;
        if let Some(watch) = watch {
            if watch.probe.wants_attention(watch.layer) {
                let maps = attention_maps(&q, &k, run.shape, run.batch)?;
                watch.probe.record_attention(watch.layer, &maps, run.batch)?;
            }
            for head in 0..run.shape.heads {
                if watch.wants(Site::Head(head)) {
                    let added = self.output.base_columns(&mixed, head * run.shape.head_dim, run.shape.head_dim)?;
                    watch.record(Site::Head(head), &added)?;
                }
            }
        }
        Ok(self.output.forward(&mixed, state)?)
    }

    fn feed_forward(&self, x: &Tensor, state: &PassState<'_>) -> candle_core::Result<Tensor> {
        let inner = match &self.inner {
            Inner::Gated { gate, up } => kernels::swiglu(&gate.forward(x, state)?, &up.forward(x, state)?)?,
            Inner::Plain { up, activation } => kernels::activation(&up.forward(x, state)?, *activation)?,
        };
        self.down.forward(&inner, state)
    }
}
