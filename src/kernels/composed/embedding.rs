//! The embedding of token ids.

use candle_core::{Device, Result, Tensor};

use super::{Composed, takes, wanted, widened};
use crate::kernels::embedding::Embedding;

impl Embedding {
    fn indices(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(&*self.ids, device)
    }
}

impl Composed<1> for Embedding {
    fn is_fused(&self, weight: &Tensor) -> bool {
        takes(self.dtype, weight.device())
    }

    fn forward(&self, [weight]: [&Tensor; 1]) -> Result<Tensor> {
        weight.index_select(&self.indices(weight.device())?, 0)?.to_dtype(self.dtype)
    }

    fn backward(
        &self,
        [weight]: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        let sums = || {
            let gradient = widened(gradient)?;
            let zeros = Tensor::zeros(weight.shape(), gradient.dtype(), gradient.device())?;
            zeros.index_add(&self.indices(gradient.device())?, &gradient, 0)?.to_dtype(weight.dtype())
        };
        Ok([wanted(needed, sums)?])
    }
}
