//! A feed-forward's gate (Shazeer, 2020), fused.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::activation::Activation;
use super::element::{Element, Locked, by_dtype, same_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "gated";

/// `activation(gate) · up`, element by element; both have the same shape.
///
/// # Errors
/// If shapes or element types differ, or the tensors are on different devices.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gated: gate {:?} where up is {:?}", gate.dims(), up.dims())
    }
    same_dtype(NAME, gate, "up", up)?;
    tape::apply2(Gated(activation), [&gate.contiguous()?, &up.contiguous()?], Reads::arguments([true; 2]))
}

pub(super) struct Gated(pub(super) Activation);

impl Gated {
    fn forward<T: Element>(&self, gate: &[T], up: &[T]) -> Vec<T> {
        parallel::pieces(gate.len(), |at, out| {
            let (gate, up) = (parallel::from(gate, at), parallel::from(up, at));
            match self.0 {
                Activation::Silu => vector::swiglu(gate, up, out),
                activation => {
                    activation.apply(gate, out);
                    vector::multiply(out, up);
                }
            }
        })
    }

    fn backward<T: Element>(&self, gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let locked = (Locked::new(gate), Locked::new(up), Locked::new(g));
        let (gates, ups, gradient) = (locked.0.values::<T>()?, locked.1.values::<T>()?, locked.2.values::<T>()?);
        let [d_gate, d_up] = parallel::pairs_of_pieces(gates.len(), |at, d_gate, d_up| {
            let (gates, ups) = (parallel::from(gates, at), parallel::from(ups, at));
            let gradient = parallel::from(gradient, at);
            match self.0 {
                Activation::Silu => vector::swiglu_backward(gates, ups, gradient, d_gate, d_up),
                activation => {
                    vector::products(gradient, ups, d_up);
                    activation.differentiate(gates, d_up, d_gate);
                    activation.apply(gates, d_up);
                    vector::multiply(d_up, gradient);
                }
            }
        });
        let wrap = |values, like: &Tensor| like.track_op().then(|| tensor(values, like)).transpose();
        Ok((wrap(d_gate, gate)?, wrap(d_up, up)?))
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, u: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(g.dtype(), NAME, T => {
            let out = self.forward::<T>(values(g, gl)?, values(u, ul)?);
            Ok((T::to_cpu_storage_owned(out), gl.shape().clone()))
        })
    }

    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(g.dtype(), NAME, T => self.backward::<T>(g, u, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;
    use crate::kernels::activation;

    const KINDS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    #[test]
    fn the_gate_and_its_gradients() {
        for kind in KINDS {
            for (n, width) in [(1, 1), (1, 19), (7, 9)] {
                let (gate, up) = ((check::normal(&[n, width], 1) * 4.0).unwrap(), check::normal(&[n, width], 2));
                let activated = check::flat(&activation(&gate, kind).unwrap());
                let want: Vec<f64> = activated.iter().zip(check::flat(&up)).map(|(a, u)| a * u).collect();
                check::close(&gated(&gate, &up, kind).unwrap(), &want, 1e-12);
                check::close(&gated(&check::strided(&gate), &check::offset(&up), kind).unwrap(), &want, 1e-12);
                check::gradients(&[&gate, &up], |t| gated(&t[0], &t[1], kind));
                check::f32_agrees(&[&gate, &up], 4e-6, |t| gated(&t[0], &t[1], kind));
            }
        }
    }

    #[test]
    fn untracked_arguments_threads_and_large_gates() {
        let (gate, up) = ((check::normal(&[200, 150], 1) * 100.0).unwrap(), check::normal(&[200, 150], 2));
        for kind in KINDS {
            check::untracked(&[&gate, &up], Untracked(0), |t| gated(&t[0], &t[1], kind));
            check::untracked(&[&gate, &up], Untracked(1), |t| gated(&t[0], &t[1], kind));
            check::threads_agree(&[&gate, &up], |t| gated(&t[0], &t[1], kind));
            check::f32_agrees(&[&gate, &up], 4e-6, |t| gated(&t[0], &t[1], kind));
        }
        assert!(gated(&gate, &check::normal(&[150, 200], 2), Activation::Silu).is_err());
    }
}
