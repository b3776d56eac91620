//! A learned gain on how far rows stand from others.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::deviation::ScaledDeviation;

/// `w`, an element for each of `width` columns, in the type of `like`.
fn spread(w: &Tensor, width: usize, like: &Tensor) -> Result<Tensor> {
    let groups = w.elem_count();
    let columns = width / groups.max(1);
    w.to_dtype(like.dtype())?.reshape((groups, 1))?.broadcast_as((groups, columns))?.contiguous()?.reshape(width)
}

impl Composed<3> for ScaledDeviation {
    fn forward(&self, [x, m, w]: [&Tensor; 3]) -> Result<Tensor> {
        let (wide, m) = (widened(x)?, widened(m)?);
        let w = spread(w, wide.dim(1)?, &wide)?;
        (&wide + (&wide - m)?.broadcast_mul(&w)?)?.to_dtype(x.dtype())
    }

    fn backward(
        &self,
        [x, m, w]: [&Tensor; 3],
        needed: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let gradient = widened(gradient)?;
        let width = gradient.dim(1)?;
        let factors = spread(w, width, &gradient)?;
        let dx = wanted(needed[0], || gradient.broadcast_mul(&(&factors + 1.0)?)?.to_dtype(x.dtype()))?;
        let dm = wanted(needed[1], || gradient.broadcast_mul(&factors.neg()?)?.to_dtype(m.dtype()))?;
        let dw = wanted(needed[2], || {
            let columns = ((widened(x)? - widened(m)?)? * &gradient)?.sum(0)?;
            let groups = w.elem_count();
            columns.reshape((groups, width / groups.max(1)))?.sum(1)?.to_dtype(w.dtype())
        })?;
        Ok([dx, dm, dw])
    }
}
