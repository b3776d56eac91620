//! Means over texts with their intervals, many at a time: series over the same texts are resampled together.

use crate::statistics::{self, Bootstrap, Interval, REPLICATES, StatisticsError};
use std::collections::BTreeMap;

/// The level of every interval.
pub const LEVEL: f64 = 0.95;

/// A mean over texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Sample deviation over texts; `None` for one text.
    pub std: Option<f64>,
    /// Percentile bootstrap interval of the mean.
    pub interval: Interval,
    /// Two-sided bootstrap p-value that the mean is 0.
    pub p: f64,
    /// Texts that have a value.
    pub n: u64,
}

/// Series that wait for their estimates.
#[derive(Debug)]
pub struct Estimates {
    seed: u64,
    asked: usize,
    /// By which texts have a value.
    pending: BTreeMap<Vec<bool>, Vec<(usize, Vec<f64>)>>,
}

impl Estimates {
    /// None yet; `seed` draws the resamples.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, asked: 0, pending: BTreeMap::new() }
    }

    /// Asks for the estimate of a value a text, and gives its place among those of [`Self::finish`].
    pub fn add(&mut self, values: &[Option<f64>]) -> usize {
        let defined: Vec<f64> = values.iter().copied().flatten().collect();
        if !defined.is_empty() {
            let mask = values.iter().map(Option::is_some).collect();
            self.pending.entry(mask).or_default().push((self.asked, defined));
        }
        self.asked += 1;
        self.asked - 1
    }

    /// Asks for that of the paired differences `values − reference`, of the texts where both are defined.
    pub fn add_difference(&mut self, values: &[Option<f64>], reference: &[Option<f64>]) -> usize {
        let pairs: Vec<Option<f64>> = values.iter().zip(reference).map(|(a, b)| Some((*a)? - (*b)?)).collect();
        self.add(&pairs)
    }

    /// The estimates in the order in which they were asked for; `None` where no text has a value.
    ///
    /// # Errors
    /// A value is not finite.
    pub fn finish(self) -> Result<Vec<Option<Estimate>>, StatisticsError> {
        let mut found = vec![None; self.asked];
        for entries in self.pending.into_values() {
            let items = entries.first().map_or(0, |(_, values)| values.len());
            let series: Vec<&[f64]> = entries.iter().map(|(_, values)| values.as_slice()).collect();
            let intervals = Bootstrap::new(items, REPLICATES, self.seed)?.tested_intervals(&series, LEVEL)?;
            for ((place, values), (interval, p)) in entries.iter().zip(intervals) {
                let (mean, std) = statistics::mean_and_std(values)?;
                if let Some(slot) = found.get_mut(*place) {
                    *slot = Some(Estimate { mean, std, interval, p, n: values.len() as u64 });
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{bootstrap_mean_interval, paired_bootstrap_difference};

    #[test]
    fn each_series_has_the_estimate_of_its_own_texts() {
        let values: Vec<Option<f64>> = (0..20).map(|i| (i % 5 != 2).then(|| f64::from(i).sin())).collect();
        let other: Vec<Option<f64>> = (0..20).map(|i| (i != 4).then(|| f64::from(i).cos())).collect();
        let mut estimates = Estimates::new(3);
        assert_eq!(estimates.add(&[None, None]), 0);
        assert_eq!((estimates.add(&values), estimates.add_difference(&values, &other)), (1, 2));
        let found = estimates.finish().unwrap();
        assert_eq!(found[0], None);
        let defined: Vec<f64> = values.iter().copied().flatten().collect();
        let own = found[1].unwrap();
        assert_eq!((own.n, own.interval), (16, bootstrap_mean_interval(&defined, LEVEL, 3).unwrap()));
        assert_eq!((own.mean, own.std), statistics::mean_and_std(&defined).unwrap());
        let pairs: Vec<(f64, f64)> = values.iter().zip(&other).filter_map(|(a, b)| (*a).zip(*b)).collect();
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let (mean, interval) = paired_bootstrap_difference(&a, &b, LEVEL, 3).unwrap();
        let difference = found[2].unwrap();
        assert_eq!((difference.n, difference.mean, difference.interval), (15, mean, interval));
    }
}
