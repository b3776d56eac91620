//! A feed-forward's gate.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::gated::Gated;

impl Composed<2> for Gated {
    fn forward(&self, [gate, up]: [&Tensor; 2]) -> Result<Tensor> {
        (self.0.value(&widened(gate)?)? * widened(up)?)?.to_dtype(gate.dtype())
    }

    fn backward(
        &self,
        [gate, up]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (x, gradient) = (widened(gate)?, widened(gradient)?);
        let d_gate = wanted(needed[0], || ((&gradient * widened(up)?)? * self.0.slope(&x)?)?.to_dtype(gate.dtype()))?;
        let d_up = wanted(needed[1], || (&gradient * self.0.value(&x)?)?.to_dtype(up.dtype()))?;
        Ok([d_gate, d_up])
    }
}
