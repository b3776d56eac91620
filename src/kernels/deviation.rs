//! A learned gain on how far rows stand from others.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, same_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{mixed, parallel};

const NAME: &str = "scaled_deviation";

/// `x + w · (x − m)`: `x` and `m` are `[n, k]`, and each of the `g` elements of `w` serves `k / g` columns, one after another.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn scaled_deviation(x: &Tensor, m: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (_, width) = matrix_dims(NAME, "x", x)?;
    if m.dims() != x.dims() {
        bail!("{NAME}: m is {:?} where x is {:?}", m.dims(), x.dims())
    }
    match w.dims() {
        &[groups] if groups > 0 && width % groups == 0 => {}
        _ => bail!("{NAME}: w {:?} does not fit x {:?}", w.dims(), x.dims()),
    }
    same_dtype(NAME, x, "m", m)?;
    mixed::float(NAME, "w", w)?;
    let reads = w.track_op();
    tape::apply3(
        ScaledDeviation,
        [&x.contiguous()?, &m.contiguous()?, &w.contiguous()?],
        Reads::arguments([reads, reads, true]),
    )
}

pub(super) struct ScaledDeviation;

impl ScaledDeviation {
    /// `w`, an element for each column.
    fn spread<T: Element>(w: &[T], width: usize) -> Vec<T> {
        let columns = width / w.len().max(1);
        w.iter().flat_map(|&w| std::iter::repeat_n(w, columns)).collect()
    }

    fn forward<T: Element>(x: &[T], m: &[T], w: &[T], width: usize) -> Vec<T> {
        let w = Self::spread(w, width);
        parallel::rows(x.len() / width.max(1), width, |index, out| {
            let (x, m) = (parallel::row(x, index, width), parallel::row(m, index, width));
            for (((out, &x), &m), &w) in out.iter_mut().zip(x).zip(m).zip(&w) {
                *out = x + w * (x - m);
            }
        })
    }

    fn backward<T: Element>([x, m, w]: [&Tensor; 3], g: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (n, width) = g.dims2()?;
        let (locked_w, locked_g) = (Locked::new(w), Locked::new(g));
        let gradient = locked_g.values::<T>()?;
        let spread = Self::spread::<T>(&locked_w.widened::<T>()?, width);
        let scaled = |like: &Tensor, factor: &dyn Fn(T) -> T| {
            let factors: Vec<T> = spread.iter().map(|&w| factor(w)).collect();
            let out = parallel::rows(n, width, |index, out| {
                for ((out, &g), &factor) in out.iter_mut().zip(parallel::row(gradient, index, width)).zip(&factors) {
                    *out = g * factor;
                }
            });
            tensor(out, like)
        };
        let dx = x.track_op().then(|| scaled(x, &|w| T::one() + w)).transpose()?;
        let dm = m.track_op().then(|| scaled(m, &|w| T::zero() - w)).transpose()?;
        let mut dw = None;
        if w.track_op() {
            let (locked_x, locked_m) = (Locked::new(x), Locked::new(m));
            let (xs, ms) = (locked_x.values::<T>()?, locked_m.values::<T>()?);
            let mut columns = vec![T::zero(); width];
            parallel::sum_columns(&mut columns, n, |index, first, sums| {
                let at = index * width + first;
                let rows = parallel::from(gradient, at).iter().zip(parallel::from(xs, at)).zip(parallel::from(ms, at));
                for (sum, ((&g, &x), &m)) in sums.iter_mut().zip(rows) {
                    *sum += g * (x - m);
                }
            });
            let groups = columns.chunks(width / w.elem_count().max(1));
            let sums: Vec<T> = groups.map(|group| group.iter().fold(T::zero(), |sum, &g| sum + g)).collect();
            dw = mixed::in_type_of(Some(tensor(sums, w)?), w)?;
        }
        Ok([dx, dm, dw])
    }
}

impl CustomOp3 for ScaledDeviation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        m: &CpuStorage,
        ml: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = xl.shape().dims2()?;
        by_dtype!(x.dtype(), NAME, T => {
            let out = Self::forward::<T>(values(x, xl)?, values(m, ml)?, &mixed::widened(w, wl)?, width);
            Ok((T::to_cpu_storage_owned(out), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        m: &Tensor,
        w: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [x, m, w] = by_dtype!(x.dtype(), NAME, T => Self::backward::<T>([x, m, w], &gradient))?;
        Ok((x, m, w))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    #[test]
    fn deviations_are_scaled_by_groups() {
        let (x, m, w) = (check::normal(&[5, 6], 1), check::normal(&[5, 6], 2), check::normal(&[3], 3));
        let scaled = |t: &[Tensor]| scaled_deviation(&t[0], &t[1], &t[2]);
        let (xs, ms, ws) = (check::flat(&x), check::flat(&m), check::flat(&w));
        let want: Vec<f64> = (0..30).map(|i| xs[i] + ws[i % 6 / 2] * (xs[i] - ms[i])).collect();
        check::close(&scaled(&[check::strided(&x), check::offset(&m), w.clone()]).unwrap(), &want, 1e-15);
        check::gradients(&[&x, &m, &w], scaled);
        for index in 0..3 {
            check::untracked(&[&x, &m, &w], Untracked(index), scaled);
        }
        check::threads_agree(&[&x, &m, &w], scaled);
        assert!(scaled_deviation(&x, &m, &check::normal(&[4], 1)).is_err());
        assert!(scaled_deviation(&x, &check::normal(&[5, 5], 1), &w).is_err());
    }
}
