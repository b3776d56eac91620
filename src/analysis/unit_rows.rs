//! The rows of one text, scaled to length 1: what pairs of tokens are compared by.

use std::ops::Range;

/// Unit vectors of the measured rows of a text, in f64. A zero row has no direction and is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitRows {
    values: Vec<f64>,
    width: usize,
    positions: Vec<usize>,
}

impl UnitRows {
    /// The rows of `span` among a text's rows (row-major, `width` wide); `None` if one of them is not finite.
    #[must_use]
    pub fn new<T: Copy + Into<f64>>(rows: &[T], width: usize, span: Range<usize>) -> Option<Self> {
        let mut unit = Self { values: Vec::with_capacity(rows.len()), width, positions: Vec::new() };
        for (position, row) in rows.chunks_exact(width.max(1)).enumerate() {
            if !span.contains(&position) {
                continue;
            }
            let norm = row.iter().map(|&x| x.into() * x.into()).sum::<f64>().sqrt();
            if !norm.is_finite() {
                return None;
            }
            if norm > 0.0 {
                unit.values.extend(row.iter().map(|&x| x.into() / norm));
                unit.positions.push(position);
            }
        }
        Some(unit)
    }

    /// How many rows count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no row counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The width of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The positions of the rows in their text, ascending.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Every row with its position in the text.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[f64])> {
        self.positions.iter().copied().zip(self.values.chunks_exact(self.width.max(1)))
    }

    /// Calls `each` with the places of two rows among those that count, `j < i`, and their cosine, for every
    /// pair once, in order of `i`, then of `j`. O(n²·d); only a strip of rows is held at a time.
    pub fn for_each_pair(&self, mut each: impl FnMut(usize, usize, f64)) {
        /// Rows of a strip: the product of a strip is at most this times n.
        const STRIP: usize = 128;
        let n = self.len();
        let Ok(all) = ndarray::ArrayView2::from_shape((n, self.width), &self.values) else { return };
        for start in (0..n).step_by(STRIP) {
            let end = (start + STRIP).min(n);
            let strip = all.slice(ndarray::s![start..end, ..]);
            let products = strip.dot(&all.slice(ndarray::s![..end, ..]).t());
            for (row, i) in products.rows().into_iter().zip(start..end) {
                for (j, &cosine) in row.iter().enumerate().take(i) {
                    each(i, j, cosine);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_length_one_and_keep_their_positions() {
        let rows = UnitRows::new(&[9.0_f32, 9.0, 3.0, 4.0, 0.0, 0.0, 0.0, -2.0, 7.0, 7.0], 2, 1..4).unwrap();
        let found: Vec<(usize, &[f64])> = rows.iter().collect();
        assert_eq!(found, [(1, [0.6, 0.8].as_slice()), (3, [0.0, -1.0].as_slice())]);
        assert_eq!((rows.len(), rows.width(), rows.positions()), (2, 2, [1, 3].as_slice()));
        assert!(UnitRows::new(&[0.0_f64], 1, 0..1).unwrap().is_empty());
    }

    #[test]
    fn a_value_that_is_not_finite_is_seen_in_the_span_only() {
        let rows = [1.0, f64::NAN, f64::INFINITY, 1.0];
        assert_eq!(UnitRows::new(&rows, 1, 0..2), None);
        assert_eq!(UnitRows::new(&rows, 1, 2..3), None);
        assert_eq!(UnitRows::new(&rows, 1, 3..4).unwrap().len(), 1);
    }

    #[test]
    fn every_pair_comes_once_across_strips() {
        let n = 300;
        let rows: Vec<f64> = (0..n * 3).map(|i| ((i * 37 % 101) as f64 - 40.0) / 7.0).collect();
        let unit = UnitRows::new(&rows, 3, 0..n).unwrap();
        let all: Vec<&[f64]> = unit.iter().map(|(_, row)| row).collect();
        let mut pairs = Vec::new();
        unit.for_each_pair(|i, j, cosine| {
            let dot: f64 = all[i].iter().zip(all[j]).map(|(a, b)| a * b).sum();
            assert!((cosine - dot).abs() < 1e-14, "{i} {j}: {cosine} and {dot}");
            pairs.push((i, j));
        });
        let wanted: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).collect();
        assert_eq!(pairs, wanted);
    }
}
