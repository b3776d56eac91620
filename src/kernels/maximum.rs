//! The larger of two elements.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, same_dtype, tensor, values};
use super::parallel;
use super::tape::{self, Reads};

const NAME: &str = "maximum";

/// `max(a, b)`, element by element; where both are equal, the gradient is that of `a`.
///
/// # Errors
/// If shapes or element types differ, or the tensors are on different devices.
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("{NAME}: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    same_dtype(NAME, a, "the second argument", b)?;
    tape::apply2(Maximum, [&a.contiguous()?, &b.contiguous()?], Reads::arguments([true; 2]))
}

pub(super) struct Maximum;

impl Maximum {
    fn forward<T: Element>(a: &[T], b: &[T]) -> Vec<T> {
        parallel::pieces(a.len(), |at, out| {
            for ((out, &a), &b) in out.iter_mut().zip(parallel::from(a, at)).zip(parallel::from(b, at)) {
                *out = if b > a { b } else { a };
            }
        })
    }

    fn backward<T: Element>(a: &Tensor, b: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let locked = (Locked::new(a), Locked::new(b), Locked::new(gradient));
        let (xs, ys, gradient) = (locked.0.values::<T>()?, locked.1.values::<T>()?, locked.2.values::<T>()?);
        let taken = |like: &Tensor, of_b: bool| {
            let out = parallel::pieces(xs.len(), |at, out| {
                let rows = parallel::from(xs, at).iter().zip(parallel::from(ys, at)).zip(parallel::from(gradient, at));
                for (out, ((a, b), &gradient)) in out.iter_mut().zip(rows) {
                    *out = if (b > a) == of_b { gradient } else { T::zero() };
                }
            });
            tensor(out, like)
        };
        let da = a.track_op().then(|| taken(a, false)).transpose()?;
        let db = b.track_op().then(|| taken(b, true)).transpose()?;
        Ok((da, db))
    }
}

impl CustomOp2 for Maximum {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(a.dtype(), NAME, T => {
            Ok((T::to_cpu_storage_owned(Self::forward::<T>(values(a, al)?, values(b, bl)?)), al.shape().clone()))
        })
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(a.dtype(), NAME, T => Self::backward::<T>(a, b, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn the_larger_is_taken() {
        let (a, b) = (check::normal(&[5, 6], 1), check::normal(&[5, 6], 2));
        let larger = |t: &[Tensor]| maximum(&t[0], &t[1]);
        let want: Vec<f64> = check::flat(&a).into_iter().zip(check::flat(&b)).map(|(a, b)| a.max(b)).collect();
        check::close(&larger(&[check::strided(&a), check::offset(&b)]).unwrap(), &want, 0.0);
        check::gradients(&[&a, &b], larger);
        check::untracked(&[&a, &b], Untracked(0), larger);
        check::untracked(&[&a, &b], Untracked(1), larger);
        check::threads_agree(&[&a, &b], larger);
        assert!(maximum(&a, &check::normal(&[5, 5], 1)).is_err());
    }
}
