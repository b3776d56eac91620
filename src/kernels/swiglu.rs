//! The gate of LLaMA's feed-forward network (Shazeer, 2020), fused.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, same_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "swiglu";

/// `silu(gate) · up`, element by element, with `silu(x) = x / (1 + exp(-x))`; both have the same shape.
///
/// # Errors
/// If shapes or element types differ, or the tensors are on different devices.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu: gate {:?} where up is {:?}", gate.dims(), up.dims())
    }
    same_dtype(NAME, gate, "up", up)?;
    tape::apply2(SwiGlu, [&gate.contiguous()?, &up.contiguous()?], Reads::arguments([true; 2]))
}

pub(super) struct SwiGlu;

fn forward<T: Element>(gate: &[T], up: &[T]) -> Vec<T> {
    parallel::pieces(gate.len(), |at, out| vector::swiglu(parallel::from(gate, at), parallel::from(up, at), out))
}

fn backward<T: Element>(gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let locked = (Locked::new(gate), Locked::new(up), Locked::new(g));
    let (gates, ups, gradient) = (locked.0.values::<T>()?, locked.1.values::<T>()?, locked.2.values::<T>()?);
    let [d_gate, d_up] = parallel::pairs_of_pieces(gates.len(), |at, d_gate, d_up| {
        let (gates, ups) = (parallel::from(gates, at), parallel::from(ups, at));
        vector::swiglu_backward(gates, ups, parallel::from(gradient, at), d_gate, d_up);
    });
    let wrap = |values, like: &Tensor| like.track_op().then(|| tensor(values, like)).transpose();
    Ok((wrap(d_gate, gate)?, wrap(d_up, up)?))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, u: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(g.dtype(), NAME, T => {
            let out = forward::<T>(values(g, gl)?, values(u, ul)?);
            Ok((T::to_cpu_storage_owned(out), gl.shape().clone()))
        })
    }

    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(g.dtype(), NAME, T => backward::<T>(g, u, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn the_gate_and_its_gradients() {
        for (n, width) in [(1, 1), (1, 19), (7, 9)] {
            let (gate, up) = ((check::normal(&[n, width], 1) * 4.0).unwrap(), check::normal(&[n, width], 2));
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let want: Vec<f64> = check::flat(&gate).iter().zip(check::flat(&up)).map(|(g, u)| silu(*g) * u).collect();
            check::close(&swiglu(&gate, &up).unwrap(), &want, 1e-12);
            check::close(&swiglu(&check::strided(&gate), &check::offset(&up)).unwrap(), &want, 1e-12);
            check::gradients(&[&gate, &up], |t| swiglu(&t[0], &t[1]));
            check::f32_agrees(&[&gate, &up], 2e-6, |t| swiglu(&t[0], &t[1]));
        }
    }

    #[test]
    fn untracked_arguments_threads_and_large_gates() {
        let (gate, up) = ((check::normal(&[200, 150], 1) * 100.0).unwrap(), check::normal(&[200, 150], 2));
        check::untracked(&[&gate, &up], Untracked(0), |t| swiglu(&t[0], &t[1]));
        check::untracked(&[&gate, &up], Untracked(1), |t| swiglu(&t[0], &t[1]));
        check::threads_agree(&[&gate, &up], |t| swiglu(&t[0], &t[1]));
        check::f32_agrees(&[&gate, &up], 2e-6, |t| swiglu(&t[0], &t[1]));
        assert!(swiglu(&gate, &check::normal(&[150, 200], 2)).is_err());
    }
}
