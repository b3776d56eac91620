//! Tables of cosines and sines for rotary position embedding.

use super::architecture::Rope;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Mutex, PoisonError};

/// Cosine and sine tables `[positions, head_dim / 2]`, grown to the longest sequence seen.
#[derive(Debug)]
pub(super) struct RotaryTables {
    frequencies: Vec<f64>,
    dtype: DType,
    device: Device,
    tables: Mutex<Option<(Tensor, Tensor)>>,
}

impl RotaryTables {
    pub(super) fn new(rope: &Rope, head_dim: usize, dtype: DType, device: &Device) -> Self {
        let frequencies = rope.inverse_frequencies(head_dim);
        Self { frequencies, dtype, device: device.clone(), tables: Mutex::new(None) }
    }

    /// Tables of at least `length` positions.
    pub(super) fn upto(&self, length: usize) -> Result<(Tensor, Tensor)> {
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
