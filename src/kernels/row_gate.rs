//! Rows that decide for themselves how much of them counts.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel, vector};

const NAME: &str = "row_gate";

/// `sigmoid(x·u + b) · x`, row by row: `x` is `[n, k]`, `u` `[k]` and `b` `[1]`.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn row_gate(x: &Tensor, u: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (_, width) = matrix_dims(NAME, "x", x)?;
    if u.dims() != [width] || b.dims() != [1] {
        bail!("{NAME}: u {:?} and b {:?} do not fit x {:?}", u.dims(), b.dims(), x.dims())
    }
    mixed::float(NAME, "u", u)?;
    mixed::float(NAME, "b", b)?;
    tape::apply3(RowGate, [&x.contiguous()?, &u.contiguous()?, &b.contiguous()?], Reads::arguments([true; 3]))
}

pub(super) struct RowGate;

impl RowGate {
    fn gate<T: Element>(row: &[T], u: &[T], b: &[T]) -> T {
        let score = vector::dot(row, u) + b.first().copied().unwrap_or_default();
        T::one() / (T::one() + (-score).exp())
    }

    fn forward<T: Element>(x: &[T], u: &[T], b: &[T]) -> Vec<T> {
        let width = u.len();
        parallel::rows(x.len() / width.max(1), width, |index, out| {
            let row = parallel::row(x, index, width);
            let gate = Self::gate(row, u, b);
            out.iter_mut().zip(row).for_each(|(out, &x)| *out = gate * x);
        })
    }

    fn backward<T: Element>([x, u, b]: [&Tensor; 3], gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (n, width) = x.dims2()?;
        let locked = (Locked::new(x), Locked::new(u), Locked::new(b), Locked::new(gradient));
        let (xs, gradient) = (locked.0.values::<T>()?, locked.3.values::<T>()?);
        let (us, bs) = (locked.1.widened::<T>()?, locked.2.widened::<T>()?);
        // Each row's gate, and the gradient of its score: gate · (1 − gate) · (gradient · x).
        let [gates, scores] = parallel::of_rows(n, width, |index| {
            let (row, gradient) = (parallel::row(xs, index, width), parallel::row(gradient, index, width));
            let gate = Self::gate(row, &us, &bs);
            [gate, gate * (T::one() - gate) * vector::dot(row, gradient)]
        });
        let at = |values: &[T], index: usize| values.get(index).copied().unwrap_or_default();
        let mut gradients = [None, None, None];
        let [dx, du, db] = &mut gradients;
        if x.track_op() {
            let out = parallel::rows(n, width, |index, out| {
                let (gate, score) = (at(&gates, index), at(&scores, index));
                for ((out, &g), &u) in out.iter_mut().zip(parallel::row(gradient, index, width)).zip(us.iter()) {
                    *out = gate * g + score * u;
                }
            });
            *dx = Some(tensor(out, x)?);
        }
        if u.track_op() {
            let mut sums = vec![T::zero(); width];
            parallel::sum_columns(&mut sums, n, |index, first, sums| {
                let score = at(&scores, index);
                let row = parallel::from(xs, index * width + first);
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += score * x);
            });
            *du = mixed::in_type_of(Some(tensor(sums, u)?), u)?;
        }
        if b.track_op() {
            let sum = scores.iter().fold(T::zero(), |sum, &score| sum + score);
            *db = mixed::in_type_of(Some(tensor(vec![sum], b)?), b)?;
        }
        Ok(gradients)
    }
}

impl CustomOp3 for RowGate {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        u: &CpuStorage,
        ul: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            let out = Self::forward::<T>(values(x, xl)?, &mixed::widened(u, ul)?, &mixed::widened(b, bl)?);
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        u: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [x, u, b] = by_dtype!(x.dtype(), NAME, T => Self::backward::<T>([x, u, b], &gradient))?;
        Ok((x, u, b))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn rows_are_weighed_by_their_own_gate() {
        let (x, u, b) = (check::normal(&[5, 6], 1), check::normal(&[6], 2), check::normal(&[1], 3));
        let gated = |t: &[Tensor]| row_gate(&t[0], &t[1], &t[2]);
        let (rows, us, b0) = (x.to_vec2::<f64>().unwrap(), check::flat(&u), check::flat(&b)[0]);
        let gate = |row: &[f64]| 1.0 / (1.0 + (-(row.iter().zip(&us).map(|(x, u)| x * u).sum::<f64>() + b0)).exp());
        let want: Vec<f64> =
            rows.iter().flat_map(|row| row.iter().map(|x| gate(row) * x).collect::<Vec<_>>()).collect();
        check::close(&gated(&[check::strided(&x), u.clone(), b.clone()]).unwrap(), &want, 1e-14);
        check::gradients(&[&x, &u, &b], gated);
        for index in 0..3 {
            check::untracked(&[&x, &u, &b], Untracked(index), gated);
        }
        check::threads_agree(&[&x, &u, &b], gated);
        assert!(row_gate(&x, &check::normal(&[5], 1), &b).is_err());
    }
}
