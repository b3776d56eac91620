//! Axis ranges and ticks.

/// A linear map from values to the page, with its ticks.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Where ticks stand and how they are written.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis of `range` from page place `from` to `to`, with ticks at most every `spacing` points.
    pub(super) fn new(range: (f64, f64), from: f64, to: f64, spacing: f64, integer: bool) -> Self {
        let (low, high) = range;
        let step = step((high - low) * spacing / (to - from).abs().max(1.0), integer);
        Self { low, high, from, to, ticks: ticks(low, high, step) }
    }

    /// The page place of `value`.
    pub(super) fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    pub(super) fn spans(&self, value: f64) -> bool {
        self.low < value && value < self.high
    }
}

/// The range that covers the finite `values`, never empty; `None` if there are none, or if they lie too
/// far apart for arithmetic.
pub(super) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high || !(high - low).is_finite() {
        return None;
    }
    // Equal or nearly equal values: wide enough that ticks differ in their first digits.
    let least = (low.abs().max(high.abs()) * 1e-6).max(1e-12);
    Some(if high - low < least {
        let half = (low.abs() * 0.05).max(0.05);
        (low - half, high + half)
    } else {
        (low, high)
    })
}

/// `range` with some air, and with 0 where it is near.
pub(super) fn airy(range: (f64, f64)) -> (f64, f64) {
    let (low, high) = range;
    let air = 0.06 * (high - low);
    let low = if low >= 0.0 && low < 0.4 * high { 0.0 } else { low - air };
    (low, high + air)
}

/// The smallest of 1, 2, 5 × 10^k that is at least `least`.
fn step(least: f64, integer: bool) -> f64 {
    let least = if integer { least.max(1.0) } else { least };
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    let decade = 10_f64.powf(least.log10().floor());
    let found =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|step| *step >= least * (1.0 - 1e-9));
    found.unwrap_or(10.0 * decade)
}

fn ticks(low: f64, high: f64, step: f64) -> Vec<(f64, String)> {
    let slack = 1e-9 * (high - low);
    let first = ((low - slack) / step).ceil();
    let last = ((high + slack) / step).floor();
    // A bound for hostile numbers, far above what a figure has room for.
    let count = (last - first).clamp(-1.0, 100.0) + 1.0;
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    (0..count as u32)
        .map(|index| {
            let value = (first + f64::from(index)) * step;
            (value, number(value, step, decimals))
        })
        .collect()
}

fn number(value: f64, step: f64, decimals: usize) -> String {
    let text = if value != 0.0 && (value.abs() >= 1e6 || step < 1e-4) {
        format!("{value:.1e}")
    } else {
        // Adding 0 turns −0 into 0.
        format!("{:.decimals$}", value + 0.0)
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(range: (f64, f64), spacing: f64, integer: bool) -> Vec<String> {
        Axis::new(range, 0.0, 100.0, spacing, integer).ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(labels((0.07, 0.49), 20.0, false), ["0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(labels((-0.02, 0.011), 25.0, false), ["−0.02", "−0.01", "0.00", "0.01"]);
        assert_eq!(labels((0.0, 30.0), 15.0, true), ["0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(labels((0.0, 3.0), 10.0, true), ["0", "1", "2", "3"], "layers are whole");
    }

    #[test]
    fn hostile_ranges_end() {
        assert_eq!(range([f64::NAN, f64::INFINITY].into_iter()), None);
        assert_eq!(range([f64::MAX, f64::MIN].into_iter()), None);
        let (low, high) = range([0.5, 0.5].into_iter()).unwrap();
        assert!(low < 0.5 && 0.5 < high);
        for values in [[1e300, 1.5e300], [5e-324, 1e-320], [-1.0, 1e17], [1e16, 1e16 + 2.0]] {
            let range = range(values.into_iter()).unwrap();
            assert!(Axis::new(range, 0.0, 100.0, 10.0, false).ticks.len() <= 101);
        }
    }
}
