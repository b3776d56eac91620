//! Permutation tests, and p-values taken many at a time.

use super::{StatisticsError, check_values};
use crate::random;
use rand::Rng;

/// `(1 + #{null ≥ observed}) / (1 + B)` over the `null` draws of a statistic that is large when the
/// hypothesis is false; never 0 (Phipson and Smyth 2010).
///
/// # Errors
/// A value that is not finite.
pub fn permutation_p_value(observed: f64, null: &[f64]) -> Result<f64, StatisticsError> {
    check_values("permutation test", &[observed], 1)?;
    check_values("permutation test", null, 0)?;
    let as_extreme = null.iter().filter(|&&value| value >= observed).count();
    Ok((1.0 + as_extreme as f64) / (1.0 + null.len() as f64))
}

/// Two-sided p-value that paired `differences` are symmetric about 0, by flips of their signs. Where there
/// are no more than `replicates` patterns of signs, all are gone through and the p-value is exact: the
/// observed pattern is one of them, so it is not 0 either. Otherwise `replicates` seeded random patterns.
///
/// # Errors
/// No difference, or one that is not finite.
pub fn sign_flip_p_value(differences: &[f64], replicates: usize, seed: u64) -> Result<f64, StatisticsError> {
    check_values("sign-flip test", differences, 1)?;
    let observed = differences.iter().sum::<f64>().abs();
    // A flip that gives the observed sum again must count as equal whatever the order of additions.
    let tolerance = 1e-12 * differences.iter().map(|value| value.abs()).sum::<f64>();
    let patterns = u32::try_from(differences.len()).ok().and_then(|n| 1usize.checked_shl(n));
    if let Some(patterns) = patterns.filter(|&patterns| patterns <= replicates) {
        let sum = |pattern: usize| -> f64 {
            differences.iter().enumerate().map(|(i, &d)| if pattern >> i & 1 == 0 { d } else { -d }).sum()
        };
        let as_extreme = (0..patterns).filter(|&pattern| sum(pattern).abs() >= observed - tolerance).count();
        return Ok(as_extreme as f64 / patterns as f64);
    }
    let mut rng = random::stream(seed, &["sign flips"]);
    let null: Vec<f64> = (0..replicates)
        .map(|_| differences.iter().map(|&d| if rng.random::<bool>() { d } else { -d }).sum::<f64>().abs())
        .collect();
    permutation_p_value(observed - tolerance, &null)
}

/// Holm's step-down adjusted p-values (1979), in the order given: compare each with the level itself.
///
/// # Errors
/// A p-value outside [0, 1] or NaN.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, StatisticsError> {
    if let Some(&value) = p_values.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        let (statistic, name) = ("Holm's correction", "p-value");
        return Err(StatisticsError::OutOfRange { statistic, name, value, range: "between 0 and 1" });
    }
    let mut ordered: Vec<(usize, f64)> = p_values.iter().copied().enumerate().collect();
    ordered.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut largest = 0.0_f64;
    let mut adjusted: Vec<(usize, f64)> = ordered
        .into_iter()
        .enumerate()
        .map(|(rank, (index, p))| {
            largest = largest.max((p * (p_values.len() - rank) as f64).min(1.0));
            (index, largest)
        })
        .collect();
    adjusted.sort_by_key(|(index, _)| *index);
    Ok(adjusted.into_iter().map(|(_, p)| p).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_gives_the_textbook_numbers() {
        // R: p.adjust(c(.01, .04, .03, .005), "holm")
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]).unwrap();
        for (got, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - expected).abs() < 1e-15, "{adjusted:?}");
        }
        assert_eq!(holm(&[]).unwrap(), Vec::<f64>::new());
        assert!(holm(&[0.5, f64::NAN]).is_err());
    }

    #[test]
    fn a_permutation_p_value_is_never_zero() {
        assert_eq!(permutation_p_value(5.0, &[1.0, 2.0, 3.0]).unwrap(), 0.25);
        assert_eq!(permutation_p_value(2.0, &[1.0, 2.0, 3.0]).unwrap(), 0.75);
    }

    #[test]
    fn sign_flips_approach_the_exact_p_value() {
        // Five differences of one sign: 2 of the 32 sign patterns are as extreme.
        assert_eq!(sign_flip_p_value(&[0.1, 0.2, 0.3, 0.4, 0.5], 32, 1).unwrap(), 0.0625);
        // Twenty differences have a million patterns;
        let differences: Vec<f64> = (0..20).map(|i| f64::from(i % 7) - 2.0).collect();
        let exact = sign_flip_p_value(&differences, 1 << 20, 1).unwrap();
        let drawn = sign_flip_p_value(&differences, 50_000, 1).unwrap();
        assert!((drawn - exact).abs() < 3.0 * (exact / 50_000.0).sqrt(), "{drawn} {exact}");
        assert_eq!(sign_flip_p_value(&[0.0, 0.0], 100, 1).unwrap(), 1.0);
    }
}
