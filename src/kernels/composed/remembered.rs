//! Attention of new tokens over keys and values that are kept, of one sequence.

use candle_core::{D, Result, Tensor};

use super::{wide, widened};
use crate::kernels::attention::{AttentionShape, RelativeBias};

/// The attention of the rows `q`, `[n, heads · head_dim]`, the first of which stands at `first`, over `keys` and
/// `values`, `[tokens, kv_heads · head_dim]`.
pub(in crate::kernels) fn attend(
    q: &Tensor,
    [keys, values]: [&Tensor; 2],
    shape: AttentionShape,
    bias: Option<&RelativeBias>,
    first: usize,
) -> Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (n, tokens, group) = (q.dim(0)?, keys.dim(0)?, heads / kv_heads.max(1));
    // The rows of the heads that share a key head one after another, so that one product serves them.
    let q = q.reshape((n, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    let q = q.reshape((kv_heads, group * n, head_dim))?;
    let by_head = |kept: &Tensor| kept.reshape((tokens, kv_heads, head_dim))?.transpose(0, 1)?.contiguous();
    let scores = widened(&q.matmul(&by_head(keys)?.transpose(1, 2)?)?)?;
    let mut scores = (scores.reshape((heads, n, tokens))? * shape.scale)?;
    if let Some(cap) = shape.soft_cap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if let Some(bias) = bias {
        scores = scores.add(&bias.rows(first..first + n, tokens)?)?;
    }
    if n > 1 || shape.reach.is_some() {
        let hidden = |row: usize, key: usize| !shape.seen(first + row, first + row + 1).contains(&key);
        let mask =
            (0..n).flat_map(|row| (0..tokens).map(move |key| if hidden(row, key) { f32::NEG_INFINITY } else { 0.0 }));
        let mask = Tensor::from_vec(mask.collect(), (1, n, tokens), q.device())?.to_dtype(wide(q.dtype()))?;
        scores = scores.broadcast_add(&mask)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.to_dtype(q.dtype())?;
    let mixed = weights.reshape((kv_heads, group * n, tokens))?.matmul(&by_head(values)?)?;
    let mixed = mixed.reshape((kv_heads, group, n, head_dim))?.permute((2, 0, 1, 3))?;
    mixed.contiguous()?.reshape((n, heads * head_dim))
}
