//! What a model's numbers are stored and computed in.

use crate::kernels;
use candle_core::DType;
use candle_core::quantized::GgmlDType;

/// The float types of a model: F32, F64, BF16 or F16 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// What the weights are stored in.
    pub base: DType,
    /// What is computed in; weights of another type are converted where they are read.
    pub compute: DType,
    /// Blocks in which the weights of the blocks' linears are stored, where they are quantised.
    pub quantised: Option<GgmlDType>,
}

impl Precision {
    /// The stored type's name.
    #[must_use]
    pub fn base_name(self) -> String {
        match self.quantised {
            Some(dtype) => format!("{dtype:?}").to_lowercase(),
            None => self.base.as_str().to_owned(),
        }
    }

    /// What trained tensors, their gradients and the optimizer's moments are kept in: F64 where that is computed in,
    /// else F32, since updates are smaller than the digits of 16 bits.
    #[must_use]
    pub fn trained(self) -> DType {
        kernels::wide(self.compute)
    }
}

impl From<DType> for Precision {
    /// Stored in what is computed in.
    fn from(dtype: DType) -> Self {
        Self { base: dtype, compute: dtype, quantised: None }
    }
}
