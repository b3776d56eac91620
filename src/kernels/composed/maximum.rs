//! The larger of two elements.

use candle_core::{Result, Tensor};

use super::{Composed, wanted};
use crate::kernels::maximum::Maximum;

impl Composed<2> for Maximum {
    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        a.maximum(b)
    }

    fn backward(
        &self,
        [a, b]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let of_b = b.gt(a)?.to_dtype(gradient.dtype())?;
        let da = wanted(needed[0], || gradient * (1.0 - &of_b)?)?;
        let db = wanted(needed[1], || gradient * &of_b)?;
        Ok([da, db])
    }
}
