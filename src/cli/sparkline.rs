//! A curve as one line of text.

use super::terminal::Charset;

/// Eight heights, from the lowest.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same where only ASCII can be shown: the darker, the higher.
const SHADES: [char; 8] = ['.', ':', '-', '=', '+', '*', '#', '@'];

/// Lowest and highest of the values that are there; `None` if none is.
pub(super) fn range<'v>(values: impl IntoIterator<Item = &'v Option<f64>>) -> Option<(f64, f64)> {
    values.into_iter().flatten().filter(|value| value.is_finite()).fold(None, |range, &value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// A character a value, its height by where the value stands between `low` and `high`; a gap where there is none. A range
/// without extent is drawn in the middle.
pub(super) fn sparkline(values: &[Option<f64>], (low, high): (f64, f64), charset: Charset) -> String {
    let heights = match charset {
        Charset::Unicode => BLOCKS,
        Charset::Ascii => SHADES,
    };
    let last = heights.len() - 1;
    let place = |value: f64| match high > low {
        true => ((value - low) / (high - low) * heights.len() as f64) as usize,
        false => heights.len() / 2,
    };
    let character = |value: &Option<f64>| {
        let value = value.filter(|value| value.is_finite())?;
        // A float below 0 becomes index 0.
        heights.get(place(value).min(last)).copied()
    };
    values.iter().map(|value| character(value).unwrap_or(' ')).collect()
}

/// At most `width` values: neighbours, as many at each place as is needed, give their mean.
pub(super) fn fit(values: &[Option<f64>], width: usize) -> Vec<Option<f64>> {
    let mean = |group: &[Option<f64>]| {
        let there: Vec<f64> = group.iter().flatten().copied().collect();
        (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
    };
    values.chunks(values.len().div_ceil(width.max(1)).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    #[test]
    fn the_eight_heights_divide_the_range_evenly() {
        let values = some(&[0.0, 0.124, 0.126, 0.5, 0.874, 0.876, 1.0]);
        assert_eq!(sparkline(&values, (0.0, 1.0), Charset::Unicode), "▁▁▂▅▇██");
        assert_eq!(sparkline(&values, (0.0, 1.0), Charset::Ascii), "..:+#@@");
    }

    #[test]
    fn gaps_values_outside_and_a_range_without_extent() {
        let values = [Some(-5.0), None, Some(5.0), Some(f64::NAN), Some(0.5)];
        assert_eq!(sparkline(&values, (0.0, 1.0), Charset::Unicode), "▁ █ ▅");
        assert_eq!(sparkline(&some(&[2.0, 2.0]), (2.0, 2.0), Charset::Unicode), "▅▅");
        assert_eq!(range(&values), Some((-5.0, 5.0)));
        assert_eq!(range(&[None, Some(f64::NAN)]), None);
    }

    #[test]
    fn too_many_values_become_means_of_neighbours() {
        let values = some(&[1.0, 3.0, 5.0, 7.0, 9.0]);
        assert_eq!(fit(&values, 5), values);
        assert_eq!(fit(&values, 3), some(&[2.0, 6.0, 9.0]));
        assert_eq!(fit(&[None, Some(2.0), None, None], 2), [Some(2.0), None]);
        assert_eq!(fit(&values, 0).len(), 1);
        assert_eq!(fit(&[], 4), []);
    }
}
