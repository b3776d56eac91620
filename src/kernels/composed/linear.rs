//! The linear map.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::linear::{Linear, add_input_gradient};

/// `x · weightᵀ` in the type of `x`.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.to_dtype(x.dtype())?.t()?)
}

fn gradients(x: &Tensor, weight: &Tensor, needed: [bool; 2], gradient: &Tensor) -> Result<[Option<Tensor>; 2]> {
    Ok([
        wanted(needed[0], || gradient.matmul(&weight.to_dtype(x.dtype())?))?,
        wanted(needed[1], || gradient.t()?.matmul(x)?.to_dtype(weight.dtype()))?,
    ])
}

impl Composed<2> for Linear {
    fn add_first(&self, [_, weight]: [&Tensor; 2], gradient: &Tensor, sum: &Tensor) -> Result<bool> {
        add_input_gradient(weight, gradient, 1.0, sum).map(|()| true)
    }

    fn forward(&self, [x, weight]: [&Tensor; 2]) -> Result<Tensor> {
        product(x, weight)
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        gradients(x, weight, needed, gradient)
    }
}

impl Composed<3> for Linear {
    fn add_first(&self, [_, weight, _]: [&Tensor; 3], gradient: &Tensor, sum: &Tensor) -> Result<bool> {
        add_input_gradient(weight, gradient, 1.0, sum).map(|()| true)
    }

    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<Tensor> {
        product(x, weight)?.broadcast_add(&bias.to_dtype(x.dtype())?)
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        [needs_x, needs_weight, needs_bias]: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [dx, dw] = gradients(x, weight, [needs_x, needs_weight], gradient)?;
        let db = wanted(needs_bias, || widened(gradient)?.sum(0)?.to_dtype(bias.dtype()))?;
        Ok([dx, dw, db])
    }
}
