//! Colours for values: maps that stay ordered in print and to colour-blind eyes.

use super::drawing::Ink;

/// Viridis (van der Walt and Smith, matplotlib 2.0): lightness rises evenly from dark to bright.
const SEQUENTIAL: [(u8, u8, u8); 10] = [
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (109, 205, 89),
    (180, 222, 44),
    (253, 231, 37),
];

/// ColorBrewer's RdBu, turned: blue below, white at the middle, red above.
const DIVERGING: [(u8, u8, u8); 9] = [
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (209, 229, 240),
    (247, 247, 247),
    (253, 219, 199),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
];

/// Which value has which colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ColourScale {
    pub low: f64,
    pub high: f64,
    diverging: bool,
}

impl ColourScale {
    /// A scale that spans `range`: a diverging one with white at zero where a good part of it is negative.
    pub(super) fn new((low, high): (f64, f64)) -> Self {
        let reach = low.abs().max(high.abs());
        // Values that only just cross zero would waste half of a diverging map.
        let diverging = low < -0.15 * reach && high > 0.15 * reach;
        if diverging { Self { low: -reach, high: reach, diverging } } else { Self { low, high, diverging } }
    }

    /// The colour of a value; values beyond the ends have the ends' colours.
    pub(super) fn ink(&self, value: f64) -> Ink {
        let map: &[(u8, u8, u8)] = if self.diverging { &DIVERGING } else { &SEQUENTIAL };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        let place = share * map.len().saturating_sub(1) as f64;
        let stop = |index: f64| map.get(index as usize).or(map.last()).copied().unwrap_or_default();
        let (below, above, between) = (stop(place.floor()), stop(place.ceil()), place - place.floor());
        let mix = |a: u8, b: u8| (f64::from(a) + between * (f64::from(b) - f64::from(a))).round() as u8;
        Ink::solid((mix(below.0, above.0), mix(below.1, above.1), mix(below.2, above.2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_middles_have_their_colours() {
        let positive = ColourScale::new((0.2, 0.8));
        assert_eq!(positive.ink(0.2).rgb, (68, 1, 84));
        assert_eq!(positive.ink(9.0).rgb, (253, 231, 37));
        assert_eq!(positive.ink(0.5).rgb, (35, 144, 140), "between the two middle stops");
        let signed = ColourScale::new((-0.3, 0.6));
        assert_eq!((signed.low, signed.high), (-0.6, 0.6));
        assert_eq!(signed.ink(0.0).rgb, (247, 247, 247), "zero is white");
        assert_eq!(signed.ink(-0.6).rgb, (33, 102, 172));
        assert_eq!(ColourScale::new((-0.01, 0.6)).low, -0.01, "nothing to diverge from");
    }

    #[test]
    fn sequential_lightness_rises() {
        let scale = ColourScale::new((0.0, 1.0));
        let light: Vec<f64> = (0..=50)
            .map(|step| {
                let (r, g, b) = scale.ink(f64::from(step) / 50.0).rgb;
                0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
            })
            .collect();
        assert!(light.windows(2).all(|pair| pair[1] > pair[0]), "{light:?}");
    }
}
