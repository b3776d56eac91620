//! Products of a few rows with a weight: every number is one inner product, summed in the same order whatever the other
//! rows are and however many. So what a text becomes while it is generated does not depend on the texts beside it, and
//! a single row runs as fast as the weight can be read.

use super::element::Element;
use super::lanes::LANES;
use super::parallel;
use rayon::prelude::*;

/// Rows up to which a product is made so.
pub(crate) const FEW_ROWS: usize = 16;

/// Rows of the weight that are read side by side.
const SIDE: usize = 4;

/// Elements of the weight that a task reads.
const TASK: usize = 16 * 1024;

/// A matrix of few rows or a weight: its values, its rows, and the elements from one to the next.
pub(super) type Rows<'a, T> = (&'a [T], usize, usize);

/// `x · weightᵀ` for up to [`FEW_ROWS`] rows `x`, `[rows, k]`, and a `weight` `[outputs, k]`: `[outputs, rows]`, on all
/// threads.
pub(super) fn products<T: Element>(x: Rows<'_, T>, (weight, outputs, stride): Rows<'_, T>, k: usize) -> Vec<T> {
    let rows = x.1;
    let mut out = vec![T::zero(); outputs * rows];
    if out.is_empty() || k == 0 {
        return out;
    }
    let step = (TASK / k).next_multiple_of(SIDE).max(SIDE);
    let task = |(task, out): (usize, &mut [T])| {
        let weight = parallel::from(weight, task * step * stride);
        write_products(x, (weight, out.len() / rows, stride), k, out);
    };
    if parallel::worth_sharing(outputs * k) {
        out.par_chunks_mut(step * rows).enumerate().for_each(task);
    } else {
        out.chunks_mut(step * rows).enumerate().for_each(task);
    }
    out
}

/// The same into `out` on this thread.
pub(super) fn write_products<T: Element>(
    (x, rows, x_stride): Rows<'_, T>,
    (weight, outputs, stride): Rows<'_, T>,
    k: usize,
    out: &mut [T],
) {
    if rows == 0 {
        return;
    }
    let row = |index: usize| part(x, index * x_stride, k);
    let weights = |index: usize| part(weight, index * stride, k);
    let groups = outputs / SIDE * SIDE;
    let (whole, rest) = out.split_at_mut(out.len().min(groups * rows));
    for (first, out) in (0..groups).step_by(SIDE).zip(whole.chunks_mut(SIDE * rows)) {
        side_by_side([weights(first), weights(first + 1), weights(first + 2), weights(first + 3)], row, rows, out);
    }
    for (index, out) in (groups..outputs).zip(rest.chunks_mut(rows)) {
        side_by_side([weights(index)], row, rows, out);
    }
}

/// `length` elements from `start` on; what reaches outside is empty, and its products are then 0.
fn part<T>(values: &[T], start: usize, length: usize) -> &[T] {
    values.get(start..start + length).unwrap_or_default()
}

/// The products of `W` rows of the weight with every row of x, `[W, rows]`.
fn side_by_side<'a, T: Element + 'a, const W: usize>(
    weights: [&[T]; W],
    row: impl Fn(usize) -> &'a [T],
    rows: usize,
    out: &mut [T],
) {
    let mut put = |first: usize, products: &[&[T]]| {
        for (out, products) in out.chunks_mut(rows).zip(products) {
            for (out, &product) in out.iter_mut().skip(first).zip(*products) {
                *out = product;
            }
        }
    };
    let pairs = rows / 2 * 2;
    for first in (0..pairs).step_by(2) {
        let found = inner(weights, [row(first), row(first + 1)]);
        put(first, &found.each_ref().map(<[T; 2]>::as_slice));
    }
    if rows > pairs {
        let found = inner(weights, [row(pairs)]);
        put(pairs, &found.each_ref().map(<[T; 1]>::as_slice));
    }
}

/// The inner product of each of `W` rows with each of `X`, all as long as the shortest.
fn inner<T: Element, const W: usize, const X: usize>(w: [&[T]; W], x: [&[T]; X]) -> [[T; X]; W] {
    let length = w.iter().chain(&x).map(|row| row.len()).min().unwrap_or(0);
    let (whole, rest) = (length / LANES * LANES, length % LANES);
    let cut = |row: &[T]| -> usize { row.len().min(whole) };
    let sums = T::lane_sums(
        w.map(|row| row.get(..cut(row)).unwrap_or_default()),
        x.map(|row| row.get(..cut(row)).unwrap_or_default()),
    );
    let mut out = [[T::zero(); X]; W];
    for ((out, sums), w) in out.iter_mut().zip(sums).zip(w) {
        for ((out, [a, b, c, d, e, f, g, h]), x) in out.iter_mut().zip(sums).zip(x) {
            let mut sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
            for (&w, &x) in part(w, whole, rest).iter().zip(part(x, whole, rest)) {
                sum += w * x;
            }
            *out = sum;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    fn random<T: Element>(length: usize, name: &str) -> Vec<T> {
        let mut rng = crate::random::stream(3, &["few rows", name]);
        (0..length).map(|_| T::from_f64(rng.random_range(-1.0..1.0))).collect()
    }

    fn check<T: Element>(tolerance: f64) {
        for (rows, outputs, k) in [(1, 1, 1), (1, 9, 7), (2, 4, 8), (3, 6, 33), (16, 11, 130), (5, 700, 64)] {
            let (x_stride, stride) = (k + 3, k + 1);
            let (x, w) = (random::<T>(rows * x_stride, "x"), random::<T>(outputs * stride, "w"));
            let found = products((&x, rows, x_stride), (&w, outputs, stride), k);
            for output in 0..outputs {
                for row in 0..rows {
                    let pairs = w[output * stride..].iter().zip(&x[row * x_stride..]).take(k);
                    let want: f64 = pairs.map(|(w, x)| w.to_f64() * x.to_f64()).sum();
                    let found = found[output * rows + row].to_f64();
                    assert!(
                        (found - want).abs() < tolerance * (1.0 + want.abs()),
                        "{rows} {outputs} {k}: {found} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn they_are_inner_products() {
        check::<f64>(1e-14);
        check::<f32>(1e-5);
    }

    #[test]
    fn a_rows_bits_do_not_depend_on_the_others() {
        let (k, outputs) = (75, 1000);
        let (x, w) = (random::<f32>(FEW_ROWS * k, "x"), random::<f32>(outputs * k, "w"));
        let all = products((&x, FEW_ROWS, k), (&w, outputs, k), k);
        for row in 0..FEW_ROWS {
            let alone = products((&x[row * k..], 1, k), (&w, outputs, k), k);
            let own: Vec<f32> = all.iter().skip(row).step_by(FEW_ROWS).copied().collect();
            assert_eq!(alone, own);
        }
        // Nor on how many weights are read side by side.
        let last = products((&x, 1, k), (&w[(outputs - 1) * k..], 1, k), k);
        assert_eq!(last, all[(outputs - 1) * FEW_ROWS..][..1]);
    }
}
