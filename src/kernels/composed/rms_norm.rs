//! RMS norm.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::rms_norm::RmsNorm;

impl RmsNorm {
    /// Every row over its root mean square, wide, `[rows, weights]`, and one over that root, `[rows, 1]`.
    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = widened(x)?.reshape(((), weight.elem_count()))?;
        let inverse = (x.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?.recip()?;
        Ok((x.broadcast_mul(&inverse)?, inverse))
    }

    /// The weights as they multiply, of the type of `normed`.
    fn multiplier(&self, weight: &Tensor, normed: &Tensor) -> Result<Tensor> {
        weight.to_dtype(normed.dtype())? + self.shift
    }
}

impl Composed<2> for RmsNorm {
    fn forward(&self, [x, weight]: [&Tensor; 2]) -> Result<Tensor> {
        let (normed, _) = self.normed(x, weight)?;
        normed.broadcast_mul(&self.multiplier(weight, &normed)?)?.to_dtype(x.dtype())?.reshape(x.shape())
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (normed, inverse) = self.normed(x, weight)?;
        let gradient = widened(gradient)?.reshape(normed.shape())?;
        let dx = wanted(needed[0], || {
            let scaled = gradient.broadcast_mul(&self.multiplier(weight, &normed)?)?;
            let along = (&scaled * &normed)?.mean_keepdim(1)?;
            let dx = (scaled - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?;
            dx.to_dtype(x.dtype())?.reshape(x.shape())
        })?;
        let dw = wanted(needed[1], || (&gradient * &normed)?.sum(0)?.to_dtype(weight.dtype()))?;
        Ok([dx, dw])
    }
}
