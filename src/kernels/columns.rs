//! Some columns of a matrix, for linears that compute several things at once.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::parallel;
use super::tape::{self, Reads};

const NAME: &str = "columns";

/// First column and count of each range that is taken, in the order in which they come out.
pub type Columns = Arc<[(usize, usize)]>;

/// The columns of `x`, `[n, width]`, that `ranges` name, one range after another. A column may be named several times.
///
/// # Errors
/// If a range lies outside, or `x` is no matrix.
pub fn columns(x: &Tensor, ranges: &Columns) -> Result<Tensor> {
    let (_, width) = matrix_dims(NAME, "x", x)?;
    if let Some((first, count)) = ranges.iter().find(|(first, count)| first + count > width) {
        bail!("columns: {count} columns from {first} on are not among the {width} of x")
    }
    tape::apply1(Selection { ranges: Arc::clone(ranges) }, &x.contiguous()?, Reads::arguments([false]))
}

pub(super) struct Selection {
    pub(super) ranges: Columns,
}

impl Selection {
    fn count(&self) -> usize {
        self.ranges.iter().map(|(_, count)| count).sum()
    }

    fn forward<T: Element>(&self, x: &[T], rows: usize, width: usize) -> Vec<T> {
        parallel::rows(rows, self.count(), |index, mut out| {
            let row = parallel::row(x, index, width);
            for &(first, count) in &*self.ranges {
                let (part, rest) = std::mem::take(&mut out).split_at_mut(count);
                part.copy_from_slice(parallel::from(row, first).get(..count).unwrap_or_default());
                out = rest;
            }
        })
    }

    fn backward<T: Element>(&self, gradient: &[T], rows: usize, width: usize) -> Vec<T> {
        let own = self.count();
        parallel::rows(rows, width, |index, out| {
            out.fill(T::zero());
            let mut row = parallel::row(gradient, index, own);
            for &(first, count) in &*self.ranges {
                let (part, rest) = row.split_at(count);
                if let Some(out) = out.get_mut(first..first + count) {
                    out.iter_mut().zip(part).for_each(|(out, &part)| *out += part);
                }
                row = rest;
            }
        })
    }
}

impl CustomOp1 for Selection {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), NAME, T => {
            let out = self.forward::<T>(values(x, layout)?, rows, width);
            Ok((T::to_cpu_storage_owned(out), (rows, self.count()).into()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        let (rows, width) = x.dims2()?;
        by_dtype!(x.dtype(), NAME, T => tensor(self.backward::<T>(locked.values()?, rows, width), x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn the_columns_and_their_gradient() {
        for (rows, width, ranges) in [
            (1, 1, vec![(0, 1)]),
            (5, 9, vec![(4, 3), (0, 2), (8, 1)]),
            (4, 4, vec![(0, 2), (0, 2), (1, 3)]),
            (3, 4, vec![]),
        ] {
            let x = check::normal(&[rows, width], 1);
            let ranges: Columns = ranges.into();
            let taken = |row: &Vec<f64>| ranges.iter().flat_map(|&(f, n)| row[f..f + n].to_vec()).collect::<Vec<_>>();
            let want: Vec<f64> = x.to_vec2::<f64>().unwrap().iter().flat_map(taken).collect();
            if ranges.is_empty() {
                assert_eq!(columns(&x, &ranges).unwrap().dims(), [rows, 0]);
                continue;
            }
            for x in [&x, &check::strided(&x), &check::offset(&x)] {
                check::close(&columns(x, &ranges).unwrap(), &want, 0.0);
            }
            check::gradients(&[&x], |t| columns(&t[0], &ranges));
            check::threads_agree(&[&check::normal(&[300, width], 2)], |t| columns(&t[0], &ranges));
        }
        let error = columns(&check::normal(&[2, 4], 1), &[(2, 3)].into()).unwrap_err().to_string();
        assert!(error.starts_with("columns: 3 columns from 2 on are not among the 4 of x"), "{error}");
    }
}
