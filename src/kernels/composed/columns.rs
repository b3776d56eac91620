//! Some columns of a matrix.

use candle_core::{Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::columns::Selection;

impl Composed<1> for Selection {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let parts = self.ranges.iter().map(|&(first, count)| x.narrow(1, first, count));
        match parts.collect::<Result<Vec<_>>>()?.as_slice() {
            // One part alone would share its memory with `x`.
            [part] => part.copy(),
            parts => Tensor::cat(parts, 1),
        }
    }

    fn backward(
        &self,
        [x]: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || {
            // The ranges by their place in `x`, each with its place in the gradient, and zeros between them.
            let mut at = 0;
            let mut places: Vec<_> = self
                .ranges
                .iter()
                .map(|&(first, count)| {
                    (first, count, {
                        at += count;
                        at - count
                    })
                })
                .collect();
            places.sort_unstable();
            let (rows, width) = x.dims2()?;
            let zeros = |count| Tensor::zeros((rows, count), gradient.dtype(), gradient.device());
            if places.windows(2).any(|pair| matches!(pair, [(first, count, _), (next, ..)] if first + count > *next)) {
                // Columns that are named several times: range by range.
                let mut sum = widened(&zeros(width)?)?;
                for (first, count, from) in places {
                    let part = gradient.narrow(1, from, count)?;
                    sum = (sum + widened(&part.pad_with_zeros(1, first, width - first - count)?)?)?;
                }
                return sum.to_dtype(gradient.dtype());
            }
            let (mut parts, mut next) = (Vec::new(), 0);
            for (first, count, from) in places {
                if first > next {
                    parts.push(zeros(first - next)?);
                }
                parts.push(gradient.narrow(1, from, count)?);
                next = first + count;
            }
            if width > next {
                parts.push(zeros(width - next)?);
            }
            match parts.as_slice() {
                [part] => part.copy(),
                parts => Tensor::cat(parts, 1),
            }
        })?])
    }
}
