//! Rotary position embedding (Su et al., 2021) in the layout of Hugging Face's LLaMA.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "rope";

/// Which two elements of a head are one point that is turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + pairs` ("rotate half"), as LLaMA in Hugging Face's layout.
    Halves,
    /// `2i` and `2i + 1` ("rotate every two"), as GPT-J.
    Neighbours,
}

/// Rotates every head of every token by the angles of the token's position.
///
/// `x` is `[n, heads · head_dim]`; `cos` and `sin` are `[max_positions, pairs]`, in [`wide`](super::wide) types of `x`,
/// and get no gradient; row `i` of `x` stands at `positions[i]`. The elements of a head behind the first `2 · pairs`
/// stay as they are.
///
/// # Errors
/// If the shapes or element types do not fit, a position has no row in the tables, or the tensors are on different devices.
pub fn rope(
    x: &Tensor,
    heads: usize,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Arc<[u32]>,
    pairing: Pairing,
) -> Result<Tensor> {
    let (n, width) = matrix_dims(NAME, "x", x)?;
    let (rows, half) = matrix_dims(NAME, "cos", cos)?;
    let head_dim = width / heads.max(1);
    if half == 0 || heads * head_dim != width || head_dim < 2 * half {
        bail!("rope: x {:?} is not {heads} heads of at least twice the tables' {half} columns", x.dims())
    }
    if sin.dims() != cos.dims() {
        bail!("rope: sin {:?} where cos is {:?}", sin.dims(), cos.dims())
    }
    for (argument, table) in [("cos", cos), ("sin", sin)] {
        let needed = super::wide(x.dtype());
        if table.dtype() != needed {
            bail!("rope: {argument} is {:?} where x is {:?}; it must be {needed:?}", table.dtype(), x.dtype())
        }
    }
    if positions.len() != n {
        bail!("rope: {} positions for {n} tokens", positions.len())
    }
    if let Some(&position) = positions.iter().max().filter(|&&position| position as usize >= rows) {
        bail!("rope: position {position} is beyond the {rows} positions of the tables; shorten the sequence")
    }
    let (cos, sin) = (cos.detach().contiguous()?, sin.detach().contiguous()?);
    let operation = Rope { cos, sin, positions: Arc::clone(positions), head_dim, pairing };
    tape::apply1(operation, &x.contiguous()?, Reads::arguments([false]))
}

pub(super) struct Rope {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    pub(super) positions: Arc<[u32]>,
    pub(super) head_dim: usize,
    pub(super) pairing: Pairing,
}

impl Rope {
    fn rotate<T: Element>(&self, x: &[T], sign: T) -> Result<Vec<T>> {
        let locked = (Locked::new(&self.cos), Locked::new(&self.sin));
        let (cos, sin) = (locked.0.values::<T>()?, locked.1.values::<T>()?);
        let half = self.cos.dim(1)?;
        let width = x.len() / self.positions.len().max(1);
        Ok(parallel::rows(self.positions.len(), width, |index, out| {
            let position = self.positions.get(index).copied().unwrap_or_default() as usize;
            let (cos, sin) = (parallel::row(cos, position, half), parallel::row(sin, position, half));
            let heads = parallel::row(x, index, width).chunks_exact(self.head_dim);
            for (x, out) in heads.zip(out.chunks_exact_mut(self.head_dim)) {
                let (x, rest) = x.split_at(2 * half);
                let (out, out_rest) = out.split_at_mut(2 * half);
                out_rest.copy_from_slice(rest);
                match self.pairing {
                    Pairing::Halves => vector::rotate(x, cos, sin, sign, out),
                    Pairing::Neighbours => vector::rotate_neighbours(x, cos, sin, sign, out),
                }
            }
        }))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            let out = self.rotate::<T>(values(x, layout)?, 1.0)?;
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        // The inverse of a rotation is its transpose.
        by_dtype!(x.dtype(), NAME, T => tensor(self.rotate::<T>(locked.values()?, -1.0)?, x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::{DType, Device};

    fn tables(rows: usize, half: usize) -> (Tensor, Tensor) {
        let angle = |i: usize| (i / half) as f64 / 10f64.powf((i % half) as f64 / half as f64);
        let table = |f: fn(f64) -> f64| {
            Tensor::from_vec((0..rows * half).map(|i| f(angle(i))).collect(), (rows, half), &Device::Cpu).unwrap()
        };
        (table(f64::cos), table(f64::sin))
    }

    fn naive(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor, positions: &[u32]) -> Vec<f64> {
        let (cos, sin) = (cos.to_vec2::<f64>().unwrap(), sin.to_vec2::<f64>().unwrap());
        let half = cos[0].len();
        let mut out = Vec::new();
        for (row, &position) in x.to_vec2::<f64>().unwrap().iter().zip(positions) {
            let (cos, sin) = (&cos[position as usize], &sin[position as usize]);
            for head in row.chunks(2 * half) {
                let turned = |i: usize| if i < half { -head[i + half] } else { head[i - half] };
                out.extend((0..2 * half).map(|i| head[i] * cos[i % half] + turned(i) * sin[i % half]));
            }
        }
        assert_eq!(out.len(), heads * 2 * half * positions.len());
        out
    }

    #[test]
    fn the_rotation_and_its_gradient() {
        for (heads, half, positions) in [(1, 1, vec![3]), (3, 4, vec![0, 1, 2, 0, 1]), (2, 8, vec![5, 0, 11])] {
            let (cos, sin) = tables(12, half);
            let x = check::normal(&[positions.len(), heads * 2 * half], 1);
            let positions: Arc<[u32]> = positions.into();
            let want = naive(&x, heads, &cos, &sin, &positions);
            check::close(&rope(&x, heads, &cos, &sin, &positions, Pairing::Halves).unwrap(), &want, 1e-12);
            let moved = rope(
                &check::strided(&x),
                heads,
                &check::offset(&cos),
                &check::strided(&sin),
                &positions,
                Pairing::Halves,
            );
            check::close(&moved.unwrap(), &want, 1e-12);
            let any = |t: &[Tensor]| {
                let dtype = crate::kernels::wide(t[0].dtype());
                rope(&t[0], heads, &cos.to_dtype(dtype)?, &sin.to_dtype(dtype)?, &positions, Pairing::Halves)
            };
            check::gradients(&[&x], any);
            check::f32_agrees(&[&x], 1e-6, any);
        }
    }

    #[test]
    fn a_part_of_each_head_is_rotated_in_either_pairing() {
        // Two pairs of heads of five: what is behind the fourth element stays.
        let (cos, sin) = tables(12, 2);
        let (x, positions): (_, Arc<[u32]>) = (check::normal(&[3, 10], 1), [0, 7, 2].into());
        let rows = x.to_vec2::<f64>().unwrap();
        for (pairing, pairs) in [(Pairing::Halves, [(0, 2), (1, 3)]), (Pairing::Neighbours, [(0, 1), (2, 3)])] {
            let mut want = rows.clone();
            for (row, &position) in want.iter_mut().zip(&*positions) {
                for head in row.chunks_mut(5) {
                    for (pair, (a, b)) in pairs.into_iter().enumerate() {
                        let angle = f64::from(position) / 10f64.powf(pair as f64 / 2.0);
                        let (x1, x2) = (head[a], head[b]);
                        (head[a], head[b]) = (x1 * angle.cos() - x2 * angle.sin(), x2 * angle.cos() + x1 * angle.sin());
                    }
                }
            }
            let any = |t: &[Tensor]| {
                let dtype = crate::kernels::wide(t[0].dtype());
                rope(&t[0], 2, &cos.to_dtype(dtype)?, &sin.to_dtype(dtype)?, &positions, pairing)
            };
            check::close(&any(std::slice::from_ref(&x)).unwrap(), &want.concat(), 1e-12);
            check::gradients(&[&x], any);
            check::f32_agrees(&[&x], 1e-6, any);
        }
    }

    #[test]
    fn packed_sequences_have_the_bits_of_each_alone_on_any_number_of_threads() {
        let (cos, sin) = tables(400, 16);
        let (cos, sin) = (cos.to_dtype(DType::F32).unwrap(), sin.to_dtype(DType::F32).unwrap());
        let x = check::normal(&[500, 64], 1);
        let positions: Arc<[u32]> = (0..100).chain(0..400).collect();
        check::threads_agree(&[&x], |t| rope(&t[0], 2, &cos, &sin, &positions, Pairing::Halves));
        let x = x.to_dtype(DType::F32).unwrap();
        let whole = check::flat(&rope(&x, 2, &cos, &sin, &positions, Pairing::Halves).unwrap());
        let second =
            rope(&x.narrow(0, 100, 400).unwrap(), 2, &cos, &sin, &(0..400).collect(), Pairing::Halves).unwrap();
        assert_eq!(whole[100 * 64..], check::flat(&second));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (cos, sin) = tables(4, 2);
        let x = check::normal(&[2, 8], 1);
        assert!(rope(&x, 2, &cos, &sin, &[0, 3].into(), Pairing::Halves).is_ok());
        let message = rope(&x, 2, &cos, &sin, &[0, 4].into(), Pairing::Halves).unwrap_err().to_string();
        assert!(message.starts_with("rope: position 4 is beyond the 4 positions"), "{message}");
        assert!(rope(&x, 2, &cos, &sin, &[0].into(), Pairing::Halves).is_err());
        assert!(rope(&x, 3, &cos, &sin, &[0, 1].into(), Pairing::Halves).is_err());
        assert!(rope(&x, 2, &cos, &tables(5, 2).1, &[0, 1].into(), Pairing::Halves).is_err());
    }
}
