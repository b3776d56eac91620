//! Two runs over the same items: McNemar's test, a paired bootstrap.

use super::scores::{LEVEL, Measured, percentiles};
use super::{ItemRecord, Metric, Mode, Task, TaskError};
use crate::statistics::{discordant_items, holm, mcnemar_exact, mcnemar_mid_p, paired_bootstrap_difference};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A run against another on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskComparison {
    /// The task.
    pub task: String,
    /// The run.
    pub run: String,
    /// What it is compared with.
    pub reference: String,
    /// The metric whose difference this is: the task's own.
    pub metric: String,
    /// Items that both runs answered.
    pub items: usize,
    /// The run's metric minus the reference's.
    pub difference: Option<f64>,
    /// Ends of its 95 % interval: items resampled, both runs together.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Items that the run alone has right; `None` of scores.
    pub only_run: Option<u64>,
    /// Items that the reference alone has right.
    pub only_reference: Option<u64>,
    /// McNemar's exact p-value of these two.
    pub mcnemar_exact: Option<f64>,
    /// Its mid-p form.
    pub mcnemar_mid_p: Option<f64>,
    /// The exact p-value, adjusted by Holm over the tasks.
    pub p_holm: Option<f64>,
}

/// A run against a reference on a task; items are paired by their id.
///
/// # Errors
/// None but of a level that no caller gives.
pub fn compare_runs(
    task: &Task,
    mode: Mode,
    (run, records): (&str, &[ItemRecord]),
    (reference, references): (&str, &[ItemRecord]),
    seed: u64,
) -> Result<TaskComparison, TaskError> {
    let known: BTreeMap<&str, &ItemRecord> = references.iter().map(|record| (record.id.as_str(), record)).collect();
    let pairs = records.iter().filter_map(|record| Some((record.clone(), (*known.get(record.id.as_str())?).clone())));
    let (own, other): (Vec<ItemRecord>, Vec<ItemRecord>) = pairs.unzip();
    let rights = |records: &[ItemRecord]| -> Option<Vec<bool>> { records.iter().map(|r| r.is_right(mode)).collect() };
    let mut found = TaskComparison {
        task: task.name.clone(),
        run: run.to_owned(),
        reference: reference.to_owned(),
        metric: match (task.metrics.first(), mode) {
            (Some(Metric::Accuracy), Mode::Released) => "accuracy_released".to_owned(),
            (metric, _) => metric.map(|metric| metric.name()).unwrap_or_default().to_owned(),
        },
        items: own.len(),
        difference: None,
        low: None,
        high: None,
        only_run: None,
        only_reference: None,
        mcnemar_exact: None,
        mcnemar_mid_p: None,
        p_holm: None,
    };
    if own.is_empty() {
        return Ok(found);
    }
    let paired = rights(&own).zip(rights(&other));
    if let Some((a, b)) = &paired {
        let (only_run, only_reference) = discordant_items(a, b)?;
        (found.only_run, found.only_reference) = (Some(only_run), Some(only_reference));
        found.mcnemar_exact = Some(mcnemar_exact(only_run, only_reference));
        found.mcnemar_mid_p = Some(mcnemar_mid_p(only_run, only_reference));
    }
    match (task.metrics.first(), paired) {
        (Some(Metric::Accuracy), Some((a, b))) => {
            let numbers = |rights: &[bool]| rights.iter().map(|&right| f64::from(u8::from(right))).collect::<Vec<_>>();
            let (difference, interval) = paired_bootstrap_difference(&numbers(&a), &numbers(&b), LEVEL, seed)?;
            (found.difference, found.low, found.high) = (Some(difference), Some(interval.low), Some(interval.high));
        }
        (Some(&metric), _) => {
            let (a, b) = (Measured::of(metric, task, &own), Measured::of(metric, task, &other));
            found.difference = a.value(metric).zip(b.value(metric)).map(|(a, b)| a - b);
            let both = a.resampled(metric, seed).into_iter().zip(b.resampled(metric, seed));
            let differences: Vec<f64> = both.filter_map(|(a, b)| Some(a? - b?)).collect();
            let interval = percentiles(&differences);
            (found.low, found.high) = (interval.map(|i| i.low), interval.map(|i| i.high));
        }
        (None, _) => {}
    }
    Ok(found)
}

/// Adjusts the p-values of comparisons by Holm, those of each run over its tasks.
///
/// # Errors
/// A p-value is none.
pub fn adjust(comparisons: &mut [TaskComparison]) -> Result<(), TaskError> {
    let runs: BTreeSet<String> = comparisons.iter().map(|one| one.run.clone()).collect();
    for run in runs {
        let own: Vec<&mut TaskComparison> = comparisons.iter_mut().filter(|one| one.run == run).collect();
        let p: Vec<f64> = own.iter().filter_map(|one| one.mcnemar_exact).collect();
        let adjusted = holm(&p)?;
        for (one, p) in own.into_iter().filter(|one| one.mcnemar_exact.is_some()).zip(adjusted) {
            one.p_holm = Some(p);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;
    use serde_json::json;

    fn records(rights: &[bool]) -> Vec<ItemRecord> {
        let record = |(index, &right): (usize, &bool)| {
            let label = if index % 2 == 0 { "acceptable" } else { "unacceptable" };
            let other = if index % 2 == 0 { "unacceptable" } else { "acceptable" };
            serde_json::from_value(json!({
                "id": format!("t/{index}"), "index": index, "prompt_sha256": "0", "prompt": "p", "label": label,
                "extracted": if right { label } else { other }, "right": right, "seconds": 0.0
            }))
            .unwrap()
        };
        rights.iter().enumerate().map(record).collect()
    }

    #[test]
    fn paired_items_are_counted_and_resampled() {
        let task = &find_tasks("boolq").unwrap()[0];
        let a: Vec<bool> = (0..60).map(|i| i % 3 != 0).collect();
        let b: Vec<bool> = (0..60).map(|i| i % 6 != 0 && i % 3 != 1).collect();
        let (a, b) = (records(&a), records(&b));
        let found = compare_runs(task, Mode::Alpaca, ("a", &a), ("b", &b), 3).unwrap();
        // a alone: i % 3 == 1 (20); b alone: i % 6 == 3 (10).
        assert_eq!((found.only_run, found.only_reference, found.items), (Some(20), Some(10), 60));
        assert!((found.difference.unwrap() - 10.0 / 60.0).abs() < 1e-12);
        assert_eq!(found.mcnemar_exact, Some(mcnemar_exact(20, 10)));
        assert!(found.low.unwrap() < found.difference.unwrap() && found.difference.unwrap() < found.high.unwrap());
        // Items that one of them lacks do not enter.
        let half = compare_runs(task, Mode::Alpaca, ("a", &a[..30]), ("b", &b), 3).unwrap();
        assert_eq!(half.items, 30);
        let same = compare_runs(task, Mode::Alpaca, ("a", &a), ("a2", &a), 3).unwrap();
        assert_eq!((same.difference, same.low, same.mcnemar_exact), (Some(0.0), Some(0.0), Some(1.0)));
        let mut all = [found, half, same];
        adjust(&mut all).unwrap();
        let p = holm(&all.iter().map(|one| one.mcnemar_exact.unwrap()).collect::<Vec<_>>()).unwrap();
        assert_eq!(all.iter().map(|one| one.p_holm.unwrap()).collect::<Vec<_>>(), p);
    }

    #[test]
    fn another_metric_is_resampled_with_both_runs_together() {
        let task = &find_tasks("glue/cola").unwrap()[0];
        let a = records(&(0..60).map(|i| i % 5 != 0).collect::<Vec<_>>());
        let b = records(&(0..60).map(|i| i % 2 != 0).collect::<Vec<_>>());
        let found = compare_runs(task, Mode::Classify, ("a", &a), ("b", &b), 3).unwrap();
        assert_eq!(found.metric, "matthews");
        // a: of 30 each side 24 right; b: one side right, the other wrong.
        assert!((found.difference.unwrap() - 0.6).abs() < 1e-12, "{found:?}");
        let same = compare_runs(task, Mode::Classify, ("a", &a), ("a2", &a), 3).unwrap();
        assert_eq!((same.difference, same.low, same.high), (Some(0.0), Some(0.0), Some(0.0)));
    }
}
