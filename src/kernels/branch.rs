//! A PEFT branch around a frozen linear, fused: the residual mix into the branch's first product, the branch's last
//! product into the linear's result. Neither the mixed input nor the branch's output is ever stored.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, same_dtype, tensor, values};
use super::frozen::FrozenWeight;
use super::gemm::{Matrix, Threads, gemm, product, scaled_product};
use super::mixed::{self, widened};
use super::tape::{self, Reads};
use super::{parallel, vector};

/// Width of a branch up to which a second product costs less than mixing the inputs.
const NARROW: usize = 32;

/// What is mixed into the input of a branch: `(1 - lambda) · x + lambda · source`.
#[derive(Debug, Clone)]
pub struct Residual {
    /// λ.
    pub lambda: f64,
    /// r, shaped like the input; without a gradient, tracked or not. `None`: a zero.
    pub source: Option<Tensor>,
}

/// `((1 - λ)·x + λ·r) · weightᵀ` for `x` and `r` `[n, in]` and `weight` `[out, in]`: `[n, out]`.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn mixed_linear(x: &Tensor, weight: &Tensor, residual: &Residual) -> Result<Tensor> {
    const NAME: &str = "mixed_linear";
    let (_, inputs) = matrix_dims(NAME, "x", x)?;
    let (_, columns) = matrix_dims(NAME, "weight", weight)?;
    if inputs != columns {
        bail!("{NAME}: x has {inputs} features where weight {:?} takes {columns}", weight.dims())
    }
    mixed::float(NAME, "weight", weight)?;
    let source = match &residual.source {
        Some(r) if r.dims() != x.dims() => bail!("{NAME}: the residual is {:?} where x is {:?}", r.dims(), x.dims()),
        Some(r) => {
            same_dtype(NAME, x, "the residual", r)?;
            Some(r.detach().contiguous()?)
        }
        None => None,
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let reads = Reads::arguments([weight.track_op(), x.track_op()]);
    tape::apply2(MixedLinear { lambda: residual.lambda, source }, [&x, &weight], reads)
}

/// `base + scale · inner · upᵀ` with `base` `[n, out]`, `inner` `[n, width]`, `up` `[out, width]`.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn add_branch(base: &Tensor, inner: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    branch(base, None, inner, up, scale)
}

/// `x · weightᵀ + bias + scale · inner · upᵀ` for a `weight` `[out, in]` that is not trained.
///
/// # Errors
/// If `weight` or `bias` is tracked, the shapes or element types do not fit, or the tensors are on different devices.
pub fn linear_with_branch(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (inner, up): (&Tensor, &Tensor),
    scale: f64,
) -> Result<Tensor> {
    const NAME: &str = "linear_with_branch";
    if weight.track_op() || bias.is_some_and(Tensor::track_op) {
        bail!("{NAME}: the weight is trained")
    }
    let (_, inputs) = matrix_dims(NAME, "x", x)?;
    let (outputs, columns) = matrix_dims(NAME, "weight", weight)?;
    if inputs != columns || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("{NAME}: x {:?}, weight {:?} and bias do not fit", x.dims(), weight.dims())
    }
    mixed::float(NAME, "weight", weight)?;
    let bias = match bias {
        Some(bias) => {
            mixed::float(NAME, "bias", bias)?;
            Some(bias.contiguous()?)
        }
        None => None,
    };
    branch(x, Some((FrozenWeight::Plain(weight.contiguous()?), bias)), inner, up, scale)
}

pub(super) fn branch(
    x: &Tensor,
    frozen: Option<(FrozenWeight, Option<Tensor>)>,
    inner: &Tensor,
    up: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    const NAME: &str = "add_branch";
    let (n, inputs) = matrix_dims(NAME, "x", x)?;
    let (rows, width) = matrix_dims(NAME, "inner", inner)?;
    let (outputs, columns) = matrix_dims(NAME, "up", up)?;
    let wanted = match &frozen {
        Some((weight, _)) => weight.dims2()?.0,
        None => inputs,
    };
    if rows != n || columns != width || outputs != wanted {
        bail!("{NAME}: x {:?}, inner {:?} and up {:?} do not fit", x.dims(), inner.dims(), up.dims())
    }
    same_dtype(NAME, x, "inner", inner)?;
    mixed::float(NAME, "up", up)?;
    let reads = Reads::arguments([false, up.track_op(), inner.track_op()]);
    let arguments = [&x.contiguous()?, &inner.contiguous()?, &up.contiguous()?];
    tape::apply3(AddBranch { frozen, scale }, arguments, reads)
}

pub(super) struct MixedLinear {
    pub(super) lambda: f64,
    pub(super) source: Option<Tensor>,
}

impl MixedLinear {
    fn forward<T: Element>(
        &self,
        x: &[T],
        weight: &[T],
        n: usize,
        (outputs, inputs): (usize, usize),
    ) -> Result<Vec<T>> {
        let weight = Matrix::new(weight, outputs, inputs, inputs);
        self.product(x, n, inputs, outputs, |sum, factor, input| match sum {
            None => scaled_product(factor, input, weight.t(), Threads::All),
            Some(mut sum) => {
                gemm(&mut sum, T::one(), factor, input, weight.t(), Threads::All)?;
                Ok(sum)
            }
        })
    }

    /// A product whose one factor is the mix of `x` and the source, as `add(sum, factor, input)` adds `factor` times
    /// the product with `input` to `sum`; a branch of `width` is narrow if it is cheaper to multiply both than to mix.
    fn product<T: Element>(
        &self,
        x: &[T],
        n: usize,
        inputs: usize,
        width: usize,
        add: impl Fn(Option<Vec<T>>, T, Matrix<'_, T>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let (kept, lambda) = (T::from_f64(1.0 - self.lambda), T::from_f64(self.lambda));
        let matrix = |values| Matrix::new(values, n, inputs, inputs);
        let Some(source) = &self.source else { return add(None, kept, matrix(x)) };
        let source = Locked::new(source);
        let source = source.values::<T>()?;
        if width <= NARROW {
            return add(Some(add(None, kept, matrix(x))?), lambda, matrix(source));
        }
        let mixed = parallel::pieces(x.len(), |at, out| {
            vector::combine(parallel::from(x, at), kept, parallel::from(source, at), lambda, out);
        });
        add(None, T::one(), matrix(&mixed))
    }

    fn backward<T: Element>(&self, x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let ((n, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
        let gradient = Locked::new(gradient);
        let gradient = Matrix::new(gradient.values::<T>()?, n, outputs, outputs);
        let kept = T::from_f64(1.0 - self.lambda);
        let mut gradients = [None, None];
        if x.track_op() {
            let weight = Locked::new(weight);
            let weight = weight.widened()?;
            let weight = Matrix::new(&weight, outputs, inputs, inputs);
            gradients[0] = Some(tensor(scaled_product(kept, gradient, weight, Threads::All)?, x)?);
        }
        if weight.track_op() {
            let x = Locked::new(x);
            let sum = self.product(x.values()?, n, inputs, outputs, |sum, factor, input| match sum {
                None => scaled_product(factor, gradient.t(), input, Threads::All),
                Some(mut sum) => {
                    gemm(&mut sum, T::one(), factor, gradient.t(), input, Threads::All)?;
                    Ok(sum)
                }
            })?;
            gradients[1] = mixed::in_type_of(Some(tensor(sum, weight)?), weight)?;
        }
        Ok(gradients)
    }
}

impl CustomOp2 for MixedLinear {
    fn name(&self) -> &'static str {
        "mixed_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, _), shape) = (xl.shape().dims2()?, wl.shape().dims2()?);
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, xl)?, &widened(w, wl)?, n, shape)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((n, shape.0))))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [dx, dw] = by_dtype!(x.dtype(), self.name(), T => self.backward::<T>(x, w, &gradient))?;
        Ok((dx, dw))
    }
}

pub(super) struct AddBranch {
    /// The weight and bias that `x` goes through first; without, it is added as it is.
    pub(super) frozen: Option<(FrozenWeight, Option<Tensor>)>,
    pub(super) scale: f64,
}

impl AddBranch {
    fn forward<T: Element>(
        &self,
        x: &[T],
        inner: &[T],
        up: &[T],
        n: usize,
        (outputs, width): (usize, usize),
    ) -> Result<Vec<T>> {
        let mut out = match &self.frozen {
            None => parallel::pieces(x.len(), |at, out| {
                out.iter_mut().zip(parallel::from(x, at)).for_each(|(out, &x)| *out = x);
            }),
            Some((weight, bias)) => {
                let weight = weight.numbers()?;
                let inputs = weight.dim(1)?;
                let locked = Locked::new(&weight);
                let weight = locked.widened::<T>()?;
                let weight = Matrix::new(&weight, outputs, inputs, inputs);
                let x = Matrix::new(x, n, inputs, inputs);
                match bias {
                    None => product(x, weight.t(), Threads::All)?,
                    Some(bias) => {
                        let mut out = Locked::new(bias).widened::<T>()?.repeat(n);
                        gemm(&mut out, T::one(), T::one(), x, weight.t(), Threads::All)?;
                        out
                    }
                }
            }
        };
        let (inner, up) = (Matrix::new(inner, n, width, width), Matrix::new(up, outputs, width, width));
        gemm(&mut out, T::one(), T::from_f64(self.scale), inner, up.t(), Threads::All)?;
        Ok(out)
    }

    fn backward<T: Element>(&self, [x, inner, up]: [&Tensor; 3], gradient: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let ((n, width), outputs) = (inner.dims2()?, up.dim(0)?);
        let scale = T::from_f64(self.scale);
        let locked = Locked::new(gradient);
        let rows = Matrix::new(locked.values::<T>()?, n, outputs, outputs);
        let mut gradients = [None, None, None];
        if x.track_op() {
            gradients[0] = Some(match &self.frozen {
                None => gradient.clone(),
                Some((weight, _)) => {
                    let weight = weight.numbers()?;
                    let inputs = weight.dim(1)?;
                    let weight = Locked::new(&weight);
                    let weight = weight.widened()?;
                    let weight = Matrix::new(&weight, outputs, inputs, inputs);
                    tensor(product(rows, weight, Threads::All)?, x)?
                }
            });
        }
        if inner.track_op() {
            let up = Locked::new(up);
            let up = up.widened()?;
            let up = Matrix::new(&up, outputs, width, width);
            gradients[1] = Some(tensor(scaled_product(scale, rows, up, Threads::All)?, inner)?);
        }
        if up.track_op() {
            let inner = Locked::new(inner);
            let inner = Matrix::new(inner.values()?, n, width, width);
            let sum = tensor(scaled_product(scale, rows.t(), inner, Threads::All)?, up)?;
            gradients[2] = mixed::in_type_of(Some(sum), up)?;
        }
        Ok(gradients)
    }
}

impl CustomOp3 for AddBranch {
    fn name(&self) -> &'static str {
        "add_branch"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        inner: &CpuStorage,
        il: &Layout,
        up: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, _), shape) = (xl.shape().dims2()?, ul.shape().dims2()?);
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, xl)?, values(inner, il)?, &widened(up, ul)?, n, shape)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((n, shape.0))))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        inner: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [dx, d_inner, d_up] =
            by_dtype!(x.dtype(), self.name(), T => self.backward::<T>([x, inner, up], &gradient))?;
        Ok((dx, d_inner, d_up))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::super::{linear, residual_mix, scaled_add};
    use super::*;
    use candle_core::DType;

    fn draw(shape: &[usize], seed: u64) -> Tensor {
        check::normal(shape, seed)
    }

    #[test]
    fn the_mix_and_the_first_product_are_those_of_their_parts() {
        for (n, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (40, 33, 9), (9, 4, 40)] {
            let (x, w, r) = (draw(&[n, inputs], 1), draw(&[outputs, inputs], 2), draw(&[n, inputs], 3));
            for (lambda, source) in
                [(0.3, Some(r.clone())), (0.3, None), (0.0, Some(r.clone())), (1.0, Some(r.clone()))]
            {
                let zero = r.zeros_like().unwrap();
                let mixed = residual_mix(&x, source.as_ref().unwrap_or(&zero), lambda).unwrap();
                let want = check::flat(&linear(&mixed, &w, None).unwrap());
                let residual = Residual { lambda, source };
                check::close(&mixed_linear(&x, &w, &residual).unwrap(), &want, 1e-13);
                check::close(&mixed_linear(&check::strided(&x), &check::offset(&w), &residual).unwrap(), &want, 1e-13);
                let any = |t: &[Tensor]| {
                    let source = residual.source.as_ref().map(|r| r.to_dtype(t[0].dtype())).transpose()?;
                    mixed_linear(&t[0], &t[1], &Residual { lambda, source })
                };
                check::gradients(&[&x, &w], any);
            }
            let single = |t: &Tensor| Residual { lambda: 0.3, source: Some(r.to_dtype(t.dtype()).unwrap()) };
            check::mixed(&x, &[&w], |x, w| mixed_linear(x, &w[0], &single(x)));
            check::f32_agrees(&[&x, &w], 1e-5, |t| mixed_linear(&t[0], &t[1], &single(&t[0])));
            check::untracked(&[&x, &w], Untracked(0), |t| mixed_linear(&t[0], &t[1], &single(&t[0])));
            check::untracked(&[&x, &w], Untracked(1), |t| mixed_linear(&t[0], &t[1], &single(&t[0])));
        }
    }

    #[test]
    fn the_branch_joins_as_its_parts_do() {
        for (n, inputs, outputs, width) in [(1, 1, 1, 1), (7, 5, 3, 2), (40, 33, 20, 8)] {
            let (x, w, b) = (draw(&[n, inputs], 1), draw(&[outputs, inputs], 2), draw(&[outputs], 3));
            let (inner, up) = (draw(&[n, width], 4), draw(&[outputs, width], 5));
            let added = linear(&inner, &up, None).unwrap();
            for bias in [None, Some(&b)] {
                let base = linear(&x, &w, bias).unwrap();
                let want = check::flat(&scaled_add(&base, &added, 2.5).unwrap());
                check::close(&linear_with_branch(&x, &w, bias, (&inner, &up), 2.5).unwrap(), &want, 1e-13);
                check::close(
                    &add_branch(&check::strided(&base), &check::offset(&inner), &up, 2.5).unwrap(),
                    &want,
                    1e-13,
                );
                check::gradients(&[&x, &inner, &up], |t| linear_with_branch(&t[0], &w, bias, (&t[1], &t[2]), 2.5));
                check::gradients(&[&base, &inner, &up], |t| add_branch(&t[0], &t[1], &t[2], 2.5));
                check::mixed(&x, &[&up], |x, up| {
                    let (w, inner) = (w.to_dtype(DType::BF16)?, inner.to_dtype(x.dtype())?);
                    let bias = bias.map(|bias| bias.to_dtype(DType::F16)).transpose()?;
                    linear_with_branch(x, &w, bias.as_ref(), (&inner, &up[0]), 2.5)
                });
            }
            let in_type = |t: &Tensor| w.to_dtype(t.dtype()).unwrap();
            let run = |t: &[Tensor]| linear_with_branch(&t[0], &in_type(&t[0]), None, (&t[1], &t[2]), 2.5);
            check::f32_agrees(&[&x, &inner, &up], 1e-5, run);
            for which in 0..3 {
                check::untracked(&[&x, &inner, &up], Untracked(which), run);
            }
        }
        let (x, w) = (draw(&[300, 96], 1), draw(&[200, 96], 2));
        let (inner, up) = (draw(&[300, 8], 4), draw(&[200, 8], 5));
        check::threads_agree(&[&x, &inner, &up], |t| {
            linear_with_branch(&t[0], &w.to_dtype(t[0].dtype())?, None, (&t[1], &t[2]), 2.5)
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, w) = (draw(&[6, 5], 1), draw(&[4, 5], 2));
        let residual = |source: Option<Tensor>| Residual { lambda: 0.5, source };
        assert!(mixed_linear(&x, &w, &residual(Some(draw(&[6, 5], 3)))).is_ok());
        assert!(mixed_linear(&x, &w, &residual(Some(draw(&[5, 6], 3)))).is_err());
        assert!(mixed_linear(&x, &draw(&[4, 6], 2), &residual(None)).is_err());
        let (inner, up) = (draw(&[6, 2], 4), draw(&[4, 2], 5));
        assert!(linear_with_branch(&x, &w, None, (&inner, &up), 1.0).is_ok());
        assert!(linear_with_branch(&x, &w, None, (&inner, &draw(&[5, 2], 5)), 1.0).is_err());
        assert!(linear_with_branch(&x, &w, None, (&draw(&[5, 2], 4), &up), 1.0).is_err());
        assert!(linear_with_branch(&x, &w, Some(&draw(&[5], 4)), (&inner, &up), 1.0).is_err());
        let trained = candle_core::Var::from_tensor(&w).unwrap();
        let message = linear_with_branch(&x, &trained, None, (&inner, &up), 1.0).unwrap_err().to_string();
        assert!(message.contains("the weight is trained"), "{message}");
    }
}
