//! Rows that decide for themselves how much of them counts.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::row_gate::RowGate;

impl RowGate {
    /// `sigmoid(x·u + b)`, `[n, 1]`, wide.
    fn gates(x: &Tensor, u: &Tensor, b: &Tensor) -> Result<Tensor> {
        let score = x.broadcast_mul(&u.to_dtype(x.dtype())?)?.sum_keepdim(1)?;
        score.broadcast_add(&b.to_dtype(x.dtype())?)?.neg()?.exp()?.affine(1.0, 1.0)?.recip()
    }
}

impl Composed<3> for RowGate {
    fn forward(&self, [x, u, b]: [&Tensor; 3]) -> Result<Tensor> {
        let wide = widened(x)?;
        wide.broadcast_mul(&Self::gates(&wide, u, b)?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x, u, b]: [&Tensor; 3],
        needed: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (wide, gradient) = (widened(x)?, widened(gradient)?);
        let gates = Self::gates(&wide, u, b)?;
        let slope = (&gates * gates.affine(-1.0, 1.0)?)?;
        let scores = ((&wide * &gradient)?.sum_keepdim(1)? * slope)?;
        let dx = wanted(needed[0], || {
            let through = scores.broadcast_mul(&u.to_dtype(wide.dtype())?.reshape((1, ()))?)?;
            (gradient.broadcast_mul(&gates)? + through)?.to_dtype(x.dtype())
        })?;
        let du = wanted(needed[1], || wide.broadcast_mul(&scores)?.sum(0)?.to_dtype(u.dtype()))?;
        let db = wanted(needed[2], || scores.sum_all()?.reshape(1)?.to_dtype(b.dtype()))?;
        Ok([dx, du, db])
    }
}
