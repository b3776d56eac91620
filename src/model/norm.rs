//! A norm with its weights.

use super::architecture::NormKind;
use crate::kernels;
use candle_core::{Result, Tensor};

/// The weights of one norm, `[d]` each.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) kind: NormKind,
    pub(super) weight: Tensor,
    /// Layer norm has one; of a layer norm without, it is zero and belongs to no file.
    pub(super) bias: Option<Tensor>,
    pub(super) eps: f64,
}

impl Norm {
    /// Applies the norm to every row of `x`, `[tokens, d]`; an RMS norm also to every head of `[tokens, heads · d]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.bias, self.kind) {
            (Some(bias), _) => kernels::layer_norm(x, &self.weight, bias, self.eps),
            (None, NormKind::ShiftedRms) => kernels::shifted_rms_norm(x, &self.weight, self.eps),
            (None, _) => kernels::rms_norm(x, &self.weight, self.eps),
        }
    }

    /// The tensors by the last part of their names.
    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        let bias = self.bias.as_mut().filter(|_| self.kind == NormKind::Layer);
        std::iter::once(("weight", &mut self.weight)).chain(bias.map(|bias| ("bias", bias)))
    }
}
