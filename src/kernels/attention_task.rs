//! The part of an attention that one thread computes: the heads of one sequence that share a key head.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use candle_core::{Result, bail};

use super::attention::AttentionShape;
use super::element::Element;
use super::gemm::{Matrix, Threads, gemm};
use super::{parallel, vector};

/// Queries of a block.
const BLOCK: usize = 64;

/// Memory that a thread uses again from task to task.
#[derive(Default)]
pub(super) struct Scratch<T> {
    scores: Vec<T>,
    /// Scores under a soft cap, as its backward pass needs them.
    capped: Vec<T>,
    score_gradients: Vec<T>,
    rows: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
}

/// The first `length` elements of a scratch, grown if it is too small; what they hold is left from before.
fn reuse<T: Element>(scratch: &mut Vec<T>, length: usize) -> &mut [T] {
    if scratch.len() < length {
        scratch.resize(length, T::zero());
    }
    scratch.get_mut(..length).unwrap_or_default()
}

/// A row-major matrix in new memory that several tasks write at once, each its own columns of its own rows.
pub(super) struct Columns<'a, T> {
    start: *mut MaybeUninit<T>,
    length: usize,
    width: usize,
    borrow: PhantomData<&'a mut [MaybeUninit<T>]>,
}

// SAFETY: the pointer stands for a mutable borrow of elements that may be sent, and `Columns` gives no way to read
// them; `write` asks its caller that no two threads write the same element.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

impl<'a, T: Element> Columns<'a, T> {
    /// The matrix in the unused capacity of `values`, of `length` elements at most and with `width` columns.
    pub(super) fn new(values: &'a mut Vec<T>, length: usize, width: usize) -> Self {
        let values = values.spare_capacity_mut();
        Self { start: values.as_mut_ptr(), length: length.min(values.len()), width, borrow: PhantomData }
    }

    /// Writes `values · factor` into the row from column `column` on.
    ///
    /// # Safety
    /// While this runs, no other thread may write these elements.
    unsafe fn write(&self, row: usize, column: usize, values: &[T], factor: T) -> Result<()> {
        let start = row * self.width + column;
        if column + values.len() > self.width || start + values.len() > self.length {
            bail!("attention: a task writes outside its matrix")
        }
        // SAFETY: the range lies inside the borrowed slice as just checked, nobody reads it during the borrow, and
        // the caller vouches that nobody else writes it.
        let out = unsafe { std::slice::from_raw_parts_mut(self.start.add(start), values.len()) };
        for (out, &value) in out.iter_mut().zip(values) {
            out.write(value * factor);
        }
        Ok(())
    }
}

/// One key head of one sequence.
pub(super) struct Task {
    pub(super) shape: AttentionShape,
    /// The sequence's first token.
    pub(super) start: usize,
    /// The sequence's tokens.
    pub(super) length: usize,
    pub(super) kv_head: usize,
}

/// A [`RelativeBias`](super::attention::RelativeBias) as slices.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a, T> {
    pub(super) table: &'a [T],
    pub(super) span: usize,
    pub(super) by_key: bool,
}

impl<'a, T> Bias<'a, T> {
    /// What is added to the scores of the query at `position` with the keys from `key` on.
    pub(super) fn row(&self, head: usize, position: usize, key: usize) -> &'a [T] {
        if self.by_key {
            return parallel::from(parallel::row(self.table, head, self.span), key);
        }
        let row = parallel::row(self.table, head, 2 * self.span - 1);
        parallel::from(row, (key + self.span - 1).saturating_sub(position))
    }
}

/// Queries of one head and the keys they meet.
struct Block {
    /// The query head.
    head: usize,
    /// The first query, counted in the sequence.
    first: usize,
    /// Queries.
    rows: usize,
    /// The first key that any of them sees, counted in the sequence.
    first_key: usize,
    /// Keys up to the last that any of them sees.
    keys: usize,
}

impl Task {
    /// The blocks of all query heads that share the key head.
    fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let group = self.shape.heads / self.shape.kv_heads;
        let heads = self.kv_head * group..(self.kv_head + 1) * group;
        heads.flat_map(move |head| {
            (0..self.length).step_by(BLOCK).map(move |first| {
                let rows = BLOCK.min(self.length - first);
                let first_key = self.shape.seen(first, self.length).start;
                let keys = self.shape.seen(first + rows - 1, self.length).end - first_key;
                Block { head, first, rows, first_key, keys }
            })
        })
    }

    /// Multiplications of one product between the scores of all blocks and a head.
    pub(super) fn multiplications(&self) -> u64 {
        self.blocks().map(|block| block.rows as u64 * block.keys as u64).sum::<u64>() * self.shape.head_dim as u64
    }

    /// `rows` rows of one head of a matrix with `heads` heads, from row `first` of the sequence on.
    fn part<'a, T>(&self, values: &'a [T], heads: usize, head: usize, first: usize, rows: usize) -> Matrix<'a, T> {
        let width = heads * self.shape.head_dim;
        let start = (self.start + first) * width + head * self.shape.head_dim;
        Matrix::new(values.get(start..).unwrap_or_default(), rows, self.shape.head_dim, width)
    }

    /// The block's rows of a matrix shaped like the queries.
    fn queries<'a, T>(&self, values: &'a [T], block: &Block) -> Matrix<'a, T> {
        self.part(values, self.shape.heads, block.head, block.first, block.rows)
    }

    /// The block's rows of a matrix shaped like the keys.
    fn keys<'a, T>(&self, values: &'a [T], block: &Block) -> Matrix<'a, T> {
        self.part(values, self.shape.kv_heads, self.kv_head, block.first_key, block.keys)
    }

    /// Row `row` of the block in a matrix shaped like the queries.
    fn query_row<'a, T>(&self, values: &'a [T], block: &Block, row: usize) -> &'a [T] {
        let start = (self.start + block.first + row) * self.shape.heads + block.head;
        parallel::row(values, start, self.shape.head_dim)
    }

    /// `exp(score - maximum)` of the block, zero where the mask hides, into `scores`; calls `finish(row, scores, sum)`
    /// for every row. Under a soft cap `capped`, if it is as long as `scores`, gets the scores before their bias.
    fn exponentials<T: Element>(
        &self,
        block: &Block,
        q: &[T],
        k: &[T],
        bias: Option<Bias<'_, T>>,
        (scores, capped): (&mut [T], &mut [T]),
        mut finish: impl FnMut(usize, &mut [T], T),
    ) -> Result<()> {
        let scale = T::from_f64(self.shape.scale);
        let (queries, keys) = (self.queries(q, block), self.keys(k, block));
        gemm(scores, T::zero(), scale, queries, keys.t(), Threads::One)?;
        let cap = self.shape.soft_cap.map(T::from_f64);
        for (index, row) in scores.chunks_exact_mut(block.keys).enumerate() {
            let seen = self.shape.seen(block.first + index, self.length);
            let Some((row, after)) = row.split_at_mut_checked(seen.end - block.first_key) else { continue };
            let Some((before, row)) = row.split_at_mut_checked(seen.start - block.first_key) else { continue };
            before.fill(T::zero());
            after.fill(T::zero());
            if let Some(cap) = cap {
                vector::soft_cap(row, cap);
                if let Some(capped) = capped.chunks_exact_mut(block.keys).nth(index) {
                    capped.fill(T::zero());
                    if let Some(capped) = capped.get_mut(before.len()..before.len() + row.len()) {
                        capped.copy_from_slice(row);
                    }
                }
            }
            if let Some(bias) = bias {
                vector::add(row, bias.row(block.head, block.first + index, seen.start));
            }
            let maximum = vector::max(row);
            let sum = vector::exp_shifted(row, maximum);
            finish(index, row, sum);
        }
        Ok(())
    }
}

/// Writes the task's columns of the result, from queries, keys and values.
pub(super) fn forward<T: Element>(
    task: &Task,
    scratch: &mut Scratch<T>,
    [q, k, v]: [&[T]; 3],
    bias: Option<Bias<'_, T>>,
    out: &Columns<'_, T>,
) -> Result<()> {
    let width = task.shape.head_dim;
    for block in task.blocks() {
        let scores = reuse(&mut scratch.scores, block.rows * block.keys);
        let mut inverses = [T::zero(); BLOCK];
        task.exponentials(&block, q, k, bias, (&mut *scores, &mut []), |row, _, sum| {
            if let Some(inverse) = inverses.get_mut(row) {
                *inverse = T::one() / sum;
            }
        })?;
        let rows = reuse(&mut scratch.rows, block.rows * width);
        let probabilities = Matrix::new(scores, block.rows, block.keys, block.keys);
        gemm(rows, T::zero(), T::one(), probabilities, task.keys(v, &block), Threads::One)?;
        for ((index, row), &inverse) in rows.chunks_exact(width).enumerate().zip(&inverses) {
            // SAFETY: these are the columns of a query head of this task's own key head, in rows of its own
            // sequence; no other task has both.
            unsafe { out.write(task.start + block.first + index, block.head * width, row, inverse) }?;
        }
    }
    Ok(())
}

/// Writes the task's columns of the gradients that are wanted, of queries, keys and values, from queries, keys,
/// values, the result and its gradient.
///
/// With probabilities P and the result's gradient G: dV = Pᵀ G, dS = P ∘ (G Vᵀ - rowsum(G ∘ out)) · scale, dQ = dS K,
/// dK = dSᵀ Q; under a soft cap dS is multiplied by that cap's slope.
pub(super) fn backward<T: Element>(
    task: &Task,
    scratch: &mut Scratch<T>,
    [q, k, v, out, gradient]: [&[T]; 5],
    bias: Option<Bias<'_, T>>,
    [dq, dk, dv]: &[Option<Columns<'_, T>>; 3],
) -> Result<()> {
    let width = task.shape.head_dim;
    let scale = T::from_f64(task.shape.scale);
    let (zero, one) = (T::zero(), T::one());
    let key_gradient = reuse(&mut scratch.keys, task.length * width);
    key_gradient.fill(zero);
    let value_gradient = reuse(&mut scratch.values, task.length * width);
    value_gradient.fill(zero);
    for block in task.blocks() {
        let scores = reuse(&mut scratch.scores, block.rows * block.keys);
        let capped = match task.shape.soft_cap {
            Some(_) => reuse(&mut scratch.capped, block.rows * block.keys),
            None => &mut [],
        };
        let both = (&mut *scores, &mut *capped);
        task.exponentials(&block, q, k, bias, both, |_, row, sum| vector::scale(row, one / sum))?;
        let probabilities = Matrix::new(&*scores, block.rows, block.keys, block.keys);
        let block_gradient = task.queries(gradient, &block);
        let met = block.first_key * width..(block.first_key + block.keys) * width;
        if dv.is_some() {
            let sums = value_gradient.get_mut(met.clone()).unwrap_or_default();
            gemm(sums, one, one, probabilities.t(), block_gradient, Threads::One)?;
        }
        if dq.is_none() && dk.is_none() {
            continue;
        }
        let score_gradients = reuse(&mut scratch.score_gradients, block.rows * block.keys);
        gemm(score_gradients, zero, one, block_gradient, task.keys(v, &block).t(), Threads::One)?;
        let pairs = score_gradients.chunks_exact_mut(block.keys).zip(scores.chunks_exact(block.keys));
        for (index, (gradients, probabilities)) in pairs.enumerate() {
            let (gradient, out) = (task.query_row(gradient, &block, index), task.query_row(out, &block, index));
            vector::softmax_backward(probabilities, gradients, vector::dot(gradient, out), scale);
        }
        if let Some(cap) = task.shape.soft_cap {
            vector::soft_cap_backward(capped, T::from_f64(cap), score_gradients);
        }
        let score_gradients = Matrix::new(&*score_gradients, block.rows, block.keys, block.keys);
        if dk.is_some() {
            let sums = key_gradient.get_mut(met).unwrap_or_default();
            gemm(sums, one, one, score_gradients.t(), task.queries(q, &block), Threads::One)?;
        }
        if let Some(dq) = dq {
            let rows = reuse(&mut scratch.rows, block.rows * width);
            gemm(rows, zero, one, score_gradients, task.keys(k, &block), Threads::One)?;
            for (index, row) in rows.chunks_exact(width).enumerate() {
                // SAFETY: as in `forward`, a query head of this task's own key head in rows of its own sequence.
                unsafe { dq.write(task.start + block.first + index, block.head * width, row, one) }?;
            }
        }
    }
    for (columns, sums) in [(dk, &*key_gradient), (dv, &*value_gradient)] {
        let Some(columns) = columns else { continue };
        for (index, row) in sums.chunks_exact(width).enumerate() {
            // SAFETY: the columns of this task's own key head in rows of its own sequence.
            unsafe { columns.write(task.start + index, task.kv_head * width, row, one) }?;
        }
    }
    Ok(())
}
