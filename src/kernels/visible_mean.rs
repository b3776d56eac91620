//! The mean of the rows that a token sees.

use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::attention::AttentionShape;
use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::parallel;
use super::tape::{self, Reads};

const NAME: &str = "visible_mean";

/// The mean of the rows of `x`, `[n, k]`, that each token sees by the mask and the reach of `shape`: what attention would give
/// if it were uniform. Sequence `s` holds the rows `offsets[s]..offsets[s + 1]`.
///
/// # Errors
/// If the offsets do not fit, or `x` is no matrix of floats.
pub fn visible_mean(x: &Tensor, shape: AttentionShape, offsets: &Arc<[usize]>) -> Result<Tensor> {
    let (n, _) = matrix_dims(NAME, "x", x)?;
    let ascending = offsets.windows(2).all(|pair| pair.first() <= pair.last());
    if offsets.first() != Some(&0) || offsets.last() != Some(&n) || !ascending {
        bail!("{NAME}: offsets must ascend from 0 to the {n} tokens")
    }
    let operation = VisibleMean { shape, offsets: Arc::clone(offsets) };
    tape::apply1(operation, &x.contiguous()?, Reads::arguments([false]))
}

pub(super) struct VisibleMean {
    pub(super) shape: AttentionShape,
    pub(super) offsets: Arc<[usize]>,
}

impl VisibleMean {
    /// The rows that a token of a sequence of `length` is seen by, counted in the sequence.
    fn seen_by(&self, position: usize, length: usize) -> Range<usize> {
        let reach = self.shape.reach.unwrap_or(length);
        let start = if self.shape.causal { position } else { position.saturating_sub(reach) };
        start..(position + reach + 1).min(length)
    }

    fn forward<T: Element>(&self, x: &[T], width: usize) -> Vec<T> {
        self.sums(
            x,
            width,
            |_, _| 1.0,
            |position, length| self.shape.seen(position, length),
            |range| range.len() as f64,
        )
    }

    fn backward<T: Element>(&self, gradient: &[T], width: usize) -> Vec<T> {
        let share = |position, length| 1.0 / self.shape.seen(position, length).len() as f64;
        self.sums(gradient, width, share, |position, length| self.seen_by(position, length), |_| 1.0)
    }

    /// For every row the sum of `weight · row` over its range, over `divisor`; by running sums, which are kept in f64.
    fn sums<T: Element>(
        &self,
        rows: &[T],
        width: usize,
        weight: impl Fn(usize, usize) -> f64 + Sync,
        range: impl Fn(usize, usize) -> Range<usize> + Sync,
        divisor: impl Fn(&Range<usize>) -> f64 + Sync,
    ) -> Vec<T> {
        let mut out = Vec::with_capacity(rows.len());
        for [start, end] in self.offsets.array_windows::<2>() {
            let length = end - start;
            // Row i holds the sum of the rows before i.
            let mut running = vec![0.0_f64; (length + 1) * width];
            for position in 0..length {
                let (before, after) = running.split_at_mut((position + 1) * width);
                let before = before.get(position * width..).unwrap_or_default();
                let (row, weight) = (parallel::row(rows, start + position, width), weight(position, length));
                for ((after, before), row) in after.iter_mut().zip(before).zip(row) {
                    *after = before + weight * row.to_f64();
                }
            }
            out.extend(parallel::rows(length, width, |position, out: &mut [T]| {
                let range = range(position, length);
                let (first, last) =
                    (parallel::row(&running, range.start, width), parallel::row(&running, range.end, width));
                let divisor = divisor(&range);
                for ((out, first), last) in out.iter_mut().zip(first).zip(last) {
                    *out = T::from_f64((last - first) / divisor);
                }
            }));
        }
        out
    }
}

impl CustomOp1 for VisibleMean {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), NAME, T => {
            Ok((T::to_cpu_storage_owned(self.forward::<T>(values(x, layout)?, width)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        let (_, width) = x.dims2()?;
        by_dtype!(x.dtype(), NAME, T => tensor(self.backward::<T>(locked.values()?, width), x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn shape(causal: bool, reach: Option<usize>) -> AttentionShape {
        AttentionShape { heads: 1, kv_heads: 1, head_dim: 3, causal, scale: 1.0, reach, soft_cap: None }
    }

    #[test]
    fn rows_are_means_of_what_is_seen() {
        let offsets: Arc<[usize]> = [0, 5, 5, 6, 10].into();
        let x = check::normal(&[10, 3], 1);
        let rows = x.to_vec2::<f64>().unwrap();
        for shape in [shape(true, None), shape(true, Some(1)), shape(false, None), shape(false, Some(2))] {
            let mean = |x: &[Tensor]| visible_mean(&x[0], shape, &offsets);
            let mut want = Vec::new();
            for pair in offsets.windows(2) {
                for position in 0..pair[1] - pair[0] {
                    let seen = shape.seen(position, pair[1] - pair[0]);
                    let count = seen.len() as f64;
                    let column = |k: usize| seen.clone().map(|row| rows[pair[0] + row][k]).sum::<f64>() / count;
                    want.extend((0..3).map(column));
                }
            }
            check::close(&mean(&[check::strided(&x)]).unwrap(), &want, 1e-14);
            check::gradients(&[&x], mean);
            check::threads_agree(&[&x], mean);
        }
        assert!(visible_mean(&x, shape(true, None), &[0, 9].into()).is_err());
    }
}
