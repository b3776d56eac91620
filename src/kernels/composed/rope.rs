//! Rotary position embedding.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{Result, Tensor, TensorId};

use super::{Composed, wanted, widened};
use crate::kernels::rope::{Pairing, Rope};

/// The rows of the tables that a batch reads, `[n, 1, half]`.
#[derive(Clone)]
struct Angles {
    table: TensorId,
    positions: Arc<[u32]>,
    cos: Tensor,
    sin: Tensor,
}

thread_local! {
    /// Those of the last batch: every layer's queries and keys read the same.
    static LAST: RefCell<Option<Angles>> = const { RefCell::new(None) };
}

impl Rope {
    fn angles(&self) -> Result<Angles> {
        let last = LAST.take();
        let known = last.filter(|last| last.table == self.cos.id() && Arc::ptr_eq(&last.positions, &self.positions));
        let angles = match known {
            Some(angles) => angles,
            None => {
                let rows = Tensor::new(&*self.positions, self.cos.device())?;
                let read = |table: &Tensor| table.index_select(&rows, 0)?.unsqueeze(1);
                let (cos, sin) = (read(&self.cos)?, read(&self.sin)?);
                Angles { table: self.cos.id(), positions: Arc::clone(&self.positions), cos, sin }
            }
        };
        LAST.set(Some(angles.clone()));
        Ok(angles)
    }

    /// The inverse of a rotation is its transpose, the rotation by the negative angle.
    fn turned(&self, x: &Tensor, backwards: bool) -> Result<Tensor> {
        let Angles { cos, sin, .. } = self.angles()?;
        let sin = if backwards { sin.neg()? } else { sin };
        let (n, width) = x.dims2()?;
        let half = self.cos.dim(1)?;
        let heads = width / self.head_dim.max(1);
        let by_head = widened(x)?.reshape((n, heads, self.head_dim))?;
        let (first, second) = match self.pairing {
            Pairing::Halves => (by_head.narrow(2, 0, half)?, by_head.narrow(2, half, half)?),
            Pairing::Neighbours => {
                let pairs = by_head.narrow(2, 0, 2 * half)?.reshape((n, heads, half, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        let turned = match self.pairing {
            Pairing::Halves => Tensor::cat(&[turned_first, turned_second], 2)?,
            Pairing::Neighbours => Tensor::stack(&[turned_first, turned_second], 3)?.reshape((n, heads, 2 * half))?,
        };
        let turned = match self.head_dim - 2 * half {
            0 => turned,
            rest => Tensor::cat(&[turned, by_head.narrow(2, 2 * half, rest)?], 2)?,
        };
        turned.reshape((n, width))?.to_dtype(x.dtype())
    }
}

impl Composed<1> for Rope {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        self.turned(x, false)
    }

    fn backward(
        &self,
        _: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || self.turned(gradient, true))?])
    }
}
