//! Axis ranges and ticks.

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// Evenly, with ticks at whole numbers only: layers, steps.
    Whole,
    /// Each doubling as wide as the last, with ticks at powers of two: distances. Values are above 0.
    Doubling,
}

impl Scale {
    fn position(self, value: f64) -> f64 {
        if self == Self::Doubling { value.log2() } else { value }
    }
}

/// A map from values to the page, with its ticks.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    scale: Scale,
    /// Ends, as positions of the scale.
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Where ticks stand and how they are written.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis of `range` from page place `from` to `to`, with ticks at most every `spacing` points.
    pub(super) fn new(range: (f64, f64), from: f64, to: f64, spacing: f64, scale: Scale) -> Self {
        let (low, high) = (scale.position(range.0), scale.position(range.1));
        let step = step((high - low) * spacing / (to - from).abs().max(1.0), scale != Scale::Linear);
        let mut ticks = ticks(low, high, step);
        if scale == Scale::Doubling {
            ticks = ticks.into_iter().map(|(power, _)| (power.exp2(), format!("{}", power.exp2()))).collect();
        }
        Self { scale, low, high, from, to, ticks }
    }

    /// The page place of `value`.
    pub(super) fn place(&self, value: f64) -> f64 {
        self.from + (self.scale.position(value) - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    pub(super) fn spans(&self, value: f64) -> bool {
        let position = self.scale.position(value);
        self.low < position && position < self.high
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
    let written = Written::new(low.abs().max(high.abs()), step);
    (0..count as u32)
        .map(|index| {
            let value = (first + f64::from(index)) * step;
            (value, written.number(value))
        })
        .collect()
}

/// How the numbers of one axis are written: all alike, with the digits in which they differ.
#[derive(Debug, Clone, Copy)]
struct Written {
    decimals: usize,
    /// The power of ten that is taken out of very large and very small numbers.
    exponent: Option<i32>,
}

impl Written {
    /// For numbers up to `largest` that lie `step` apart.
    fn new(largest: f64, step: f64) -> Self {
        let power = |value: f64| if value > 0.0 { value.log10().floor().clamp(-320.0, 308.0) as i32 } else { 0 };
        let exponent = (!(1e-3..1e6).contains(&largest) && largest > 0.0).then(|| power(largest));
        let decimals = (exponent.unwrap_or(0) - power(step)).clamp(0, 12);
        Self { decimals: decimals.unsigned_abs() as usize, exponent }
    }

    fn number(self, value: f64) -> String {
        let Self { decimals, exponent } = self;
        let text = match exponent {
            Some(exponent) if value != 0.0 => format!("{:.decimals$}e{exponent}", value / 10_f64.powi(exponent)),
            Some(_) => "0".to_owned(),
            // Adding 0 turns −0 into 0.
            None => format!("{:.decimals$}", value + 0.0),
        };
        text.replace('-', "−")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(range: (f64, f64), spacing: f64, scale: Scale) -> Vec<String> {
        Axis::new(range, 0.0, 100.0, spacing, scale).ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(labels((0.07, 0.49), 20.0, Scale::Linear), ["0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(labels((-0.02, 0.011), 25.0, Scale::Linear), ["−0.02", "−0.01", "0.00", "0.01"]);
        assert_eq!(labels((0.0, 30.0), 15.0, Scale::Whole), ["0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(labels((0.0, 3.0), 10.0, Scale::Whole), ["0", "1", "2", "3"], "layers are whole");
    }

    #[test]
    fn neighbouring_ticks_never_read_alike() {
        let linear = |low, high| labels((low, high), 25.0, Scale::Linear);
        assert_eq!(linear(0.36, 0.36004), ["0.36000", "0.36001", "0.36002", "0.36003", "0.36004"]);
        assert_eq!(linear(0.0, 4e-7), ["0", "1e−7", "2e−7", "3e−7", "4e−7"]);
        assert_eq!(linear(-2e-5, 6e-5), ["−2e−5", "0", "2e−5", "4e−5", "6e−5"]);
        assert_eq!(linear(5e-5, 1.3e-4), ["0.6e−4", "0.8e−4", "1.0e−4", "1.2e−4"]);
        assert_eq!(linear(1e6, 5e6), ["1e6", "2e6", "3e6", "4e6", "5e6"]);
        for (low, high) in [(0.1, 0.100_000_2), (7e8, 7.000_01e8), (1e-20, 1.000_1e-20), (0.0, 1e-5)] {
            let mut found = linear(low, high);
            let count = found.len();
            found.dedup();
            assert!(count >= 2 && found.len() == count, "{found:?}");
        }
    }

    #[test]
    fn doublings_are_evenly_wide() {
        let axis = Axis::new((1.0, 40.0), 0.0, 100.0, 10.0, Scale::Doubling);
        let ticks: Vec<&str> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(ticks, ["1", "2", "4", "8", "16", "32"]);
        let places: Vec<f64> = axis.ticks.iter().map(|(value, _)| axis.place(*value)).collect();
        assert!(places.windows(2).all(|pair| (pair[1] - pair[0] - 100.0 / 40_f64.log2()).abs() < 1e-9));
    }

    #[test]
    fn hostile_ranges_end() {
        assert_eq!(range([f64::NAN, f64::INFINITY].into_iter()), None);
        assert_eq!(range([f64::MAX, f64::MIN].into_iter()), None);
        let (low, high) = range([0.5, 0.5].into_iter()).unwrap();
        assert!(low < 0.5 && 0.5 < high);
        for values in [[1e300, 1.5e300], [5e-324, 1e-320], [-1.0, 1e17], [1e16, 1e16 + 2.0]] {
            let range = range(values.into_iter()).unwrap();
            assert!(Axis::new(range, 0.0, 100.0, 10.0, Scale::Linear).ticks.len() <= 101);
        }
    }
}
