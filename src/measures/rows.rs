//! Token vectors of one text as the measures see them.

/// A number in which hidden states are kept: `f32` or `f64`. Every measure sums in `f64`.
pub trait Real: Copy + PartialOrd + Send + Sync + Into<f64> + 'static {}

impl Real for f32 {}
impl Real for f64 {}

/// The rows of one text at one point, already reduced to one token set: `n` rows of `width` values, row by row.
///
/// Who makes them refuses non-finite states first and names text and layer; a measure that meets one all the
/// same is undefined (`None`) and never skips the row.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    values: &'a [T],
    width: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    /// Rows of `width` values each; what is left after the last whole row is not seen, and width 0 has no rows.
    #[must_use]
    pub fn new(values: &'a [T], width: usize) -> Self {
        let whole = values.len().checked_div(width).unwrap_or(0) * width;
        Self { values: values.get(..whole).unwrap_or_default(), width }
    }

    /// How many rows (tokens).
    #[must_use]
    pub fn n(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }

    /// The width of a row (d).
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `i`; empty if there is none.
    #[must_use]
    pub fn row(&self, i: usize) -> &'a [T] {
        let at = i.checked_mul(self.width);
        at.and_then(|start| self.values.get(start..start.checked_add(self.width)?)).unwrap_or_default()
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'a, T> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// All values, row by row.
    #[must_use]
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// The values in `f64`, row by row.
    #[must_use]
    pub fn to_f64(&self) -> Vec<f64> {
        self.values.iter().map(|&x| x.into()).collect()
    }

    /// The mean row, `[width]`; empty without rows.
    #[must_use]
    pub fn mean(&self) -> Vec<f64> {
        let shift = self.mean_minus_first();
        self.row(0).iter().zip(&shift).map(|(&x, s)| x.into() + s).collect()
    }

    /// The rows minus their mean, in `f64`, row by row.
    ///
    /// The first row is taken off before the mean is formed, so that identical rows give exact zeros.
    #[must_use]
    pub fn centred(&self) -> Vec<f64> {
        let shift = self.mean_minus_first();
        let first = self.row(0);
        let mut out = Vec::with_capacity(self.values.len());
        for row in self.iter() {
            out.extend(row.iter().zip(first).zip(&shift).map(|((&x, &f), s)| (x.into() - f.into()) - s));
        }
        out
    }

    fn mean_minus_first(&self) -> Vec<f64> {
        let first = self.row(0);
        let mut shift = vec![0.0; first.len()];
        for row in self.iter() {
            shift.iter_mut().zip(row.iter().zip(first)).for_each(|(s, (&x, &f))| *s += x.into() - f.into());
        }
        let n = self.n() as f64;
        shift.iter_mut().for_each(|s| *s /= n);
        shift
    }
}

/// `Σ a_k b_k` in `f64`.
pub(super) fn dot<A: Real, B: Real>(a: &[A], b: &[B]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| x.into() * y.into()).sum()
}

/// The Euclidean norm in `f64`.
pub(super) fn norm<T: Real>(row: &[T]) -> f64 {
    dot(row, row).sqrt()
}

/// The value if it is a finite number.
pub(super) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_rows() {
        let rows = Rows::new(&[1.0f32, 2.0, 3.0, 4.0, 5.0], 2);
        assert_eq!((rows.n(), rows.row(1), rows.row(2), rows.iter().count()), (2, &[3.0, 4.0][..], &[][..], 2));
        let none = Rows::<f64>::new(&[1.0], 0);
        assert_eq!((none.n(), none.iter().count(), none.row(0).len()), (0, 0, 0));
        assert_eq!(rows.row(usize::MAX), &[] as &[f32]);
    }

    #[test]
    fn identical_rows_centre_to_exact_zeros() {
        let values = [0.1f64, 1e9 / 3.0].repeat(4000);
        let rows = Rows::new(&values, 2);
        assert!(rows.centred().iter().all(|&c| c == 0.0));
        assert_eq!(rows.mean(), [0.1, 1e9 / 3.0]);
    }

    #[test]
    fn the_mean_is_the_mean() {
        let rows = Rows::new(&[1.0f32, -2.0, 3.0, 4.0, 5.0, 1.0], 2);
        assert_eq!(rows.mean(), [3.0, 1.0]);
        assert_eq!(rows.centred(), [-2.0, -3.0, 0.0, 3.0, 2.0, 0.0]);
    }
}
