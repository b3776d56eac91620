//! Hierarchical fusion (Shi et al. 2022): what a head reads is made of the states of all blocks, not of the last alone.

use super::Applied;
use crate::kernels;
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// How the states h₁ … h_L of all blocks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Fusion {
    /// The largest of each element.
    Max,
    /// A linear of all of them, one beside another: `Σ W_l·h_l`.
    Concat,
    /// A sum weighed token by token: `Σ sigmoid(u_l·h_l + b_l)·h_l`.
    Gate,
}

/// The gates' b at the start: the last block counts 0.98, each other 0.02.
const OPEN: f64 = 4.0;

impl Fusion {
    /// What is learned for each block, with its shapes at width `d`.
    pub(super) fn tensors(self, d: usize) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Self::Max => Vec::new(),
            Self::Concat => vec![("weight", vec![d, d])],
            Self::Gate => vec![("gate", vec![d]), ("bias", vec![1])],
        }
    }

    /// The start value of a tensor of a block: the last one's states pass, the others' do not.
    pub(super) fn initial(self, last: bool, shape: &[usize]) -> Result<Tensor> {
        match (shape, last) {
            (&[d, _], true) => Tensor::eye(d, DType::F64, &Device::Cpu),
            (&[1], _) => Tensor::new(&[if last { OPEN } else { -OPEN }], &Device::Cpu),
            _ => Tensor::zeros(shape, DType::F64, &Device::Cpu),
        }
    }
}

impl Applied {
    /// Whether the states of every block are needed at the end.
    pub(crate) fn fuses(&self) -> bool {
        self.config.fusion.is_some()
    }

    /// What stands for the last block's states, given those of every block, `[tokens, d]` each.
    pub(crate) fn fused(&self, states: &[Tensor]) -> Result<Option<Tensor>> {
        let Some(fusion) = self.config.fusion else { return Ok(None) };
        let mut sum: Option<Tensor> = None;
        for (state, own) in states.iter().zip(&self.fused) {
            let part = match (fusion, own.as_slice()) {
                (Fusion::Concat, [(_, weight)]) => kernels::linear(state, weight, None)?,
                (Fusion::Gate, [(_, gate), (_, bias)]) => kernels::row_gate(state, gate, bias)?,
                _ => state.clone(),
            };
            sum = Some(match (sum, fusion) {
                (None, _) => part,
                (Some(sum), Fusion::Max) => kernels::maximum(&sum, &part)?,
                (Some(sum), _) => kernels::scaled_add(&sum, &part, 1.0)?,
            });
        }
        Ok(sum)
    }
}
