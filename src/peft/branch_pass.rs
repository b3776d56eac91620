//! What a PEFT branch reads in a forward pass, for those who measure it.

use super::Dose;
use super::initial_residual::InitialResidual;
use super::module::Module;
use super::plan::PlannedModule;
use candle_core::{Result, Tensor};
use std::fmt::Debug;

/// Watches the PEFT branches of a forward pass; each calls it once, in the order in which they run.
///
/// It changes nothing: the pass computes the same bits with and without it.
pub trait BranchObserver: Debug + Sync {
    /// Hears what a branch is about to read.
    ///
    /// # Errors
    /// Whatever stops the forward pass.
    fn observe(&self, branch: &BranchPass<'_>) -> Result<()>;
}

/// One branch in one forward pass, about to read `x~ = (1−λ)·x + λ·r`.
#[derive(Debug)]
pub struct BranchPass<'a> {
    pub(super) module: &'a Module,
    /// `None` where the residual does not enter.
    pub(super) residual: Option<&'a InitialResidual>,
    /// λ as it is, learned or not, and what r is.
    pub(super) dose: Option<Dose>,
    pub(super) h0: &'a Tensor,
    pub(super) input: &'a Tensor,
    pub(super) mixed: &'a Tensor,
}

impl BranchPass<'_> {
    /// The module that the branch belongs to.
    #[must_use]
    pub fn planned(&self) -> &PlannedModule {
        &self.module.planned
    }

    /// λ and arm; `None` where the residual does not enter.
    #[must_use]
    pub fn dose(&self) -> Option<Dose> {
        self.dose
    }

    /// h0 of every token of the batch, `[tokens, d]`.
    #[must_use]
    pub fn h0(&self) -> &Tensor {
        self.h0
    }

    /// The branch's own input x, `[tokens, input]`.
    #[must_use]
    pub fn input(&self) -> &Tensor {
        self.input
    }

    /// What the branch reads, x~, `[tokens, input]`.
    #[must_use]
    pub fn mixed(&self) -> &Tensor {
        self.mixed
    }

    /// What is left of the input, `(1−λ)·x`, `[tokens, input]`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn kept(&self) -> Result<Tensor> {
        match self.dose {
            Some(dose) => self.input.affine(1.0 - dose.lambda, 0.0),
            None => Ok(self.input.clone()),
        }
    }

    /// What is added, `λ·r`, `[tokens, input]`; `None` where nothing is.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn added(&self) -> Result<Option<Tensor>> {
        let (Some(residual), Some(dose)) = (self.residual, self.dose.filter(|dose| dose.lambda != 0.0)) else {
            return Ok(None);
        };
        let source = residual.source_for(self.input)?;
        source.map(|r| r.affine(dose.lambda, 0.0)).transpose()
    }

    /// The branch's scaled output for an input `[tokens, input]` that needs no more mixing, `[tokens, output]`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        self.module.output(mixed)?.affine(self.module.planned.form.scale(), 0.0)
    }

    /// Whether the branch is linear in what it reads.
    #[must_use]
    pub fn is_linear(&self) -> bool {
        !matches!(self.module.planned.form, super::Form::Bottleneck { .. })
    }
}
