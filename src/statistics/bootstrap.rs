//! The percentile bootstrap over texts or items (Efron 1979), many series at a time.

use super::{Interval, REPLICATES, StatisticsError, check_level, check_values, differences, permutation_p_value};
use crate::random;
use ndarray::Array2;
use rand::Rng;
use rayon::prelude::*;

/// Replicates whose counts are in memory at a time, per thread.
const BLOCK: usize = 128;
/// Series whose replicate means are in memory at a time.
const CHUNK: usize = 256;

/// Resamples of `items` texts, shared by every series measured on them: layers, measures and runs are
/// then resampled together, and a difference is paired by construction.
///
/// Replicate `r` draws from the counter-based stream of (seed, r), so nothing is stored but the seed,
/// and the intervals do not depend on threads or on which series are asked for together.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    items: usize,
    replicates: usize,
    seed: u64,
}

impl Bootstrap {
    /// Resamples of `items` texts, `replicates` of them ([`REPLICATES`] for what is published).
    ///
    /// # Errors
    /// No item or no replicate, or more items than a u32 counts.
    pub fn new(items: usize, replicates: usize, seed: u64) -> Result<Self, StatisticsError> {
        for got in [items, replicates] {
            if got == 0 {
                return Err(StatisticsError::TooFew { statistic: "bootstrap", needed: 1, got });
            }
        }
        if u32::try_from(items).is_err() {
            let (name, value) = ("number of items", items as f64);
            let range = "less than 2^32";
            return Err(StatisticsError::OutOfRange { statistic: "bootstrap", name, value, range });
        }
        Ok(Self { items, replicates, seed })
    }

    /// The percentile interval of the mean of each series, at `level` (0.95). Percentiles are
    /// interpolated linearly, as numpy's are.
    ///
    /// # Errors
    /// A series of another length than `items`, a value that is not finite, a level outside (0, 1).
    pub fn intervals(&self, series: &[&[f64]], level: f64) -> Result<Vec<Interval>, StatisticsError> {
        self.check(series, level)?;
        let (n, tail) = (self.items as f64, (1.0 - level) / 2.0);
        let mean = |_: usize, sums: &mut [f64], _: &[f64]| Interval {
            low: quantile(sums, tail) / n,
            high: quantile(sums, 1.0 - tail) / n,
        };
        Ok(series.chunks(CHUNK).flat_map(|chunk| self.over_replicates(chunk, mean)).collect())
    }

    /// As [`Self::intervals`], with the two-sided p-value that the mean is 0: `(1 + #{|m* − m| ≥ |m|}) / (1 + B)` over the
    /// replicates' means m*, never 0 (Efron and Tibshirani 1993, §16.4, without studentising).
    ///
    /// # Errors
    /// As [`Self::intervals`].
    pub fn tested_intervals(&self, series: &[&[f64]], level: f64) -> Result<Vec<(Interval, f64)>, StatisticsError> {
        self.check(series, level)?;
        let (n, tail) = (self.items as f64, (1.0 - level) / 2.0);
        let tested = series.chunks(CHUNK).flat_map(|chunk| {
            self.over_replicates(chunk, |index, sums, _| {
                let values = chunk.get(index).copied().unwrap_or_default();
                let observed: f64 = values.iter().sum();
                // A replicate that gives the observed sum again counts, whatever the order of additions.
                let rounding = 1e-12 * values.iter().map(|value| value.abs()).sum::<f64>();
                let away: Vec<f64> = sums.iter().map(|sum| (sum - observed).abs()).collect();
                let interval = Interval { low: quantile(sums, tail) / n, high: quantile(sums, 1.0 - tail) / n };
                Ok((interval, permutation_p_value(observed.abs() - rounding, &away)?))
            })
        });
        tested.collect()
    }

    /// As [`Self::intervals`], of Σ values / Σ `weights` of each series: a mean over parts of items, such as the tokens
    /// of texts, where whole items are resampled.
    ///
    /// # Errors
    /// As [`Self::intervals`], and for a weight that is not above 0.
    pub fn ratio_intervals(
        &self,
        series: &[&[f64]],
        weights: &[f64],
        level: f64,
    ) -> Result<Vec<Interval>, StatisticsError> {
        self.check(series, level)?;
        self.check(&[weights], level)?;
        if let Some(&value) = weights.iter().find(|&&weight| weight <= 0.0) {
            let (statistic, name) = ("bootstrap", "weight");
            return Err(StatisticsError::OutOfRange { statistic, name, value, range: "above 0" });
        }
        let tail = (1.0 - level) / 2.0;
        let ratio = |_: usize, sums: &mut [f64], totals: &[f64]| {
            sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum /= total);
            Interval { low: quantile(sums, tail), high: quantile(sums, 1.0 - tail) }
        };
        let chunks = series.chunks(CHUNK - 1).map(|chunk| {
            let with_weights: Vec<&[f64]> = chunk.iter().copied().chain([weights]).collect();
            let mut found = self.over_replicates(&with_weights, ratio);
            found.truncate(chunk.len());
            found
        });
        Ok(chunks.flatten().collect())
    }

    fn check(&self, series: &[&[f64]], level: f64) -> Result<(), StatisticsError> {
        check_level("bootstrap", level)?;
        for values in series {
            check_values("bootstrap", values, 1)?;
            if values.len() != self.items {
                let (left, right) = (values.len(), self.items);
                return Err(StatisticsError::Unpaired { statistic: "bootstrap", left, right });
            }
        }
        Ok(())
    }

    /// What `of` makes of each series' place and sums, one a replicate; it also gets the sums of the last series.
    fn over_replicates<R: Send>(
        &self,
        series: &[&[f64]],
        of: impl Fn(usize, &mut [f64], &[f64]) -> R + Sync,
    ) -> Vec<R> {
        let mut values = Array2::<f64>::zeros((self.items, series.len()));
        for (mut column, series) in values.columns_mut().into_iter().zip(series) {
            for (cell, value) in column.iter_mut().zip(*series) {
                *cell = *value;
            }
        }
        let starts: Vec<usize> = (0..self.replicates).step_by(BLOCK).collect();
        let blocks: Vec<Array2<f64>> = starts
            .into_par_iter()
            .map(|start| self.counts(start, BLOCK.min(self.replicates - start)).dot(&values))
            .collect();
        let sums =
            |index: usize| -> Vec<f64> { blocks.iter().flat_map(|block| block.column(index).to_vec()).collect() };
        let last = series.len().checked_sub(1).map(sums).unwrap_or_default();
        (0..series.len()).into_par_iter().map(|index| of(index, &mut sums(index), &last)).collect()
    }

    /// How often each item is drawn in replicates `start..start + rows`, shape [rows, items].
    fn counts(&self, start: usize, rows: usize) -> Array2<f64> {
        let stream = random::stream(self.seed, &["bootstrap"]);
        let items = self.items as u32;
        let mut counts = Array2::<f64>::zeros((rows, self.items));
        for (row, mut count) in counts.rows_mut().into_iter().enumerate() {
            let mut rng = stream.clone();
            rng.set_stream((start + row) as u64);
            for _ in 0..items {
                if let Some(cell) = count.get_mut(rng.random_range(0..items) as usize) {
                    *cell += 1.0;
                }
            }
        }
        counts
    }
}

/// Percentile interval of the mean of `values` over [`REPLICATES`] resamples, at `level`.
///
/// # Errors
/// No value, one that is not finite, or a level outside (0, 1).
pub fn bootstrap_mean_interval(values: &[f64], level: f64, seed: u64) -> Result<Interval, StatisticsError> {
    let interval = Bootstrap::new(values.len(), REPLICATES, seed)?.intervals(&[values], level)?;
    interval.first().copied().ok_or(StatisticsError::TooFew { statistic: "bootstrap", needed: 1, got: 0 })
}

/// Mean of `a − b` and its percentile interval; `a[i]` and `b[i]` were measured on the same item.
///
/// # Errors
/// Unequal lengths, no value, one that is not finite, or a level outside (0, 1).
pub fn paired_bootstrap_difference(
    a: &[f64],
    b: &[f64],
    level: f64,
    seed: u64,
) -> Result<(f64, Interval), StatisticsError> {
    let differences = differences("paired bootstrap", a, b)?;
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    Ok((mean, bootstrap_mean_interval(&differences, level, seed)?))
}

/// The `p` quantile (type 7 of Hyndman and Fan 1996); reorders `values`, of which there is at least one.
fn quantile(values: &mut [f64], p: f64) -> f64 {
    let place = p * (values.len().saturating_sub(1)) as f64;
    let below = (place.floor() as usize).min(values.len().saturating_sub(1));
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = above.iter().copied().reduce(f64::min).unwrap_or(low);
    low + (place - below as f64) * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::{Distribution, Exp1, StandardNormal};

    #[test]
    fn quantiles_are_numpys() {
        let mut values = [3.0, 1.0, 2.0, 10.0];
        assert_eq!(quantile(&mut values, 0.5), 2.5);
        assert_eq!(quantile(&mut values, 0.0), 1.0);
        assert_eq!(quantile(&mut values, 1.0), 10.0);
        assert!((quantile(&mut values, 0.9) - 7.9).abs() < 1e-12);
    }

    #[test]
    fn counts_are_those_of_a_resample() {
        let bootstrap = Bootstrap::new(50, 300, 3).unwrap();
        let counts = bootstrap.counts(0, 300);
        assert!(counts.rows().into_iter().all(|row| row.sum() == 50.0));
        let first: f64 = counts.column(0).mean().unwrap();
        assert!((first - 1.0).abs() < 0.2, "each item is drawn once a resample on average: {first}");
        assert_eq!(counts.row(7).to_vec(), bootstrap.counts(7, 1).row(0).to_vec(), "a row depends on its number alone");
    }

    #[test]
    fn the_interval_is_that_of_the_normal_law_for_many_texts() {
        // mean 0, standard error s/√n: the percentile interval is mean ± 1.96·se up to Monte Carlo error.
        let mut rng = random::stream(1, &["test"]);
        let values: Vec<f64> = (0..400).map(|_| StandardNormal.sample(&mut rng)).collect();
        let (mean, _) = super::super::mean_and_std(&values).unwrap();
        let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 400.0 / 400.0).sqrt();
        let interval = bootstrap_mean_interval(&values, 0.95, 9).unwrap();
        assert!((interval.low - (mean - 1.96 * spread)).abs() < 0.06 * spread, "{interval:?}");
        assert!((interval.high - (mean + 1.96 * spread)).abs() < 0.06 * spread, "{interval:?}");
    }

    #[test]
    fn a_series_has_one_interval_alone_or_among_others() {
        let (a, b): (Vec<f64>, Vec<f64>) = (0..40).map(|i| ((i as f64).sin(), (i as f64).cos())).unzip();
        let bootstrap = Bootstrap::new(40, 1000, 5).unwrap();
        let both = bootstrap.intervals(&[&a, &b], 0.95).unwrap();
        let alone = bootstrap.intervals(&[&b], 0.95).unwrap();
        assert!((both[1].low - alone[0].low).abs() < 1e-12 && (both[1].high - alone[0].high).abs() < 1e-12);
    }

    #[test]
    fn a_test_counts_the_replicates_that_are_as_far_off() {
        let bootstrap = Bootstrap::new(25, 2000, 4).unwrap();
        let near: Vec<f64> = (0..25).map(|i| f64::from(i % 5) - 1.6).collect();
        let same = [0.3; 25];
        let found = bootstrap.tested_intervals(&[&near, &same, &[0.0; 25]], 0.95).unwrap();
        let counts = bootstrap.counts(0, 2000);
        let total: f64 = near.iter().sum();
        let away =
            |row: ndarray::ArrayView1<f64>| (row.iter().zip(&near).map(|(c, v)| c * v).sum::<f64>() - total).abs();
        let beyond = counts.rows().into_iter().filter(|row| away(*row) >= total - 1e-9).count();
        assert!((found[0].1 - (1.0 + beyond as f64) / 2001.0).abs() < 1e-15 && found[0].1 > 0.05, "{found:?}");
        assert_eq!((found[1].1, found[2].1), (1.0 / 2001.0, 1.0), "never 0; and no difference at all");
        assert_eq!(found[0].0, bootstrap.intervals(&[&near], 0.95).unwrap()[0]);
    }

    #[test]
    fn a_ratio_is_resampled_with_its_weights() {
        // Every item's mean is 0.25: so is every replicate's, whatever the items weigh.
        let weights: Vec<f64> = (0..30).map(|i| f64::from(1 + i % 7)).collect();
        let sums: Vec<f64> = weights.iter().map(|w| w / 4.0).collect();
        let varied: Vec<f64> = weights.iter().enumerate().map(|(i, w)| w * (i as f64).sin()).collect();
        let bootstrap = Bootstrap::new(30, 1000, 7).unwrap();
        let found = bootstrap.ratio_intervals(&[&sums, &varied], &weights, 0.95).unwrap();
        assert!((found[0].low - 0.25).abs() < 1e-12 && (found[0].high - 0.25).abs() < 1e-12);
        // By hand from the same draws.
        let counts = bootstrap.counts(0, 1000);
        let of =
            |row: ndarray::ArrayView1<f64>, values: &[f64]| row.iter().zip(values).map(|(c, v)| c * v).sum::<f64>();
        let mut ratios: Vec<f64> = counts.rows().into_iter().map(|row| of(row, &varied) / of(row, &weights)).collect();
        assert!((found[1].low - quantile(&mut ratios, 0.025)).abs() < 1e-12);
        assert!((found[1].high - quantile(&mut ratios, 0.975)).abs() < 1e-12);
        // Equal weights: the mean of the items.
        let mean = bootstrap.intervals(&[&varied], 0.95).unwrap()[0];
        let ratio = bootstrap.ratio_intervals(&[&varied], &[1.0; 30], 0.95).unwrap()[0];
        assert!((mean.low - ratio.low).abs() < 1e-12 && (mean.high - ratio.high).abs() < 1e-12);
        assert!(bootstrap.ratio_intervals(&[&varied], &[0.0; 30], 0.95).is_err());
    }

    #[test]
    fn a_constant_difference_has_no_width() {
        let a: Vec<f64> = (0..30).map(f64::from).collect();
        let b: Vec<f64> = a.iter().map(|value| value - 0.5).collect();
        let (mean, interval) = paired_bootstrap_difference(&a, &b, 0.95, 1).unwrap();
        assert_eq!((mean, interval.low, interval.high), (0.5, 0.5, 0.5));
    }

    #[test]
    fn ninety_five_percent_of_intervals_cover_a_skewed_mean() {
        let bootstrap = Bootstrap::new(100, 1000, 11).unwrap();
        let mut rng = random::stream(2, &["coverage"]);
        let samples: Vec<Vec<f64>> = (0..500).map(|_| (0..100).map(|_| Exp1.sample(&mut rng)).collect()).collect();
        let series: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
        let covered = bootstrap.intervals(&series, 0.95).unwrap().iter().filter(|i| i.contains(1.0)).count();
        assert!((455..=485).contains(&covered), "{covered} of 500");
    }

    #[test]
    fn a_whole_report_takes_seconds() {
        // 30 layers × 6 measures × 4 runs on 500 texts.
        let series: Vec<Vec<f64>> = (0..720).map(|s| (0..500).map(|i| f64::from(s * i).sin()).collect()).collect();
        let views: Vec<&[f64]> = series.iter().map(Vec::as_slice).collect();
        let start = std::time::Instant::now();
        let intervals = Bootstrap::new(500, REPLICATES, 1).unwrap().intervals(&views, 0.95).unwrap();
        assert_eq!(intervals.len(), 720);
        // The bound is loose, since the machine may be busy: a naive resampling takes over 30 s.
        assert!(start.elapsed().as_secs() < 15, "{:?}", start.elapsed());
    }

    #[test]
    fn bad_input_is_refused() {
        let bootstrap = Bootstrap::new(3, 10, 0).unwrap();
        assert!(matches!(bootstrap.intervals(&[&[1.0]], 0.95), Err(StatisticsError::Unpaired { .. })));
        assert!(matches!(
            bootstrap.intervals(&[&[1.0, 2.0, f64::INFINITY]], 0.95),
            Err(StatisticsError::NotFinite { .. })
        ));
        assert!(matches!(bootstrap.intervals(&[&[1.0, 2.0, 3.0]], 95.0), Err(StatisticsError::OutOfRange { .. })));
        assert!(Bootstrap::new(0, 10, 0).is_err());
        assert!(paired_bootstrap_difference(&[1.0], &[1.0, 2.0], 0.95, 0).is_err());
    }
}
