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

    /// [`Self::base`] and what a branch adds: `scale · inner · upᵀ`.
    pub(crate) fn base_with_branch(&self, x: &Tensor, branch: (&Tensor, &Tensor), scale: f64) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        if self.weight.track_op() || bias.is_some_and(Tensor::track_op) {
            return kernels::add_branch(&self.base(x)?, branch.0, branch.1, scale);
        }
        kernels::linear_with_branch(x, &self.weight, bias, branch, scale)
    }

    /// What the input's columns `first..first + count` of `x`, which has all of them, contribute by the base
    /// weights; the bias belongs to none.
    pub(super) fn base_columns(&self, x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        kernels::linear(&x.narrow(1, first, count)?, &self.weight.narrow(1, first, count)?, None)
    }

    /// Applies the linear and its PEFT module, if it has one.
    pub(super) fn forward(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        match state.module(self.layer, self.role) {
            None => self.base(x),
            Some(module) => module.forward(self, x, state),
        }
    }
}
