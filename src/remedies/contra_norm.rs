//! ContraNorm (Guo et al. 2023): every token is pushed away from those that it resembles.

use super::{Applied, ContraNorm};
use crate::kernels::{self, AttentionShape};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Rows of zeros have no direction; this keeps theirs at zero.
const EPSILON: f64 = 1e-24;

impl Applied {
    /// `(1 + s)·X − s·softmax(X̂X̂ᵀ/τ)·X` of the stream `[tokens, d]`, where ContraNorm is applied; in a decoder over a token
    /// and those before it.
    pub(crate) fn contra_normed(&self, x: &Tensor, causal: bool, offsets: &Arc<[usize]>) -> Result<Option<Tensor>> {
        let Some(ContraNorm { strength, temperature }) = self.config.contranorm else { return Ok(None) };
        let width = x.dim(1)?;
        let even = Tensor::full((width as f64).sqrt().recip(), width, x.device())?.to_dtype(x.dtype())?;
        let units = kernels::rms_norm(x, &even, EPSILON)?;
        let scale = temperature.recip();
        let shape =
            AttentionShape { heads: 1, kv_heads: 1, head_dim: width, causal, scale, reach: None, soft_cap: None };
        let alike = kernels::attention(&units, &units, x, shape, None, offsets)?;
        kernels::scaled_add(&kernels::scale(x, 1.0 + strength)?, &alike, -strength).map(Some)
    }
}
