//! A block: attention, then feed-forward, each read from the residual stream and added to it.

use super::ModelError;
use super::architecture::{Names, Role, SubLayerNorms};
use super::attention_maps::{Added, attention_maps};
use super::disentangled::Distances;
use super::linear::Linear;
use super::memory::Memories;
use super::norm::Norm;
use super::rotary::Rotation;
use crate::data::Packed;
use crate::kernels::{self, Activation, AttentionShape, Columns, FrozenWeight, RelativeBias};
use crate::peft::PassState;
use crate::probe::{Probe, Site};
use crate::remedies::Heads;
use candle_core::Tensor;

/// The weights of one block.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Its place, from 0.
    pub(super) index: usize,
    /// Of attention and of the feed-forward.
    pub(super) norms: [Norms; 2],
    /// What the feed-forward reads.
    pub(super) feed_forward_reads: Reads,
    pub(super) projections: Projections,
    /// What projects a table of distances for keys and for queries to meet, where other linears than theirs do.
    pub(super) distance_projections: [Option<(Tensor, Tensor)>; 2],
    /// Of queries and keys.
    pub(super) head_norms: [Option<Norm>; 2],
    pub(super) output: Linear,
    pub(super) inner: Inner,
    pub(super) activation: Activation,
    pub(super) down: Linear,
}

/// The norms of a sub-layer; where one is missing, nothing happens.
#[derive(Debug, Clone)]
pub(super) struct Norms {
    pub(super) before: Option<Norm>,
    pub(super) added: Option<Norm>,
    pub(super) after: Option<Norm>,
}

/// What a feed-forward reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The stream that attention left.
    AfterAttention,
    /// The block's input, beside attention.
    BlockInput,
    /// What attention reads, norm and all.
    WithAttention,
}

/// How queries, keys and values are made.
#[derive(Debug, Clone)]
pub(super) enum Projections {
    Separate { query: Linear, key: Linear, value: Linear },
    Fused { all: Linear, columns: [Columns; 3] },
}

/// What a feed-forward does before its last linear.
#[derive(Debug, Clone)]
pub(super) enum Inner {
    /// `activation(gate(x)) · up(x)`.
    Gated { gate: Linear, up: Linear },
    /// The same from one linear, whose first half is the gate.
    FusedGated { both: Linear, columns: [Columns; 2] },
    /// `activation(up(x))`.
    Plain { up: Linear },
}

/// What the blocks of one forward pass share.
pub(super) struct Run<'a> {
    /// The attention of each block.
    pub(super) shapes: Vec<AttentionShape>,
    /// What rotates queries and keys, if they are; then what does in blocks that do not see all.
    pub(super) rotations: [Option<Rotation>; 2],
    /// What scores gain by distance.
    pub(super) bias: Option<RelativeBias>,
    /// What queries and keys meet by distance.
    pub(super) distances: Option<Distances<'a>>,
    /// The values of the first block, where a remedy reads them everywhere.
    pub(super) first_values: Option<Tensor>,
    pub(super) batch: &'a Packed,
    pub(super) state: &'a PassState<'a>,
    /// What is kept of the texts, where a pass reads on.
    pub(super) memories: Option<Memories<'a>>,
}

impl Run<'_> {
    fn shape(&self, index: usize) -> Result<AttentionShape, ModelError> {
        match self.shapes.get(index) {
            Some(&shape) => Ok(shape),
            None => Err(candle_core::Error::Msg(format!("block {index} has no attention")).into()),
        }
    }

    fn rotation(&self, shape: AttentionShape) -> Option<&Rotation> {
        let [everywhere, local] = &self.rotations;
        local.as_ref().filter(|_| shape.reach.is_some()).or(everywhere.as_ref())
    }
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
            Self::Attention => &[Role::Query, Role::Key, Role::Value, Role::QueryKeyValue, Role::AttentionOutput],
            Self::FeedForward => &[Role::Gate, Role::Up, Role::GateUp, Role::Down],
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
        let Self { index, norms, head_norms, projections, distance_projections, output, inner, down, .. } = self;
        let mut named: Vec<(&str, &mut Norm)> = Vec::new();
        for (names, norms) in names.norms.iter().zip(norms) {
            let SubLayerNorms { before, added, after } = *names;
            let own = [(before, &mut norms.before), (added, &mut norms.added), (after, &mut norms.after)];
            named.extend(own.into_iter().filter_map(|(name, norm)| Some((name, norm.as_mut()?))));
        }
        let heads = [names.query_norm, names.key_norm].into_iter().zip(head_norms);
        named.extend(heads.filter_map(|(name, norm)| Some((name, norm.as_mut()?))));
        let mut all = Vec::new();
        for (name, norm) in named {
            let path = names.in_block(*index, name);
            all.extend(norm.tensors_mut().map(|(tensor, value)| (format!("{path}.{tensor}"), value)));
        }
        for (name, linear) in names.position_projections.iter().zip(distance_projections) {
            let Some((weight, bias)) = linear else { continue };
            let path = names.in_block(*index, name);
            all.extend([(format!("{path}.weight"), weight), (format!("{path}.bias"), bias)]);
        }
        let attention = match projections {
            Projections::Separate { query, key, value } => vec![query, key, value],
            Projections::Fused { all, .. } => vec![all],
        };
        let feed_forward = match inner {
            Inner::Gated { gate, up } => vec![gate, up],
            Inner::FusedGated { both, .. } => vec![both],
            Inner::Plain { up } => vec![up],
        };
        for linear in attention.into_iter().chain([output]).chain(feed_forward).chain([down]) {
            let path = names.in_block(*index, names.linear(linear.role));
            // What is quantised is never trained, and has no tensor that could be.
            if let FrozenWeight::Plain(weight) = &mut linear.weight {
                all.push((format!("{path}.weight"), weight));
            }
            all.extend(linear.bias.as_mut().map(|bias| (format!("{path}.bias"), bias)));
        }
        all
    }

    /// The linear of this role, if the block has one.
    pub(super) fn linear(&self, role: Role) -> Option<&Linear> {
        let mut linears = vec![&self.output, &self.down];
        match &self.projections {
            Projections::Separate { query, key, value } => linears.extend([query, key, value]),
            Projections::Fused { all, .. } => linears.push(all),
        }
        match &self.inner {
            Inner::Gated { gate, up } => linears.extend([gate, up]),
            Inner::FusedGated { both, .. } => linears.push(both),
            Inner::Plain { up } => linears.push(up),
        }
        linears.into_iter().find(|linear| linear.role == role)
    }

    /// The same weights at the place of another block.
    pub(super) fn at(&self, index: usize) -> Self {
        let mut block = self.clone();
        block.index = index;
        let mut linears = vec![&mut block.output, &mut block.down];
        match &mut block.projections {
            Projections::Separate { query, key, value } => linears.extend([query, key, value]),
            Projections::Fused { all, .. } => linears.push(all),
        }
        match &mut block.inner {
            Inner::Gated { gate, up } => linears.extend([gate, up]),
            Inner::FusedGated { both, .. } => linears.push(both),
            Inner::Plain { up } => linears.push(up),
        }
        linears.into_iter().for_each(|linear| linear.layer = index);
        block
    }

    /// The stream after the block.
    pub(super) fn forward(&self, h: &Tensor, run: &Run<'_>, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let mut watch = Watch { probe, layer: self.index + 1, batch: run.batch };
        let x = self.input(SubLayer::Attention, h)?;
        let stream = self.sub_layer(SubLayer::Attention, &x, h, run, &mut watch)?;
        let x = self.feed_forward_input(x, h, &stream, run)?;
        self.sub_layer(SubLayer::FeedForward, &x, &stream, run, &mut watch)
    }

    /// What the feed-forward reads, where attention read `x` of the stream `h` and left `stream`.
    fn feed_forward_input(&self, x: Tensor, h: &Tensor, stream: &Tensor, run: &Run<'_>) -> Result<Tensor, ModelError> {
        let (read, norms) = match self.feed_forward_reads {
            Reads::AfterAttention => (stream, SubLayer::FeedForward),
            Reads::BlockInput => (h, SubLayer::FeedForward),
            Reads::WithAttention => (h, SubLayer::Attention),
        };
        // Where attention's sum is normed, ContraNorm stands there.
        let contra_normed = match self.norms(SubLayer::Attention).after {
            Some(_) => None,
            None => self.contra_normed(read, run)?,
        };
        match (contra_normed, self.feed_forward_reads) {
            (Some(read), _) => Ok(self.input(norms, &read)?),
            (None, Reads::WithAttention) => Ok(x),
            (None, _) => Ok(self.input(norms, read)?),
        }
    }

    /// The stream as ContraNorm leaves it; `None` without.
    fn contra_normed(&self, stream: &Tensor, run: &Run<'_>) -> Result<Option<Tensor>, ModelError> {
        let Some(remedies) = run.state.remedies() else { return Ok(None) };
        Ok(remedies.contra_normed(stream, run.shape(self.index)?.causal, &run.batch.offsets)?)
    }

    /// The values that this block's attention mixes for a stream `h`.
    pub(super) fn values(&self, h: &Tensor, run: &Run<'_>) -> Result<Tensor, ModelError> {
        let (x, state) = (self.input(SubLayer::Attention, h)?, run.state.unobserved());
        let v = match &self.projections {
            Projections::Separate { value, .. } => value.forward(&x, &state)?,
            Projections::Fused { all, columns: [_, _, v] } => kernels::columns(&all.forward(&x, &state)?, v)?,
        };
        match state.prefix(self.index)? {
            Some([_, values]) => Ok(kernels::replace_leading(&v, &values, &run.batch.offsets)?),
            None => Ok(v),
        }
    }

    /// The stream after what the sub-layer makes of `x` is added to `h`.
    fn sub_layer(
        &self,
        part: SubLayer,
        x: &Tensor,
        h: &Tensor,
        run: &Run<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor, ModelError> {
        let added = self.added(part, x, run, run.state, Some(watch))?;
        let sites = part.sites();
        if watch.wants(sites.added) {
            watch.record(sites.added, &added)?;
        }
        let stream = self.join(part, h, &added, run)?;
        if watch.wants(sites.stream) {
            watch.record(sites.stream, &stream)?;
        }
        for (index, (difference, other_stream)) in sites.counterfactuals.into_iter().enumerate() {
            let (wants_difference, wants_stream) = (watch.wants(difference), watch.wants(other_stream));
            if !wants_difference && !wants_stream {
                continue;
            }
            let other = self.counterfactual(part, index == 0, x, &added, run)?;
            if wants_difference {
                watch.record(difference, &(&added - &other)?)?;
            }
            if wants_stream {
                watch.record(other_stream, &self.join(part, h, &other, run)?)?;
            }
        }
        Ok(stream)
    }

    /// What the sub-layer adds to the stream for `x`.
    fn added(
        &self,
        part: SubLayer,
        x: &Tensor,
        run: &Run<'_>,
        state: &PassState<'_>,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Tensor, ModelError> {
        let added = match part {
            SubLayer::Attention => self.attention(x, run, state, watch)?,
            SubLayer::FeedForward => self.feed_forward(x, state)?,
        };
        let added = match &self.norms(part).added {
            Some(norm) => norm.forward(&added)?,
            None => added,
        };
        match run.state.remedies().filter(|_| part == SubLayer::Attention) {
            Some(remedies) => {
                Ok(remedies.attention_output(self.index, &added, run.shape(self.index)?, &run.batch.offsets)?)
            }
            None => Ok(added),
        }
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
        match state {
            None => Ok(added.clone()),
            Some(state) => self.added(part, x, run, &state, None),
        }
    }

    fn norms(&self, part: SubLayer) -> &Norms {
        let [attention, feed_forward] = &self.norms;
        match part {
            SubLayer::Attention => attention,
            SubLayer::FeedForward => feed_forward,
        }
    }

    /// What the sub-layer reads of the stream.
    fn input(&self, part: SubLayer, h: &Tensor) -> candle_core::Result<Tensor> {
        match &self.norms(part).before {
            Some(norm) => norm.forward(h),
            None => Ok(h.clone()),
        }
    }

    /// The stream after `added`.
    fn join(&self, part: SubLayer, h: &Tensor, added: &Tensor, run: &Run<'_>) -> Result<Tensor, ModelError> {
        let sum = kernels::scaled_add(h, added, 1.0)?;
        let Some(norm) = &self.norms(part).after else { return Ok(sum) };
        let contra_normed = match part {
            SubLayer::Attention => self.contra_normed(&sum, run)?,
            SubLayer::FeedForward => None,
        };
        Ok(norm.forward(contra_normed.as_ref().unwrap_or(&sum))?)
    }

    /// Queries, keys and values, normed where the family norms them.
    fn projected(&self, x: &Tensor, state: &PassState<'_>) -> candle_core::Result<[Tensor; 3]> {
        let [q, k, v] = match &self.projections {
            Projections::Separate { query, key, value } => {
                [query.forward(x, state)?, key.forward(x, state)?, value.forward(x, state)?]
            }
            Projections::Fused { all, columns: [q, k, v] } => {
                let all = all.forward(x, state)?;
                [kernels::columns(&all, q)?, kernels::columns(&all, k)?, kernels::columns(&all, v)?]
            }
        };
        let normed = |x: Tensor, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        };
        let [query_norm, key_norm] = &self.head_norms;
        Ok([normed(q, query_norm)?, normed(k, key_norm)?, v])
    }

    fn attention(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        state: &PassState<'_>,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Tensor, ModelError> {
        let shape = run.shape(self.index)?;
        let rotated = |x: Tensor, heads: usize| match run.rotation(shape) {
            Some(rotation) => rotation.apply(&x, heads),
            None => Ok(x),
        };
        let [q, k, v] = self.projected(x, state)?;
        let (q, k) = (rotated(q, shape.heads)?, rotated(k, shape.kv_heads)?);
        let prefix = if run.batch.first.is_empty() { state.prefix(self.index)? } else { None };
        let (k, v) = match prefix {
            Some([keys, values]) => (
                kernels::replace_leading(&k, &keys, &run.batch.offsets)?,
                kernels::replace_leading(&v, &values, &run.batch.offsets)?,
            ),
            None => (k, v),
        };
        let distances = run.distances.as_ref().map(|distances| self.project(distances, shape, state)).transpose()?;
        let (bias, offsets) = (run.bias.as_ref(), &run.batch.offsets);
        let mixed = match (&distances, &run.memories) {
            (Some(distances), _) => distances.attention([&q, &k, &v], offsets)?,
            (None, Some(memories)) => memories.attention(self.index, [&q, &k, &v], shape, bias, offsets)?,
            (None, None) => kernels::attention(&q, &k, &v, shape, bias, offsets)?,
        };
        let mixed = match run.state.remedies() {
            Some(remedies) => {
                let first_values = run.first_values.as_ref();
                let heads = Heads { values: &v, first_values, shape, offsets: &run.batch.offsets };
                remedies.mixed_values(self.index, &mixed, heads)?
            }
            None => mixed,
        };
        if let Some(watch) = watch {
            if watch.probe.wants_attention(watch.layer) {
                let bias = || run.bias.as_ref().map_or(Added::Nothing, Added::Bias);
                let added = distances.as_ref().map_or_else(bias, |met| Added::Distances(&met.shape, met.tables()));
                let maps = attention_maps(&q, &k, shape, added, run.batch)?;
                watch.probe.record_attention(watch.layer, &maps, run.batch)?;
            }
            for head in 0..shape.heads {
                if watch.wants(Site::Head(head)) {
                    let added = self.output.base_columns(&mixed, head * shape.head_dim, shape.head_dim)?;
                    watch.record(Site::Head(head), &added)?;
                }
            }
        }
        Ok(self.output.forward(&mixed, state)?)
    }

    fn feed_forward(&self, x: &Tensor, state: &PassState<'_>) -> candle_core::Result<Tensor> {
        let inner = match &self.inner {
            Inner::Gated { gate, up } => {
                kernels::gated(&gate.forward(x, state)?, &up.forward(x, state)?, self.activation)?
            }
            Inner::FusedGated { both, columns: [gate, up] } => {
                let both = both.forward(x, state)?;
                kernels::gated(&kernels::columns(&both, gate)?, &kernels::columns(&both, up)?, self.activation)?
            }
            Inner::Plain { up } => kernels::activation(&up.forward(x, state)?, self.activation)?,
        };
        self.down.forward(&inner, state)
    }
}
