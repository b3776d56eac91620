//! Learned factors of columns, and a learned share of the initial residual.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::rescale::{LearnedMix, Rescale};

impl Rescale {
    /// What the learned factor multiplies, `[n, k]`, wide.
    fn scaled_part(&self, x: &Tensor) -> Result<Tensor> {
        let x = widened(x)?;
        match self {
            Self::Added => x.ones_like(),
            Self::Divided(None) => Ok(x),
            Self::Divided(Some(divisor)) => x.broadcast_div(&widened(divisor)?),
            Self::Mixed { lambda, source: None } => x * (1.0 - lambda),
            Self::Mixed { lambda, source: Some(r) } => (x * (1.0 - lambda))? + (widened(r)? * *lambda)?,
        }
    }
}

impl Composed<2> for Rescale {
    fn forward(&self, [x, v]: [&Tensor; 2]) -> Result<Tensor> {
        let (part, v) = (self.scaled_part(x)?, widened(v)?.to_dtype(widened(x)?.dtype())?);
        match self {
            Self::Added => widened(x)?.broadcast_add(&v)?.to_dtype(x.dtype()),
            Self::Divided(_) => part.broadcast_mul(&v)?.to_dtype(x.dtype()),
            Self::Mixed { .. } => (widened(x)? + part.broadcast_mul(&(v - 1.0)?)?)?.to_dtype(x.dtype()),
        }
    }

    fn backward(
        &self,
        [x, v]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let gradient = widened(gradient)?;
        let dx = wanted(needed[0], || {
            let v = widened(v)?.to_dtype(gradient.dtype())?;
            let factor = match self {
                Self::Added => v.ones_like()?,
                Self::Divided(None) => v,
                Self::Divided(Some(divisor)) => (v / widened(divisor)?.to_dtype(gradient.dtype())?)?,
                Self::Mixed { lambda, .. } => ((v - 1.0)? * (1.0 - lambda))?.affine(1.0, 1.0)?,
            };
            gradient.broadcast_mul(&factor)?.to_dtype(x.dtype())
        })?;
        let dv = wanted(needed[1], || (&gradient * self.scaled_part(x)?)?.sum(0)?.to_dtype(v.dtype()))?;
        Ok([dx, dv])
    }
}

impl LearnedMix {
    fn share(theta: &Tensor) -> Result<f64> {
        let theta = theta.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        Ok(1.0 / (1.0 + (-theta.first().copied().unwrap_or_default()).exp()))
    }
}

impl Composed<2> for LearnedMix {
    fn forward(&self, [x, theta]: [&Tensor; 2]) -> Result<Tensor> {
        let lambda = Self::share(theta)?;
        let kept = (widened(x)? * (1.0 - lambda))?;
        match &self.source {
            Some(r) => (kept + (widened(r)? * lambda)?)?.to_dtype(x.dtype()),
            None => kept.to_dtype(x.dtype()),
        }
    }

    fn backward(
        &self,
        [x, theta]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (lambda, gradient) = (Self::share(theta)?, widened(gradient)?);
        let dx = wanted(needed[0], || (&gradient * (1.0 - lambda))?.to_dtype(x.dtype()))?;
        let dt = wanted(needed[1], || {
            let apart = match &self.source {
                Some(r) => (widened(r)? - widened(x)?)?,
                None => widened(x)?.neg()?,
            };
            let sum = ((apart * &gradient)?.sum_all()? * (lambda * (1.0 - lambda)))?;
            sum.reshape(theta.shape())?.to_dtype(theta.dtype())
        })?;
        Ok([dx, dt])
    }
}
