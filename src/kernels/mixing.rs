//! Weighted sums of two tensors, in one pass: the initial residual, and the branch that an adapter adds.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, same_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

/// SIBO's initial residual (Wen, Zhang, Fang, 2024): `(1 - lambda) · x + lambda · r`.
///
/// `r` has the shape of `x` and never gets a gradient, tracked or not; the gradient of `x` is `1 - lambda` times that
/// of the result.
///
/// # Errors
/// If shapes or element types differ, or the tensors are on different devices.
pub fn residual_mix(x: &Tensor, r: &Tensor, lambda: f64) -> Result<Tensor> {
    fit("residual_mix", x, r)?;
    // Held by the operation and not an argument of it: candle fails on an argument with a history and no gradient.
    let r = r.detach().contiguous()?;
    tape::apply1(ResidualMix { r, lambda }, &x.contiguous()?, Reads::arguments([false]))
}

/// `s · x`.
///
/// # Errors
/// If `x` is not of a float type.
pub fn scale(x: &Tensor, s: f64) -> Result<Tensor> {
    tape::apply1(Scale { s }, &x.contiguous()?, Reads::arguments([false]))
}

/// `a + s · b`, with gradients to both; `a` and `b` have the same shape.
///
/// # Errors
/// If shapes or element types differ, or the tensors are on different devices.
pub fn scaled_add(a: &Tensor, b: &Tensor, s: f64) -> Result<Tensor> {
    fit("scaled_add", a, b)?;
    tape::apply2(ScaledAdd { s }, [&a.contiguous()?, &b.contiguous()?], Reads::arguments([false; 2]))
}

fn fit(op: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        bail!("{op}: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    same_dtype(op, a, "the second argument", b)
}

fn combine<T: Element>(a: &[T], fa: f64, b: &[T], fb: f64) -> Vec<T> {
    let (fa, fb) = (T::from_f64(fa), T::from_f64(fb));
    parallel::pieces(a.len(), |at, out| vector::combine(parallel::from(a, at), fa, parallel::from(b, at), fb, out))
}

fn multiply<T: Element>(values: &[T], factor: f64) -> Vec<T> {
    parallel::pieces(values.len(), |at, out| vector::scaled(parallel::from(values, at), T::from_f64(factor), out))
}

/// The gradient of `argument`: `factor` times that of the result.
fn scaled(op: &str, argument: &Tensor, gradient: &Tensor, factor: f64) -> Result<Tensor> {
    let gradient = gradient.contiguous()?;
    let locked = Locked::new(&gradient);
    by_dtype!(argument.dtype(), op, T => tensor(multiply::<T>(locked.values()?, factor), argument))
}

pub(super) struct Scale {
    pub(super) s: f64,
}

impl CustomOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "scale", T => {
            Ok((T::to_cpu_storage_owned(multiply::<T>(values(x, layout)?, self.s)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        scaled("scale", x, gradient, self.s).map(Some)
    }
}

pub(super) struct ResidualMix {
    pub(super) r: Tensor,
    pub(super) lambda: f64,
}

impl CustomOp1 for ResidualMix {
    fn name(&self) -> &'static str {
        "residual_mix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let r = Locked::new(&self.r);
        by_dtype!(x.dtype(), "residual_mix", T => {
            let out = combine::<T>(values(x, layout)?, 1.0 - self.lambda, r.values()?, self.lambda);
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        scaled("residual_mix", x, gradient, 1.0 - self.lambda).map(Some)
    }
}

pub(super) struct ScaledAdd {
    pub(super) s: f64,
}

impl CustomOp2 for ScaledAdd {
    fn name(&self) -> &'static str {
        "scaled_add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(a.dtype(), "scaled_add", T => {
            let out = combine::<T>(values(a, al)?, 1.0, values(b, bl)?, self.s);
            Ok((T::to_cpu_storage_owned(out), al.shape().clone()))
        })
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let da = a.track_op().then(|| gradient.clone());
        let db = b.track_op().then(|| match self.s {
            1.0 => Ok(gradient.clone()),
            s => scaled("scaled_add", b, gradient, s),
        });
        let db = db.transpose()?;
        Ok((da, db))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;
    use candle_core::Var;

    fn pair() -> (Tensor, Tensor) {
        (check::normal(&[5, 7], 1), check::normal(&[5, 7], 2))
    }

    fn formula(a: &Tensor, fa: f64, b: &Tensor, fb: f64) -> Vec<f64> {
        check::flat(a).iter().zip(check::flat(b)).map(|(a, b)| fa * a + fb * b).collect()
    }

    #[test]
    fn the_initial_residual_and_its_gradient() {
        let (x, r) = pair();
        for lambda in [0.0, 0.2, 1.0] {
            let want = formula(&x, 1.0 - lambda, &r, lambda);
            check::close(&residual_mix(&x, &r, lambda).unwrap(), &want, 1e-14);
            check::close(&residual_mix(&check::strided(&x), &check::offset(&r), lambda).unwrap(), &want, 1e-14);
            let any = |t: &[Tensor]| residual_mix(&t[0], &r.to_dtype(t[0].dtype())?, lambda);
            check::gradients(&[&x], any);
            check::f32_agrees(&[&x], 1e-6, any);
        }
    }

    #[test]
    fn a_tracked_residual_gets_no_gradient_and_does_no_harm() {
        let (x, r) = pair();
        let (x, r) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&r).unwrap());
        let history = (r.as_tensor() * 2.0).unwrap();
        let grads = residual_mix(&x, &history, 0.3).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&r).is_none());
        check::close(grads.get(&x).unwrap(), &[0.7; 35], 1e-14);
    }

    #[test]
    fn the_scaled_sum_and_its_gradients() {
        let (a, b) = pair();
        check::close(&scaled_add(&a, &b, -2.5).unwrap(), &formula(&a, 1.0, &b, -2.5), 1e-14);
        check::close(
            &scaled_add(&check::offset(&a), &check::strided(&b), -2.5).unwrap(),
            &formula(&a, 1.0, &b, -2.5),
            1e-14,
        );
        check::gradients(&[&a, &b], |t| scaled_add(&t[0], &t[1], -2.5));
        check::f32_agrees(&[&a, &b], 1e-6, |t| scaled_add(&t[0], &t[1], -2.5));
        check::untracked(&[&a, &b], Untracked(0), |t| scaled_add(&t[0], &t[1], -2.5));
        check::untracked(&[&a, &b], Untracked(1), |t| scaled_add(&t[0], &t[1], -2.5));
        let large = (check::normal(&[400, 70], 1), check::normal(&[400, 70], 2));
        check::threads_agree(&[&large.0, &large.1], |t| scaled_add(&t[0], &t[1], 0.3));
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let (a, b) = pair();
        assert!(scaled_add(&a, &b.t().unwrap(), 1.0).is_err());
        assert!(residual_mix(&a, &b.t().unwrap(), 0.5).is_err());
        assert!(residual_mix(&a, &b.to_dtype(candle_core::DType::F32).unwrap(), 0.5).is_err());
    }
}
