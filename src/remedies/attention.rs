//! What is changed of attention's output: NeuTRENO (Nguyen et al. 2023), AttnScale and FeatScale (Wang et al. 2022).

use super::{Applied, Neutreno};
use crate::kernels::{self, AttentionShape, Columns};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// What a block's heads read, and how.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    /// The values, `[tokens, kv_heads · head_dim]`.
    pub(crate) values: &'a Tensor,
    /// Those of the first block, where somebody reads them.
    pub(crate) first_values: Option<&'a Tensor>,
    pub(crate) shape: AttentionShape,
    pub(crate) offsets: &'a Arc<[usize]>,
}

impl Heads<'_> {
    /// Each query head's own copy of what key heads hold.
    fn for_queries(&self, values: &Tensor) -> Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        if heads == kv_heads {
            return Ok(values.clone());
        }
        let shared = heads / kv_heads.max(1);
        let columns: Columns = (0..heads).map(|head| (head / shared.max(1) * head_dim, head_dim)).collect();
        kernels::columns(values, &columns)
    }
}

impl Applied {
    /// Whether somebody reads the first block's values.
    pub(crate) fn reads_first_values(&self) -> bool {
        self.config.neutreno.is_some()
    }

    /// The heads' mixed values `[tokens, heads · head_dim]` of a block, from 0, as the remedies leave them:
    /// `(1 + ω)·mixed − ω·uniform + μ·(V₁ − V)`, head by head.
    pub(crate) fn mixed_values(&self, layer: usize, mixed: &Tensor, heads: Heads<'_>) -> Result<Tensor> {
        let mut out = mixed.clone();
        if let Some(omega) = self.omega(layer) {
            let uniform = kernels::visible_mean(heads.values, heads.shape, heads.offsets)?;
            out = kernels::scaled_deviation(&out, &heads.for_queries(&uniform)?, omega)?;
        }
        if let (Some(Neutreno { mu }), Some(first)) = (self.config.neutreno, heads.first_values) {
            let drawn = kernels::scaled_add(first, heads.values, -1.0)?;
            out = kernels::scaled_add(&out, &heads.for_queries(&drawn)?, mu)?;
        }
        Ok(out)
    }

    /// What attention adds to the stream in a block, from 0, as FeatScale leaves it: `X + s⊙DC + t⊙(X − DC)` with DC the mean of
    /// the tokens that each sees.
    pub(crate) fn attention_output(
        &self,
        layer: usize,
        x: &Tensor,
        shape: AttentionShape,
        offsets: &Arc<[usize]>,
    ) -> Result<Tensor> {
        let Some([s, t]) = self.gains(layer) else { return Ok(x.clone()) };
        let mean = kernels::visible_mean(x, shape, offsets)?;
        let scaled = kernels::scaled_deviation(x, &mean, t)?;
        kernels::scaled_add(&scaled, &kernels::rescale(&mean, s, None)?, 1.0)
    }
}
