//! Attention by padded, batched products; the scores of a few heads or sequences are in memory at a time, and the
//! backward pass computes the probabilities again.

use candle_core::{D, Result, Tensor};

use super::attention_layout::{Group, groups};
use super::{Composed, wide, widened};
use crate::kernels::attention::{Attention, AttentionShape};

/// Queries, keys and values of some key heads, `[sequences, kv heads, rows, head_dim]`; the queries of all heads that
/// share a key head stand one after another, so that one product serves them and no key is repeated.
struct Part<'a> {
    group: &'a Group,
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The bias of these heads, `[1, heads, length, length]`.
    bias: Option<Tensor>,
}

impl Part<'_> {
    /// The softmax of the masked scores, wide, `[sequences, heads, length, length]`.
    ///
    /// Under a soft cap also its slope at every score.
    fn probabilities(&self) -> Result<(Tensor, Option<Tensor>)> {
        let scores = widened(&self.q.matmul(&self.k.transpose(2, 3)?)?)?;
        let mut scores = (self.by_query_head(&scores)? * self.shape.scale)?;
        let mut slope = None;
        if let Some(cap) = self.shape.soft_cap {
            let tanh = (scores / cap)?.tanh()?;
            slope = Some(tanh.sqr()?.affine(-1.0, 1.0)?);
            scores = (tanh * cap)?;
        }
        for added in self.bias.iter().chain(&self.group.mask) {
            scores = scores.broadcast_add(added)?;
        }
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        Ok((weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?, slope))
    }

    /// A table of scores with a dimension for the query heads.
    fn by_query_head(&self, table: &Tensor) -> Result<Tensor> {
        let length = self.group.length;
        table.reshape((
            self.group.sequences,
            table.elem_count() / (self.group.sequences * length * length),
            length,
            length,
        ))
    }

    /// The reverse, in the type of the queries.
    fn by_key_head(&self, table: &Tensor) -> Result<Tensor> {
        let (sequences, kv_heads, rows, _) = self.q.dims4()?;
        table.to_dtype(self.q.dtype())?.reshape((sequences, kv_heads, rows, self.group.length))
    }

    fn forward(&self) -> Result<Tensor> {
        self.by_key_head(&self.probabilities()?.0)?.matmul(&self.v)
    }

    /// The gradients of queries, keys and values, from that of the result in the queries' form.
    fn backward(&self, gradient: &Tensor) -> Result<[Tensor; 3]> {
        let (probabilities, slope) = self.probabilities()?;
        let dv = self.by_key_head(&probabilities)?.transpose(2, 3)?.matmul(gradient)?;
        let d_probabilities = self.by_query_head(&widened(&gradient.matmul(&self.v.transpose(2, 3)?)?)?)?;
        let along = (&probabilities * &d_probabilities)?.sum_keepdim(D::Minus1)?;
        let mut d_scores = ((probabilities * d_probabilities.broadcast_sub(&along)?)? * self.shape.scale)?;
        if let Some(slope) = slope {
            d_scores = (d_scores * slope)?;
        }
        let d_scores = self.by_key_head(&d_scores)?;
        Ok([d_scores.matmul(&self.k)?, d_scores.transpose(2, 3)?.matmul(&self.q)?, dv])
    }
}

impl Attention {
    /// Calls `run(part, first key head, key heads)` for the parts of a group and joins what they give along the heads.
    fn over_parts<const N: usize>(
        &self,
        group: &Group,
        [q, k, v]: [&Tensor; 3],
        run: impl Fn(&Part<'_>, usize, usize) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        let shape = self.shape;
        let shared = shape.heads / shape.kv_heads.max(1);
        let q = self.by_key_head(group, &group.pad(q, shape.heads)?)?;
        let (k, v) = (group.pad(k, shape.kv_heads)?, group.pad(v, shape.kv_heads)?);
        let at_once = group.heads_at_once(shape.kv_heads, shared);
        let bias = self.bias.as_ref().map(|bias| bias.pairs(group.length)).transpose()?;
        let mut found: [Vec<Tensor>; N] = std::array::from_fn(|_| Vec::new());
        for first in (0..shape.kv_heads).step_by(at_once) {
            let count = at_once.min(shape.kv_heads - first);
            let [q, k, v] = [&q, &k, &v].map(|t| t.narrow(1, first, count)?.contiguous());
            let bias = bias.as_ref().map(|bias| bias.narrow(0, first * shared, count * shared)?.unsqueeze(0));
            let part = Part { group, shape, q: q?, k: k?, v: v?, bias: bias.transpose()? };
            for (found, part) in found.iter_mut().zip(run(&part, first, count)?) {
                found.push(part);
            }
        }
        join(found, 1)
    }

    /// `[sequences, heads, length, head_dim]` with the queries of a key head in one matrix.
    fn by_key_head(&self, group: &Group, padded: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        padded.reshape((group.sequences, kv_heads, heads / kv_heads.max(1) * group.length, head_dim))
    }

    fn by_query_head(&self, group: &Group, padded: &Tensor) -> Result<Tensor> {
        padded.reshape((group.sequences, self.shape.heads, group.length, self.shape.head_dim))
    }
}

/// Concatenates each list along `dim`.
fn join<const N: usize>(parts: [Vec<Tensor>; N], dim: usize) -> Result<[Tensor; N]> {
    let joined = parts.map(|parts| Tensor::cat(&parts, dim)).into_iter().collect::<Result<Vec<_>>>()?;
    joined.try_into().map_err(|_| candle_core::Error::Msg("attention: a part is missing".to_owned()))
}

impl Composed<3> for Attention {
    fn forward(&self, arguments: [&Tensor; 3]) -> Result<Tensor> {
        let [q, _, _] = arguments;
        let groups = groups(&self.offsets, self.shape, wide(q.dtype()), q.device())?;
        if groups.is_empty() {
            return q.zeros_like();
        }
        let rows = groups.iter().map(|group| {
            let [out] = self.over_parts(group, arguments, |part, _, _| Ok([part.forward()?]))?;
            group.pack(&self.by_query_head(group, &out)?)
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    fn backward(
        &self,
        arguments: [&Tensor; 3],
        wanted: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [q, k, v] = arguments;
        let groups = groups(&self.offsets, self.shape, wide(q.dtype()), q.device())?;
        let mut found: [Vec<Tensor>; 3] = [const { Vec::new() }; 3];
        for group in groups.iter() {
            let gradient = self.by_key_head(group, &group.pad_with_zeros(gradient, self.shape.heads)?)?;
            let [dq, dk, dv] = self.over_parts(group, arguments, |part, first, count| {
                part.backward(&gradient.narrow(1, first, count)?.contiguous()?)
            })?;
            for (found, padded) in found.iter_mut().zip([self.by_query_head(group, &dq)?, dk, dv]) {
                found.push(group.pack(&padded)?);
            }
        }
        let [dq, dk, dv] = match groups.is_empty() {
            true => [q.zeros_like()?, k.zeros_like()?, v.zeros_like()?],
            false => join(found, 0)?,
        };
        let [wants_q, wants_k, wants_v] = wanted;
        Ok([wants_q.then_some(dq), wants_k.then_some(dk), wants_v.then_some(dv)])
    }
}
