//! CPU time of this thread: what a step costs, whatever else the machine does meanwhile.

use serde::{Deserialize, Serialize};
use std::fs;

/// Nanoseconds that the calling thread has run so far, as the scheduler counts them; `None` where the system does not say.
fn thread_nanoseconds() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Laps of one thread's CPU time. All laps must be taken on the thread that does the work.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CpuClock {
    #[serde(skip)]
    last: Option<u64>,
    laps: Vec<f64>,
}

impl CpuClock {
    /// Ends a lap and begins the next; the lap counts where it `counts`. The first call has no lap behind it.
    pub(super) fn lap(&mut self, counts: bool) {
        let now = thread_nanoseconds();
        if let (Some(last), Some(now), true) = (self.last, now, counts) {
            self.laps.push(now.saturating_sub(last) as f64 * 1e-9);
        }
        self.last = now;
    }

    /// The median lap in seconds; `None` where none counted.
    pub(super) fn median(&self) -> Option<f64> {
        let mut laps = self.laps.clone();
        laps.sort_by(f64::total_cmp);
        let middle = laps.len().checked_sub(1)?;
        let (low, high) = (laps.get(middle / 2)?, laps.get(middle.div_ceil(2))?);
        Some((low + high) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_median_is_that_of_the_laps_that_count() {
        let clock = |laps: &[f64]| CpuClock { last: None, laps: laps.to_vec() };
        assert_eq!(clock(&[]).median(), None);
        assert_eq!(clock(&[3.0]).median(), Some(3.0));
        assert_eq!(clock(&[9.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(clock(&[9.0, 1.0, 2.0, 4.0]).median(), Some(3.0));
    }

    #[test]
    fn sleep_is_no_cpu_time_and_work_is() {
        if thread_nanoseconds().is_none() {
            println!("SKIPPED: the system does not say what a thread has run");
            return;
        }
        let mut clock = CpuClock::default();
        clock.lap(true);
        std::thread::sleep(Duration::from_millis(100));
        clock.lap(true);
        assert!(clock.median().unwrap() < 0.05, "{clock:?}");
        let begun = Instant::now();
        let mut clock = CpuClock::default();
        clock.lap(true);
        let mut sum = 0u64;
        for i in 0..200_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(i));
        }
        clock.lap(true);
        let worked = clock.median().unwrap();
        assert!(worked > 0.01 && worked <= begun.elapsed().as_secs_f64() + 0.01, "{worked}");
        clock.lap(false);
        assert_eq!(clock.laps.len(), 1);
    }
}
