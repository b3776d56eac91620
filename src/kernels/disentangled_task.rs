//! The part of a disentangled attention that one thread computes: one head of one sequence.

use candle_core::Result;

use super::disentangled::DisentangledShape;
use super::element::Element;
use super::gemm::{Matrix, Threads, gemm, product, scaled_product};
use super::{parallel, vector};

/// Queries of a block.
const BLOCK: usize = 64;

/// One head of one sequence.
pub(super) struct Task<'a> {
    pub(super) shape: &'a DisentangledShape,
    /// Rows of the tables behind the queries and behind the keys; 0 where there is none.
    pub(super) rows: [usize; 2],
    /// Tokens of the batch.
    pub(super) tokens: usize,
    /// The sequence's first token.
    pub(super) start: usize,
    /// The sequence's tokens.
    pub(super) length: usize,
    pub(super) head: usize,
}

/// Gradients of a task's own tokens, `[length, head_dim]`, and of the rows of the tables from `first` on.
#[derive(Default)]
pub(super) struct Found<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) first: usize,
    pub(super) q_pos: Vec<T>,
    pub(super) k_pos: Vec<T>,
}

/// The rows of the tables that a sequence reads.
struct Near {
    first: usize,
    count: usize,
    /// By the distance from key to query, counted from `first`.
    columns: Vec<usize>,
}

impl Near {
    /// The columns that the query at `position` reads, for keys from the first on.
    fn of_query(&self, position: usize, length: usize) -> impl Iterator<Item = usize> + '_ {
        self.columns.get(position..position + length).unwrap_or_default().iter().rev().copied()
    }
}

impl Task<'_> {
    /// Multiplications of one product between the scores and a head.
    pub(super) fn multiplications(&self) -> u64 {
        (self.length * self.length * self.shape.head_dim) as u64
    }

    fn near(&self) -> Near {
        let near = self.shape.near(self.length);
        let first = near.iter().min().copied().unwrap_or(0) as usize;
        let columns: Vec<usize> = near.iter().map(|&place| place as usize - first).collect();
        Near { first, count: columns.iter().max().map_or(0, |last| last + 1), columns }
    }

    /// `rows` rows of the head, from row `first` on.
    fn part<'b, T>(&self, values: &'b [T], first: usize, rows: usize) -> Matrix<'b, T> {
        let (dim, width) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim);
        Matrix::new(values.get(first * width + self.head * dim..).unwrap_or_default(), rows, dim, width)
    }

    /// The sequence's rows.
    fn own<'b, T>(&self, values: &'b [T]) -> Matrix<'b, T> {
        self.part(values, self.start, self.length)
    }

    /// The rows of a table, which stands behind the tokens.
    fn table<'b, T>(&self, values: &'b [T], near: &Near) -> Matrix<'b, T> {
        self.part(values, self.tokens + near.first, near.count)
    }

    /// What every key gives for each row of `q_pos`, scaled, `[length, count]`; `None` without such a table.
    fn of_keys<T: Element>(&self, q: &[T], k: &[T], near: &Near) -> Result<Option<Vec<T>>> {
        let scale = T::from_f64(self.shape.scale);
        let make = || scaled_product(scale, self.own(k), self.table(q, near).t(), Threads::One);
        (self.rows[0] > 0).then(make).transpose()
    }

    /// `exp(score − maximum)` of the queries `first..first + rows` with all keys, and the sum of every row.
    fn exponentials<T: Element>(
        &self,
        (first, rows): (usize, usize),
        [q, k]: [&[T]; 2],
        near: &Near,
        of_keys: Option<&[T]>,
    ) -> Result<(Vec<T>, Vec<T>)> {
        let scale = T::from_f64(self.shape.scale);
        let queries = self.part(q, self.start + first, rows);
        let mut scores = scaled_product(scale, queries, self.own(k).t(), Threads::One)?;
        let of_queries = match self.rows[1] > 0 {
            true => scaled_product(scale, queries, self.table(k, near).t(), Threads::One)?,
            false => Vec::new(),
        };
        let mut sums = Vec::with_capacity(rows);
        for (index, row) in scores.chunks_exact_mut(self.length).enumerate() {
            if self.rows[1] > 0 {
                let terms = parallel::row(&of_queries, index, near.count);
                for (score, column) in row.iter_mut().zip(near.of_query(first + index, self.length)) {
                    *score += terms.get(column).copied().unwrap_or_default();
                }
            }
            if let Some(of_keys) = of_keys {
                let terms = of_keys.chunks_exact(near.count);
                for ((score, terms), column) in row.iter_mut().zip(terms).zip(near.of_query(first + index, self.length))
                {
                    *score += terms.get(column).copied().unwrap_or_default();
                }
            }
            let maximum = vector::max(row);
            sums.push(vector::exp_shifted(row, maximum));
        }
        Ok((scores, sums))
    }

    /// First query and queries of every block.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let length = self.length;
        (0..length).step_by(BLOCK).map(move |first| (first, BLOCK.min(length - first)))
    }
}

/// The task's rows of the result, `[length, head_dim]`.
pub(super) fn forward<T: Element>(task: &Task<'_>, [q, k, v]: [&[T]; 3]) -> Result<Vec<T>> {
    let dim = task.shape.head_dim;
    let near = task.near();
    let of_keys = task.of_keys(q, k, &near)?;
    let mut out = Vec::with_capacity(task.length * dim);
    for block in task.blocks() {
        let (weights, sums) = task.exponentials(block, [q, k], &near, of_keys.as_deref())?;
        let weights = Matrix::new(&weights, block.1, task.length, task.length);
        let mut rows = product(weights, task.own(v), Threads::One)?;
        for (row, sum) in rows.chunks_exact_mut(dim).zip(sums) {
            vector::scale(row, T::one() / sum);
        }
        out.extend(rows);
    }
    Ok(out)
}

/// The task's gradients, from queries, keys, values, the result and its gradient, where queries, keys and values are
/// `wanted`.
///
/// With probabilities P and the result's gradient G: dV = Pᵀ G and dS = P ∘ (G Vᵀ − rowsum(G ∘ out)) · scale. Summed over
/// the pairs that read a row of a table, dS becomes C for queries and D for keys: dQ = dS K + C k_pos, dk_pos = Cᵀ Q,
/// dK = dSᵀ Q + D q_pos, dq_pos = Dᵀ K.
pub(super) fn backward<T: Element>(
    task: &Task<'_>,
    [q, k, v, out, gradient]: [&[T]; 5],
    [wants_q, wants_k, wants_v]: [bool; 3],
) -> Result<Found<T>> {
    let (dim, length) = (task.shape.head_dim, task.length);
    let (zero, one) = (T::zero(), T::one());
    let near = task.near();
    let of_keys = task.of_keys(q, k, &near)?;
    let zeros = |wanted: bool, rows: usize, width: usize| vec![zero; if wanted { rows * width } else { 0 }];
    let [meets_keys, meets_queries] = task.rows.map(|rows| rows > 0);
    let mut found = Found {
        q: Vec::with_capacity(if wants_q { length * dim } else { 0 }),
        k: zeros(wants_k, length, dim),
        v: zeros(wants_v, length, dim),
        first: near.first,
        q_pos: Vec::new(),
        k_pos: zeros(wants_k && meets_queries, near.count, dim),
    };
    let mut d_of_keys = zeros((wants_q || wants_k) && meets_keys, length, near.count);
    let scale = T::from_f64(task.shape.scale);
    for block in task.blocks() {
        let (first, rows) = block;
        let (mut probabilities, sums) = task.exponentials(block, [q, k], &near, of_keys.as_deref())?;
        for (row, sum) in probabilities.chunks_exact_mut(length).zip(sums) {
            vector::scale(row, one / sum);
        }
        let matrix = Matrix::new(&probabilities, rows, length, length);
        let block_gradient = task.part(gradient, task.start + first, rows);
        if wants_v {
            gemm(&mut found.v, one, one, matrix.t(), block_gradient, Threads::One)?;
        }
        if !wants_q && !wants_k {
            continue;
        }
        let mut d_scores = product(block_gradient, task.own(v).t(), Threads::One)?;
        let pairs = d_scores.chunks_exact_mut(length).zip(probabilities.chunks_exact(length));
        for (index, (row, probabilities)) in pairs.enumerate() {
            let at = (task.start + first + index) * task.shape.heads + task.head;
            let shift = vector::dot(parallel::row(gradient, at, dim), parallel::row(out, at, dim));
            vector::softmax_backward(probabilities, row, shift, scale);
        }
        let queries = task.part(q, task.start + first, rows);
        let matrix = Matrix::new(&d_scores, rows, length, length);
        if wants_k {
            gemm(&mut found.k, one, one, matrix.t(), queries, Threads::One)?;
        }
        let mut d_queries = if wants_q { product(matrix, task.own(k), Threads::One)? } else { Vec::new() };
        if meets_queries {
            let mut sums = vec![zero; rows * near.count];
            for (index, (sums, row)) in sums.chunks_exact_mut(near.count).zip(d_scores.chunks_exact(length)).enumerate()
            {
                for (&d_score, column) in row.iter().zip(near.of_query(first + index, length)) {
                    if let Some(sum) = sums.get_mut(column) {
                        *sum += d_score;
                    }
                }
            }
            let sums = Matrix::new(&sums, rows, near.count, near.count);
            if wants_q {
                gemm(&mut d_queries, one, one, sums, task.table(k, &near), Threads::One)?;
            }
            if wants_k {
                gemm(&mut found.k_pos, one, one, sums.t(), queries, Threads::One)?;
            }
        }
        found.q.extend(d_queries);
        if meets_keys {
            for (index, row) in d_scores.chunks_exact(length).enumerate() {
                let sums = d_of_keys.chunks_exact_mut(near.count);
                for ((&d_score, sums), column) in row.iter().zip(sums).zip(near.of_query(first + index, length)) {
                    if let Some(sum) = sums.get_mut(column) {
                        *sum += d_score;
                    }
                }
            }
        }
    }
    if meets_keys && length > 0 {
        let sums = Matrix::new(&d_of_keys, length, near.count, near.count);
        if wants_k {
            gemm(&mut found.k, one, one, sums, task.table(q, &near), Threads::One)?;
        }
        if wants_q {
            found.q_pos = product(sums.t(), task.own(k), Threads::One)?;
        }
    }
    Ok(found)
}
