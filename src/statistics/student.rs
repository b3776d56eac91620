//! Student's t on seeds: intervals, equivalence, and the verdict of a comparison.

use super::{Interval, StatisticsError, check_level, check_values, differences, mean_and_std};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::fmt;

/// Paired seeds below which no verdict is given.
pub const MIN_SEEDS: usize = 5;

/// `a[i] − b[i]`, seed by seed.
///
/// # Errors
/// Unequal lengths, no value, or one that is not finite.
pub fn paired_differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>, StatisticsError> {
    differences("paired comparison", a, b)
}

/// `mean ± t·s/√n` with n−1 degrees of freedom, at `level`. Of paired differences it is the paired
/// t-interval.
///
/// # Errors
/// Fewer than two values, one that is not finite, or a level outside (0, 1).
pub fn student_t_interval(values: &[f64], level: f64) -> Result<Interval, StatisticsError> {
    check_level("t interval", level)?;
    let (mean, error, law) = t_terms("t interval", values)?;
    let half = law.inverse_cdf(0.5 + level / 2.0) * error;
    Ok(Interval { low: mean - half, high: mean + half })
}

/// Two-sided p-value of Student's t-test that the mean of paired `differences` is 0. Differences that do not
/// vary give 1 at 0 and 0 elsewhere.
///
/// # Errors
/// Fewer than two differences, or one that is not finite.
pub fn student_t_p_value(differences: &[f64]) -> Result<f64, StatisticsError> {
    let (mean, error, law) = t_terms("t-test", differences)?;
    if error > 0.0 { Ok((2.0 * law.sf((mean / error).abs())).min(1.0)) } else { Ok(f64::from(mean == 0.0)) }
}

/// Outcome of two one-sided tests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tost {
    /// The larger of the two one-sided p-values.
    pub p: f64,
    /// The interval at level 1 − 2α: equivalence at α is this interval inside ±margin.
    pub interval: Interval,
    /// Whether the interval lies inside ±margin.
    pub equivalent: bool,
}

/// Two one-sided t-tests (Schuirmann 1987) that the mean of paired `differences` lies within ±`margin`,
/// each at `alpha` (0.05).
///
/// # Errors
/// Fewer than two differences, one that is not finite, a margin that is not positive, `alpha` outside
/// (0, 0.5).
pub fn tost_equivalence(differences: &[f64], margin: f64, alpha: f64) -> Result<Tost, StatisticsError> {
    let statistic = "equivalence test";
    check_margin(statistic, margin)?;
    if !(alpha > 0.0 && alpha < 0.5) {
        let range = "between 0 and 0.5";
        return Err(StatisticsError::OutOfRange { statistic, name: "alpha", value: alpha, range });
    }
    let (mean, error, law) = t_terms(statistic, differences)?;
    let interval = student_t_interval(differences, 1.0 - 2.0 * alpha)?;
    let equivalent = -margin < interval.low && interval.high < margin;
    let p = if error > 0.0 {
        law.sf((mean + margin) / error).max(law.cdf((mean - margin) / error))
    } else {
        f64::from(!equivalent)
    };
    Ok(Tost { p, interval, equivalent })
}

/// Which way a metric is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Larger is better: accuracy.
    Higher,
    /// Smaller is better: loss.
    Lower,
}

/// What paired seeds say of a treatment against its control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The 95 % interval of the difference lies on the good side of 0, and the difference may matter.
    Helps,
    /// The 95 % interval lies on the bad side of 0, and the difference may matter.
    Hurts,
    /// Two one-sided tests at 5 % place the difference within the margin.
    Equivalent,
    /// None of these: the data do not tell. Never to be written as "no difference".
    Undecided,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Helps => "helps",
            Self::Hurts => "hurts",
            Self::Equivalent => "equivalent",
            Self::Undecided => "undecided",
        })
    }
}

/// A treatment against its control over paired seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Number of paired seeds.
    pub seeds: usize,
    /// Mean difference, treatment − control, in the metric's unit.
    pub mean: f64,
    /// Its 95 % t-interval; `None` for a single seed.
    pub interval: Option<Interval>,
    /// The margin of equivalence, in the metric's unit, as it was fixed before the run.
    pub margin: f64,
    /// The verdict; `None` below [`MIN_SEEDS`] seeds.
    pub verdict: Option<Verdict>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Some(verdict) => verdict.fmt(f),
            None => f.write_str("too few seeds for a conclusion"),
        }
    }
}

/// Compares paired per-seed `differences` (treatment − control, in the metric's unit) with 0 and with
/// the equivalence `margin` (±2 points for accuracies), both fixed before the run.
///
/// **Precedence.** A difference can exclude 0 and still lie within the margin. It is then
/// [`Verdict::Equivalent`]: the margin was declared beforehand as the least difference that matters, so
/// "helps" would promise what the study itself calls too small. `mean` and `interval` still show that it
/// is not 0.
///
/// # Errors
/// No difference, one that is not finite, or a margin that is not positive.
pub fn compare_seeds(differences: &[f64], margin: f64, better: Direction) -> Result<Comparison, StatisticsError> {
    check_margin("comparison", margin)?;
    let (mean, _) = mean_and_std(differences)?;
    let seeds = differences.len();
    let interval = if seeds > 1 { Some(student_t_interval(differences, 0.95)?) } else { None };
    let verdict = match interval {
        Some(interval) if seeds >= MIN_SEEDS => {
            let equivalent = tost_equivalence(differences, margin, 0.05)?.equivalent;
            Some(verdict(equivalent, !interval.contains(0.0), mean, better))
        }
        _ => None,
    };
    Ok(Comparison { seeds, mean, interval, margin, verdict })
}

/// The verdict of a comparison that is `equivalent` or not and whose `mean` does or does not `differ` from 0.
pub(super) fn verdict(equivalent: bool, differs: bool, mean: f64, better: Direction) -> Verdict {
    let good = match better {
        Direction::Higher => mean > 0.0,
        Direction::Lower => mean < 0.0,
    };
    match (equivalent, differs, good) {
        (true, _, _) => Verdict::Equivalent,
        (false, true, true) => Verdict::Helps,
        (false, true, false) => Verdict::Hurts,
        (false, false, _) => Verdict::Undecided,
    }
}

pub(super) fn check_margin(statistic: &'static str, margin: f64) -> Result<(), StatisticsError> {
    if margin > 0.0 && margin.is_finite() {
        return Ok(());
    }
    Err(StatisticsError::OutOfRange { statistic, name: "margin", value: margin, range: "positive and finite" })
}

/// Mean, its standard error, and the law of their ratio.
fn t_terms(statistic: &'static str, values: &[f64]) -> Result<(f64, f64, StudentsT), StatisticsError> {
    check_values(statistic, values, 2)?;
    let too_few = StatisticsError::TooFew { statistic, needed: 2, got: values.len() };
    let (mean, std) = mean_and_std(values)?;
    let std = std.ok_or_else(|| too_few.clone())?;
    let law = StudentsT::new(0.0, 1.0, values.len() as f64 - 1.0).map_err(|_| too_few)?;
    Ok((mean, std / (values.len() as f64).sqrt(), law))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::{Distribution, StandardNormal};

    /// Student's sleep data (1908), the ten paired differences.
    const SLEEP: [f64; 10] = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];

    #[test]
    fn students_own_data() {
        // R: t.test(extra ~ group, paired = TRUE) gives 0.7001142 … 2.4598858
        let interval = student_t_interval(&SLEEP, 0.95).unwrap();
        assert!(
            (interval.low - 0.700_114_2).abs() < 1e-6 && (interval.high - 2.459_885_8).abs() < 1e-6,
            "{interval:?}"
        );
    }

    #[test]
    fn tost_is_the_ninety_percent_interval_inside_the_margin() {
        // scipy.stats.t: sf and cdf with 9 degrees of freedom
        let tost = tost_equivalence(&SLEEP, 2.5, 0.05).unwrap();
        assert!((tost.p - 0.02111686024650073).abs() < 1e-9, "{tost:?}");
        assert!(
            (tost.interval.low - 0.8669947329707162).abs() < 1e-9
                && (tost.interval.high - 2.2930052670292835).abs() < 1e-9
        );
        assert!(tost.equivalent);
        assert!(!tost_equivalence(&SLEEP, 2.0, 0.05).unwrap().equivalent);
        assert!(tost_equivalence(&SLEEP, 0.0, 0.05).is_err());
    }

    #[test]
    fn the_four_verdicts() {
        let conclude = |d: &[f64], better| compare_seeds(d, 2.0, better).unwrap().to_string();
        let (up, small, wide) = ([4.0, 5.0, 6.0, 5.5, 4.5], [0.4, 0.5, 0.6, 0.5, 0.4], [-6.0, 9.0, 1.0, -4.0, 5.0]);
        assert_eq!(conclude(&up, Direction::Higher), "helps");
        assert_eq!(conclude(&up, Direction::Lower), "hurts");
        assert_eq!(conclude(&up.map(|d| -d), Direction::Higher), "hurts");
        assert_eq!(conclude(&small, Direction::Higher), "equivalent", "significant, but within the margin");
        assert_eq!(conclude(&wide, Direction::Higher), "undecided");
        assert_eq!(conclude(&up[..4], Direction::Higher), "too few seeds for a conclusion");
    }

    #[test]
    fn one_seed_has_no_interval_and_identical_seeds_no_width() {
        let one = compare_seeds(&[3.0], 2.0, Direction::Higher).unwrap();
        assert_eq!((one.interval, one.verdict), (None, None));
        let same = compare_seeds(&[0.0; 5], 2.0, Direction::Higher).unwrap();
        assert_eq!(same.verdict, Some(Verdict::Equivalent));
        assert!(compare_seeds(&[f64::NAN; 5], 2.0, Direction::Higher).is_err());
        assert!(paired_differences(&[1.0], &[]).is_err());
    }

    #[test]
    fn ninety_five_percent_of_intervals_of_five_seeds_cover() {
        let mut rng = crate::random::stream(4, &["coverage"]);
        let covered = (0..2000)
            .filter(|_| {
                let values: Vec<f64> = (0..5).map(|_| StandardNormal.sample(&mut rng)).collect();
                student_t_interval(&values, 0.95).unwrap().contains(0.0)
            })
            .count();
        assert!((1875..=1925).contains(&covered), "{covered} of 2000");
    }
}
