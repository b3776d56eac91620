//! The hyperbolic tangent, vectorised.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, Locked, by_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "tanh";

/// The hyperbolic tangent of every element; in `f32` with a relative error below 4e-7.
///
/// # Errors
/// If `x` is not of a float type.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    tape::apply1(Tanh, &x.contiguous()?, Reads { arguments: [false], out: true })
}

pub(super) struct Tanh;

fn forward<T: Element>(x: &[T]) -> Vec<T> {
    parallel::pieces(x.len(), |at, out| vector::tanh(parallel::from(x, at), out))
}

fn backward<T: Element>(y: &[T], gradient: &[T]) -> Vec<T> {
    parallel::pieces(y.len(), |at, out| {
        vector::tanh_backward(parallel::from(y, at), parallel::from(gradient, at), out);
    })
}

impl CustomOp1 for Tanh {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            Ok((T::to_cpu_storage_owned(forward::<T>(values(x, layout)?)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (y, gradient) = (Locked::new(y), Locked::new(&gradient));
        by_dtype!(x.dtype(), NAME, T => tensor(backward::<T>(y.values()?, gradient.values()?), x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn the_tangent_and_its_gradient() {
        for shape in [[1, 1], [3, 37]] {
            let x = check::normal(&shape, 1);
            let want: Vec<f64> = check::flat(&x).iter().map(|x| x.tanh()).collect();
            for x in [&x, &check::strided(&x), &check::offset(&x)] {
                check::close(&tanh(x).unwrap(), &want, 1e-14);
            }
            check::gradients(&[&x], |t| tanh(&t[0]));
            check::f32_agrees(&[&x], 1e-6, |t| tanh(&t[0]));
        }
        check::threads_agree(&[&check::normal(&[200, 200], 1)], |t| tanh(&t[0]));
    }
}
