//! Where the time of this process's training goes; a relaxed load a call while it is off.

use candle_core::{Device, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

static ON: AtomicBool = AtomicBool::new(false);
static PHASES: [AtomicU64; Phase::ALL.len()] = [const { AtomicU64::new(0) }; Phase::ALL.len()];
static PRODUCT_NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static PRODUCT_OPERATIONS: AtomicU64 = AtomicU64::new(0);
static ATTENTION_NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static ATTENTION_OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// A part of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Choosing and packing examples.
    Data,
    /// From the tokens to the final norm.
    Forward,
    /// The loss and all gradients; with checkpointing the blocks' second forward pass too.
    Backward,
    /// Clipping and AdamW.
    Optimizer,
    /// Held-out loss.
    Validation,
    /// Held-out similarity.
    Probe,
}

impl Phase {
    /// All, in their order.
    pub const ALL: [Self; 6] =
        [Self::Data, Self::Forward, Self::Backward, Self::Optimizer, Self::Validation, Self::Probe];

    /// Its name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Validation => "validation",
            Self::Probe => "probe",
        }
    }
}

/// Starts to count.
pub fn start() {
    ON.store(true, Relaxed);
}

/// Waits until a GPU has done what it was given, so that the next phase is not charged for it; only while counting.
pub(crate) fn settle(device: &Device) -> Result<()> {
    if ON.load(Relaxed) { device.synchronize() } else { Ok(()) }
}

/// Whether it counts.
#[must_use]
pub fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Runs `work` as part of `phase`.
pub fn timed<R>(phase: Phase, work: impl FnOnce() -> R) -> R {
    if !ON.load(Relaxed) {
        return work();
    }
    let started = Instant::now();
    let result = work();
    add(phase, started);
    result
}

/// Counts the time since `started` as part of `phase`.
pub(crate) fn add(phase: Phase, started: Instant) {
    if ON.load(Relaxed)
        && let Some(sum) = PHASES.get(phase as usize)
    {
        sum.fetch_add(nanoseconds(started), Relaxed);
    }
}

/// Runs a matrix product of `m · k · n` multiplications that has all threads to itself.
pub(crate) fn product<R>((m, k, n): (usize, usize, usize), work: impl FnOnce() -> R) -> R {
    if !ON.load(Relaxed) {
        return work();
    }
    let started = Instant::now();
    let result = work();
    PRODUCT_NANOSECONDS.fetch_add(nanoseconds(started), Relaxed);
    PRODUCT_OPERATIONS.fetch_add(2 * (m as u64) * (k as u64) * (n as u64), Relaxed);
    result
}

/// The tasks of one attention, which run beside each other on several threads.
pub(crate) struct AttentionTasks {
    on: bool,
    nanoseconds: AtomicU64,
    operations: AtomicU64,
}

impl AttentionTasks {
    pub(crate) fn new() -> Self {
        Self { on: ON.load(Relaxed), nanoseconds: AtomicU64::new(0), operations: AtomicU64::new(0) }
    }

    /// Runs one task, whose products make `multiplications()` multiplications.
    pub(crate) fn task<R>(&self, multiplications: impl FnOnce() -> u64, work: impl FnOnce() -> R) -> R {
        if !self.on {
            return work();
        }
        let started = Instant::now();
        let result = work();
        self.nanoseconds.fetch_add(nanoseconds(started), Relaxed);
        self.operations.fetch_add(2 * multiplications(), Relaxed);
        result
    }

    /// Counts them: on `threads` threads their time is that share of the sum over tasks.
    pub(crate) fn count(self, threads: usize) {
        let sum = self.nanoseconds.into_inner();
        ATTENTION_NANOSECONDS.fetch_add(sum / threads.max(1) as u64, Relaxed);
        ATTENTION_OPERATIONS.fetch_add(self.operations.into_inner(), Relaxed);
    }
}

fn nanoseconds(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// Seconds by phase, in their order.
    pub seconds: Vec<(&'static str, f64)>,
    /// Seconds in matrix products, those inside attention apart: they are part of the phases above.
    pub product_seconds: f64,
    /// Floating-point operations of these products, in 10⁹.
    pub product_gflop: f64,
    /// Seconds in attention between its linears, softmax and all: the time of its tasks summed over the threads, over
    /// their number. Part of the phases above.
    pub attention_seconds: f64,
    /// Floating-point operations of the products inside attention, in 10⁹; what the causal mask lets skip is not done
    /// and not counted.
    pub attention_gflop: f64,
}

impl Profile {
    /// What was counted so far.
    #[must_use]
    pub fn so_far() -> Self {
        let seconds = |counter: &AtomicU64| counter.load(Relaxed) as f64 / 1e9;
        Self {
            seconds: Phase::ALL.iter().zip(&PHASES).map(|(phase, sum)| (phase.name(), seconds(sum))).collect(),
            product_seconds: seconds(&PRODUCT_NANOSECONDS),
            product_gflop: PRODUCT_OPERATIONS.load(Relaxed) as f64 / 1e9,
            attention_seconds: seconds(&ATTENTION_NANOSECONDS),
            attention_gflop: ATTENTION_OPERATIONS.load(Relaxed) as f64 / 1e9,
        }
    }

    /// Seconds of each phase since `earlier`, by the phase's name.
    #[must_use]
    pub fn phases_since(&self, earlier: &Self) -> BTreeMap<String, f64> {
        let pairs = self.seconds.iter().zip(&earlier.seconds);
        pairs.map(|((phase, now), (_, before))| ((*phase).to_owned(), now - before)).collect()
    }

    /// 10⁹ operations a second of the products; `None` where none was made.
    #[must_use]
    pub fn product_rate(&self) -> Option<f64> {
        (self.product_seconds > 0.0).then(|| self.product_gflop / self.product_seconds)
    }

    /// 10⁹ operations a second of attention; `None` where there was none.
    #[must_use]
    pub fn attention_rate(&self) -> Option<f64> {
        (self.attention_seconds > 0.0).then(|| self.attention_gflop / self.attention_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_timed_is_counted_once_started() {
        start();
        let before = Profile::so_far();
        timed(Phase::Probe, || std::thread::sleep(std::time::Duration::from_millis(5)));
        product((10, 1000, 50_000), || std::thread::sleep(std::time::Duration::from_millis(5)));
        let after = Profile::so_far();
        // Other tests run beside this one.
        assert!(after.seconds[5].0 == "probe" && after.seconds[5].1 >= before.seconds[5].1 + 0.005);
        assert!(after.product_gflop >= before.product_gflop + 1.0 - 1e-9);
        assert!(after.product_rate().unwrap() > 0.0);
        assert!(after.phases_since(&before)["probe"] >= 0.005);
    }

    #[test]
    fn tasks_beside_each_other_count_once() {
        start();
        let before = Profile::so_far();
        let tasks = AttentionTasks::new();
        let sleep = || std::thread::sleep(std::time::Duration::from_millis(20));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| tasks.task(|| 250_000_000, sleep));
            }
        });
        tasks.count(4);
        let after = Profile::so_far();
        let seconds = after.attention_seconds - before.attention_seconds;
        assert!(seconds >= 0.02, "{seconds}");
        assert!(after.attention_gflop >= before.attention_gflop + 2.0 - 1e-9);
        assert!(after.attention_rate().unwrap() > 0.0);
    }
}
