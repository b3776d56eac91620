//! The gate of LLaMA's feed-forward network.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::swiglu::SwiGlu;

/// `1 / (1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

impl Composed<2> for SwiGlu {
    fn forward(&self, [gate, up]: [&Tensor; 2]) -> Result<Tensor> {
        let wide = widened(gate)?;
        ((&wide * sigmoid(&wide)?)? * widened(up)?)?.to_dtype(gate.dtype())
    }

    fn backward(
        &self,
        [gate, up]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (x, gradient) = (widened(gate)?, widened(gradient)?);
        let sigmoid = sigmoid(&x)?;
        let d_gate = wanted(needed[0], || {
            // σ·(1 + x·(1 - σ)) = σ + x·σ·(1 - σ)
            let slope = (&sigmoid + (&x * (&sigmoid * sigmoid.affine(-1.0, 1.0)?)?)?)?;
            ((&gradient * widened(up)?)? * slope)?.to_dtype(gate.dtype())
        })?;
        let d_up = wanted(needed[1], || (&gradient * (&x * &sigmoid)?)?.to_dtype(up.dtype()))?;
        Ok([d_gate, d_up])
    }
}
