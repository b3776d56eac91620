//! RMS norm.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::rms_norm::RmsNorm;

impl RmsNorm {
    /// Every row over its root mean square, wide, and one over that root, `[n, 1]`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = widened(x)?;
        let inverse = (x.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?.recip()?;
        Ok((x.broadcast_mul(&inverse)?, inverse))
    }
}

impl Composed<2> for RmsNorm {
    fn forward(&self, [x, weight]: [&Tensor; 2]) -> Result<Tensor> {
        let (normed, _) = self.normed(x)?;
        normed.broadcast_mul(&weight.to_dtype(normed.dtype())?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x, weight]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let (normed, inverse) = self.normed(x)?;
        let gradient = widened(gradient)?;
        let dx = wanted(needed[0], || {
            let scaled = gradient.broadcast_mul(&weight.to_dtype(normed.dtype())?)?;
            let along = (&scaled * &normed)?.mean_keepdim(1)?;
            (scaled - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(x.dtype())
        })?;
        let dw = wanted(needed[1], || (&gradient * &normed)?.sum(0)?.to_dtype(weight.dtype()))?;
        Ok([dx, dw])
    }
}
