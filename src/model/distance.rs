//! What attention adds to scores by the distance of two tokens.

use crate::kernels::RelativeBias;
use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use std::sync::{Mutex, PoisonError};

/// The biases of every head by distance, grown to the longest sequence seen.
#[derive(Debug)]
pub(super) struct DistanceBias {
    form: Form,
    dtype: DType,
    device: Device,
    made: Mutex<Option<RelativeBias>>,
}

#[derive(Debug)]
enum Form {
    /// A head's slope times the distance.
    Alibi { slopes: Vec<f64> },
    /// A head's slope times the key's place, both and their product in bfloat16, times a factor (Falcon in
    /// transformers, whatever the model's type).
    RoundedAlibi { slopes: Vec<f64>, factor: f64 },
    /// `[buckets][heads]`.
    Buckets { values: Vec<Vec<f64>>, max_distance: usize },
}

impl DistanceBias {
    /// ALiBi with slopes that are multiplied by `factor`.
    pub(super) fn alibi(heads: usize, factor: f64, dtype: DType, device: &Device) -> Self {
        let slopes = slopes(heads).into_iter().map(|slope| slope * factor).collect();
        Self { form: Form::Alibi { slopes }, dtype, device: device.clone(), made: Mutex::new(None) }
    }

    /// ALiBi as Falcon has it.
    pub(super) fn rounded_alibi(heads: usize, factor: f64, dtype: DType, device: &Device) -> Self {
        let form = Form::RoundedAlibi { slopes: slopes(heads), factor };
        Self { form, dtype, device: device.clone(), made: Mutex::new(None) }
    }

    /// T5's, both ways, from its table `[buckets, heads]`.
    pub(super) fn buckets(table: &Tensor, max_distance: usize, dtype: DType, device: &Device) -> Result<Self> {
        let values = table.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?;
        Ok(Self { form: Form::Buckets { values, max_distance }, dtype, device: device.clone(), made: Mutex::new(None) })
    }

    /// Biases for sequences of at least `length` tokens.
    pub(super) fn upto(&self, length: usize) -> Result<RelativeBias> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bias) = made.as_ref().filter(|bias| bias.span() >= length) {
            return Ok(bias.clone());
        }
        let span = length.next_power_of_two().max(256);
        let distances = || (0..2 * span - 1).map(|column| column as i64 - (span as i64 - 1));
        let values: Vec<f64> = match &self.form {
            Form::Alibi { slopes } => {
                // transformers adds slope · position of the key; a softmax sees no difference.
                slopes.iter().flat_map(|slope| distances().map(move |distance| slope * distance as f64)).collect()
            }
            Form::RoundedAlibi { slopes, factor } => {
                let rounded = |x: f64| bf16::from_f32(x as f32).to_f64();
                let at = |slope: f64, key: usize| rounded(rounded(slope) * rounded(key as f64)) * factor;
                slopes.iter().flat_map(|&slope| (0..span).map(move |key| at(slope, key))).collect()
            }
            Form::Buckets { values, max_distance } => {
                let heads = values.first().map_or(0, Vec::len);
                let bucket = |distance| bucket(distance, values.len(), *max_distance);
                let value = |head: usize, distance| values.get(bucket(distance)).and_then(|row| row.get(head));
                let of_head = |head| distances().map(move |d| value(head, d).copied().unwrap_or_default());
                (0..heads).flat_map(of_head).collect()
            }
        };
        let by_key = matches!(self.form, Form::RoundedAlibi { .. });
        let columns = if by_key { span } else { 2 * span - 1 };
        let heads = values.len() / columns;
        let table = Tensor::from_vec(values, (heads, columns), &Device::Cpu)?;
        let table = table.to_dtype(self.dtype)?.to_device(&self.device)?;
        let bias = if by_key { RelativeBias::by_key(table)? } else { RelativeBias::new(table)? };
        *made = Some(bias.clone());
        Ok(bias)
    }
}

/// The slope of each head (Press et al., 2022; transformers' `build_alibi_tensor`): powers of one base, and where the
/// heads are no power of two, every other power of its root for the rest.
fn slopes(heads: usize) -> Vec<f64> {
    let whole = 1usize << heads.max(1).ilog2();
    let base = |of: usize| 2f64.powf(-8.0 / of as f64);
    let first = (1..=whole).map(|power| base(whole).powi(power as i32));
    let rest = (0..heads - whole).map(|index| base(2 * whole).powi(2 * index as i32 + 1));
    first.chain(rest).collect()
}

/// The bucket of a key that stands `distance` behind its query (transformers' `_relative_position_bucket`, both ways).
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let after = if distance > 0 { half } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let exact = half / 2;
    if distance < exact.max(1) {
        return after + distance.min(half.saturating_sub(1));
    }
    // In f32, as transformers rounds.
    let share = (distance as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    let large = exact + (share * (half - exact) as f32) as usize;
    after + large.min(half.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), (1..=8).map(|i| 0.5f64.powi(i)).collect::<Vec<_>>());
        // transformers, heads = 6: 2^-2, 2^-4, 2^-6, 2^-8, then 2^-1, 2^-3.
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
    }

    #[test]
    fn buckets_are_exact_near_and_logarithmic_far() {
        // T5Attention._relative_position_bucket(bidirectional, 32 buckets, distance 128).
        let cases = [(0, 0), (-1, 1), (1, 17), (-7, 7), (-8, 8), (-12, 9), (-20, 10), (64, 30), (-127, 15), (5000, 31)];
        for (distance, want) in cases {
            assert_eq!(bucket(distance, 32, 128), want, "{distance}");
        }
    }

    #[test]
    fn a_longer_sequence_makes_a_longer_table() {
        let bias = DistanceBias::alibi(2, 1.0, DType::F64, &Device::Cpu);
        assert_eq!(bias.upto(3).unwrap().span(), 256);
        let long = bias.upto(300).unwrap();
        assert_eq!((long.span(), bias.upto(4).unwrap().span()), (512, 512));
        let pairs = long.pairs(3).unwrap().to_vec3::<f64>().unwrap();
        assert_eq!(pairs[1][2], [-2.0 / 256.0, -1.0 / 256.0, 0.0]);
    }
}
