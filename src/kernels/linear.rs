//! The linear map of a token's features, with gradients only for what is trained.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, InplaceOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values, values_mut};
use super::gemm::{Matrix, Threads, gemm, product};
use super::mixed::{self, widened};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "linear";

/// `x · weightᵀ + bias`, where `x` is `[n, in]`, `weight` `[out, in]`, `bias` `[out]` and the result `[n, out]`.
///
/// An argument that is not tracked costs nothing in the backward pass.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, inputs) = matrix_dims(NAME, "x", x)?;
    let (outputs, columns) = matrix_dims(NAME, "weight", weight)?;
    if inputs != columns {
        bail!("linear: x has {inputs} features where weight {:?} takes {columns}", weight.dims())
    }
    mixed::float(NAME, "weight", weight)?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (reads_x, reads_weight) = (weight.track_op(), x.track_op());
    let Some(bias) = bias else {
        return tape::apply2(Linear, [&x, &weight], Reads::arguments([reads_x, reads_weight]));
    };
    if bias.dims() != [outputs] {
        bail!("linear: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims())
    }
    mixed::float(NAME, "bias", bias)?;
    tape::apply3(Linear, [&x, &weight, &bias.contiguous()?], Reads::arguments([reads_x, reads_weight, false]))
}

pub(super) struct Linear;

pub(super) fn forward<T: Element>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    n: usize,
    shape: (usize, usize),
) -> Result<Vec<T>> {
    let (outputs, inputs) = shape;
    let (x, weight) = (Matrix::new(x, n, inputs, inputs), Matrix::new(weight, outputs, inputs, inputs));
    let Some(bias) = bias else { return product(x, weight.t(), Threads::All) };
    let mut out = bias.repeat(n);
    gemm(&mut out, T::one(), T::one(), x, weight.t(), Threads::All)?;
    Ok(out)
}

/// The gradients of x and of the weight.
fn backward<T: Element>(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (n, inputs) = x.dims2()?;
    let outputs = weight.dim(0)?;
    let gradient = Locked::new(gradient);
    let rows = Matrix::new(gradient.values::<T>()?, n, outputs, outputs);
    let mut gradients = (None, None);
    if x.track_op() {
        let weight = Locked::new(weight);
        let weight = weight.widened()?;
        let weight = Matrix::new(&weight, outputs, inputs, inputs);
        gradients.0 = Some(tensor(product(rows, weight, Threads::All)?, x)?);
    }
    if weight.track_op() {
        let x = Locked::new(x);
        let x = Matrix::new(x.values()?, n, inputs, inputs);
        gradients.1 = Some(tensor(product(rows.t(), x, Threads::All)?, weight)?.to_dtype(weight.dtype())?);
    }
    Ok(gradients)
}

/// `sum += factor · gradient · weight`: what a linear's result owes to its input, added to what others owe.
pub(super) fn add_input_gradient(weight: &Tensor, gradient: &Tensor, factor: f64, sum: &Tensor) -> Result<()> {
    sum.inplace_op1(&AddProduct { weight, gradient: &gradient.contiguous()?, factor })
}

struct AddProduct<'a> {
    weight: &'a Tensor,
    gradient: &'a Tensor,
    factor: f64,
}

impl InplaceOp1 for AddProduct<'_> {
    fn name(&self) -> &'static str {
        "add_product"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (n, (outputs, inputs)) = (self.gradient.dim(0)?, self.weight.dims2()?);
        let (gradient, weight) = (Locked::new(self.gradient), Locked::new(self.weight));
        by_dtype!(sum.dtype(), self.name(), T => {
            let weight = weight.widened::<T>()?;
            let rows = Matrix::new(gradient.values::<T>()?, n, outputs, outputs);
            let weight = Matrix::new(&weight, outputs, inputs, inputs);
            gemm(values_mut(sum, layout)?, T::from_f64(1.0), T::from_f64(self.factor), rows, weight, Threads::All)
        })
    }
}

/// The gradient of the bias: the sums of the gradient's columns.
fn backward_bias<T: Element>(bias: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let (n, outputs) = gradient.dims2()?;
    let gradient = Locked::new(gradient);
    let gradient = gradient.values::<T>()?;
    let mut out = vec![T::zero(); outputs];
    parallel::sum_columns(&mut out, n, |row, first, sums| {
        if let Some(row) = gradient.get(row * outputs + first..) {
            vector::add(sums, row);
        }
    });
    mixed::in_type_of(Some(tensor(out, bias)?), bias)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, _), shape) = (xl.shape().dims2()?, wl.shape().dims2()?);
        by_dtype!(x.dtype(), NAME, T => {
            let out = forward::<T>(values(x, xl)?, &widened(w, wl)?, None, n, shape)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((n, shape.0))))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), NAME, T => backward::<T>(x, w, &gradient))
    }
}

impl CustomOp3 for Linear {
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
        let ((n, _), shape) = (xl.shape().dims2()?, wl.shape().dims2()?);
        by_dtype!(x.dtype(), NAME, T => {
            let out = forward::<T>(values(x, xl)?, &widened(w, wl)?, Some(&widened(b, bl)?), n, shape)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((n, shape.0))))
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
        by_dtype!(x.dtype(), NAME, T => {
            let (dx, dw) = backward::<T>(x, w, &gradient)?;
            Ok((dx, dw, backward_bias::<T>(b, &gradient)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    fn naive(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Vec<f64> {
        let (x, w) = (x.to_vec2::<f64>().unwrap(), w.to_vec2::<f64>().unwrap());
        let b = b.map_or(vec![0.0; w.len()], |b| b.to_vec1::<f64>().unwrap());
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
        x.iter().flat_map(|x| w.iter().zip(&b).map(|(w, b)| dot(x, w) + b).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_map_and_its_gradients() {
        for (n, inputs, outputs) in [(1, 1, 1), (1, 5, 3), (7, 4, 9), (40, 17, 21)] {
            let x = check::normal(&[n, inputs], 1);
            let w = check::normal(&[outputs, inputs], 2);
            let b = check::normal(&[outputs], 3);
            check::close(&linear(&x, &w, None).unwrap(), &naive(&x, &w, None), 1e-12);
            check::close(&linear(&x, &w, Some(&b)).unwrap(), &naive(&x, &w, Some(&b)), 1e-12);
            check::gradients(&[&x, &w], |t| linear(&t[0], &t[1], None));
            check::gradients(&[&x, &w, &b], |t| linear(&t[0], &t[1], Some(&t[2])));
            check::f32_agrees(&[&x, &w, &b], 1e-5, |t| linear(&t[0], &t[1], Some(&t[2])));
        }
    }

    #[test]
    fn strided_and_offset_inputs_are_read_as_they_are() {
        let (x, w) = (check::normal(&[6, 5], 1), check::normal(&[4, 5], 2));
        let want = naive(&x, &w, None);
        check::close(&linear(&check::strided(&x), &check::offset(&w), None).unwrap(), &want, 1e-12);
        check::close(&linear(&check::offset(&x), &check::strided(&w), None).unwrap(), &want, 1e-12);
        check::fused_gradients(&[&x, &w], |t| linear(&check::strided(&t[0]), &check::offset(&t[1]), None));
    }

    #[test]
    fn an_untracked_argument_gets_no_gradient() {
        let (x, w, b) = (check::normal(&[6, 5], 1), check::normal(&[4, 5], 2), check::normal(&[4], 3));
        for untracked in 0..3 {
            check::untracked(&[&x, &w, &b], Untracked(untracked), |t| linear(&t[0], &t[1], Some(&t[2])));
        }
        check::untracked(&[&x, &w], Untracked(1), |t| linear(&t[0], &t[1], None));
    }

    #[test]
    fn the_bits_do_not_depend_on_the_threads() {
        let x = check::normal(&[300, 96], 1);
        let (w, b) = (check::normal(&[200, 96], 2), check::normal(&[200], 3));
        check::threads_agree(&[&x, &w, &b], |t| linear(&t[0], &t[1], Some(&t[2])));
    }

    #[test]
    fn a_packed_batch_agrees_with_its_parts() {
        let (x, w) = (check::normal(&[50, 16], 1), check::normal(&[12, 16], 2));
        let whole = linear(&x, &w, None).unwrap();
        for (start, length) in [(0, 1), (1, 9), (10, 40)] {
            let part = linear(&x.narrow(0, start, length).unwrap(), &w, None).unwrap();
            check::close(&whole.narrow(0, start, length).unwrap(), &check::flat(&part), 1e-12);
        }
    }

    #[test]
    fn a_weight_of_another_type_is_read_in_that_of_x() {
        let (x, w, b) = (check::normal(&[7, 5], 1), check::normal(&[9, 5], 2), check::normal(&[9], 3));
        check::mixed(&x, &[&w], |x, w| linear(x, &w[0], None));
        check::mixed(&x, &[&w, &b], |x, w| linear(x, &w[0], Some(&w[1])));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, w) = (check::normal(&[6, 5], 1), check::normal(&[4, 6], 2));
        let message = linear(&x, &w, None).unwrap_err().to_string();
        assert!(message.starts_with("linear: x has 5 features where weight [4, 6] takes 6"), "{message}");
        let w = check::normal(&[4, 5], 2);
        assert!(linear(&x, &w, Some(&check::normal(&[5], 3))).is_err());
        assert!(linear(&x, &w.to_dtype(candle_core::DType::U32).unwrap(), None).is_err());
        assert!(linear(&x.reshape((6, 5, 1)).unwrap(), &w, None).is_err());
    }
}
