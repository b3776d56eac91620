//! Disentangled attention (He et al., 2021): besides its key each query meets the key's distance, and each key the
//! query's, by rows of tables that all sequences share.
//!
//! `score(i, j) = scale · (q_i · k_j + q_i · K[place(i − j)] + k_j · Q[place(i − j)])` with the tables `K` and `Q`, either
//! of which may be missing. transformers reads `Q` by the distance the other way round, negated: since places are odd
//! around their middle, that is the same row.
//!
//! The scores in memory are those of a block of queries for each thread; the backward pass computes them again.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::disentangled_task::{Found, Task, backward, forward};
use super::element::{Element, Locked, by_dtype, matrix_dims, same_dtype, tensor, values};
use super::stack::stack;
use super::tape::{self, Reads};
use super::{AttentionShape, parallel, vector};
use crate::profile::AttentionTasks;

const NAME: &str = "disentangled_attention";

/// The heads of a disentangled attention, and the row of the tables that a pair of tokens reads.
#[derive(Clone, Debug, PartialEq)]
pub struct DisentangledShape {
    /// Heads of queries, keys and values alike.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied by before the softmax: `1 / sqrt(terms · head_dim)`.
    pub scale: f64,
    /// The row by the distance from key to query, `i − j`, from `−(span − 1)` to `span − 1`; sequences have at most
    /// `span` tokens.
    pub places: Arc<[u32]>,
}

impl DisentangledShape {
    /// The longest sequence that it serves.
    #[must_use]
    pub fn span(&self) -> usize {
        self.places.len().div_ceil(2)
    }

    /// The places of the distances in a sequence of `length` tokens, from `−(length − 1)` on.
    pub(crate) fn near(&self, length: usize) -> &[u32] {
        let span = self.span();
        let range = span.checked_sub(length).map(|first| first..(span + length).saturating_sub(1));
        range.and_then(|range| self.places.get(range)).unwrap_or_default()
    }

    /// The plain attention with the same heads, for layouts of batches.
    pub(super) fn plain(&self) -> AttentionShape {
        let &Self { heads, head_dim, scale, .. } = self;
        AttentionShape { heads, kv_heads: heads, head_dim, causal: false, scale, reach: None, soft_cap: None }
    }
}

/// Disentangled attention of every head of every sequence, both ways.
///
/// `q`, `k` and `v` are `[n, heads · head_dim]`, and so is the result. `q_pos` and `k_pos`, `[rows, heads · head_dim]`, are
/// a table of distances as the projections of queries and of keys leave it: keys meet `q_pos`, queries meet `k_pos`.
/// Sequence `s` holds the tokens `offsets[s]..offsets[s + 1]`.
///
/// # Errors
/// If the shapes, element types, places or offsets do not fit, or the tensors are on different devices.
pub fn disentangled_attention(
    [q, k, v]: [&Tensor; 3],
    [q_pos, k_pos]: [Option<&Tensor>; 2],
    shape: &DisentangledShape,
    offsets: &Arc<[usize]>,
) -> Result<Tensor> {
    let &DisentangledShape { heads, head_dim, .. } = shape;
    let (n, _) = matrix_dims(NAME, "q", q)?;
    for (argument, tensor) in [("q", Some(q)), ("k", Some(k)), ("v", Some(v)), ("q_pos", q_pos), ("k_pos", k_pos)] {
        let Some(tensor) = tensor else { continue };
        let (rows, width) = matrix_dims(NAME, argument, tensor)?;
        if heads.checked_mul(head_dim) != Some(width) || width == 0 {
            bail!("{NAME}: {argument} is {:?} where heads are {heads} · {head_dim}", tensor.dims())
        }
        match argument {
            "q_pos" | "k_pos" => {
                if let Some(place) = shape.places.iter().find(|&&place| place as usize >= rows) {
                    bail!("{NAME}: place {place} is outside the {rows} rows of {argument}")
                }
            }
            _ if rows != n => bail!("{NAME}: {argument} has {rows} rows where q has {n}"),
            _ => {}
        }
        same_dtype(NAME, q, argument, tensor)?;
    }
    let ascending = offsets.windows(2).all(|pair| pair.first() <= pair.last());
    if offsets.first() != Some(&0) || offsets.last() != Some(&n) || !ascending {
        bail!("{NAME}: offsets must ascend from 0 to the {n} tokens")
    }
    let longest = offsets.array_windows::<2>().map(|[start, end]| end - start).max().unwrap_or(0);
    if shape.places.len().is_multiple_of(2) || shape.span() < longest {
        bail!("{NAME}: {} places for sequences of {longest} tokens", shape.places.len())
    }
    let rows = [q_pos, k_pos].map(|table| table.map_or(0, |table| table.dims().first().copied().unwrap_or(0)));
    // candle's operations take three tensors at most. Queries meet `k_pos` as they meet keys, and keys `q_pos`.
    let behind = |x: &Tensor, table: Option<&Tensor>| table.map_or_else(|| x.contiguous(), |table| stack(x, table));
    let operation = Disentangled { shape: shape.clone(), rows, offsets: Arc::clone(offsets) };
    let arguments = [&behind(q, q_pos)?, &behind(k, k_pos)?, &v.contiguous()?];
    tape::apply3(operation, arguments, Reads { arguments: [true; 3], out: true })
}

/// Over queries with `q_pos` behind them, keys with `k_pos` behind them, and values.
pub(super) struct Disentangled {
    pub(super) shape: DisentangledShape,
    /// Rows of `q_pos` and `k_pos`; 0 where there is none.
    pub(super) rows: [usize; 2],
    pub(super) offsets: Arc<[usize]>,
}

impl Disentangled {
    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// `run` of every head of every sequence, in order, on all threads if there is enough to do; each makes `products`
    /// products of its scores with a head, or to them.
    fn each<R: Send>(&self, products: u64, run: impl Fn(&Task<'_>) -> Result<R> + Sync + Send) -> Result<Vec<R>> {
        let tokens = self.offsets.last().copied().unwrap_or(0);
        let of_pair = |&[start, end]: &[usize; 2]| {
            let task =
                move |head| Task { shape: &self.shape, rows: self.rows, tokens, start, length: end - start, head };
            (0..self.shape.heads).map(task)
        };
        let tasks: Vec<Task<'_>> = self.offsets.array_windows::<2>().flat_map(of_pair).collect();
        let work: usize = tasks.iter().map(|task| task.length * task.length).sum();
        let shared = parallel::worth_sharing(work * self.shape.head_dim / 8);
        let counted = AttentionTasks::new();
        let run = |task: &Task<'_>| counted.task(|| products * task.multiplications(), || run(task));
        let found = if shared { tasks.par_iter().map(run).collect() } else { tasks.iter().map(run).collect() };
        counted.count(if shared { rayon::current_num_threads().min(tasks.len()) } else { 1 });
        found
    }

    /// A matrix of as many rows as `tokens` and `table`, from what the tasks found: `[length, head_dim]` for their own
    /// tokens, and for the table a sum over the sequences, in their order whatever the number of threads.
    fn join<'a, T: Element>(
        &self,
        tokens: impl Fn(usize) -> &'a [T] + Sync,
        table: impl Fn(usize) -> (usize, &'a [T]) + Sync,
        rows: usize,
    ) -> Vec<T> {
        let (heads, dim) = (self.shape.heads, self.shape.head_dim);
        let n = self.offsets.last().copied().unwrap_or(0);
        parallel::rows(n + rows, self.width(), |row, out| {
            if let Some(place) = row.checked_sub(n) {
                for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                    out.fill(T::zero());
                    for sequence in 0..self.sequences() {
                        let (first, sums) = table(sequence * heads + head);
                        let own = place.checked_sub(first).map(|own| parallel::row(sums, own, dim));
                        vector::add(out, own.unwrap_or_default());
                    }
                }
                return;
            }
            let sequence = self.offsets.partition_point(|&offset| offset <= row).saturating_sub(1);
            let start = self.offsets.get(sequence).copied().unwrap_or(0);
            for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                let own = parallel::row(tokens(sequence * heads + head), row - start, dim);
                out.iter_mut().zip(own).for_each(|(out, &own)| *out = own);
            }
        })
    }

    fn forward<T: Element>(&self, inputs: [&[T]; 3]) -> Result<Vec<T>> {
        let found = self.each(2, |task| forward(task, inputs))?;
        let of = |task: usize| found.get(task).map(Vec::as_slice).unwrap_or_default();
        Ok(self.join(of, |_| (0, &[][..]), 0))
    }

    fn backward<T: Element>(
        &self,
        inputs: [&Tensor; 3],
        res: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let locked = inputs.map(Locked::new);
        let (locked_out, locked_gradient) = (Locked::new(res), Locked::new(gradient));
        let [q, k, v] = &locked;
        let read = [q.values::<T>()?, k.values()?, v.values()?, locked_out.values()?, locked_gradient.values()?];
        let wanted = inputs.map(Tensor::track_op);
        let found = self.each(5, |task| backward(task, read, wanted))?;
        let of = |wanted: bool, part: fn(&Found<T>) -> [&[T]; 2], rows: usize, like: &Tensor| {
            let parts = |task: usize| found.get(task).map_or((0, [&[][..]; 2]), |found| (found.first, part(found)));
            let table = |task: usize| {
                let (first, [_, table]) = parts(task);
                (first, table)
            };
            let join = || self.join(|task| parts(task).1[0], table, rows);
            wanted.then(|| tensor(join(), like)).transpose()
        };
        let ([q, k, v], [wants_q, wants_k, wants_v], [q_rows, k_rows]) = (inputs, wanted, self.rows);
        Ok([
            of(wants_q, |found| [&found.q, &found.q_pos], q_rows, q)?,
            of(wants_k, |found| [&found.k, &found.k_pos], k_rows, k)?,
            of(wants_v, |found| [&found.v, &[]], 0, v)?,
        ])
    }
}

impl CustomOp3 for Disentangled {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(q.dtype(), NAME, T => {
            let out = self.forward::<T>([values(q, ql)?, values(k, kl)?, values(v, vl)?])?;
            Ok((T::to_cpu_storage_owned(out), vl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        res: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let [dq, dk, dv] = by_dtype!(q.dtype(), NAME, T => self.backward::<T>([q, k, v], res, &gradient))?;
        Ok((dq, dk, dv))
    }
}

#[cfg(test)]
mod tests;
