//! Means over texts with their bootstrap intervals, many series at a time.

use crate::statistics::{self, Bootstrap, Interval, REPLICATES, StatisticsError};
use std::collections::BTreeMap;

/// The level of every interval.
pub const LEVEL: f64 = 0.95;

/// A mean over the texts where a value is defined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation; `None` for one text.
    pub std: Option<f64>,
    /// Texts that entered.
    pub texts: u64,
    /// The percentile bootstrap interval of the mean.
    pub interval: Interval,
}

/// Collects series that share their texts, so that each set of texts is resampled once.
#[derive(Debug)]
pub struct Intervals {
    seed: u64,
    series: usize,
    /// By which texts are defined: a series' number and its values.
    pending: BTreeMap<Vec<bool>, Vec<(usize, Vec<f64>)>>,
}

impl Intervals {
    /// Resamples are drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, series: 0, pending: BTreeMap::new() }
    }

    /// Adds a value for each text and returns the series' number; undefined values leave their texts out.
    pub fn add(&mut self, values: Vec<Option<f64>>) -> usize {
        let number = self.series;
        self.series += 1;
        let mask: Vec<bool> = values.iter().map(Option::is_some).collect();
        let defined: Vec<f64> = values.into_iter().flatten().collect();
        if !defined.is_empty() {
            self.pending.entry(mask).or_default().push((number, defined));
        }
        number
    }

    /// The estimate of every series by its number; `None` where no value is defined.
    ///
    /// # Errors
    /// A value is not finite.
    pub fn finish(self) -> Result<Vec<Option<Estimate>>, StatisticsError> {
        let mut found = vec![None; self.series];
        for entries in self.pending.into_values() {
            let items = entries.first().map_or(0, |(_, values)| values.len());
            let series: Vec<&[f64]> = entries.iter().map(|(_, values)| values.as_slice()).collect();
            let intervals = Bootstrap::new(items, REPLICATES, self.seed)?.intervals(&series, LEVEL)?;
            for ((number, values), interval) in entries.iter().zip(intervals) {
                let (mean, std) = statistics::mean_and_std(values)?;
                if let Some(slot) = found.get_mut(*number) {
                    *slot = Some(Estimate { mean, std, texts: items as u64, interval });
                }
            }
        }
        Ok(found)
    }
}
