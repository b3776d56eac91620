//! Linears whose weight is not trained and may be quantised: dequantised where it is read, and never kept.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::branch::{branch, linear_with_branch};
use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::gemm::{Matrix, Threads, product};
use super::linear::{self, linear};
use super::mixed;
use super::tape::{self, Reads};

/// The weight of a linear, `[out, in]`, as it is stored.
#[derive(Debug, Clone)]
pub enum FrozenWeight {
    /// Numbers of a float type.
    Plain(Tensor),
    /// Blocks of 4 or 8 bits a number, each with a scale.
    Quantised(Arc<QTensor>),
}

impl FrozenWeight {
    /// The weight in blocks of `dtype`; as it is where its rows are no whole number of blocks.
    ///
    /// # Errors
    /// The tensor cannot be quantised.
    pub fn quantised(weight: Tensor, dtype: GgmlDType) -> Result<Self> {
        let (_, inputs) = weight.dims2()?;
        match inputs.is_multiple_of(dtype.block_size()) {
            true => Ok(Self::Quantised(Arc::new(QTensor::quantize(&weight, dtype)?))),
            false => Ok(Self::Plain(weight)),
        }
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// It is no matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Plain(weight) => weight.dims2(),
            Self::Quantised(blocks) => blocks.shape().dims2(),
        }
    }

    /// The numbers: the tensor itself, or one made of the blocks.
    ///
    /// # Errors
    /// The blocks cannot be read.
    pub fn numbers(&self) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => Ok(weight.clone()),
            Self::Quantised(blocks) => blocks.dequantize(&blocks.device()),
        }
    }

    /// What it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantised(blocks) => blocks.storage_size_in_bytes(),
        }
    }
}

/// `x · weightᵀ + bias`, of which the backward pass keeps the blocks alone.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn frozen_linear(x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let blocks = match weight {
        FrozenWeight::Plain(weight) => return linear(x, weight, bias),
        FrozenWeight::Quantised(blocks) => Arc::clone(blocks),
    };
    let bias = checked("frozen_linear", x, weight, bias)?;
    tape::apply1(FrozenLinear { blocks, bias }, &x.contiguous()?, Reads::arguments([false]))
}

/// [`linear_with_branch`] with a weight that may be quantised.
///
/// # Errors
/// If the shapes or element types do not fit, or the tensors are on different devices.
pub fn frozen_with_branch(
    x: &Tensor,
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    (inner, up): (&Tensor, &Tensor),
    scale: f64,
) -> Result<Tensor> {
    if let FrozenWeight::Plain(weight) = weight {
        return linear_with_branch(x, weight, bias, (inner, up), scale);
    }
    let bias = checked("frozen_with_branch", x, weight, bias)?;
    branch(x, Some((weight.clone(), bias)), inner, up, scale)
}

/// The bias, if everything fits and it is not trained.
fn checked(name: &str, x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let ((_, inputs), (outputs, columns)) = (matrix_dims(name, "x", x)?, weight.dims2()?);
    if inputs != columns || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("{name}: x {:?}, weight [{outputs}, {columns}] and bias do not fit", x.dims())
    }
    if bias.is_some_and(Tensor::track_op) {
        bail!("{name}: the bias of a quantised weight is trained")
    }
    if let Some(bias) = bias {
        mixed::float(name, "bias", bias)?;
    }
    bias.map(Tensor::contiguous).transpose()
}

pub(super) struct FrozenLinear {
    blocks: Arc<QTensor>,
    pub(super) bias: Option<Tensor>,
}

impl FrozenLinear {
    pub(super) fn weight(&self) -> Result<Tensor> {
        self.blocks.dequantize(&self.blocks.device())
    }

    fn forward<T: Element>(&self, x: &[T], n: usize) -> Result<(Vec<T>, usize)> {
        let weight = self.weight()?;
        let shape = weight.dims2()?;
        let bias = self.bias.as_ref().map(Locked::new);
        let bias = bias.as_ref().map(Locked::widened::<T>).transpose()?;
        let locked = Locked::new(&weight);
        Ok((linear::forward(x, &locked.widened::<T>()?, bias.as_deref(), n, shape)?, shape.0))
    }

    fn backward<T: Element>(&self, x: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let weight = self.weight()?;
        let (outputs, inputs) = weight.dims2()?;
        let (locked, gradient) = (Locked::new(&weight), Locked::new(gradient));
        let weight = locked.widened::<T>()?;
        let rows = Matrix::new(gradient.values::<T>()?, x.dim(0)?, outputs, outputs);
        tensor(product(rows, Matrix::new(&weight, outputs, inputs, inputs), Threads::All)?, x).map(Some)
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, _) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), self.name(), T => {
            let (out, outputs) = self.forward::<T>(values(x, layout)?, n)?;
            Ok((T::to_cpu_storage_owned(out), Shape::from((n, outputs))))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        by_dtype!(x.dtype(), self.name(), T => self.backward::<T>(x, &gradient))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::DType;

    #[test]
    fn blocks_compute_what_their_numbers_do() {
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
            let single = check::normal(&[6, 64], 2).to_dtype(DType::F32).unwrap();
            let weight = FrozenWeight::quantised(single, dtype).unwrap();
            assert!(matches!(weight, FrozenWeight::Quantised(_)) && weight.bytes() < 6 * 64 * 2);
            let numbers = weight.numbers().unwrap().to_dtype(DType::F64).unwrap();
            let (x, bias) = (check::normal(&[5, 64], 1), check::normal(&[6], 3));
            let (inner, up) = (check::normal(&[5, 2], 4), check::normal(&[6, 2], 5));
            for bias in [None, Some(&bias)] {
                let want = check::flat(&linear(&x, &numbers, bias).unwrap());
                check::close(&frozen_linear(&check::strided(&x), &weight, bias).unwrap(), &want, 1e-12);
                check::gradients(&[&x], |t| frozen_linear(&t[0], &weight, bias));
                let want = linear_with_branch(&x, &numbers, bias, (&inner, &up), 2.5).unwrap();
                let with = |t: &[Tensor]| frozen_with_branch(&t[0], &weight, bias, (&t[1], &t[2]), 2.5);
                check::close(&with(&[x.clone(), inner.clone(), up.clone()]).unwrap(), &check::flat(&want), 1e-12);
                check::gradients(&[&x, &inner, &up], with);
            }
        }
        // Rows that are no whole number of blocks stay as they are.
        let odd = FrozenWeight::quantised(check::normal(&[6, 63], 2), GgmlDType::Q8_0).unwrap();
        assert!(matches!(odd, FrozenWeight::Plain(_)));
    }
}
