//! Weights that are stored in another type than they are computed in.
//!
//! A weight is widened into scratch memory where a kernel reads it, forwards and again backwards, and nowhere kept: a
//! frozen model in bf16 or f16 takes half of the memory of one in `f32`.

use std::borrow::Cow;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, bail};
use half::slice::HalfFloatSliceExt;

use super::element::{Element, values};
use super::parallel;

/// An error unless `tensor` holds floating-point numbers that the kernels read.
pub(super) fn float(op: &str, argument: &str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 | DType::BF16 | DType::F16 => Ok(()),
        other => bail!("{op}: {argument} is {other:?}, which is no type of weights"),
    }
}

/// The values of a contiguous CPU storage as `T`: borrowed if they are, else converted.
pub(super) fn widened<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [T]>> {
    let range = |length: usize| match layout.contiguous_offsets() {
        Some((start, end)) if end <= length => Ok(start..end),
        Some((start, end)) => bail!("a tensor's layout reaches beyond its storage ({start}..{end})"),
        None => bail!("a kernel was given a strided tensor; call contiguous() first"),
    };
    match storage {
        CpuStorage::BF16(all) => {
            let stored = all.get(range(all.len())?).unwrap_or_default();
            Ok(Cow::Owned(converted(stored, |stored, single| stored.convert_to_f32_slice(single))))
        }
        CpuStorage::F16(all) => {
            let stored = all.get(range(all.len())?).unwrap_or_default();
            Ok(Cow::Owned(converted(stored, |stored, single| stored.convert_to_f32_slice(single))))
        }
        CpuStorage::F32(all) if T::DTYPE == DType::F64 => {
            let stored = all.get(range(all.len())?).unwrap_or_default();
            Ok(Cow::Owned(converted(stored, |stored, single| single.copy_from_slice(stored))))
        }
        CpuStorage::F64(all) if T::DTYPE == DType::F32 => {
            let stored = all.get(range(all.len())?).unwrap_or_default();
            Ok(Cow::Owned(stored.iter().map(|&value| T::from_f64(value)).collect()))
        }
        _ => values(storage, layout).map(Cow::Borrowed),
    }
}

/// Elements that are converted at a time, in memory that stays in the first cache.
const BLOCK: usize = 1024;

/// `stored` by way of `f32`, which holds every value of the narrower types.
fn converted<S: Copy + Sync, T: Element>(stored: &[S], to_single: impl Fn(&[S], &mut [f32]) + Sync) -> Vec<T> {
    let mut out = vec![T::zero(); stored.len()];
    parallel::for_each_piece(&mut out, |at, out| {
        let mut single = [0.0; BLOCK];
        for (stored, out) in parallel::from(stored, at).chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
            let count = out.len();
            let (Some(single), Some(stored)) = (single.get_mut(..count), stored.get(..count)) else { continue };
            to_single(stored, single);
            for (out, &single) in out.iter_mut().zip(single.iter()) {
                *out = T::from_f64(f64::from(single));
            }
        }
    });
    out
}

/// A gradient in the type of the weight that it belongs to.
pub(super) fn in_type_of(gradient: Option<Tensor>, weight: &Tensor) -> Result<Option<Tensor>> {
    gradient.map(|gradient| gradient.to_dtype(weight.dtype())).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::element::Locked;
    use super::*;

    #[test]
    fn every_type_is_read_as_candle_converts_it() {
        for length in [0, 1, 1023, 40_000] {
            let exact = check::normal(&[length + 2], 1);
            for stored in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                // From the second element on, up to the last but one.
                let tensor = exact.to_dtype(stored).unwrap().narrow(0, 1, length).unwrap();
                let locked = Locked::new(&tensor);
                let double: Vec<f64> = tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
                assert_eq!(*locked.widened::<f64>().unwrap(), *double);
                let single: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap();
                assert_eq!(*locked.widened::<f32>().unwrap(), *single);
            }
        }
        let whole = Tensor::new(&[1_u32], &candle_core::Device::Cpu).unwrap();
        assert!(Locked::new(&whole).widened::<f32>().is_err());
        assert!(float("linear", "weight", &whole).is_err());
    }
}
