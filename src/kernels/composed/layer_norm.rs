//! Layer norm.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::layer_norm::LayerNorm;

impl LayerNorm {
    /// Every row without its mean and over its deviation, wide, and one over that deviation, `[n, 1]`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = widened(x)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let inverse = (centred.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?.recip()?;
        Ok((centred.broadcast_mul(&inverse)?, inverse))
    }
}

impl Composed<3> for LayerNorm {
    fn forward(&self, [x, weight, bias]: [&Tensor; 3]) -> Result<Tensor> {
        let (normed, _) = self.normed(x)?;
        let scaled = normed.broadcast_mul(&weight.to_dtype(normed.dtype())?)?;
        scaled.broadcast_add(&bias.to_dtype(scaled.dtype())?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        needed: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (normed, inverse) = self.normed(x)?;
        let gradient = widened(gradient)?;
        let dx = wanted(needed[0], || {
            let scaled = gradient.broadcast_mul(&weight.to_dtype(normed.dtype())?)?;
            let along = (&scaled * &normed)?.mean_keepdim(1)?;
            let level = scaled.broadcast_sub(&scaled.mean_keepdim(1)?)?;
            (level - normed.broadcast_mul(&along)?)?.broadcast_mul(&inverse)?.to_dtype(x.dtype())
        })?;
        let dw = wanted(needed[1], || (&gradient * &normed)?.sum(0)?.to_dtype(weight.dtype()))?;
        let db = wanted(needed[2], || gradient.sum(0)?.to_dtype(bias.dtype()))?;
        Ok([dx, dw, db])
    }
}
