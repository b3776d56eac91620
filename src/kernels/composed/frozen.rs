//! A linear whose weight is quantised.

use candle_core::{Result, Tensor};

use super::{Composed, wanted};
use crate::kernels::frozen::FrozenLinear;

impl Composed<1> for FrozenLinear {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let y = x.matmul(&self.weight()?.to_dtype(x.dtype())?.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?),
            None => Ok(y),
        }
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || gradient.matmul(&self.weight()?.to_dtype(x.dtype())?))?])
    }
}
