//! The activations of feed-forwards, vectorised.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

use super::element::{Element, Locked, by_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

/// What stands between the two linears of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the normal distribution function Φ (Hendrycks and Gimpel, 2016); `gelu` in Hugging Face's
    /// configurations.
    Gelu,
    /// Its approximation `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`; `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`, with the derivative 0 at 0.
    Relu,
    /// `x / (1 + exp(-x))`; `silu` and `swish`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

/// The activation of every element.
///
/// In `f32` the absolute error of `Gelu` and `GeluTanh` is below 4e-7 times the larger of 1 and |x|.
///
/// # Errors
/// If `x` is not of a float type.
pub fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    tape::apply1(activation, &x.contiguous()?, Reads::arguments([true]))
}

impl Activation {
    /// `out = activation(x)`.
    pub(super) fn apply<T: Element>(self, x: &[T], out: &mut [T]) {
        match self {
            Self::Gelu => vector::gelu(x, out),
            Self::GeluTanh => vector::gelu_tanh(x, out),
            Self::Relu => vector::relu(x, out),
            Self::Silu => vector::silu(x, out),
            Self::Tanh => vector::tanh(x, out),
        }
    }

    /// `out = gradient · activation'(x)`.
    pub(super) fn differentiate<T: Element>(self, x: &[T], gradient: &[T], out: &mut [T]) {
        match self {
            Self::Gelu => vector::gelu_backward(x, gradient, out),
            Self::GeluTanh => vector::gelu_tanh_backward(x, gradient, out),
            Self::Relu => vector::relu_backward(x, gradient, out),
            Self::Silu => vector::silu_backward(x, gradient, out),
            Self::Tanh => vector::tanh_backward_from(x, gradient, out),
        }
    }

    fn forward<T: Element>(self, x: &[T]) -> Vec<T> {
        parallel::pieces(x.len(), |at, out| self.apply(parallel::from(x, at), out))
    }

    fn backward<T: Element>(self, x: &[T], gradient: &[T]) -> Vec<T> {
        parallel::pieces(x.len(), |at, out| {
            self.differentiate(parallel::from(x, at), parallel::from(gradient, at), out);
        })
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "activation", T => {
            Ok((T::to_cpu_storage_owned(self.forward::<T>(values(x, layout)?)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (xs, gradient) = (Locked::new(x), Locked::new(&gradient));
        by_dtype!(x.dtype(), "activation", T => {
            tensor(self.backward::<T>(xs.values()?, gradient.values()?), x).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::{DType, Device};

    fn naive(kind: Activation, x: f64) -> f64 {
        match kind {
            Activation::Gelu => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn the_activations_and_their_gradients() {
        for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh] {
            for shape in [[1, 1], [3, 37]] {
                let x = (check::normal(&shape, 1) * 2.0).unwrap();
                let want: Vec<f64> = check::flat(&x).iter().map(|&x| naive(kind, x)).collect();
                for x in [&x, &check::strided(&x), &check::offset(&x)] {
                    check::close(&activation(x, kind).unwrap(), &want, 1e-14);
                }
                check::gradients(&[&x], |t| activation(&t[0], kind));
                check::f32_agrees(&[&x], 2e-6, |t| activation(&t[0], kind));
            }
            check::threads_agree(&[&check::normal(&[200, 200], 1)], |t| activation(&t[0], kind));
        }
    }

    #[test]
    fn known_values() {
        // By Python's math.erfc and math.tanh.
        let x = Tensor::new(&[-3.0, -1.0, 0.0, 0.5, 2.0], &Device::Cpu).unwrap();
        let gelu = [-0.004049694094890287, -0.15865525393145707, 0.0, 0.34573123063700656, 1.9544997361036416];
        check::close(&activation(&x, Activation::Gelu).unwrap(), &gelu, 1e-14);
        let approximate = [-0.00363739208177299, -0.15880800939172324, 0.0, 0.34571400982514394, 1.954597694087775];
        check::close(&activation(&x, Activation::GeluTanh).unwrap(), &approximate, 1e-14);
        check::close(&activation(&x, Activation::Relu).unwrap(), &[0.0, 0.0, 0.0, 0.5, 2.0], 0.0);
    }

    #[test]
    fn f32_is_within_its_stated_error_over_the_whole_range() {
        let xs: Vec<f32> = (-120_000..120_000).map(|i| i as f32 * 1e-4).chain([-1e4, 1e4]).collect();
        let x = Tensor::from_vec(xs.clone(), xs.len(), &Device::Cpu).unwrap();
        for kind in [Activation::Gelu, Activation::GeluTanh] {
            let found = activation(&x, kind).unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            for (&x, found) in xs.iter().zip(found) {
                let (x, want) = (f64::from(x), naive(kind, f64::from(x)));
                assert!((found - want).abs() <= 4e-7 * x.abs().max(1.0), "{kind:?}({x}) = {found}, not {want}");
            }
        }
    }
}
