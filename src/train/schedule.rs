//! Learning rates over a run.

use super::config::{LambdaSchedule, Schedule};

/// What λ is multiplied by in optimizer step `step`, counted from 0, of a run of `total` steps: it rises to 1, or falls to 0,
/// in the last.
#[must_use]
pub fn lambda_share(schedule: LambdaSchedule, total: u64, step: u64) -> f64 {
    let done = (step + 1).min(total) as f64 / total.max(1) as f64;
    match schedule {
        LambdaSchedule::Rise => done,
        LambdaSchedule::Fall => 1.0 - done,
    }
}

/// The learning rate of optimizer step `step`, counted from 0, of a run of `total` steps.
///
/// As Hugging Face's schedulers: it rises as `peak · step / warmup` for the first `warmup` steps (so the
/// very first step has rate 0 where there is a warm-up), then falls to `floor · peak` at `total`.
#[must_use]
pub fn learning_rate(schedule: Schedule, peak: f64, floor: f64, warmup: u64, total: u64, step: u64) -> f64 {
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let progress = ((step - warmup) as f64 / span).min(1.0);
    let share = match schedule {
        Schedule::Constant => return peak,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    };
    peak * (floor + (1.0 - floor) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_released_schedule() {
        let rate = |step| learning_rate(Schedule::Linear, 3e-4, 0.0, 100, 1000, step);
        assert_eq!(rate(0), 0.0);
        assert_eq!(rate(50), 1.5e-4);
        assert_eq!(rate(100), 3e-4);
        assert!((rate(550) - 1.5e-4).abs() < 1e-18);
        assert_eq!(rate(1000), 0.0);
    }

    #[test]
    fn cosine_ends_at_its_floor() {
        let rate = |step| learning_rate(Schedule::Cosine, 1.0, 0.05, 0, 10, step);
        assert_eq!(rate(0), 1.0);
        assert!((rate(5) - 0.525).abs() < 1e-12);
        assert!((rate(10) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn lambda_rises_to_itself_and_falls_to_nothing() {
        let all = |schedule| (0..4).map(|step| lambda_share(schedule, 4, step)).collect::<Vec<_>>();
        assert_eq!(all(LambdaSchedule::Rise), [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(all(LambdaSchedule::Fall), [0.75, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn constant_stays() {
        assert_eq!(learning_rate(Schedule::Constant, 2.0, 0.0, 4, 10, 2), 1.0);
        assert_eq!(learning_rate(Schedule::Constant, 2.0, 0.0, 4, 10, 9), 2.0);
    }
}
