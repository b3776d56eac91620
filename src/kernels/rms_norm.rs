//! RMS norm (Zhang and Sennrich, 2019), fused.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel, vector};

const NAME: &str = "rms_norm";

/// `x / sqrt(mean(x²) + eps) · weight` for every `d` consecutive elements of `x`; `weight` is `[d]`, and `x` `[n, d]`, or
/// `[n, heads · d]` to norm each head by itself.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    norm(x, weight, RmsNorm { eps, shift: 0.0 })
}

/// [`rms_norm`] with `1 + weight` for `weight`, as Gemma has it.
///
/// # Errors
/// As [`rms_norm`].
pub fn shifted_rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    norm(x, weight, RmsNorm { eps, shift: 1.0 })
}

fn norm(x: &Tensor, weight: &Tensor, operation: RmsNorm) -> Result<Tensor> {
    let (_, width) = matrix_dims(NAME, "x", x)?;
    match weight.dims() {
        &[own] if own > 0 && width % own == 0 => {}
        _ => bail!("rms_norm: weight {:?} does not fit x {:?}", weight.dims(), x.dims()),
    }
    mixed::float(NAME, "weight", weight)?;
    tape::apply2(operation, [&x.contiguous()?, &weight.contiguous()?], Reads::arguments([true; 2]))
}

pub(super) struct RmsNorm {
    pub(super) eps: f64,
    /// Added to every weight.
    pub(super) shift: f64,
}

impl RmsNorm {
    /// One over the root mean square of a row.
    fn inverse<T: Element>(&self, row: &[T]) -> T {
        let mean = vector::dot(row, row) / T::from_f64(row.len() as f64);
        T::one() / (mean + T::from_f64(self.eps)).sqrt()
    }

    /// The weights as they multiply.
    fn shifted<'a, T: Element>(&self, weight: &'a [T]) -> Cow<'a, [T]> {
        match self.shift {
            0.0 => Cow::Borrowed(weight),
            shift => Cow::Owned(weight.iter().map(|&w| w + T::from_f64(shift)).collect()),
        }
    }

    fn forward<T: Element>(&self, x: &[T], weight: &[T]) -> Vec<T> {
        let (width, weight) = (weight.len(), &*self.shifted(weight));
        parallel::rows(x.len() / width.max(1), width, |index, out| {
            let row = parallel::row(x, index, width);
            vector::rms_norm(row, weight, self.inverse(row), out);
        })
    }

    fn backward<T: Element>(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = w.elem_count();
        let n = x.elem_count() / width.max(1);
        let locked = (Locked::new(x), Locked::new(w), Locked::new(g));
        let (xs, gradient) = (locked.0.values::<T>()?, locked.2.values::<T>()?);
        let read = locked.1.widened::<T>()?;
        let weight = &*self.shifted(&read);
        let mut gradients = (None, None);
        if x.track_op() {
            let out = parallel::rows(n, width, |index, out| {
                let (row, gradient) = (parallel::row(xs, index, width), parallel::row(gradient, index, width));
                vector::rms_norm_backward(row, weight, gradient, self.inverse(row), out);
            });
            gradients.0 = Some(tensor(out, x)?);
        }
        if w.track_op() {
            let [inverses] = parallel::of_rows(n, width, |index| [self.inverse(parallel::row(xs, index, width))]);
            let mut out = vec![T::zero(); width];
            parallel::sum_columns(&mut out, n, |index, first, sums| {
                let at = index * width + first;
                let (row, gradient) = (xs.get(at..).unwrap_or_default(), gradient.get(at..).unwrap_or_default());
                vector::add_products(sums, row, gradient, inverses.get(index).copied().unwrap_or_default());
            });
            gradients.1 = mixed::in_type_of(Some(tensor(out, w)?), w)?;
        }
        Ok(gradients)
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            let out = self.forward::<T>(values(x, xl)?, &mixed::widened(w, wl)?);
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), NAME, T => self.backward::<T>(x, w, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;
    use candle_core::{DType, Device};

    const EPS: f64 = 1e-3;

    fn naive(x: &Tensor, w: &Tensor) -> Vec<f64> {
        let w = check::flat(w);
        let norm = |row: &Vec<f64>| (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + EPS).sqrt();
        let x = x.to_vec2::<f64>().unwrap();
        x.iter().flat_map(|row| row.iter().zip(&w).map(|(x, w)| x / norm(row) * w).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_norm_and_its_gradients() {
        for (n, width) in [(1, 1), (1, 20), (5, 3), (9, 40)] {
            let (x, w) = (check::normal(&[n, width], 1), check::normal(&[width], 2));
            check::close(&rms_norm(&x, &w, EPS).unwrap(), &naive(&x, &w), 1e-12);
            check::close(&rms_norm(&check::strided(&x), &check::offset(&w), EPS).unwrap(), &naive(&x, &w), 1e-12);
            check::gradients(&[&x, &w], |t| rms_norm(&t[0], &t[1], EPS));
            check::fused_gradients(&[&x, &w], |t| rms_norm(&check::strided(&t[0]), &check::offset(&t[1]), EPS));
            check::f32_agrees(&[&x, &w], 1e-5, |t| rms_norm(&t[0], &t[1], EPS));
        }
    }

    #[test]
    fn a_weight_of_another_type_is_read_in_that_of_x() {
        let (x, w) = (check::normal(&[9, 40], 1), check::normal(&[40], 2));
        check::mixed(&x, &[&w], |x, w| rms_norm(x, &w[0], EPS));
    }

    #[test]
    fn untracked_arguments_threads_and_packing() {
        let (x, w) = (check::normal(&[300, 80], 1), check::normal(&[80], 2));
        check::untracked(&[&x, &w], Untracked(0), |t| rms_norm(&t[0], &t[1], EPS));
        check::untracked(&[&x, &w], Untracked(1), |t| rms_norm(&t[0], &t[1], EPS));
        check::threads_agree(&[&x, &w], |t| rms_norm(&t[0], &t[1], EPS));
        let whole = check::flat(&rms_norm(&x, &w, EPS).unwrap());
        let part = check::flat(&rms_norm(&x.narrow(0, 100, 7).unwrap(), &w, EPS).unwrap());
        assert_eq!(whole[100 * 80..107 * 80], part);
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_has_a_finite_gradient() {
        let (x, w) = (Tensor::zeros((2, 4), DType::F64, &Device::Cpu).unwrap(), check::normal(&[4], 2));
        check::close(&rms_norm(&x, &w, EPS).unwrap(), &[0.0; 8], 0.0);
        check::gradients(&[&x, &w], |t| rms_norm(&t[0], &t[1], EPS));
        assert!(rms_norm(&x, &check::normal(&[5], 1), EPS).is_err());
    }
}
