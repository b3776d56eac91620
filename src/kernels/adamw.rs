//! The update of AdamW in one pass over a tensor, and the squares that clipping asks for.

use std::cell::Cell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::element::{Element, Locked, by_dtype, same_dtype, values_mut};
use super::{parallel, vector};

/// The numbers of one update: see [`adamw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// What a gradient is multiplied by first; clipping's factor.
    pub clip: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// What is left of the weight: 1 less the rate times the weight decay.
    pub keep: f64,
    /// The rate over the first moment's bias correction.
    pub step: f64,
    /// The root of the second moment's bias correction.
    pub root: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// The same in the type of the weights.
pub(super) struct Factors<T> {
    pub(super) clip: T,
    pub(super) beta1: T,
    pub(super) rest1: T,
    pub(super) beta2: T,
    pub(super) rest2: T,
    pub(super) keep: T,
    pub(super) step: T,
    pub(super) root: T,
    pub(super) epsilon: T,
}

impl AdamWStep {
    fn factors<T: Element>(&self) -> Factors<T> {
        Factors {
            clip: T::from_f64(self.clip),
            beta1: T::from_f64(self.beta1),
            rest1: T::from_f64(1.0 - self.beta1),
            beta2: T::from_f64(self.beta2),
            rest2: T::from_f64(1.0 - self.beta2),
            keep: T::from_f64(self.keep),
            step: T::from_f64(self.step),
            root: T::from_f64(self.root),
            epsilon: T::from_f64(self.epsilon),
        }
    }
}

/// Updates the weights `w` and their moments `m` and `v` in place by the gradient `g`:
///
/// `m ← β₁m + (1-β₁)·clip·g`, `v ← β₂v + (1-β₂)·(clip·g)²`, `w ← keep·w - step·m / (√v / root + ε)`.
///
/// All four have one shape and one type, F32 or F64, are contiguous and on the CPU; `m` and `v` share their memory with
/// no tensor that is still read.
///
/// # Errors
/// If a tensor is none of that.
pub fn adamw(w: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, step: &AdamWStep) -> Result<()> {
    for (name, tensor) in [("the gradient", g), ("the first moment", m), ("the second moment", v)] {
        same_dtype("adamw", w, name, tensor)?;
        if w.dims() != tensor.dims() {
            bail!("adamw: {name} is of shape {:?}, the weights of {:?}", tensor.dims(), w.dims())
        }
    }
    by_dtype!(w.dtype(), "adamw", T => {
        let factors = step.factors::<T>();
        let g = Locked::new(g);
        let g = g.values::<T>()?;
        in_place(w, |w| in_place(m, |m| in_place(v, |v| {
            let size = parallel::task_length(w.len());
            let tasks = w.par_chunks_mut(size).zip(g.par_chunks(size)).zip(m.par_chunks_mut(size)).zip(v.par_chunks_mut(size));
            tasks.for_each(|(((w, g), m), v)| vector::adamw(w, g, m, v, &factors));
            Ok(())
        })))
    })
}

/// The sum of the squares of a tensor's values in f64, the same whatever the number of threads; `None` where the tensor is
/// not contiguous on the CPU in F32 or F64.
#[must_use]
pub fn sum_of_squares(tensor: &Tensor) -> Option<f64> {
    fn sum<T: Element>(tensor: &Tensor) -> Option<f64> {
        let locked = Locked::new(tensor);
        let values = locked.values::<T>().ok()?;
        let size = parallel::task_length(values.len());
        let sums: Vec<f64> = values.par_chunks(size).map(|values| vector::sum_of_squares(values)).collect();
        Some(sums.iter().sum())
    }
    match tensor.dtype() {
        candle_core::DType::F32 => sum::<f32>(tensor),
        candle_core::DType::F64 => sum::<f64>(tensor),
        _ => None,
    }
}

/// Calls `write` with the values of `tensor`, which must be contiguous and on the CPU.
fn in_place<T: Element>(tensor: &Tensor, write: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Writing { write: Cell::new(Some(write)), element: PhantomData })
}

struct Writing<T, F> {
    write: Cell<Option<F>>,
    element: PhantomData<T>,
}

impl<T: Element, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Writing<T, F> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let values = values_mut(storage, layout)?;
        self.write.take().map_or(Ok(()), |write| write(values))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn an_update_of_many_values_is_that_of_each() {
        let count = 40_001;
        let flat = |seed| check::normal(&[count], seed).to_dtype(DType::F64).unwrap();
        let (w, g, m, v) = (flat(1), flat(2), flat(3), flat(4).sqr().unwrap());
        let before = [&w, &g, &m, &v].map(|t| t.to_vec1::<f64>().unwrap());
        let step = AdamWStep { clip: 0.5, beta1: 0.9, beta2: 0.99, keep: 0.999, step: 0.02, root: 0.7, epsilon: 1e-8 };
        adamw(&w, &g, &m, &v, &step).unwrap();
        let after = [&w, &m, &v].map(|t| t.to_vec1::<f64>().unwrap());
        for i in 0..count {
            let [w, g, m, v] = before.each_ref().map(|t| t[i]);
            let m = 0.9 * m + 0.1 * 0.5 * g;
            let v = 0.99 * v + 0.01 * (0.5 * g) * (0.5 * g);
            let w = 0.999 * w - 0.02 * m / (v.sqrt() / 0.7 + 1e-8);
            let [a, b, c] = after.each_ref().map(|t| t[i]);
            assert!((a - w).abs() < 1e-14 && (b - m).abs() < 1e-14 && (c - v).abs() < 1e-14, "{i}");
        }
    }

    #[test]
    fn squares_of_f32_are_summed_in_f64() {
        let x = check::normal(&[50_003], 5).to_dtype(DType::F32).unwrap();
        let wanted: f64 = x.to_vec1::<f32>().unwrap().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let found = sum_of_squares(&x).unwrap();
        assert!((found - wanted).abs() < 1e-12 * wanted, "{found} {wanted}");
        assert_eq!(sum_of_squares(&Tensor::zeros(3, DType::BF16, &Device::Cpu).unwrap()), None);
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        let step = AdamWStep { clip: 1.0, beta1: 0.9, beta2: 0.99, keep: 1.0, step: 0.1, root: 1.0, epsilon: 1e-8 };
        let [a, b] = [3usize, 4].map(|n| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap());
        assert!(adamw(&a, &b, &a.zeros_like().unwrap(), &a.zeros_like().unwrap(), &step).is_err());
        let wide = a.to_dtype(DType::F64).unwrap();
        assert!(adamw(&a, &wide, &a.zeros_like().unwrap(), &a.zeros_like().unwrap(), &step).is_err());
    }
}
