//! Doses: λ and arm, block by block, on modules whose matrices stay as they are.

use super::config::Arm;
use super::files::AdapterError;
use super::{Peft, PlanError};

/// What the modules of one block read beside their own input: `x~ = (1−λ)·x + λ·r`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dose {
    /// λ in [0, 1]; 0 is the input itself.
    pub lambda: f64,
    /// What r is.
    pub arm: Arm,
}

impl Peft {
    /// Whether the newest tokens of a text are all that is read anew when it goes on, beside keys and values: not where
    /// the λ term reads other tokens than its own (the arm `shuffled`), nor with the other remedies, which read states and
    /// attention of the whole text.
    #[must_use]
    pub fn reads_on(&self) -> bool {
        let reads_others = |dose: &Dose| dose.lambda != 0.0 && dose.arm == Arm::Shuffled;
        let configured = self.config.residual.map(|residual| Dose { lambda: residual.lambda, arm: residual.arm });
        let shuffled = match &self.doses {
            Some(doses) => doses.iter().any(reads_others),
            None => configured.iter().any(reads_others),
        };
        !shuffled && self.remedies.config().is_none()
    }

    /// The same modules with a dose for every block in place of the configured λ and arm. The configuration, and so
    /// what [`save_adapter`](super::save_adapter) writes, stays as it was. With every dose the configured one the
    /// forward pass is the same, bit for bit; with every λ 0 it is that of the vanilla modules.
    ///
    /// # Errors
    /// The modules have no residual whose policy says where the doses go, a λ is outside [0, 1], or there is not
    /// one dose for each block.
    pub fn with_doses(&self, doses: &[Dose]) -> Result<Self, AdapterError> {
        if self.config.residual.is_none() {
            return Err(PlanError::NoPolicy.into());
        }
        if doses.len() != self.modules.len() {
            return Err(PlanError::DoseCount { found: doses.len(), blocks: self.modules.len() }.into());
        }
        if let Some(dose) = doses.iter().find(|dose| !(0.0..=1.0).contains(&dose.lambda)) {
            let value = dose.lambda.to_string();
            return Err(PlanError::OutOfRange { key: "lambda", value, range: "in [0, 1]" }.into());
        }
        let mut dosed = self.settled();
        dosed.config.clone_from(&self.config);
        dosed.doses = Some(doses.to_vec());
        Ok(dosed)
    }
}
