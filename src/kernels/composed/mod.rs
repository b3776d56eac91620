//! The kernels as candle's own tensor operations: on any device, and in 16 bits.
//!
//! The fused kernels read slices of `f32` and `f64` on the CPU. Everywhere else an operation runs as it is written
//! here, forwards and backwards. What needs range or many terms (norms, exponentials, losses, sums of gradients) is
//! computed in [`wide`] types and rounded once at its end; matrix products run in the type of their input, which is what
//! the matrix units of a GPU are made for. Arguments are detached before an operation sees them, so that candle's own
//! graph is never built: gradients are the tape's.

use std::cell::RefCell;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, DType, Device, InplaceOp1, Layout, MetalStorage, Result, Shape, Storage};
use candle_core::{Tensor, bail};

use super::tape::Operation;

mod activation;
mod attention;
mod attention_layout;
mod branch;
mod columns;
mod cross_entropy;
mod deviation;
mod disentangled;
mod dropout;
mod embedding;
mod frozen;
mod gated;
mod layer_norm;
mod leading_rows;
mod linear;
mod maximum;
mod mixing;
pub(super) mod remembered;
mod rescale;
mod rms_norm;
mod rope;
mod row_gate;
mod stack;
mod tanh;
mod visible_mean;

pub(super) use cross_entropy::{gradients as cross_entropy_gradients, losses_and_hits};

/// An operation on `N` tensors as tensor operations.
pub(in crate::kernels) trait Composed<const N: usize> {
    /// Whether the fused kernel takes these arguments, of which `first` is the first.
    fn is_fused(&self, first: &Tensor) -> bool {
        is_fused(first)
    }

    /// Adds the gradient of the first argument to `sum`, which is contiguous and shares its memory with no other, if
    /// the fused kernel can do that without storing it; says whether it did.
    fn add_first(&self, _arguments: [&Tensor; N], _gradient: &Tensor, _sum: &Tensor) -> Result<bool> {
        Ok(false)
    }

    /// The result, which must share its memory with no other tensor; the arguments have no history.
    fn forward(&self, arguments: [&Tensor; N]) -> Result<Tensor>;

    /// The gradients of the `wanted` arguments, each in its argument's type. What the operation's `Reads` leave out
    /// has its shape and type alone.
    fn backward(
        &self,
        arguments: [&Tensor; N],
        wanted: [bool; N],
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]>;
}

/// Whether the fused kernels take `tensor`.
pub(in crate::kernels) fn is_fused(tensor: &Tensor) -> bool {
    takes(tensor.dtype(), tensor.device())
}

/// Whether the fused kernels take tensors of this type on this device.
pub(in crate::kernels) fn takes(dtype: DType, device: &Device) -> bool {
    #[cfg(test)]
    if FORCED.get() {
        return false;
    }
    device.is_cpu() && matches!(dtype, DType::F32 | DType::F64)
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `work` with the composed kernels in place of the fused ones, on this thread.
#[cfg(test)]
pub(crate) fn instead_of_fused<R>(work: impl FnOnce() -> R) -> R {
    let before = FORCED.replace(true);
    let result = work();
    FORCED.set(before);
    result
}

/// The type in which sums and exponentials of values of `dtype` are computed, and trained tensors kept: `f64` for
/// `f64`, else `f32`.
#[must_use]
pub fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// `tensor` in its [`wide`] type.
pub(super) fn widened(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(wide(tensor.dtype()))
}

/// `factor · x` in the type of `x`, rounded once.
fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    (widened(x)? * factor)?.to_dtype(x.dtype())
}

/// `make` if it is wanted.
fn wanted(wanted: bool, make: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    wanted.then(make).transpose()
}

/// A composed operation as the tape records it.
pub(super) struct Composing<C, const N: usize> {
    pub(super) name: &'static str,
    pub(super) operation: C,
}

impl<C: Composed<N>, const N: usize> Composing<C, N> {
    fn arguments<T>(&self, arguments: &[&Tensor], of: impl Fn(&Tensor) -> T) -> Result<[T; N]> {
        match arguments.iter().map(|argument| of(argument)).collect::<Vec<T>>().try_into() {
            Ok(arguments) => Ok(arguments),
            Err(_) => bail!("{}: takes {N} arguments", self.name),
        }
    }
}

impl<C: Composed<N>, const N: usize> Operation for Composing<C, N> {
    fn forward(&self, arguments: &[&Tensor]) -> Result<(Storage, Shape)> {
        let arguments = self.arguments(arguments, Tensor::detach)?;
        let out = self.operation.forward(arguments.each_ref())?.contiguous()?;
        let shape = out.shape().clone();
        Ok((take(out)?, shape))
    }

    fn backward(
        &self,
        arguments: &[&Tensor],
        out: &Tensor,
        gradient: &Tensor,
        _: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let tracked = self.arguments(arguments, Tensor::track_op)?;
        let arguments = self.arguments(arguments, Tensor::detach)?;
        let gradient = gradient.contiguous()?;
        Ok(self.operation.backward(arguments.each_ref(), tracked, &out.detach(), &gradient)?.into())
    }
}

/// The storage of a tensor that shares it with no other. candle makes a tracked tensor of a storage, or of a copy of a
/// tensor; this saves the copy.
fn take(tensor: Tensor) -> Result<Storage> {
    let moved = Take(RefCell::new(None));
    tensor.inplace_op1(&moved)?;
    match moved.0.take() {
        Some(storage) => Ok(storage),
        None => bail!("a tensor without a storage"),
    }
}

/// Moves a storage out of a tensor and leaves one of a single element.
struct Take(RefCell<Option<Storage>>);

impl Take {
    fn replace<S: BackendStorage>(storage: &mut S, layout: &Layout) -> Result<S>
    where
        S::Device: BackendDevice<Storage = S>,
    {
        if layout.start_offset() != 0 || !layout.is_contiguous() {
            bail!("a kernel's result is a part of another tensor")
        }
        let hollow = storage.device().zeros_impl(&Shape::from(1), storage.dtype())?;
        Ok(std::mem::replace(storage, hollow))
    }
}

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0.replace(Some(Storage::Cpu(Self::replace(storage, layout)?)));
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.0.replace(Some(Storage::Cuda(Self::replace(storage, layout)?)));
        Ok(())
    }

    fn metal_fwd(&self, storage: &mut MetalStorage, layout: &Layout) -> Result<()> {
        self.0.replace(Some(Storage::Metal(Self::replace(storage, layout)?)));
        Ok(())
    }
}
