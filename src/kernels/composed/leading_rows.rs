//! The first rows of every sequence, put in their place and taken off.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::leading_rows::{ReplaceLeading, SkipLeading};

/// First and last row of every sequence.
fn spans(offsets: &[usize]) -> impl Iterator<Item = (usize, usize)> + '_ {
    offsets.windows(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
}

impl Composed<2> for ReplaceLeading {
    fn forward(&self, [x, table]: [&Tensor; 2]) -> Result<Tensor> {
        let table = table.to_dtype(x.dtype())?;
        let mut parts = Vec::new();
        for (start, end) in spans(&self.offsets) {
            parts.push(table.clone());
            parts.push(x.narrow(0, start + self.count, end - start - self.count)?);
        }
        Tensor::cat(&parts, 0)
    }

    fn backward(
        &self,
        [x, table]: [&Tensor; 2],
        needed: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let dx = wanted(needed[0], || {
            let zeros = Tensor::zeros((self.count, x.dim(1)?), gradient.dtype(), gradient.device())?;
            let mut parts = Vec::new();
            for (start, end) in spans(&self.offsets) {
                parts.push(zeros.clone());
                parts.push(gradient.narrow(0, start + self.count, end - start - self.count)?);
            }
            Tensor::cat(&parts, 0)
        })?;
        let dt = wanted(needed[1], || {
            let parts = spans(&self.offsets).map(|(start, _)| widened(&gradient.narrow(0, start, self.count)?));
            let parts = parts.collect::<Result<Vec<_>>>()?;
            Tensor::stack(&parts, 0)?.sum(0)?.to_dtype(table.dtype())
        })?;
        Ok([dx, dt])
    }
}

impl Composed<1> for SkipLeading {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let kept: Vec<u32> = self.kept().into_iter().map(|row| row as u32).collect();
        x.index_select(&Tensor::new(kept, x.device())?, 0)
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || {
            let zeros = Tensor::zeros((self.count, x.dim(1)?), gradient.dtype(), gradient.device())?;
            let (mut parts, mut next) = (Vec::new(), 0);
            for (start, end) in spans(&self.offsets) {
                let rows = end - start - self.count;
                parts.push(zeros.clone());
                parts.push(gradient.narrow(0, next, rows)?);
                next += rows;
            }
            Tensor::cat(&parts, 0)
        })?])
    }
}
