//! Weighted sums, rounded once.

use candle_core::{Result, Tensor};

use super::{Composed, scaled, wanted, widened};
use crate::kernels::mixing::{ResidualMix, Scale, ScaledAdd};

impl Composed<1> for Scale {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        scaled(x, self.s)
    }

    fn backward(
        &self,
        _: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || scaled(gradient, self.s))?])
    }
}

impl Composed<1> for ResidualMix {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let (kept, added) = ((widened(x)? * (1.0 - self.lambda))?, (widened(&self.r)? * self.lambda)?);
        (kept + added)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        _: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || scaled(gradient, 1.0 - self.lambda))?])
    }
}

impl Composed<2> for ScaledAdd {
    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        match self.s {
            // The sum of two numbers is rounded once in any type.
            1.0 => a + b,
            s => (widened(a)? + (widened(b)? * s)?)?.to_dtype(a.dtype()),
        }
    }

    fn backward(
        &self,
        _: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let db = wanted(needed[1], || match self.s {
            1.0 => Ok(gradient.clone()),
            s => scaled(gradient, s),
        })?;
        Ok([needed[0].then(|| gradient.clone()), db])
    }
}
