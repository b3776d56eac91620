//! What a set's items come to: metrics with intervals, calibration.

use super::{
    BINS, Calibration, ItemRecord, Metric, Mode, Stated, Task, TaskError, accuracy, calibration, f1, matthews, pearson,
    spearman,
};
use crate::random::stream;
use crate::statistics::{Interval, StatisticsError, wilson_interval};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The level of every interval.
pub const LEVEL: f64 = 0.95;
/// Resamples of an interval that is no proportion's.
pub const RESAMPLES: usize = 2_000;

/// A metric of a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name: a metric's, or `accuracy_released`, `accuracy_normalised`, `accuracy_bytes`.
    pub metric: String,
    /// Its name in lm-evaluation-harness's results.
    pub harness: String,
    /// Its value; `None` where it is undefined.
    pub value: Option<f64>,
    /// Ends of the 95 % interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// `wilson` of a proportion, else `bootstrap` (percentile, over items).
    pub interval: String,
    /// Its standard error: of a proportion √(p(1−p)/(n−1)), as lm-evaluation-harness has it, else the deviation of the
    /// resamples.
    pub standard_error: Option<f64>,
}

/// What a set's items come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The task.
    pub task: String,
    /// Its version.
    pub version: u32,
    /// How it was put to the model.
    pub mode: Mode,
    /// Items scored.
    pub items: usize,
    /// Items of whose text nothing counts; they are wrong.
    pub without_answer: usize,
    /// Items whose text the limit of tokens ended.
    pub cut: usize,
    /// The metrics, the task's own first.
    pub metrics: Vec<Score>,
    /// What the probabilities of choices or classes are worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Seconds that the items took.
    pub seconds: f64,
}

/// Whether an item is right by one of the rules.
type Right = fn(&ItemRecord) -> Option<bool>;

impl Scores {
    /// The scores of a task's records, in the items' order.
    ///
    /// # Errors
    /// None but of a level or a count that no caller gives.
    pub fn of(task: &Task, mode: Mode, records: &[ItemRecord], seed: u64) -> Result<Self, TaskError> {
        let metrics = task.metrics.iter().filter(|metric| **metric != Metric::Accuracy || mode != Mode::Released);
        let mut scores = Vec::new();
        for metric in metrics {
            scores.push(score(*metric, task, records, seed)?);
        }
        let proportions: [(&str, &str, Right); 4] = [
            ("accuracy_released", "acc_released", |record| record.right_released),
            ("accuracy", "acc", |record| record.right),
            ("accuracy_normalised", "acc_norm", |record| record.right_normalised),
            ("accuracy_bytes", "acc_bytes", |record| record.right_bytes),
        ];
        for (name, harness, right) in proportions {
            let rights: Vec<bool> = records.iter().filter_map(right).collect();
            let there = scores.iter().any(|known| known.metric == name);
            if rights.len() == records.len() && !records.is_empty() && !there {
                scores.push(proportion(name, harness, &rights)?);
            }
        }
        Ok(Self {
            task: task.name.clone(),
            version: task.version,
            mode,
            items: records.len(),
            without_answer: records.iter().filter(|r| r.output.is_some() && r.answer(mode).is_none()).count(),
            cut: records.iter().filter(|record| record.ended == Some(false)).count(),
            metrics: scores,
            calibration: calibration(&stated(records), BINS),
            seconds: records.iter().map(|record| record.seconds).sum(),
        })
    }

    /// The task's own metric.
    #[must_use]
    pub fn first(&self) -> Option<&Score> {
        self.metrics.first()
    }
}

impl ItemRecord {
    /// What counts as the answer in a mode.
    #[must_use]
    pub fn answer(&self, mode: Mode) -> Option<&str> {
        if mode == Mode::Released { self.extracted_released.as_deref() } else { self.extracted.as_deref() }
    }

    /// Whether the answer that counts in a mode is right; `None` of a score.
    #[must_use]
    pub fn is_right(&self, mode: Mode) -> Option<bool> {
        if mode == Mode::Released { self.right_released } else { self.right }
    }
}

/// The probabilities of items that have choices.
fn stated(records: &[ItemRecord]) -> Vec<Stated> {
    let of = |record: &ItemRecord| {
        let label = record.choices.iter().position(|choice| choice.name == record.label)?;
        Some(Stated { probabilities: record.choices.iter().map(|choice| choice.probability).collect(), label })
    };
    records.iter().filter_map(of).collect()
}

/// A proportion with Wilson's interval.
fn proportion(name: &str, harness: &str, rights: &[bool]) -> Result<Score, StatisticsError> {
    let (n, right) = (rights.len() as f64, rights.iter().filter(|&&right| right).count());
    let interval = wilson_interval(right as u64, rights.len() as u64, LEVEL)?;
    let p = right as f64 / n;
    Ok(Score {
        metric: name.to_owned(),
        harness: harness.to_owned(),
        value: Some(p),
        low: Some(interval.low),
        high: Some(interval.high),
        interval: "wilson".to_owned(),
        standard_error: (rights.len() > 1).then(|| (p * (1.0 - p) / (n - 1.0)).sqrt()),
    })
}

fn score(metric: Metric, task: &Task, records: &[ItemRecord], seed: u64) -> Result<Score, TaskError> {
    if metric == Metric::Accuracy {
        let rights: Vec<bool> = records.iter().filter_map(|record| record.right).collect();
        if rights.len() == records.len() && !records.is_empty() {
            return Ok(proportion(metric.name(), metric.harness_name(), &rights)?);
        }
    }
    let measured = Measured::of(metric, task, records);
    let replicates = measured.replicates(metric, seed);
    let interval = percentiles(&replicates);
    Ok(Score {
        metric: metric.name().to_owned(),
        harness: metric.harness_name().to_owned(),
        value: measured.value(metric),
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high),
        interval: "bootstrap".to_owned(),
        standard_error: crate::statistics::mean_and_std(&replicates).ok().and_then(|(_, deviation)| deviation),
    })
}

/// What a metric reads of each item.
#[derive(Debug, Clone)]
pub(super) enum Measured {
    Classes(Vec<(usize, usize)>),
    Scores(Vec<(f64, f64)>),
}

impl Measured {
    pub(super) fn of(metric: Metric, task: &Task, records: &[ItemRecord]) -> Self {
        match metric {
            Metric::Pearson | Metric::Spearman => {
                let pair = |record: &ItemRecord| Some((record.score?, record.label.parse().ok()?));
                Self::Scores(records.iter().filter_map(pair).collect())
            }
            Metric::Accuracy | Metric::Matthews | Metric::F1 => {
                let place = |name: &str| task.names().iter().position(|known| known == name);
                let pair = |record: &ItemRecord| Some((place(record.extracted.as_deref()?)?, place(&record.label)?));
                Self::Classes(records.iter().filter_map(pair).collect())
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Classes(pairs) => pairs.len(),
            Self::Scores(pairs) => pairs.len(),
        }
    }

    pub(super) fn value(&self, metric: Metric) -> Option<f64> {
        match (self, metric) {
            (Self::Classes(pairs), Metric::Accuracy) => accuracy(pairs),
            (Self::Classes(pairs), Metric::Matthews) => matthews(pairs),
            (Self::Classes(pairs), Metric::F1) => f1(pairs),
            (Self::Scores(pairs), Metric::Pearson) => pearson(pairs),
            (Self::Scores(pairs), Metric::Spearman) => spearman(pairs),
            _ => None,
        }
    }

    /// The same items, those of these places.
    fn drawn(&self, places: &[usize]) -> Self {
        match self {
            Self::Classes(pairs) => Self::Classes(places.iter().filter_map(|&i| pairs.get(i).copied()).collect()),
            Self::Scores(pairs) => Self::Scores(places.iter().filter_map(|&i| pairs.get(i).copied()).collect()),
        }
    }

    /// The metric of resamples of the items, where it is defined: a function of the seed and the resample's number, so that
    /// two runs over the same items are resampled together.
    pub(super) fn resampled(&self, metric: Metric, seed: u64) -> Vec<Option<f64>> {
        let n = self.len();
        let one = |replicate: usize| {
            let mut random = stream(seed, &["task", "resample", &replicate.to_string()]);
            let places: Vec<usize> = (0..n).map(|_| random.random_range(0..n)).collect();
            self.drawn(&places).value(metric)
        };
        if n == 0 { Vec::new() } else { (0..RESAMPLES).into_par_iter().map(one).collect() }
    }

    fn replicates(&self, metric: Metric, seed: u64) -> Vec<f64> {
        self.resampled(metric, seed).into_iter().flatten().collect()
    }
}

/// The percentile interval of replicates; `None` of none.
pub(super) fn percentiles(replicates: &[f64]) -> Option<Interval> {
    let mut sorted = replicates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let place = p * sorted.len().saturating_sub(1) as f64;
        let low = *sorted.get(place.floor() as usize)?;
        let high = *sorted.get(place.ceil() as usize)?;
        Some(low + (place - place.floor()) * (high - low))
    };
    let tail = (1.0 - LEVEL) / 2.0;
    Some(Interval { low: at(tail)?, high: at(1.0 - tail)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;
    use serde_json::json;

    fn record(index: usize, value: serde_json::Value) -> ItemRecord {
        let mut whole = json!({
            "id": format!("t/{index}"), "index": index, "prompt_sha256": "0", "prompt": "p", "label": "acceptable",
            "seconds": 0.5
        });
        whole.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn classes_have_their_metrics_and_calibration() {
        let task = &find_tasks("glue/cola").unwrap()[0];
        let class = |index: usize, label: &str, p: f64| {
            let best = if p > 0.5 { "acceptable" } else { "unacceptable" };
            record(
                index,
                json!({"label": label, "extracted": best, "right": best == label, "choices": [
                {"name": "unacceptable", "log_probability": (1.0 - p).ln(), "probability": 1.0 - p},
                {"name": "acceptable", "log_probability": p.ln(), "probability": p}]}),
            )
        };
        let records: Vec<ItemRecord> = (0..40)
            .map(|i| {
                class(i, if i % 2 == 0 { "acceptable" } else { "unacceptable" }, if i % 8 < 5 { 0.9 } else { 0.2 })
            })
            .collect();
        let scores = Scores::of(task, Mode::Classify, &records, 1).unwrap();
        let names: Vec<&str> = scores.metrics.iter().map(|score| score.metric.as_str()).collect();
        assert_eq!(names, ["matthews", "accuracy"]);
        // Of eight: 1, 0, 1, 0, 1 predicted 1, then 0, 1, 0 predicted 0: TP 3, FN 1, FP 2, TN 2.
        let mcc = (3.0 * 2.0 - 2.0) / (5.0_f64 * 4.0 * 4.0 * 3.0).sqrt();
        let first = scores.first().unwrap();
        assert!((first.value.unwrap() - mcc).abs() < 1e-12);
        assert!(first.low.unwrap() < mcc && mcc < first.high.unwrap() && first.interval == "bootstrap");
        let wilson = wilson_interval(25, 40, 0.95).unwrap();
        let accuracy = &scores.metrics[1];
        assert_eq!((accuracy.value, accuracy.low, accuracy.high), (Some(0.625), Some(wilson.low), Some(wilson.high)));
        assert!((accuracy.standard_error.unwrap() - (0.625 * 0.375 / 39.0_f64).sqrt()).abs() < 1e-15);
        let calibration = scores.calibration.unwrap();
        assert_eq!((calibration.items, calibration.bins.len()), (40, 15));
        assert_eq!((scores.items, scores.without_answer, scores.seconds), (40, 0, 20.0));
    }

    #[test]
    fn a_mode_puts_its_own_rule_first() {
        let task = &find_tasks("gsm8k").unwrap()[0];
        let text = |index: usize, ours: bool, released: bool| {
            record(
                index,
                json!({"output": "x", "ended": index != 1, "label": "1", "right": ours,
                "right_released": released, "extracted_released": "2"}),
            )
        };
        let records = [text(0, true, false), text(1, true, true), text(2, false, false), text(3, true, false)];
        let value = |mode: Mode| {
            let scores = Scores::of(task, mode, &records, 1).unwrap();
            let metrics = scores.metrics.iter().map(|s| (s.metric.clone(), s.value.unwrap())).collect::<Vec<_>>();
            (metrics, scores.without_answer, scores.cut)
        };
        let (ours, released) = (("accuracy".to_owned(), 0.75), ("accuracy_released".to_owned(), 0.25));
        assert_eq!(value(Mode::Alpaca), (vec![ours.clone(), released.clone()], 4, 1));
        assert_eq!(value(Mode::Released), (vec![released, ours], 0, 1));
        assert!(Scores::of(task, Mode::Alpaca, &[], 1).unwrap().metrics.iter().all(|score| score.value.is_none()));
    }
}
