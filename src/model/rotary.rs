//! Tables of cosines and sines for rotary position embedding.

use super::architecture::Rope;
use crate::data::Packed;
use crate::kernels::{self, Pairing};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// Cosine and sine tables `[positions, pairs]`, grown to the longest sequence seen.
#[derive(Debug)]
pub(super) struct RotaryTables {
    frequencies: Vec<f64>,
    pairing: Pairing,
    dtype: DType,
    device: Device,
    tables: Mutex<Option<(Tensor, Tensor)>>,
}

/// The angles of every token of a batch.
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    positions: Arc<[u32]>,
    pairing: Pairing,
}

impl Rotation {
    /// Rotates queries or keys, `[tokens, heads · head_dim]`.
    pub(super) fn apply(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        kernels::rope(x, heads, &self.cos, &self.sin, &self.positions, self.pairing)
    }
}

impl RotaryTables {
    pub(super) fn new(rope: &Rope, dtype: DType, device: &Device) -> Self {
        Self {
            frequencies: rope.inverse_frequencies(),
            pairing: rope.pairing,
            dtype,
            device: device.clone(),
            tables: Mutex::new(None),
        }
    }

    /// What rotates the tokens of `batch`.
    pub(super) fn of(&self, batch: &Packed) -> Result<Rotation> {
        let (cos, sin) = self.upto(batch.span())?;
        Ok(Rotation { cos, sin, positions: batch.positions(), pairing: self.pairing })
    }

    /// Tables of at least `length` positions.
    fn upto(&self, length: usize) -> Result<(Tensor, Tensor)> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cos, sin)) = tables.as_ref()
            && cos.dim(0)? >= length
        {
            return Ok((cos.clone(), sin.clone()));
        }
        let positions = length.next_power_of_two().max(256);
        let angles = || (0..positions).flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f));
        let table = |values: Vec<f64>| {
            Tensor::from_vec(values, (positions, self.frequencies.len()), &Device::Cpu)?
                .to_dtype(self.dtype)?
                .to_device(&self.device)
        };
        let made = (table(angles().map(f64::cos).collect())?, table(angles().map(f64::sin).collect())?);
        *tables = Some(made.clone());
        Ok(made)
    }
}
