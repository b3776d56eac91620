//! Every column of a matrix by a number of its own, which is learned: (IA)³ and DoRA's magnitude; and a mix with the initial
//! residual whose λ is learned.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::branch::Residual;
use super::element::{Element, Locked, by_dtype, matrix_dims, same_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel};

/// `x · v / divisor`, column by column: `x` is `[n, k]`, `v` `[k]`, and `divisor` `[k]`, which gets no gradient.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn rescale(x: &Tensor, v: &Tensor, divisor: Option<&Tensor>) -> Result<Tensor> {
    let divisor = divisor.map(|divisor| {
        if divisor.dims() != v.dims() {
            bail!("rescale: divisor {:?} does not fit v {:?}", divisor.dims(), v.dims())
        }
        divisor.detach().contiguous()
    });
    apply(x, v, Rescale::Divided(divisor.transpose()?))
}

/// `x + (v − 1) · x~` with `x~ = (1 − λ)·x + λ·r`, column by column: (IA)³ in front of a linear with the initial residual.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn mixed_rescale(x: &Tensor, v: &Tensor, residual: &Residual) -> Result<Tensor> {
    let source = match &residual.source {
        Some(r) if r.dims() != x.dims() => bail!("rescale: the residual is {:?} where x is {:?}", r.dims(), x.dims()),
        Some(r) => {
            same_dtype("rescale", x, "the residual", r)?;
            Some(r.detach().contiguous()?)
        }
        None => None,
    };
    apply(x, v, Rescale::Mixed { lambda: residual.lambda, source })
}

fn apply(x: &Tensor, v: &Tensor, operation: Rescale) -> Result<Tensor> {
    let (_, columns) = matrix_dims("rescale", "x", x)?;
    if v.dims() != [columns] {
        bail!("rescale: v {:?} does not fit x {:?}", v.dims(), x.dims())
    }
    mixed::float("rescale", "v", v)?;
    let reads = Reads::arguments([v.track_op() && !matches!(operation, Rescale::Added), true]);
    tape::apply2(operation, [&x.contiguous()?, &v.contiguous()?], reads)
}

/// `x + v`, row by row: `x` is `[n, k]`, `v` `[k]`.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn add_row(x: &Tensor, v: &Tensor) -> Result<Tensor> {
    apply(x, v, Rescale::Added)
}

pub(super) enum Rescale {
    /// Not at all: `v` is added.
    Added,
    /// By `v / divisor`.
    Divided(Option<Tensor>),
    /// By `v − 1` of the mix, added to x.
    Mixed { lambda: f64, source: Option<Tensor> },
}

impl Rescale {
    /// What multiplies x in each column, and r where it is mixed in.
    fn factors<T: Element>(&self, v: &[T]) -> Result<(Vec<T>, Vec<T>)> {
        Ok(match self {
            Self::Added => (vec![T::one(); v.len()], Vec::new()),
            Self::Divided(None) => (v.to_vec(), Vec::new()),
            Self::Divided(Some(divisor)) => {
                let divisor = Locked::new(divisor);
                let divisor = divisor.widened::<T>()?;
                (v.iter().zip(divisor.iter()).map(|(&v, &d)| v / d).collect(), Vec::new())
            }
            Self::Mixed { lambda, source } => {
                let (kept, lambda) = (T::from_f64(1.0 - lambda), T::from_f64(*lambda));
                let of_x = v.iter().map(|&v| T::one() + (v - T::one()) * kept).collect();
                let of_r = v.iter().filter(|_| source.is_some()).map(|&v| (v - T::one()) * lambda).collect();
                (of_x, of_r)
            }
        })
    }

    fn source(&self) -> Option<Locked<'_>> {
        match self {
            Self::Mixed { source, .. } => source.as_ref().map(Locked::new),
            Self::Added | Self::Divided(_) => None,
        }
    }

    fn forward<T: Element>(&self, x: &[T], v: &[T]) -> Result<Vec<T>> {
        let (of_x, of_r) = self.factors(v)?;
        let source = self.source();
        let r = source.as_ref().map(Locked::values::<T>).transpose()?;
        let width = v.len();
        Ok(parallel::rows(x.len() / width.max(1), width, |index, out| {
            for ((out, &x), &factor) in out.iter_mut().zip(parallel::row(x, index, width)).zip(&of_x) {
                *out = x * factor;
            }
            let r = parallel::row(r.unwrap_or_default(), index, width);
            out.iter_mut().zip(r).zip(&of_r).for_each(|((out, &r), &factor)| *out += r * factor);
            if matches!(self, Self::Added) {
                out.iter_mut().zip(v).for_each(|(out, &v)| *out += v);
            }
        }))
    }

    fn backward<T: Element>(&self, x: &Tensor, v: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = v.elem_count();
        let n = g.elem_count() / width.max(1);
        let (locked_v, locked_g) = (Locked::new(v), Locked::new(g));
        let gradient = locked_g.values::<T>()?;
        let mut gradients = (None, None);
        if x.track_op() {
            let (of_x, _) = self.factors(&locked_v.widened::<T>()?)?;
            let out = parallel::rows(n, width, |index, out| {
                for ((out, &g), &factor) in out.iter_mut().zip(parallel::row(gradient, index, width)).zip(&of_x) {
                    *out = g * factor;
                }
            });
            gradients.0 = Some(tensor(out, x)?);
        }
        if v.track_op() {
            let locked_x = Locked::new(x);
            let ones = if matches!(self, Self::Added) { vec![T::one(); gradient.len()] } else { Vec::new() };
            let xs = if ones.is_empty() { locked_x.values::<T>()? } else { &ones };
            let source = self.source();
            let r = source.as_ref().map(Locked::values::<T>).transpose()?.unwrap_or_default();
            let (kept, lambda) = match self {
                Self::Added | Self::Divided(_) => (T::one(), T::zero()),
                Self::Mixed { lambda, .. } => (T::from_f64(1.0 - lambda), T::from_f64(*lambda)),
            };
            let mut out = vec![T::zero(); width];
            parallel::sum_columns(&mut out, n, |index, first, sums| {
                let at = index * width + first;
                let (x, g) = (parallel::from(xs, at), parallel::from(gradient, at));
                sums.iter_mut().zip(x).zip(g).for_each(|((sum, &x), &g)| *sum += g * kept * x);
                let r = parallel::from(r, at);
                sums.iter_mut().zip(r).zip(g).for_each(|((sum, &r), &g)| *sum += g * lambda * r);
            });
            if let Self::Divided(Some(divisor)) = self {
                let divisor = Locked::new(divisor);
                let divisor = divisor.widened::<T>()?;
                out.iter_mut().zip(divisor.iter()).for_each(|(sum, &d)| *sum /= d);
            }
            gradients.1 = mixed::in_type_of(Some(tensor(out, v)?), v)?;
        }
        Ok(gradients)
    }
}

impl CustomOp2 for Rescale {
    fn name(&self) -> &'static str {
        "rescale"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, v: &CpuStorage, vl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, xl)?, &mixed::widened(v, vl)?)?;
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, v: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => self.backward::<T>(x, v, &gradient))
    }
}

/// `(1 − λ)·x + λ·r` with `λ = 1 / (1 + exp(−theta))`: `theta` is `[1]` and learned, `r` gets no gradient; without one it is
/// a zero.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn learned_mix(x: &Tensor, theta: &Tensor, r: Option<&Tensor>) -> Result<Tensor> {
    const NAME: &str = "learned_mix";
    if theta.elem_count() != 1 {
        bail!("{NAME}: theta {:?} is no single number", theta.dims())
    }
    mixed::float(NAME, "theta", theta)?;
    let source = match r {
        Some(r) if r.dims() != x.dims() => bail!("{NAME}: the residual is {:?} where x is {:?}", r.dims(), x.dims()),
        Some(r) => {
            same_dtype(NAME, x, "the residual", r)?;
            Some(r.detach().contiguous()?)
        }
        None => None,
    };
    let reads = Reads::arguments([theta.track_op(), true]);
    tape::apply2(LearnedMix { source }, [&x.contiguous()?, &theta.contiguous()?], reads)
}

pub(super) struct LearnedMix {
    pub(super) source: Option<Tensor>,
}

impl LearnedMix {
    fn lambda<T: Element>(theta: &[T]) -> T {
        let theta = theta.first().copied().unwrap_or_default();
        T::one() / (T::one() + (-theta).exp())
    }

    fn forward<T: Element>(&self, x: &[T], theta: &[T]) -> Result<Vec<T>> {
        let lambda = Self::lambda(theta);
        let source = self.source.as_ref().map(Locked::new);
        let r = source.as_ref().map(Locked::values::<T>).transpose()?.unwrap_or_default();
        Ok(parallel::pieces(x.len(), |at, out| {
            out.iter_mut().zip(parallel::from(x, at)).for_each(|(out, &x)| *out = (T::one() - lambda) * x);
            out.iter_mut().zip(parallel::from(r, at)).for_each(|(out, &r)| *out += lambda * r);
        }))
    }

    fn backward<T: Element>(&self, x: &Tensor, theta: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (locked_theta, locked_g) = (Locked::new(theta), Locked::new(g));
        let gradient = locked_g.values::<T>()?;
        let lambda = Self::lambda(&locked_theta.widened::<T>()?);
        let mut gradients = (None, None);
        if x.track_op() {
            let out = parallel::pieces(gradient.len(), |at, out| {
                let pairs = out.iter_mut().zip(parallel::from(gradient, at));
                pairs.for_each(|(out, &g)| *out = (T::one() - lambda) * g);
            });
            gradients.0 = Some(tensor(out, x)?);
        }
        if theta.track_op() {
            let locked_x = Locked::new(x);
            let xs = locked_x.values::<T>()?;
            let source = self.source.as_ref().map(Locked::new);
            let r = source.as_ref().map(Locked::values::<T>).transpose()?;
            let width = x.dims().last().copied().unwrap_or(1).max(1);
            // In f64, row by row: a sum over all tokens.
            let [rows] = parallel::of_rows(gradient.len() / width, width, |index| {
                let (x, g) = (parallel::row(xs, index, width), parallel::row(gradient, index, width));
                let mut sum: f64 = x.iter().zip(g).map(|(&x, &g)| -x.to_f64() * g.to_f64()).sum();
                if let Some(r) = r {
                    sum += parallel::row(r, index, width)
                        .iter()
                        .zip(g)
                        .map(|(&r, &g)| r.to_f64() * g.to_f64())
                        .sum::<f64>();
                }
                [T::from_f64(sum)]
            });
            let sum: f64 = rows.iter().map(|sum| sum.to_f64()).sum();
            let slope = lambda.to_f64() * (1.0 - lambda.to_f64());
            let found = Tensor::from_vec(vec![sum * slope], theta.shape(), theta.device())?;
            gradients.1 = Some(found.to_dtype(theta.dtype())?);
        }
        Ok(gradients)
    }
}

impl CustomOp2 for LearnedMix {
    fn name(&self) -> &'static str {
        "learned_mix"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, t: &CpuStorage, tl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), self.name(), T => {
            let out = self.forward::<T>(values(x, xl)?, &mixed::widened(t, tl)?)?;
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, t: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => self.backward::<T>(x, t, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::super::residual_mix;
    use super::*;

    #[test]
    fn columns_are_rescaled() {
        for (n, k) in [(1, 1), (5, 3), (9, 40)] {
            let (x, v, d) = (check::normal(&[n, k], 1), check::normal(&[k], 2), check::normal(&[k], 3).exp().unwrap());
            for divisor in [None, Some(&d)] {
                let mut want = x.broadcast_mul(&v).unwrap();
                if let Some(d) = divisor {
                    want = want.broadcast_div(d).unwrap();
                }
                let run = |t: &[Tensor]| {
                    let divisor = divisor.map(|d| d.to_dtype(t[0].dtype())).transpose()?;
                    rescale(&t[0], &t[1], divisor.as_ref())
                };
                check::close(
                    &rescale(&check::strided(&x), &check::offset(&v), divisor).unwrap(),
                    &check::flat(&want),
                    1e-13,
                );
                check::gradients(&[&x, &v], run);
                check::f32_agrees(&[&x, &v], 1e-5, run);
                check::untracked(&[&x, &v], Untracked(0), run);
                check::untracked(&[&x, &v], Untracked(1), run);
            }
        }
    }

    #[test]
    fn a_row_is_added_to_every_row() {
        let (x, v) = (check::normal(&[7, 5], 1), check::normal(&[5], 2));
        check::close(&add_row(&x, &v).unwrap(), &check::flat(&x.broadcast_add(&v).unwrap()), 1e-15);
        check::gradients(&[&x, &v], |t| add_row(&t[0], &t[1]));
        check::f32_agrees(&[&x, &v], 1e-5, |t| add_row(&t[0], &t[1]));
    }

    #[test]
    fn the_scaled_part_reads_the_mix() {
        let (x, v, r) = (check::normal(&[7, 5], 1), check::normal(&[5], 2), check::normal(&[7, 5], 3));
        for source in [Some(r.clone()), None] {
            let run = |t: &[Tensor]| {
                let source = source.as_ref().map(|r| r.to_dtype(t[0].dtype())).transpose()?;
                mixed_rescale(&t[0], &t[1], &Residual { lambda: 0.3, source })
            };
            let mixed = residual_mix(&x, &source.clone().unwrap_or_else(|| r.zeros_like().unwrap()), 0.3).unwrap();
            let want = (&x + mixed.broadcast_mul(&(&v - 1.0).unwrap()).unwrap()).unwrap();
            check::close(&run(&[x.clone(), v.clone()]).unwrap(), &check::flat(&want), 1e-13);
            check::gradients(&[&x, &v], run);
            check::f32_agrees(&[&x, &v], 1e-5, run);
        }
        assert!(rescale(&x, &check::normal(&[4], 1), None).is_err());
    }

    #[test]
    fn a_learned_share_is_a_sigmoid() {
        let (x, t, r) = (check::normal(&[30, 5], 1), check::normal(&[1], 2), check::normal(&[30, 5], 3));
        let lambda = 1.0 / (1.0 + (-check::flat(&t)[0]).exp());
        for source in [Some(r.clone()), None] {
            let run = |t: &[Tensor]| {
                let source = source.as_ref().map(|r| r.to_dtype(t[0].dtype())).transpose()?;
                learned_mix(&t[0], &t[1], source.as_ref())
            };
            let zero = r.zeros_like().unwrap();
            let want = residual_mix(&x, source.as_ref().unwrap_or(&zero), lambda).unwrap();
            check::close(&run(&[x.clone(), t.clone()]).unwrap(), &check::flat(&want), 1e-13);
            check::gradients(&[&x, &t], run);
            check::f32_agrees(&[&x, &t], 1e-5, run);
            check::untracked(&[&x, &t], Untracked(0), run);
            check::untracked(&[&x, &t], Untracked(1), run);
        }
        assert!(learned_mix(&x, &r, None).is_err());
    }
}
