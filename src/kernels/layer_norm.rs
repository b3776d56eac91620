//! Layer norm (Ba, Kiros, Hinton, 2016), fused.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel, vector};

const NAME: &str = "layer_norm";

/// `(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) · weight + bias` for every row of `x`, which is `[n, d]`; `weight`
/// and `bias` are `[d]`.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (_, width) = matrix_dims(NAME, "x", x)?;
    for (argument, tensor) in [("weight", weight), ("bias", bias)] {
        if tensor.dims() != [width] {
            bail!("layer_norm: {argument} {:?} does not fit x {:?}", tensor.dims(), x.dims())
        }
        mixed::float(NAME, argument, tensor)?;
    }
    let arguments = [&x.contiguous()?, &weight.contiguous()?, &bias.contiguous()?];
    tape::apply3(LayerNorm { eps }, arguments, Reads::arguments([true, true, false]))
}

pub(super) struct LayerNorm {
    pub(super) eps: f64,
}

impl LayerNorm {
    /// The mean of a row and one over its deviation.
    fn moments<T: Element>(&self, row: &[T]) -> (T, T) {
        let count = T::from_f64(row.len() as f64);
        let mean = vector::sum(row) / count;
        let variance = vector::squared_deviations(row, mean) / count;
        (mean, T::one() / (variance + T::from_f64(self.eps)).sqrt())
    }

    fn forward<T: Element>(&self, x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let width = weight.len();
        parallel::rows(x.len() / width.max(1), width, |index, out| {
            let row = parallel::row(x, index, width);
            vector::layer_norm(row, self.moments(row), weight, bias, out);
        })
    }

    fn backward<T: Element>(&self, [x, w, b]: [&Tensor; 3], g: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (n, width) = x.dims2()?;
        let locked = (Locked::new(x), Locked::new(w), Locked::new(g));
        let (xs, gradient) = (locked.0.values::<T>()?, locked.2.values::<T>()?);
        let weight = &*locked.1.widened::<T>()?;
        let mut gradients = [None, None, None];
        if x.track_op() {
            let out = parallel::rows(n, width, |index, out| {
                let (row, gradient) = (parallel::row(xs, index, width), parallel::row(gradient, index, width));
                vector::layer_norm_backward(row, self.moments(row), weight, gradient, out);
            });
            gradients[0] = Some(tensor(out, x)?);
        }
        if w.track_op() {
            let [means, inverses] = parallel::of_rows(n, width, |index| {
                let (mean, inverse) = self.moments(parallel::row(xs, index, width));
                [mean, inverse]
            });
            let mut out = vec![T::zero(); width];
            parallel::sum_columns(&mut out, n, |index, first, sums| {
                let at = index * width + first;
                let (row, gradient) = (parallel::from(xs, at), parallel::from(gradient, at));
                if let (Some(&mean), Some(&inverse)) = (means.get(index), inverses.get(index)) {
                    vector::add_normed_products(sums, row, (mean, inverse), gradient);
                }
            });
            gradients[1] = mixed::in_type_of(Some(tensor(out, w)?), w)?;
        }
        if b.track_op() {
            let mut out = vec![T::zero(); width];
            parallel::sum_columns(&mut out, n, |index, first, sums| {
                vector::add(sums, parallel::from(gradient, index * width + first));
            });
            gradients[2] = mixed::in_type_of(Some(tensor(out, b)?), b)?;
        }
        Ok(gradients)
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            let out = self.forward::<T>(values(x, xl)?, &mixed::widened(w, wl)?, &mixed::widened(b, bl)?);
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [dx, dw, db] = by_dtype!(x.dtype(), NAME, T => self.backward::<T>([x, w, b], &gradient))?;
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    const EPS: f64 = 1e-3;

    fn arguments(n: usize, width: usize) -> [Tensor; 3] {
        [check::normal(&[n, width], 1), check::normal(&[width], 2), check::normal(&[width], 3)]
    }

    fn naive(x: &Tensor, w: &Tensor, b: &Tensor) -> Vec<f64> {
        let (w, b) = (check::flat(w), check::flat(b));
        let normed = |row: &Vec<f64>| -> Vec<f64> {
            let count = row.len() as f64;
            let mean = row.iter().sum::<f64>() / count;
            let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count + EPS).sqrt();
            row.iter().zip(w.iter().zip(&b)).map(|(x, (w, b))| (x - mean) / deviation * w + b).collect()
        };
        x.to_vec2::<f64>().unwrap().iter().flat_map(normed).collect()
    }

    #[test]
    fn the_norm_and_its_gradients() {
        for (n, width) in [(1, 1), (1, 20), (5, 3), (9, 40)] {
            let [x, w, b] = arguments(n, width);
            let want = naive(&x, &w, &b);
            check::close(&layer_norm(&x, &w, &b, EPS).unwrap(), &want, 1e-12);
            let strided = layer_norm(&check::strided(&x), &check::offset(&w), &check::offset(&b), EPS);
            check::close(&strided.unwrap(), &want, 1e-12);
            check::gradients(&[&x, &w, &b], |t| layer_norm(&t[0], &t[1], &t[2], EPS));
            check::fused_gradients(&[&x, &w, &b], |t| {
                layer_norm(&check::strided(&t[0]), &t[1], &check::offset(&t[2]), EPS)
            });
            check::f32_agrees(&[&x, &w, &b], 2e-5, |t| layer_norm(&t[0], &t[1], &t[2], EPS));
        }
    }

    #[test]
    fn weights_of_another_type_are_read_in_that_of_x() {
        let [x, w, b] = arguments(9, 40);
        check::mixed(&x, &[&w, &b], |x, w| layer_norm(x, &w[0], &w[1], EPS));
    }

    #[test]
    fn untracked_arguments_threads_and_packing() {
        let [x, w, b] = arguments(300, 80);
        for which in 0..3 {
            check::untracked(&[&x, &w, &b], Untracked(which), |t| layer_norm(&t[0], &t[1], &t[2], EPS));
        }
        check::threads_agree(&[&x, &w, &b], |t| layer_norm(&t[0], &t[1], &t[2], EPS));
        let whole = check::flat(&layer_norm(&x, &w, &b, EPS).unwrap());
        let part = check::flat(&layer_norm(&x.narrow(0, 100, 7).unwrap(), &w, &b, EPS).unwrap());
        assert_eq!(whole[100 * 80..107 * 80], part);
    }

    #[test]
    fn a_constant_row_becomes_the_bias_and_has_a_finite_gradient() {
        let [_, w, b] = arguments(1, 4);
        let x = Tensor::from_vec(vec![3.0; 8], (2, 4), &candle_core::Device::Cpu).unwrap();
        let bias = check::flat(&b);
        check::close(&layer_norm(&x, &w, &b, EPS).unwrap(), &[bias.clone(), bias].concat(), 0.0);
        check::gradients(&[&x, &w, &b], |t| layer_norm(&t[0], &t[1], &t[2], 0.1));
        assert!(layer_norm(&x, &check::normal(&[5], 1), &b, EPS).is_err());
        assert!(layer_norm(&x, &w, &check::normal(&[5], 1), EPS).is_err());
    }

    #[test]
    fn a_large_mean_does_not_drown_the_deviations() {
        let (x, w, b) = (check::normal(&[3, 64], 1), check::normal(&[64], 2), check::normal(&[64], 3));
        let far = (x + 100.0).unwrap();
        check::f32_agrees(&[&far, &w, &b], 1e-4, |t| layer_norm(&t[0], &t[1], &t[2], EPS));
    }
}
