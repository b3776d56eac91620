//! The mean of the rows that a token sees.

use candle_core::{DType, Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::visible_mean::VisibleMean;

impl VisibleMean {
    /// For each sequence its first row, its length, and what of every row enters the mean of each, `[length, length]`.
    fn shares(&self, like: &Tensor) -> Result<Vec<(usize, usize, Tensor)>> {
        let mut all = Vec::new();
        for [start, end] in self.offsets.array_windows::<2>().filter(|[start, end]| start < end) {
            let length = end - start;
            let rows = Tensor::arange(0, length as i64, like.device())?.reshape((length, 1))?;
            let columns = rows.reshape((1, length))?;
            let mut seen = match self.shape.causal {
                true => columns.broadcast_le(&rows)?.to_dtype(DType::F32)?,
                false => Tensor::ones((length, length), DType::F32, like.device())?,
            };
            if let Some(reach) = self.shape.reach {
                let reach = Tensor::new(reach.min(length) as i64, like.device())?;
                let near = |a: &Tensor, b: &Tensor| a.broadcast_le(&b.broadcast_add(&reach)?)?.to_dtype(DType::F32);
                let (rows, columns) = (rows.broadcast_as((length, length))?, columns.broadcast_as((length, length))?);
                seen = seen.mul(&near(&rows, &columns)?)?.mul(&near(&columns, &rows)?)?;
            }
            let seen = seen.to_dtype(super::wide(like.dtype()))?;
            all.push((*start, length, seen.broadcast_div(&seen.sum_keepdim(1)?)?));
        }
        Ok(all)
    }

    fn applied(&self, x: &Tensor, turn: impl Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let wide = widened(x)?;
        let one = |(start, length, shares)| turn(shares)?.matmul(&wide.narrow(0, start, length)?.contiguous()?);
        let parts = self.shares(x)?.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        match parts.as_slice() {
            [] => x.copy(),
            parts => Tensor::cat(parts, 0)?.to_dtype(x.dtype()),
        }
    }
}

impl Composed<1> for VisibleMean {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        self.applied(x, Ok)
    }

    fn backward(
        &self,
        _: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || self.applied(gradient, |shares| shares.t()?.contiguous()))?])
    }
}
