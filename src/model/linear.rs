//! A linear of a block, with the slot that a PEFT module fills.

use super::architecture::Role;
use crate::kernels;
use crate::peft::PassState;
use candle_core::{Result, Tensor};

/// `y = W·x + b`, `W` of shape `[out, in]`, together with whatever a PEFT module adds.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The block that it belongs to, from 0.
    pub layer: usize,
    /// What it is for.
    pub role: Role,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// Applies the base weights alone to `x` of shape `[tokens, in]`.
    pub(crate) fn base(&self, x: &Tensor) -> Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }

    /// Applies the linear and its PEFT module, if it has one.
    pub(super) fn forward(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        match state.module(self.layer, self.role) {
            None => self.base(x),
            Some(module) => module.forward(self, x, state),
        }
    }
}
