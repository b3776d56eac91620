//! A linear of a block, with the slot that a PEFT module fills.

use super::architecture::Role;
use crate::kernels::{self, FrozenWeight};
use crate::peft::PassState;
use candle_core::{D, DType, Result, Tensor, TensorId};

/// `y = W·x + b`, `W` of shape `[out, in]`, together with whatever a PEFT module adds.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The block that it belongs to, from 0.
    pub layer: usize,
    /// What it is for.
    pub role: Role,
    pub(super) weight: FrozenWeight,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// The weight's numbers, `[out, in]`, in the type that they are stored in; of a quantised one what its blocks stand for.
    ///
    /// # Errors
    /// The blocks cannot be read.
    pub fn weight(&self) -> Result<Tensor> {
        self.weight.numbers()
    }

    /// What names the weight among others; a quantised one has no name.
    pub(crate) fn weight_id(&self) -> Option<TensorId> {
        match &self.weight {
            FrozenWeight::Plain(weight) => Some(weight.id()),
            FrozenWeight::Quantised(_) => None,
        }
    }

    /// The bias, `[out]`.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Applies the base weights alone to `x` of shape `[tokens, in]`.
    pub(crate) fn base(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.weight, &self.bias) {
            // A quantised weight's own operation keeps no gradient of a bias.
            (FrozenWeight::Quantised(_), Some(bias)) if bias.track_op() => {
                kernels::add_row(&kernels::frozen_linear(x, &self.weight, None)?, bias)
            }
            (weight, bias) => kernels::frozen_linear(x, weight, bias.as_ref()),
        }
    }

    /// What a quantised weight takes in memory; 0 for one that is not.
    pub(crate) fn quantised_bytes(&self) -> usize {
        if matches!(self.weight, FrozenWeight::Quantised(_)) { self.weight.bytes() } else { 0 }
    }

    /// Whether the weight is trained.
    fn is_trained(&self) -> bool {
        matches!(&self.weight, FrozenWeight::Plain(weight) if weight.track_op())
    }

    /// [`Self::base`] and what a branch adds: `scale · inner · upᵀ`.
    pub(crate) fn base_with_branch(&self, x: &Tensor, branch: (&Tensor, &Tensor), scale: f64) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        if self.is_trained() || bias.is_some_and(Tensor::track_op) {
            return kernels::add_branch(&self.base(x)?, branch.0, branch.1, scale);
        }
        kernels::frozen_with_branch(x, &self.weight, bias, branch, scale)
    }

    /// What [`Self::base_with_branch`] is without the bias.
    pub(crate) fn unbiased_with_branch(&self, x: &Tensor, branch: (&Tensor, &Tensor), scale: f64) -> Result<Tensor> {
        if self.is_trained() {
            let base = kernels::frozen_linear(x, &self.weight, None)?;
            return kernels::add_branch(&base, branch.0, branch.1, scale);
        }
        kernels::frozen_with_branch(x, &self.weight, None, branch, scale)
    }

    /// `y` and the bias, where there is one.
    pub(crate) fn with_bias(&self, y: &Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return Ok(y.clone()) };
        kernels::add_row(y, bias)
    }

    /// The squared length of every row of the weight, `[out]`, in `dtype`.
    pub(crate) fn row_squares(&self, dtype: DType) -> Result<Tensor> {
        self.weight()?.detach().to_dtype(dtype)?.sqr()?.sum(D::Minus1)
    }

    /// `weight · aᵀ` for `a` of shape `[rank, in]`: `[out, rank]`, in the type of `a`.
    pub(crate) fn weight_times(&self, a: &Tensor) -> Result<Tensor> {
        kernels::linear(a, &self.weight()?.detach(), None)?.t()?.contiguous()
    }

    /// What the input's columns `first..first + count` of `x`, which has all of them, contribute by the base
    /// weights; the bias belongs to none.
    pub(super) fn base_columns(&self, x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        kernels::linear(&x.narrow(1, first, count)?, &self.weight()?.narrow(1, first, count)?, None)
    }

    /// Applies the linear and its PEFT module, if it has one.
    pub(super) fn forward(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        match state.module(self.layer, self.role) {
            None => self.base(x),
            Some(module) => module.forward(self, x, state),
        }
    }
}
