//! The hyperbolic tangent.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::tanh::Tanh;

impl Composed<1> for Tanh {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        widened(x)?.tanh()?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        [needed]: [bool; 1],
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        let slope = || widened(y)?.sqr()?.affine(-1.0, 1.0);
        Ok([wanted(needed, || (widened(gradient)? * slope()?)?.to_dtype(x.dtype()))?])
    }
}
