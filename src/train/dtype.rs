//! The types that options name.

use crate::model::Precision;
use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

/// What is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DtypeName {
    /// Single precision.
    F32,
    /// Double precision, for checks.
    F64,
    /// 16 bits with the range of `f32` and 8 bits of precision, for GPUs.
    Bf16,
    /// 16 bits with 11 bits of precision up to 65504, for GPUs; not for training.
    F16,
}

impl From<DtypeName> for DType {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F32 => Self::F32,
            DtypeName::F64 => Self::F64,
            DtypeName::Bf16 => Self::BF16,
            DtypeName::F16 => Self::F16,
        }
    }
}

/// What frozen weights are stored in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum BaseDtypeName {
    /// What is computed in.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Half of the memory of `f32`; exact where the model's files are bf16.
    Bf16,
    /// Half of the memory of `f32`; exact where the model's files are f16.
    F16,
    /// About 8.5 bits a number of the blocks' linears, in blocks of 32 with a scale.
    #[serde(rename = "q8_0")]
    #[cfg_attr(feature = "cli", value(name = "q8_0"))]
    Q8,
    /// About 4.5 bits a number of the blocks' linears, in blocks of 32 with a scale.
    #[serde(rename = "q4_0")]
    #[cfg_attr(feature = "cli", value(name = "q4_0"))]
    Q4,
}

impl BaseDtypeName {
    /// Whether it is left to what is computed in.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// The types of a frozen model that computes in `compute`.
    #[must_use]
    pub fn beside(self, compute: DtypeName) -> Precision {
        let compute = compute.into();
        let base = match self {
            // Embeddings, norms, biases and heads are few, and stay as they are computed with.
            Self::Auto | Self::Q8 | Self::Q4 => compute,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        };
        let quantised = match self {
            Self::Q8 => Some(GgmlDType::Q8_0),
            Self::Q4 => Some(GgmlDType::Q4_0),
            _ => None,
        };
        Precision { base, compute, quantised }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_stores_what_is_computed_in() {
        for compute in [DtypeName::F32, DtypeName::F64, DtypeName::Bf16, DtypeName::F16] {
            assert_eq!(BaseDtypeName::Auto.beside(compute), Precision::from(DType::from(compute)));
        }
        let mixed = BaseDtypeName::Bf16.beside(DtypeName::F32);
        assert_eq!(mixed, Precision { base: DType::BF16, compute: DType::F32, quantised: None });
        assert_eq!(mixed.trained(), DType::F32);
        assert_eq!(BaseDtypeName::Auto.beside(DtypeName::Bf16).trained(), DType::F32);
        assert_eq!(BaseDtypeName::Auto.beside(DtypeName::F64).trained(), DType::F64);
    }
}
