//! A PEFT branch around a linear.

use candle_core::{Result, Tensor};

use super::{Composed, scaled, wanted, widened};
use crate::kernels::branch::{AddBranch, MixedLinear};
use crate::kernels::linear::add_input_gradient;

impl MixedLinear {
    /// `(1 - λ)·x + λ·r`, rounded once.
    fn mixed(&self, x: &Tensor) -> Result<Tensor> {
        if self.lambda == 0.0 {
            return Ok(x.clone());
        }
        let kept = (widened(x)? * (1.0 - self.lambda))?;
        let mixed = match &self.source {
            Some(source) => (kept + (widened(source)? * self.lambda)?)?,
            None => kept,
        };
        mixed.to_dtype(x.dtype())
    }
}

/// `x · weightᵀ` in the type of `x`.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.to_dtype(x.dtype())?.t()?)
}

impl Composed<2> for MixedLinear {
    fn add_first(&self, [_, weight]: [&Tensor; 2], gradient: &Tensor, sum: &Tensor) -> Result<bool> {
        add_input_gradient(weight, gradient, 1.0 - self.lambda, sum).map(|()| true)
    }

    fn forward(&self, [x, weight]: [&Tensor; 2]) -> Result<Tensor> {
        product(&self.mixed(x)?, weight)
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        Ok([
            wanted(needed[0], || scaled(&gradient.matmul(&weight.to_dtype(x.dtype())?)?, 1.0 - self.lambda))?,
            wanted(needed[1], || gradient.t()?.matmul(&self.mixed(x)?)?.to_dtype(weight.dtype()))?,
        ])
    }
}

impl Composed<3> for AddBranch {
    fn add_first(&self, _: [&Tensor; 3], gradient: &Tensor, sum: &Tensor) -> Result<bool> {
        match &self.frozen {
            Some((weight, _)) => add_input_gradient(&weight.numbers()?, gradient, 1.0, sum).map(|()| true),
            None => Ok(false),
        }
    }

    fn forward(&self, [x, inner, up]: [&Tensor; 3]) -> Result<Tensor> {
        let base = match &self.frozen {
            None => x.clone(),
            Some((weight, None)) => product(x, &weight.numbers()?)?,
            Some((weight, Some(bias))) => product(x, &weight.numbers()?)?.broadcast_add(&bias.to_dtype(x.dtype())?)?,
        };
        (widened(&base)? + (widened(&product(inner, up)?)? * self.scale)?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x, inner, up]: [&Tensor; 3],
        needed: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let dx = wanted(needed[0], || match &self.frozen {
            None => Ok(gradient.clone()),
            Some((weight, _)) => gradient.matmul(&weight.numbers()?.to_dtype(x.dtype())?),
        })?;
        let d_inner = wanted(needed[1], || scaled(&gradient.matmul(&up.to_dtype(inner.dtype())?)?, self.scale))?;
        let d_up = wanted(needed[2], || (widened(&gradient.t()?.matmul(inner)?)? * self.scale)?.to_dtype(up.dtype()))?;
        Ok([dx, d_inner, d_up])
    }
}
