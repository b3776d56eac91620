//! How row work is cut into tasks: always in the same places, whatever the number of threads.

use std::mem::MaybeUninit;

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

/// Elements that a task over `length` elements of several vectors is given; one task does what is not worth sharing.
pub(super) fn task_length(length: usize) -> usize {
    if worth_sharing(length) { TASK } else { length.max(1) }
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

/// A matrix `[count, width]` of which `row(index, out)` writes every row.
pub(super) fn rows<T: Element>(count: usize, width: usize, row: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    if width == 0 {
        return Vec::new();
    }
    let rows = rows_a_task(width);
    let [out] = collect(count * width, rows * width, worth_sharing(count * width), |task, [out]| {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            row(task * rows + index, out);
        }
    });
    out
}

/// `N` vectors of `values(row)`, an element each for every row of a matrix `[count, width]` that it reads.
pub(super) fn of_rows<T: Element, const N: usize>(
    count: usize,
    width: usize,
    values: impl Fn(usize) -> [T; N] + Sync,
) -> [Vec<T>; N] {
    let rows = rows_a_task(width);
    collect(count, rows, worth_sharing(count * width), |task, mut outs| {
        for index in 0..outs.first().map_or(0, |out| out.len()) {
            for (out, value) in outs.iter_mut().zip(values(task * rows + index)) {
                if let Some(out) = out.get_mut(index) {
                    *out = value;
                }
            }
        }
    })
}

/// A vector of which `piece(first_element, out)` writes consecutive pieces; they end in the same places on every
/// machine.
pub(super) fn pieces<T: Element>(length: usize, piece: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let [out] = collect(length, TASK, worth_sharing(length), |task, [out]| piece(task * TASK, out));
    out
}

/// As [`pieces`], of two vectors that are written in one go.
pub(super) fn pairs_of_pieces<T: Element>(
    length: usize,
    piece: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) -> [Vec<T>; 2] {
    collect(length, TASK, worth_sharing(length), |task, [first, second]| piece(task * TASK, first, second))
}

/// `N` vectors of `length` elements, of which `fill(task, outs)` writes `task_length` elements each, on all threads if
/// `shared`.
///
/// A task writes into memory that stays in the cache and is used again, and what it wrote is copied to its place: new
/// memory need not be filled with zeros first, which one thread alone would do.
fn collect<T: Element, const N: usize>(
    length: usize,
    task_length: usize,
    shared: bool,
    fill: impl Fn(usize, [&mut [T]; N]) + Sync,
) -> [Vec<T>; N] {
    let mut vectors = [(); N].map(|()| Vec::with_capacity(length));
    let mut rest = vectors.each_mut().map(|vector| vector.spare_capacity_mut().get_mut(..length).unwrap_or_default());
    let mut tasks = Vec::with_capacity(length.div_ceil(task_length));
    for start in (0..length).step_by(task_length) {
        let size = task_length.min(length - start);
        tasks.push(rest.each_mut().map(|rest| rest.split_off_mut(..size).unwrap_or_default()));
    }
    let scratch = || [(); N].map(|()| vec![T::zero(); task_length.min(length)]);
    let run = |scratch: &mut [Vec<T>; N], (task, outs): (usize, [&mut [MaybeUninit<T>]; N])| {
        let size = outs.first().map_or(0, |out| out.len());
        fill(task, scratch.each_mut().map(|scratch| scratch.get_mut(..size).unwrap_or_default()));
        for (out, scratch) in outs.into_iter().zip(&*scratch) {
            out.write_copy_of_slice(scratch.get(..size).unwrap_or_default());
        }
    };
    if shared {
        tasks.into_par_iter().enumerate().for_each_init(scratch, run);
    } else {
        let mut scratch = scratch();
        tasks.into_iter().enumerate().for_each(|task| run(&mut scratch, task));
    }
    for vector in &mut vectors {
        // SAFETY: the tasks are the vector's first `length` elements without a gap, each was handed to `run`, and
        // `write_copy_of_slice` either writes all of its elements or panics.
        unsafe { vector.set_len(length) };
    }
    vectors
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
