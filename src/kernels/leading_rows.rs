//! The first rows of every sequence of a batch: virtual tokens, which are put in front and taken off again.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel};

/// `x` with the rows of `table` in the place of the first rows of every sequence: `x` is `[tokens, k]`, `table`
/// `[virtual, k]`, `offsets` say where sequences begin and the last ends; none is shorter than the table.
///
/// # Errors
/// If the shapes do not fit.
pub fn replace_leading(x: &Tensor, table: &Tensor, offsets: &Arc<[usize]>) -> Result<Tensor> {
    const NAME: &str = "replace_leading";
    let ((n, columns), (count, own)) = (matrix_dims(NAME, "x", x)?, matrix_dims(NAME, "table", table)?);
    check(NAME, n, count, offsets)?;
    if columns != own {
        bail!("{NAME}: rows of {own} in the place of rows of {columns}")
    }
    mixed::float(NAME, "table", table)?;
    let operation = ReplaceLeading { offsets: Arc::clone(offsets), count };
    tape::apply2(operation, [&x.contiguous()?, &table.contiguous()?], Reads::arguments([false; 2]))
}

/// `x` without the first `count` rows of every sequence.
///
/// # Errors
/// If a sequence is shorter.
pub fn skip_leading(x: &Tensor, count: usize, offsets: &Arc<[usize]>) -> Result<Tensor> {
    const NAME: &str = "skip_leading";
    let (n, _) = matrix_dims(NAME, "x", x)?;
    check(NAME, n, count, offsets)?;
    let operation = SkipLeading { offsets: Arc::clone(offsets), count };
    tape::apply1(operation, &x.contiguous()?, Reads::arguments([false]))
}

fn check(name: &str, n: usize, count: usize, offsets: &[usize]) -> Result<()> {
    let fits = offsets.first() == Some(&0)
        && offsets.last() == Some(&n)
        && offsets.windows(2).all(|pair| matches!(pair, [start, end] if start + count <= *end));
    if fits { Ok(()) } else { bail!("{name}: {n} rows are no sequences of at least {count} rows by {offsets:?}") }
}

/// For every row its place among the leading ones of its sequence, where it is one.
fn places(offsets: &[usize], count: usize) -> Vec<Option<usize>> {
    let lengths = offsets.windows(2).map(|pair| pair.last().zip(pair.first()).map_or(0, |(end, start)| end - start));
    lengths.flat_map(|length| (0..length).map(move |row| (row < count).then_some(row))).collect()
}

pub(super) struct ReplaceLeading {
    pub(super) offsets: Arc<[usize]>,
    pub(super) count: usize,
}

impl ReplaceLeading {
    fn forward<T: Element>(&self, x: &[T], table: &[T], columns: usize) -> Vec<T> {
        let places = places(&self.offsets, self.count);
        parallel::rows(places.len(), columns, |index, out| {
            out.copy_from_slice(match places.get(index).copied().flatten() {
                Some(place) => parallel::row(table, place, columns),
                None => parallel::row(x, index, columns),
            });
        })
    }

    fn backward<T: Element>(&self, x: &Tensor, table: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let columns = table.dim(1)?;
        let (places, locked) = (places(&self.offsets, self.count), Locked::new(g));
        let gradient = locked.values::<T>()?;
        let mut gradients = (None, None);
        if x.track_op() {
            let out = parallel::rows(places.len(), columns, |index, out| match places.get(index).copied().flatten() {
                Some(_) => out.fill(T::zero()),
                None => out.copy_from_slice(parallel::row(gradient, index, columns)),
            });
            gradients.0 = Some(tensor(out, x)?);
        }
        if table.track_op() {
            let mut out = vec![T::zero(); self.count * columns];
            for (index, place) in places.iter().enumerate() {
                let Some(place) = place else { continue };
                let sums = out.get_mut(place * columns..(place + 1) * columns).unwrap_or_default();
                sums.iter_mut().zip(parallel::row(gradient, index, columns)).for_each(|(sum, &g)| *sum += g);
            }
            gradients.1 = mixed::in_type_of(Some(tensor(out, table)?), table)?;
        }
        Ok(gradients)
    }
}

impl CustomOp2 for ReplaceLeading {
    fn name(&self) -> &'static str {
        "replace_leading"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, t: &CpuStorage, tl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = xl.shape().dims2()?;
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, xl)?, &mixed::widened(t, tl)?, columns);
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, t: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => self.backward::<T>(x, t, &gradient))
    }
}

pub(super) struct SkipLeading {
    pub(super) offsets: Arc<[usize]>,
    pub(super) count: usize,
}

impl SkipLeading {
    /// The rows that stay.
    pub(super) fn kept(&self) -> Vec<usize> {
        let places = places(&self.offsets, self.count);
        places.iter().enumerate().filter(|(_, place)| place.is_none()).map(|(row, _)| row).collect()
    }

    fn forward<T: Element>(&self, x: &[T], columns: usize) -> Vec<T> {
        let kept = self.kept();
        parallel::rows(kept.len(), columns, |index, out| {
            out.copy_from_slice(parallel::row(x, kept.get(index).copied().unwrap_or_default(), columns));
        })
    }

    fn backward<T: Element>(&self, gradient: &[T], columns: usize) -> Vec<T> {
        let places = places(&self.offsets, self.count);
        let mut next = 0;
        let from: Vec<Option<usize>> = places
            .iter()
            .map(|place| {
                let row = place.is_none().then_some(next);
                next += usize::from(place.is_none());
                row
            })
            .collect();
        parallel::rows(places.len(), columns, |index, out| match from.get(index).copied().flatten() {
            Some(row) => out.copy_from_slice(parallel::row(gradient, row, columns)),
            None => out.fill(T::zero()),
        })
    }
}

impl CustomOp1 for SkipLeading {
    fn name(&self) -> &'static str {
        "skip_leading"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, layout)?, columns);
            let rows = out.len() / columns.max(1);
            Ok((T::to_cpu_storage_owned(out), (rows, columns).into()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        let (_, columns) = x.dims2()?;
        by_dtype!(x.dtype(), self.name(), T => tensor(self.backward::<T>(locked.values()?, columns), x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn leading_rows_are_replaced_and_taken_off() {
        let offsets: Arc<[usize]> = [0, 4, 6, 11].into();
        let (x, table) = (check::normal(&[11, 3], 1), check::normal(&[2, 3], 2));
        let replaced = |t: &[Tensor]| replace_leading(&t[0], &t[1], &offsets);
        let skipped = |t: &[Tensor]| skip_leading(&t[0], 2, &offsets);
        let (rows, table_rows) = (x.to_vec2::<f64>().unwrap(), table.to_vec2::<f64>().unwrap());
        let leading =
            |row: usize| [0, 4, 6].iter().find_map(|start| row.checked_sub(*start).filter(|place| *place < 2));
        let want: Vec<f64> =
            (0..11).flat_map(|row| leading(row).map_or(&rows[row], |place| &table_rows[place]).clone()).collect();
        check::close(&replaced(&[check::strided(&x), check::offset(&table)]).unwrap(), &want, 0.0);
        let rest: Vec<f64> = (0..11).filter(|row| leading(*row).is_none()).flat_map(|row| rows[row].clone()).collect();
        check::close(&skipped(std::slice::from_ref(&x)).unwrap(), &rest, 0.0);
        check::gradients(&[&x, &table], replaced);
        check::gradients(&[&x], skipped);
        check::untracked(&[&x, &table], Untracked(0), replaced);
        check::untracked(&[&x, &table], Untracked(1), replaced);
        check::threads_agree(&[&x, &table], replaced);
        assert!(skip_leading(&x, 3, &offsets).is_err());
        assert!(replace_leading(&x, &check::normal(&[2, 4], 1), &offsets).is_err());
    }
}
