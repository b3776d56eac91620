//! A norm with its weights: RMS norm, or layer norm where there is a bias.

use crate::kernels;
use candle_core::{Result, Tensor};

/// The weights of one norm, `[d]` each.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Tensor,
    /// Layer norm has one, RMS norm has none.
    pub(super) bias: Option<Tensor>,
    pub(super) eps: f64,
}

impl Norm {
    /// Applies the norm to every row of `x`, `[tokens, d]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            None => kernels::rms_norm(x, &self.weight, self.eps),
            Some(bias) => kernels::layer_norm(x, &self.weight, bias, self.eps),
        }
    }

    /// The tensors by the last part of their names.
    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        std::iter::once(("weight", &mut self.weight)).chain(self.bias.as_mut().map(|bias| ("bias", bias)))
    }
}
