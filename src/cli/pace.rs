//! How far work has come, how fast it goes, and when it will be done.

use std::time::Instant;

/// Units done of a total. What was done before this run of the program counts as done, but not as speed.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) total: u64,
    pub(super) done: u64,
    skipped: u64,
    started: Instant,
}

impl Pace {
    pub(super) fn new(started: Instant) -> Self {
        Self { total: 0, done: 0, skipped: 0, started }
    }

    /// So many units were done before.
    pub(super) fn skip(&mut self, units: u64) {
        self.done += units;
        self.skipped += units;
    }

    /// `64/1200 texts  3.2/s  ETA 5 min 55 s`; without rate and end as long as nothing was done.
    pub(super) fn describe(&self, unit: &str, now: Instant) -> String {
        let (done, total) = (self.done, self.total);
        let seconds = now.saturating_duration_since(self.started).as_secs_f64();
        let own = done.saturating_sub(self.skipped) as f64;
        if own <= 0.0 || seconds <= 0.0 {
            return format!("{done}/{total} {unit}");
        }
        let rate = own / seconds;
        let left = duration(total.saturating_sub(done) as f64 / rate);
        let decimals = if rate < 10.0 { 2 } else { 0 };
        format!("{done}/{total} {unit}  {rate:.decimals$}/s  ETA {left}")
    }
}

/// A time in its two largest units.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_done_before_is_no_speed() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.total = 1000;
        assert_eq!(pace.describe("texts", start + Duration::from_secs(5)), "0/1000 texts");
        pace.skip(600);
        assert_eq!(pace.describe("texts", start + Duration::from_secs(5)), "600/1000 texts");
        pace.done += 40;
        let line = pace.describe("texts", start + Duration::from_secs(20));
        assert_eq!(line, "640/1000 texts  2.00/s  ETA 3 min 0 s");
        pace.done = 1000;
        assert_eq!(pace.describe("texts", start + Duration::from_secs(20)), "1000/1000 texts  20/s  ETA 0 s");
    }

    #[test]
    fn times_are_said_in_two_units() {
        assert_eq!(
            [0.4, 59.4, 60.0, 3599.0, 7260.0].map(duration),
            ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]
        );
    }
}
