//! The rows of one matrix behind those of another.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{by_dtype, matrix_dims, same_dtype, values};
use super::tape::{self, Reads};

const NAME: &str = "stack";

/// `[a + b, width]` of `[a, width]` and `[b, width]`.
///
/// # Errors
/// If they are no matrices of one type and one width.
pub(super) fn stack(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let ((_, width), (_, other)) = (matrix_dims(NAME, "first", first)?, matrix_dims(NAME, "second", second)?);
    if width != other {
        bail!("{NAME}: rows of {other} behind rows of {width}")
    }
    same_dtype(NAME, first, "second", second)?;
    tape::apply2(Stack, [&first.contiguous()?, &second.contiguous()?], Reads::arguments([false; 2]))
}

pub(super) struct Stack;

impl CustomOp2 for Stack {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((first, width), (second, _)) = (al.shape().dims2()?, bl.shape().dims2()?);
        by_dtype!(a.dtype(), NAME, T => {
            let out = [values::<T>(a, al)?, values::<T>(b, bl)?].concat();
            Ok((T::to_cpu_storage_owned(out), Shape::from((first + second, width))))
        })
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = parts([a, b], [a.track_op(), b.track_op()], gradient)?;
        Ok((da, db))
    }
}

/// The rows of each wanted argument, in memory of their own.
pub(super) fn parts(
    [a, b]: [&Tensor; 2],
    [wants_a, wants_b]: [bool; 2],
    gradient: &Tensor,
) -> Result<[Option<Tensor>; 2]> {
    let (first, second) = (a.dim(0)?, b.dim(0)?);
    let rows = |from, count| gradient.narrow(0, from, count)?.detach().copy();
    Ok([wants_a.then(|| rows(0, first)).transpose()?, wants_b.then(|| rows(first, second)).transpose()?])
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn the_rows_and_their_gradients() {
        let (a, b) = (check::normal(&[3, 5], 1), check::normal(&[4, 5], 2));
        let want = [check::flat(&a), check::flat(&b)].concat();
        check::close(&stack(&check::strided(&a), &check::offset(&b)).unwrap(), &want, 0.0);
        check::gradients(&[&a, &b], |t| stack(&t[0], &t[1]));
        check::f32_agrees(&[&a, &b], 1e-6, |t| stack(&t[0], &t[1]));
        for which in 0..2 {
            check::untracked(&[&a, &b], Untracked(which), |t| stack(&t[0], &t[1]));
        }
        assert!(stack(&a, &check::normal(&[3, 4], 2)).is_err());
    }
}
