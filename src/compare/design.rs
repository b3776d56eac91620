//! What is trained: arms, candidates, seeds, steps.

use super::CompareError;
use crate::peft::Arm as Residual;
use crate::train::TrainConfig;
use serde::{Deserialize, Serialize};

/// What an arm does to the input of its modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The model as it is; nothing is trained.
    Base,
    /// Nothing.
    Vanilla,
    /// It shrinks it as SIBO does and adds nothing: the scale control.
    None,
    /// The initial residual.
    Sibo,
}

impl Kind {
    /// Those that are trained, in the order of tables.
    pub const TRAINED: [Self; 3] = [Self::Vanilla, Self::None, Self::Sibo];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Vanilla => "vanilla",
            Self::None => "none",
            Self::Sibo => "sibo",
        }
    }
}

/// An arm with its learning rate and λ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Arm {
    /// What it does.
    pub kind: Kind,
    /// λ; 0 where it has none.
    pub lambda: f64,
    /// Peak learning rate; 0 where nothing is trained.
    pub lr: f64,
}

/// What each arm chose on the search's seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Chosen {
    /// The arm, with what it chose.
    pub arm: Arm,
    /// The validation loss that it was chosen by, in nats a target token.
    pub validation_loss: f64,
}

/// A comparison, settled before its first cell is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Design {
    /// Values of λ that SIBO and its control choose from.
    pub lambdas: Vec<f64>,
    /// Peak learning rates that every arm chooses from.
    pub lrs: Vec<f64>,
    /// Paired seeds, 1 to this.
    pub seeds: u64,
    /// Time for all, in seconds.
    pub budget: f64,
    /// What every cell shares; its steps are settled.
    pub training: TrainConfig,
}

/// The seed of the search: none of those that are compared.
const SEARCH_SEED: u64 = 0;

impl Design {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// The first number out of range.
    pub fn check(&self) -> Result<(), CompareError> {
        let fail = |key, value: String, range| Err(CompareError::OutOfRange { key, value, range });
        if let Some(lambda) = self.lambdas.iter().find(|&&lambda| !(lambda > 0.0 && lambda <= 1.0)) {
            return fail("lambdas", lambda.to_string(), "above 0 and at most 1 each");
        }
        if let Some(lr) = self.lrs.iter().find(|&&lr| !(lr.is_finite() && lr > 0.0)) {
            return fail("lrs", lr.to_string(), "above 0 each");
        }
        if self.lambdas.is_empty() || self.lrs.is_empty() {
            return fail(
                if self.lrs.is_empty() { "lrs" } else { "lambdas" },
                "empty".to_owned(),
                "at least one number",
            );
        }
        if !(1..=100).contains(&self.seeds) {
            return fail("seeds", self.seeds.to_string(), "from 1 to 100");
        }
        if !(self.budget.is_finite() && self.budget > 0.0) {
            return fail("budget", self.budget.to_string(), "a time above 0, such as 30m or 2h");
        }
        Ok(())
    }

    /// The arms of the search: every one with every candidate.
    #[must_use]
    pub fn candidates(&self) -> Vec<Arm> {
        let lambdas = |kind: Kind| if kind == Kind::Vanilla { &[0.0][..] } else { &self.lambdas };
        let of =
            |kind: Kind| lambdas(kind).iter().flat_map(move |&lambda| self.lrs.iter().map(move |&lr| (lambda, lr)));
        Kind::TRAINED.into_iter().flat_map(|kind| of(kind).map(move |(lambda, lr)| Arm { kind, lambda, lr })).collect()
    }

    /// How many cells are trained in all.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.candidates().len() + Kind::TRAINED.len() * usize::try_from(self.seeds).unwrap_or(usize::MAX)
    }

    /// The settings of an arm at a seed, or of the search where that is `None`.
    #[must_use]
    pub fn settings(&self, arm: Arm, seed: Option<u64>) -> TrainConfig {
        TrainConfig {
            lr: arm.lr,
            seed: seed.unwrap_or(SEARCH_SEED),
            sibo_lambda: arm.lambda,
            residual: if arm.kind == Kind::None { Residual::None } else { Residual::H0 },
            ..self.training.clone()
        }
    }
}

/// A time in words: hours, minutes or seconds.
#[must_use]
pub(super) fn in_words(seconds: f64) -> String {
    match seconds {
        s if s >= 5400.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 90.0 => format!("{:.0} min", s / 60.0),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn design() -> Design {
        Design {
            lambdas: vec![0.1, 0.3],
            lrs: vec![1e-4, 3e-4, 1e-3],
            seeds: 5,
            budget: 60.0,
            training: TrainConfig::default(),
        }
    }

    #[test]
    fn sibo_and_its_control_have_the_same_candidates() {
        let design = design();
        let of = |kind: Kind| design.candidates().into_iter().filter(|arm| arm.kind == kind).collect::<Vec<_>>();
        assert_eq!((of(Kind::Vanilla).len(), of(Kind::None).len(), of(Kind::Sibo).len()), (3, 6, 6));
        let pairs = |kind| of(kind).iter().map(|arm| (arm.lambda, arm.lr)).collect::<Vec<_>>();
        assert_eq!(pairs(Kind::None), pairs(Kind::Sibo));
        assert_eq!(design.cells(), 15 + 15);
    }

    #[test]
    fn an_arm_differs_from_another_in_nothing_but_its_own() {
        let design = design();
        let arm = |kind, lambda| design.settings(Arm { kind, lambda, lr: 1e-3 }, Some(2));
        let (vanilla, none, sibo) = (arm(Kind::Vanilla, 0.0), arm(Kind::None, 0.3), arm(Kind::Sibo, 0.3));
        assert_eq!((none.residual, sibo.residual), (Residual::None, Residual::H0));
        assert_eq!(TrainConfig { residual: Residual::H0, ..none }, sibo);
        assert_eq!(TrainConfig { sibo_lambda: 0.0, ..sibo }, vanilla);
        assert_eq!(design.settings(Arm { kind: Kind::Vanilla, lambda: 0.0, lr: 1e-3 }, None).seed, 0);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |design: Design| design.check().unwrap_err().to_string();
        assert!(design().check().is_ok());
        assert!(refused(Design { lambdas: vec![0.0], ..design() }).starts_with("--lambdas is 0;"));
        assert!(refused(Design { lrs: vec![f64::NAN], ..design() }).starts_with("--lrs is NaN;"));
        assert!(refused(Design { lambdas: vec![], ..design() }).starts_with("--lambdas is empty;"));
        assert!(refused(Design { seeds: 0, ..design() }).starts_with("--seeds is 0;"));
        assert!(refused(Design { budget: 0.0, ..design() }).starts_with("--budget is 0;"));
    }
}
