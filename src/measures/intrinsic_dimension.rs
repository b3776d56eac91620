//! Intrinsic dimension by TwoNN: the dimension of the curved set on which the tokens lie.
//!
//! For every point μ = r₂/r₁, the distance to its second neighbour over that to its first. On a set of dimension D
//! with locally even density −ln(1 − F(μ)) = D ln μ; D is the slope of the line through the origin with F(μ_(i)) = i/N,
//! the top 10 % of μ left out (Facco et al., *Estimating the intrinsic dimension of datasets by a minimal
//! neighborhood information*, Scientific Reports 2017). Exact duplicates count once; undefined under 50 points.
//!
//! It sees bent sets that no spectrum does. It falls short where the dimension is high against the sample, and the
//! nearest neighbours may be tokens of one text. O(N²·d) time.

use super::rows::{Real, Rows, dot, finite};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;
use std::cmp::Ordering;

/// The fewest distinct points for which the estimate is defined.
pub const MIN_POINTS: usize = 50;

/// Points whose distances to all are formed together.
const BLOCK: usize = 128;

/// The TwoNN estimate of the pooled rows; `None` under [`MIN_POINTS`] distinct ones, where a value is not finite,
/// or where every point has both neighbours at one distance.
#[must_use]
pub fn two_nn<T: Real>(rows: Rows<'_, T>) -> Option<f64> {
    let points = distinct(rows)?;
    let n = points.n();
    if n < MIN_POINTS {
        return None;
    }
    let mut log_ratios = neighbour_log_ratios(points.as_rows())?;
    log_ratios.sort_unstable_by(f64::total_cmp);
    let kept = n * 9 / 10;
    let (mut xy, mut xx) = (0.0, 0.0);
    for (i, x) in log_ratios.into_iter().take(kept).enumerate() {
        xy += x * -(-((i + 1) as f64) / n as f64).ln_1p();
        xx += x * x;
    }
    if xx > 0.0 { finite(xy / xx) } else { None }
}

/// Rows that are owned.
struct Points {
    values: Vec<f64>,
    width: usize,
}

impl Points {
    fn n(&self) -> usize {
        self.as_rows().n()
    }

    fn as_rows(&self) -> Rows<'_, f64> {
        Rows::new(&self.values, self.width)
    }
}

/// The rows without exact duplicates, in the order of their values; `None` where one is not finite.
fn distinct<T: Real>(rows: Rows<'_, T>) -> Option<Points> {
    let values: Option<Vec<f64>> = rows.values().iter().map(|&x| finite(x.into())).collect();
    let all = Points { values: values?, width: rows.width() };
    let mut order: Vec<&[f64]> = all.as_rows().iter().collect();
    let compare = |a: &[f64], b: &[f64]| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    order.sort_unstable_by(|a, b| compare(a, b));
    order.dedup();
    Some(Points { values: order.concat(), width: all.width })
}

/// `ln(r₂/r₁)` of every point.
///
/// Squared distances from inner products find the few candidates for both neighbours, within the bound of their
/// rounding; those are measured again by differences, so a near neighbour keeps all its digits.
fn neighbour_log_ratios(points: Rows<'_, f64>) -> Option<Vec<f64>> {
    let (n, width) = (points.n(), points.width());
    let centred = points.centred();
    let squares: Vec<f64> = Rows::new(&centred, width).iter().map(|row| dot(row, row)).collect();
    let largest = finite(squares.iter().copied().fold(0.0, f64::max))?;
    let mean = points.mean();
    let rounding = 8.0 * (width as f64 + 8.0) * f64::EPSILON * largest;
    let shift = 8.0 * f64::EPSILON * (dot(&mean, &mean).sqrt() + largest.sqrt());
    let all = MatRef::from_row_major_slice(&centred, n, width);
    let starts: Vec<usize> = (0..n).step_by(BLOCK).collect();
    let blocks: Vec<Option<Vec<f64>>> = starts
        .into_par_iter()
        .map(|start| {
            let count = BLOCK.min(n - start);
            // One column a point of the block.
            let mut products = Mat::zeros(n, count);
            let block = all.subrows(start, count);
            matmul(&mut products, Accum::Replace, all, block.transpose(), 1.0, Par::Seq);
            let ratio = |(offset, column): (usize, faer::ColRef<'_, f64>)| {
                let own = start + offset;
                let own_square = squares.get(own).copied()?;
                let about = || {
                    let distance = |(&square, &product): (&f64, &f64)| own_square + square - 2.0 * product;
                    squares.iter().zip(column.iter()).map(distance).enumerate().filter(|(j, _)| *j != own)
                };
                let [_, second] = two_smallest(about().map(|(_, d)| d));
                let limit = ((second + rounding).max(0.0).sqrt() + shift).powi(2) + rounding;
                let row = points.row(own);
                let exact = |j: usize| row.iter().zip(points.row(j)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let [first, second] = two_smallest(about().filter(|(_, d)| *d <= limit).map(|(j, _)| exact(j)));
                finite(0.5 * (second / first).ln())
            };
            products.col_iter().enumerate().map(ratio).collect()
        })
        .collect();
    let blocks: Option<Vec<Vec<f64>>> = blocks.into_iter().collect();
    Some(blocks?.concat())
}

fn two_smallest(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold(
        [f64::INFINITY; 2],
        |[first, second], value| {
            if value < first { [value, first] } else { [first, second.min(value)] }
        },
    )
}
