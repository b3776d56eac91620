//! A PEFT branch around a frozen linear.

use candle_core::{Result, Tensor};

use super::{Composed, scaled, wanted, widened};
use crate::kernels::branch::{AddBranch, MixedLinear};

impl MixedLinear {
    /// What the branch reads, rounded once.
    fn mixed(&self, x: &Tensor) -> Result<Tensor> {
        let kept = (widened(x)? * (1.0 - self.lambda))?;
        let mixed = match &self.source {
            Some(source) => (kept + (widened(source)? * self.lambda)?)?,
            None => kept,
        };
        mixed.to_dtype(x.dtype())
    }
}

impl Composed<2> for MixedLinear {
    fn forward(&self, [x, weight]: [&Tensor; 2]) -> Result<Tensor> {
        self.mixed(x)?.matmul(&weight.to_dtype(x.dtype())?.t()?)
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let dx =
            wanted(needed[0], || scaled(&gradient.matmul(&weight.to_dtype(gradient.dtype())?)?, 1.0 - self.lambda))?;
        let dw = wanted(needed[1], || gradient.t()?.matmul(&self.mixed(x)?)?.to_dtype(weight.dtype()))?;
        Ok([dx, dw])
    }
}

impl Composed<3> for AddBranch {
    fn forward(&self, [x, inner, up]: [&Tensor; 3]) -> Result<Tensor> {
        let dtype = x.dtype();
        let added = widened(&inner.matmul(&up.to_dtype(dtype)?.t()?)?)?;
        let base = match &self.frozen {
            None => x.clone(),
            Some((weight, bias)) => {
                let product = x.matmul(&weight.to_dtype(dtype)?.t()?)?;
                match bias {
                    Some(bias) => product.broadcast_add(&bias.to_dtype(dtype)?)?,
                    None => product,
                }
            }
        };
        (widened(&base)? + (added * self.scale)?)?.to_dtype(dtype)
    }

    fn backward(
        &self,
        [_, inner, up]: [&Tensor; 3],
        needed: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let dtype = gradient.dtype();
        let dx = wanted(needed[0], || match &self.frozen {
            None => Ok(gradient.clone()),
            Some((weight, _)) => gradient.matmul(&weight.to_dtype(dtype)?),
        })?;
        let d_inner = wanted(needed[1], || scaled(&gradient.matmul(&up.to_dtype(dtype)?)?, self.scale))?;
        let d_up = wanted(needed[2], || (widened(&gradient.t()?.matmul(inner)?)? * self.scale)?.to_dtype(up.dtype()))?;
        Ok([dx, d_inner, d_up])
    }
}
