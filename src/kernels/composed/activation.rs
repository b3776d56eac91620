//! The activations of feed-forwards.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, PI};

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::Activation;

/// The cubic term of gelu's approximation.
const CUBIC: f64 = 0.044_715;

/// The normal distribution function.
fn normal(x: &Tensor) -> Result<Tensor> {
    (x * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)
}

/// The tanh of gelu's approximation.
fn inner_tanh(x: &Tensor) -> Result<Tensor> {
    let bent = (x + ((x.sqr()? * x)? * CUBIC)?)?;
    (bent * FRAC_2_PI.sqrt())?.tanh()
}

/// `1 / (1 + exp(-x))`.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

impl Activation {
    /// The activation of `x`, which is wide.
    pub(super) fn value(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x * normal(x)?,
            Self::GeluTanh => x * inner_tanh(x)?.affine(0.5, 0.5)?,
            Self::Relu => x.relu(),
            Self::Silu => x * sigmoid(x)?,
            Self::Tanh => x.tanh(),
        }
    }

    /// Its derivative at `x`, which is wide.
    pub(super) fn slope(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => {
                let density = ((x.sqr()? * -0.5)?.exp()? * (2.0 * PI).sqrt().recip())?;
                normal(x)? + (x * density)?
            }
            Self::GeluTanh => {
                let tanh = inner_tanh(x)?;
                let bend = x.sqr()?.affine(3.0 * CUBIC * FRAC_2_PI.sqrt(), FRAC_2_PI.sqrt())?;
                let steep = ((x * tanh.sqr()?.affine(-0.5, 0.5)?)? * bend)?;
                tanh.affine(0.5, 0.5)? + steep
            }
            Self::Relu => x.gt(0.0)?.to_dtype(x.dtype()),
            Self::Silu => {
                // σ·(1 + x·(1 - σ)) = σ + x·σ·(1 - σ)
                let sigmoid = sigmoid(x)?;
                let bend = (&sigmoid * sigmoid.affine(-1.0, 1.0)?)?;
                sigmoid + (x * bend)?
            }
            Self::Tanh => x.tanh()?.sqr()?.affine(-1.0, 1.0),
        }
    }
}

impl Composed<1> for Activation {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        self.value(&widened(x)?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || (widened(gradient)? * self.slope(&widened(x)?)?)?.to_dtype(x.dtype()))?])
    }
}
