//! The types that options name.

use crate::model::Precision;
use candle_core::DType;
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
            Self::Auto => compute,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        };
        Precision { base, compute }
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
        assert_eq!(mixed, Precision { base: DType::BF16, compute: DType::F32 });
        assert_eq!(mixed.trained(), DType::F32);
        assert_eq!(BaseDtypeName::Auto.beside(DtypeName::Bf16).trained(), DType::F32);
        assert_eq!(BaseDtypeName::Auto.beside(DtypeName::F64).trained(), DType::F64);
    }
}
