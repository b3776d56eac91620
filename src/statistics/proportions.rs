//! Proportions: one, and two on the same items.

use super::{Interval, StatisticsError, check_level};
use statrs::distribution::{Binomial, ContinuousCDF, Discrete, DiscreteCDF, Normal};

/// Wilson's score interval (1927) of a proportion, in [0, 1], without continuity correction.
///
/// # Errors
/// No trial, more successes than trials, or a level outside (0, 1).
pub fn wilson_interval(successes: u64, trials: u64, level: f64) -> Result<Interval, StatisticsError> {
    let statistic = "Wilson interval";
    check_level(statistic, level)?;
    if trials == 0 {
        return Err(StatisticsError::TooFew { statistic, needed: 1, got: 0 });
    }
    if successes > trials {
        let value = successes as f64;
        return Err(StatisticsError::OutOfRange { statistic, name: "successes", value, range: "at most the trials" });
    }
    let z = Normal::standard().inverse_cdf(0.5 + level / 2.0);
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    // At 0 and n successes the end is exactly 0 or 1; rounding would leave it a hair off.
    let low = if successes == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if successes == trials { 1.0 } else { (centre + half).min(1.0) };
    Ok(Interval { low, high })
}

/// McNemar's exact two-sided p-value that two systems are equally often right on the same items:
/// `only_first` and `only_second` count the items that one alone got right (McNemar 1947; the binomial
/// form). With no such item it is 1.
#[must_use]
pub fn mcnemar_exact(only_first: u64, only_second: u64) -> f64 {
    let discordant = only_first.saturating_add(only_second);
    match Binomial::new(0.5, discordant) {
        Ok(binomial) if discordant > 0 => (2.0 * binomial.cdf(only_first.min(only_second))).min(1.0),
        _ => 1.0,
    }
}

/// McNemar's mid-p (Fagerland, Lydersen and Laake 2013): [`mcnemar_exact`] with half the weight on what is
/// exactly as extreme as the data. The exact test errs far below its level where few items differ; this one
/// comes close to the level, and passes it by a hair at worst.
#[must_use]
pub fn mcnemar_mid_p(only_first: u64, only_second: u64) -> f64 {
    let discordant = only_first.saturating_add(only_second);
    match Binomial::new(0.5, discordant) {
        Ok(binomial) if discordant > 0 => {
            let fewer = only_first.min(only_second);
            let here = binomial.pmf(fewer);
            if only_first == only_second { 1.0 - here / 2.0 } else { 2.0 * binomial.cdf(fewer) - here }
        }
        _ => 1.0,
    }
}

/// Items that `first` alone and that `second` alone got right: what McNemar's test compares.
///
/// # Errors
/// The two do not hold the same number of items.
pub fn discordant_items(first: &[bool], second: &[bool]) -> Result<(u64, u64), StatisticsError> {
    if first.len() != second.len() {
        let (left, right) = (first.len(), second.len());
        return Err(StatisticsError::Unpaired { statistic: "McNemar's test", left, right });
    }
    let count = |wanted: (bool, bool)| first.iter().zip(second).filter(|&(&a, &b)| (a, b) == wanted).count() as u64;
    Ok((count((true, false)), count((false, true))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mid_p_of_hand_cases() {
        // 1 against 9 of 10: 2·(1 + 10)/1024 − 10/1024; 1 against 1: 1 − ½·½.
        assert!((mcnemar_mid_p(1, 9) - 12.0 / 1024.0).abs() < 1e-12);
        assert!((mcnemar_mid_p(1, 1) - 0.75).abs() < 1e-12);
        assert_eq!(mcnemar_mid_p(0, 0), 1.0);
    }

    #[test]
    fn items_are_compared_in_pairs() {
        let (a, b) = ([true, true, false, false, true], [true, false, true, false, false]);
        assert_eq!(discordant_items(&a, &b).unwrap(), (2, 1));
        assert!(discordant_items(&a, &b[..3]).is_err());
    }

    #[test]
    fn wilson_gives_the_textbook_numbers() {
        // scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        for (k, n, low, high) in WILSON {
            let interval = wilson_interval(k, n, 0.95).unwrap();
            assert!((interval.low - low).abs() < 1e-9 && (interval.high - high).abs() < 1e-9, "{k}/{n}: {interval:?}");
        }
        assert!(wilson_interval(5, 4, 0.95).is_err());
        assert!(wilson_interval(0, 0, 0.95).is_err());
    }

    #[test]
    fn mcnemar_gives_the_textbook_numbers() {
        // scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue
        for (b, c, p) in MCNEMAR {
            assert!((mcnemar_exact(b, c) - p).abs() < 1e-10 * p.max(1e-3), "{b} {c}: {}", mcnemar_exact(b, c));
        }
        assert_eq!(mcnemar_exact(0, 0), 1.0);
    }

    const WILSON: [(u64, u64, f64, f64); 5] = [
        (0, 10, 0.0, 0.277532799863),
        (10, 10, 0.722467200137, 1.0),
        (15, 20, 0.531299122381, 0.888138298592),
        (1, 1000, 0.000176546371, 0.005642558598),
        (1830, 2000, 0.901967951569, 0.926440899187),
    ];
    const MCNEMAR: [(u64, u64, f64); 4] =
        [(1, 9, 0.021484375), (5, 5, 1.0), (12, 30, 0.007915897334896727), (150, 120, 0.07738939898021849)];
}
