//! How row work is cut into tasks: always in the same places, whatever the number of threads.

use rayon::prelude::*;

use super::element::Element;

/// Elements below which a second thread costs more than it brings.
const SERIAL: usize = 16 * 1024;
/// Elements that one task is given at least.
const TASK: usize = 8 * 1024;

/// Whether `elements` are enough to be shared between threads.
pub(super) fn worth_sharing(elements: usize) -> bool {
    elements >= SERIAL
}

/// Rows of `width` elements that make up one task.
fn rows_a_task(width: usize) -> usize {
    TASK.div_ceil(width.max(1))
}

/// Row `index` of a row-major matrix, empty if there is none.
pub(super) fn row<T>(values: &[T], index: usize, width: usize) -> &[T] {
    let start = index * width;
    values.get(start..start + width).unwrap_or_default()
}

/// The values from `start` on.
pub(super) fn from<T>(values: &[T], start: usize) -> &[T] {
    values.get(start..).unwrap_or_default()
}

/// Calls `row(index, out)` for every row of `out`, which is `[rows, width]`.
pub(super) fn for_each_row<T: Element>(out: &mut [T], width: usize, row: impl Fn(usize, &mut [T]) + Sync) {
    if width == 0 {
        return;
    }
    if !worth_sharing(out.len()) {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            row(index, out);
        }
        return;
    }
    let rows = rows_a_task(width);
    out.par_chunks_mut(rows * width).enumerate().for_each(|(task, out)| {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            row(task * rows + index, out);
        }
    });
}

/// Calls `piece(first_element, out)` for consecutive pieces of `out`; the pieces end in the same places on every
/// machine.
pub(super) fn for_each_piece<T: Send>(out: &mut [T], piece: impl Fn(usize, &mut [T]) + Sync) {
    if worth_sharing(out.len()) {
        out.par_chunks_mut(TASK).enumerate().for_each(|(task, out)| piece(task * TASK, out));
    } else {
        piece(0, out);
    }
}

/// Columns of a stripe: four cache lines of `f32`.
const STRIPE: usize = 64;
/// Rows whose sum is kept apart before it joins the total, which keeps the rounding error of long sums small.
const RUN: usize = 128;

/// Sums `term(row, columns, sums)` over all rows for every stripe of columns of `out` (`out` is overwritten).
///
/// `add(row, first_column, sums)` must add the row's values of the columns `first_column..first_column + sums.len()`
/// to `sums`. Each column is summed by one task, in the order of the rows, so the bits do not depend on the threads.
pub(super) fn sum_columns<T: Element>(out: &mut [T], rows: usize, add: impl Fn(usize, usize, &mut [T]) + Sync) {
    let stripe = |index: usize, out: &mut [T]| {
        let mut sums = [T::default(); STRIPE];
        let Some(sums) = sums.get_mut(..out.len()) else { return };
        out.fill(T::zero());
        for start in (0..rows).step_by(RUN) {
            sums.fill(T::zero());
            for row in start..rows.min(start + RUN) {
                add(row, index * STRIPE, sums);
            }
            for (total, &sum) in out.iter_mut().zip(sums.iter()) {
                *total += sum;
            }
        }
    };
    if worth_sharing(out.len() * rows) {
        out.par_chunks_mut(STRIPE).enumerate().for_each(|(index, out)| stripe(index, out));
    } else {
        for (index, out) in out.chunks_mut(STRIPE).enumerate() {
            stripe(index, out);
        }
    }
}
