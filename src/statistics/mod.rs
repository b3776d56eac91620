//! Intervals, tests and verdicts.
//!
//! Which one to use: for **texts or items** the percentile [`Bootstrap`]; for **proportions**
//! [`wilson_interval`] and, paired, [`mcnemar_exact`] or [`mcnemar_mid_p`]; for **seeds** [`compare_seeds`],
//! Student's t on paired differences (a bootstrap over 3 seeds covers about 75 %, not 95); for seeds over
//! **several layers or tasks** [`compare_family`], where Holm's correction keeps the whole family at 5 %.
//! Nothing here takes a missing or non-finite value: a caller drops such a text from *every* series that it
//! compares, or fails.

mod bootstrap;
mod family;
#[cfg(test)]
mod golden;
mod proportions;
mod resampling;
#[cfg(test)]
mod simulation;
mod student;

pub use bootstrap::{Bootstrap, bootstrap_mean_interval, paired_bootstrap_difference};
pub use family::{FamilyMember, compare_family};
pub use proportions::{discordant_items, mcnemar_exact, mcnemar_mid_p, wilson_interval};
pub use resampling::{holm, permutation_p_value, sign_flip_p_value};
pub use student::{
    Comparison, Direction, MIN_SEEDS, Tost, Verdict, compare_seeds, paired_differences, student_t_interval,
    student_t_p_value, tost_equivalence,
};

/// Replicates of a bootstrap that a published interval is made of.
pub const REPLICATES: usize = 10_000;

/// A confidence interval, in the unit of the values it was computed from.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies in the interval, ends included.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Why a statistic could not be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StatisticsError {
    /// Fewer values than the statistic is defined for.
    #[error("{statistic}: {got} values, needs at least {needed}; add values or leave the statistic out")]
    TooFew {
        /// Which statistic.
        statistic: &'static str,
        /// The least number it takes.
        needed: usize,
        /// The number given.
        got: usize,
    },
    /// A value is NaN or infinite.
    #[error("{statistic}: value {index} is {value}; drop missing values before, from both sides of a pair")]
    NotFinite {
        /// Which statistic.
        statistic: &'static str,
        /// Position of the value, from 0.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Two series that should pair up do not.
    #[error("{statistic}: {left} values against {right}; paired series hold the same items in the same order")]
    Unpaired {
        /// Which statistic.
        statistic: &'static str,
        /// Length of the first series.
        left: usize,
        /// Length of the second series.
        right: usize,
    },
    /// A level, a margin or a count outside its range.
    #[error("{statistic}: {name} is {value}; it must be {range}")]
    OutOfRange {
        /// Which statistic.
        statistic: &'static str,
        /// Which argument.
        name: &'static str,
        /// The value given.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
}

/// Arithmetic mean and sample standard deviation (divisor n−1) of `values`; the deviation of one value
/// is `None`.
///
/// # Errors
/// No value, or one that is not finite.
pub fn mean_and_std(values: &[f64]) -> Result<(f64, Option<f64>), StatisticsError> {
    check_values("mean", values, 1)?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Ok((mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

fn check_values(statistic: &'static str, values: &[f64], needed: usize) -> Result<(), StatisticsError> {
    if values.len() < needed {
        return Err(StatisticsError::TooFew { statistic, needed, got: values.len() });
    }
    match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(StatisticsError::NotFinite { statistic, index, value }),
        None => Ok(()),
    }
}

fn check_level(statistic: &'static str, level: f64) -> Result<(), StatisticsError> {
    if level > 0.0 && level < 1.0 {
        return Ok(());
    }
    Err(StatisticsError::OutOfRange { statistic, name: "level", value: level, range: "between 0 and 1" })
}

fn differences(statistic: &'static str, a: &[f64], b: &[f64]) -> Result<Vec<f64>, StatisticsError> {
    if a.len() != b.len() {
        return Err(StatisticsError::Unpaired { statistic, left: a.len(), right: b.len() });
    }
    check_values(statistic, a, 1)?;
    check_values(statistic, b, 1)?;
    Ok(a.iter().zip(b).map(|(a, b)| a - b).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_sample_deviation_of_a_hand_case() {
        let (mean, std) = mean_and_std(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!(mean, 5.0);
        assert!((std.unwrap() - (32.0_f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_std(&[3.0]).unwrap(), (3.0, None));
    }

    #[test]
    fn what_is_not_a_number_is_named() {
        let error = mean_and_std(&[1.0, f64::NAN]).unwrap_err();
        assert!(error.to_string().contains("value 1 is NaN"), "{error}");
        assert!(matches!(mean_and_std(&[]), Err(StatisticsError::TooFew { needed: 1, got: 0, .. })));
    }
}
