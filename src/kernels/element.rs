//! The two element types of the kernels, `f32` and `f64`, and how they are read from candle's tensors.

use std::borrow::Cow;

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};

use super::{lanes, mixed, vector};

/// A float that the kernels compute in.
///
/// Everything that a row kernel calls is `#[inline(always)]`, so that it is compiled with the vector
/// instructions of the kernel that it ends up in.
pub(super) trait Element: WithDType + std::ops::Neg<Output = Self> + Default {
    /// The smallest value, from which a maximum starts.
    const NEG_INFINITY: Self;
    /// e to the power of `self`; for `f32` within the error that [`vector::exp_f32`] states.
    fn exp(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The storage's values, if it holds this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// The normal distribution function; for `f32` within the error that [`vector::normal_f32`] states.
    fn normal(self) -> Self;
    /// Partial sums of inner products, see [`lanes::portable`].
    fn lane_sums<const W: usize, const X: usize>(w: [&[Self]; W], x: [&[Self]; X]) -> lanes::Sums<Self, W, X>;
}

impl Element for f32 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    #[inline(always)]
    fn exp(self) -> Self {
        vector::exp_f32(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        vector::tanh_f32(self)
    }
    #[inline(always)]
    fn normal(self) -> Self {
        vector::normal_f32(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
    fn lane_sums<const W: usize, const X: usize>(w: [&[Self]; W], x: [&[Self]; X]) -> lanes::Sums<Self, W, X> {
        #[cfg(target_arch = "x86_64")]
        if vector::has_avx2_and_fma() {
            // SAFETY: the processor was asked and has AVX2.
            return unsafe { lanes::avx2::single(w, x) };
        }
        lanes::portable(w, x)
    }
}

impl Element for f64 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        self.tanh()
    }
    #[inline(always)]
    fn normal(self) -> Self {
        0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
    fn lane_sums<const W: usize, const X: usize>(w: [&[Self]; W], x: [&[Self]; X]) -> lanes::Sums<Self, W, X> {
        #[cfg(target_arch = "x86_64")]
        if vector::has_avx2_and_fma() {
            // SAFETY: the processor was asked and has AVX2.
            return unsafe { lanes::avx2::double(w, x) };
        }
        lanes::portable(w, x)
    }
}

/// Runs `$body` with `$T` standing for the element type of `$dtype`; any other type is an error that names `$op`.
macro_rules! by_dtype {
    ($dtype:expr, $op:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("{}: no kernel for {other:?}; convert the tensor to F32 or F64", $op),
        }
    };
}
pub(super) use by_dtype;

/// The values of a contiguous CPU storage, in row-major order.
pub(super) fn values<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel was given a strided tensor; call contiguous() first")
    };
    match T::cpu_storage_as_slice(storage)?.get(start..end) {
        Some(values) => Ok(values),
        None => bail!("a tensor's layout reaches beyond its storage ({start}..{end})"),
    }
}

/// [`values`] to be written.
pub(super) fn values_mut<'a, T: Element>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel was given a strided tensor to write to")
    };
    match T::slice_mut(storage).and_then(|values| values.get_mut(start..end)) {
        Some(values) => Ok(values),
        None => bail!("a tensor of another type, or whose layout reaches beyond its storage ({start}..{end})"),
    }
}

/// A read lock on a tensor, from which its values are borrowed.
pub(super) struct Locked<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Locked<'a> {
    /// Locks `tensor` for reading.
    pub(super) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// The values of the tensor, which must be contiguous and on the CPU.
    pub(super) fn values<T: Element>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => values(storage, self.layout),
            _ => bail!("a kernel was given a tensor that is not on the CPU"),
        }
    }

    /// The values of a contiguous tensor on the CPU as `T`, whatever float type it has.
    pub(super) fn widened<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        match &*self.storage {
            Storage::Cpu(storage) => mixed::widened(storage, self.layout),
            _ => bail!("a kernel was given a tensor that is not on the CPU"),
        }
    }
}

/// A tensor that owns `values` and has no history.
pub(super) fn tensor<T: Element>(values: Vec<T>, like: &Tensor) -> Result<Tensor> {
    let wanted = like.elem_count();
    if values.len() != wanted {
        bail!("a kernel made {} values for a tensor of {wanted}", values.len())
    }
    let storage = Storage::Cpu(T::to_cpu_storage_owned(values));
    Ok(Tensor::from_storage(storage, like.shape().clone(), candle_core::op::BackpropOp::none(), false))
}

/// The two dimensions of a matrix, or an error that names the operation and the argument.
pub(super) fn matrix_dims(op: &str, argument: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.dims() {
        &[rows, cols] => Ok((rows, cols)),
        other => bail!("{op}: {argument} must be a matrix, not of shape {other:?}"),
    }
}

/// An error unless both tensors have the same element type.
pub(super) fn same_dtype(op: &str, first: &Tensor, argument: &str, second: &Tensor) -> Result<()> {
    if first.dtype() != second.dtype() {
        bail!("{op}: {argument} is {:?} where the first argument is {:?}", second.dtype(), first.dtype())
    }
    Ok(())
}
