//! Softmax attention over packed sequences with grouped heads; nothing of size n² is kept.
//!
//! Queries are taken in blocks. A block meets the keys of its sequence, under a causal mask only those up to its
//! last query, so the scores in memory are at most `BLOCK` times the sequence's length for each thread. The backward
//! pass computes the probabilities again (Dao et al., 2022, section 3.1, without the tiling over keys).

use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::attention_task::{Bias, Columns, Scratch, Task, backward, forward};
use super::element::{Element, Locked, by_dtype, matrix_dims, same_dtype, tensor, values};
use super::parallel;
use super::tape::{self, Reads};
use crate::profile::AttentionTasks;

const NAME: &str = "attention";

/// The heads of an attention and how their scores are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads / kv_heads` consecutive query heads share one.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether a token sees only itself and what stands before it in its sequence.
    pub causal: bool,
    /// What scores are multiplied by before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// A token sees those that are at most so far away; `None`: all.
    pub reach: Option<usize>,
    /// Scaled scores are bent to `cap · tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f64>,
}

impl AttentionShape {
    /// The keys, counted in their sequence of `length` tokens, that the query at `position` sees.
    pub(crate) fn seen(&self, position: usize, length: usize) -> Range<usize> {
        let reach = self.reach.unwrap_or(length);
        let end = if self.causal { position + 1 } else { (position + reach + 1).min(length) };
        position.saturating_sub(reach)..end
    }
}

/// What is added to the scores of each head by the place of key and query (ALiBi, T5); it gets no gradient.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[heads, 2 · span - 1]`; a key at `j` and a query at `i` read column `j - i + span - 1`. By key alone
    /// `[heads, span]`, and they read column `j`.
    table: Tensor,
    span: usize,
    by_key: bool,
}

impl RelativeBias {
    /// Of a table `[heads, 2 · span - 1]`, for sequences of at most `span` tokens.
    ///
    /// # Errors
    /// If the table is no matrix with an odd number of columns.
    pub fn new(table: Tensor) -> Result<Self> {
        match matrix_dims(NAME, "bias", &table)? {
            (_, columns) if columns % 2 == 1 => {
                Ok(Self { table: table.detach().contiguous()?, span: columns / 2 + 1, by_key: false })
            }
            (_, columns) => bail!("attention: a bias of {columns} distances has no middle"),
        }
    }

    /// Of a table `[heads, span]` that the key's place alone decides, for sequences of at most `span` tokens.
    ///
    /// # Errors
    /// If the table is no matrix.
    pub fn by_key(table: Tensor) -> Result<Self> {
        let (_, span) = matrix_dims(NAME, "bias", &table)?;
        Ok(Self { table: table.detach().contiguous()?, span, by_key: true })
    }

    /// The longest sequence that it serves.
    #[must_use]
    pub fn span(&self) -> usize {
        self.span
    }

    /// The bias of every pair of `length` tokens, `[heads, length, length]`.
    pub(crate) fn pairs(&self, length: usize) -> Result<Tensor> {
        self.rows(0..length, length)
    }

    /// The bias of these queries with the first `keys` keys, `[heads, queries, keys]`.
    pub(super) fn rows(&self, queries: Range<usize>, keys: usize) -> Result<Tensor> {
        let column = |i: usize, j: usize| if self.by_key { j as u32 } else { (j + self.span - 1 - i) as u32 };
        let shape = ((), queries.len(), keys);
        let columns: Vec<u32> = queries.flat_map(|i| (0..keys).map(move |j| column(i, j))).collect();
        let columns = Tensor::new(columns, self.table.device())?;
        self.table.index_select(&columns, 1)?.reshape(shape)
    }

    /// Calls `run` with `bias` as slices, if there is one.
    pub(super) fn with_slices<T: Element, R>(
        bias: Option<&Self>,
        run: impl FnOnce(Option<Bias<'_, T>>) -> Result<R>,
    ) -> Result<R> {
        let Some(bias) = bias else { return run(None) };
        let locked = Locked::new(&bias.table);
        run(Some(Bias { table: locked.values()?, span: bias.span, by_key: bias.by_key }))
    }

    pub(super) fn fits(&self, dtype: DType, heads: usize, longest: usize) -> Result<()> {
        if self.table.dims().first() != Some(&heads) || self.span < longest {
            bail!("attention: a bias {:?} for {heads} heads and {longest} tokens", self.table.dims())
        }
        match super::wide(dtype) == self.table.dtype() {
            true => Ok(()),
            false => bail!("attention: bias is {:?} where q is {dtype:?}", self.table.dtype()),
        }
    }
}

/// `softmax(scale · q · kᵀ) · v` for every head of every sequence.
///
/// `q` is `[n, heads · head_dim]`, `k` and `v` are `[n, kv_heads · head_dim]`, and the result is shaped like `q`.
/// Sequence `s` holds the tokens `offsets[s]..offsets[s + 1]`; tokens of different sequences do not meet. `bias` is in
/// [`wide`](super::wide) types of `q`.
///
/// # Errors
/// If the shapes, element types or offsets do not fit, or the tensors are on different devices.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    bias: Option<&RelativeBias>,
    offsets: &Arc<[usize]>,
) -> Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 {
        bail!("attention: {heads} heads of {head_dim} elements cannot share {kv_heads} key heads")
    }
    let (n, _) = matrix_dims(NAME, "q", q)?;
    for (argument, tensor, heads) in [("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)] {
        let (rows, width) = matrix_dims(NAME, argument, tensor)?;
        if rows != n || Some(width) != heads.checked_mul(head_dim) {
            bail!("attention: {argument} is {:?}, not [{n}, {heads} · {head_dim}]", tensor.dims())
        }
        same_dtype(NAME, q, argument, tensor)?;
    }
    let ascending = offsets.windows(2).all(|pair| pair.first() <= pair.last());
    if offsets.first() != Some(&0) || offsets.last() != Some(&n) || !ascending {
        bail!("attention: offsets must ascend from 0 to the {n} tokens")
    }
    if let Some(cap) = shape.soft_cap.filter(|&cap| cap.is_nan() || cap <= 0.0) {
        bail!("attention: a soft cap of {cap}")
    }
    if let Some(bias) = bias {
        let longest = offsets.array_windows::<2>().map(|[start, end]| end - start).max().unwrap_or(0);
        bias.fits(q.dtype(), heads, longest)?;
    }
    let operation = Attention { shape, bias: bias.cloned(), offsets: Arc::clone(offsets) };
    let arguments = [&q.contiguous()?, &k.contiguous()?, &v.contiguous()?];
    tape::apply3(operation, arguments, Reads { arguments: [true; 3], out: true })
}

pub(super) struct Attention {
    pub(super) shape: AttentionShape,
    pub(super) bias: Option<RelativeBias>,
    pub(super) offsets: Arc<[usize]>,
}

impl Attention {
    /// One task for each key head of each sequence, in order.
    fn tasks(&self) -> Vec<Task> {
        let sequences = self.offsets.array_windows::<2>().filter(|[start, end]| start < end);
        let task =
            |&[start, end]: &[usize; 2], kv_head| Task { shape: self.shape, start, length: end - start, kv_head };
        sequences.flat_map(|pair| (0..self.shape.kv_heads).map(move |kv_head| task(pair, kv_head))).collect()
    }

    /// Runs every task once, on all threads if there is enough to do; tasks do not share what they write. Each makes
    /// `products` products of a block's scores with a head, or to them.
    fn for_each_task<T: Element>(
        &self,
        products: u64,
        run: impl Fn(&mut Scratch<T>, &Task) -> Result<()> + Sync + Send,
    ) -> Result<()> {
        let tasks = self.tasks();
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let work: usize = tasks.iter().map(|task| task.length * task.length).sum();
        let shared = parallel::worth_sharing(work / self.shape.kv_heads * heads * head_dim / 8);
        let counted = AttentionTasks::new();
        let run =
            |scratch: &mut _, task: &_| counted.task(|| products * Task::multiplications(task), || run(scratch, task));
        let result = if shared {
            tasks.par_iter().try_for_each_init(Scratch::default, run)
        } else {
            let mut scratch = Scratch::default();
            tasks.iter().try_for_each(|task| run(&mut scratch, task))
        };
        // Fewer tasks than threads leave some of them without work.
        counted.count(if shared { rayon::current_num_threads().min(tasks.len()) } else { 1 });
        result
    }

    /// Calls `run` with the bias as slices, if there is one.
    fn with_bias<T: Element, R>(&self, run: impl FnOnce(Option<Bias<'_, T>>) -> Result<R>) -> Result<R> {
        RelativeBias::with_slices(self.bias.as_ref(), run)
    }

    fn forward<T: Element>(&self, q: &[T], k: &[T], v: &[T]) -> Result<Vec<T>> {
        let mut out = Vec::with_capacity(q.len());
        let columns = Columns::new(&mut out, q.len(), self.shape.heads * self.shape.head_dim);
        self.with_bias(|bias| {
            self.for_each_task(2, |scratch, task| forward(task, scratch, [q, k, v], bias, &columns))
        })?;
        // SAFETY: every row belongs to a sequence and every query head to a key head, hence each element to a task, and
        // each task has written all of its elements or answered with an error.
        unsafe { out.set_len(q.len()) };
        Ok(out)
    }

    fn backward<T: Element>(
        &self,
        inputs: [&Tensor; 3],
        res: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [q, k, v] = inputs;
        let locked = inputs.map(Locked::new);
        let (locked_out, locked_gradient) = (Locked::new(res), Locked::new(gradient));
        let [qs, ks, vs] = &locked;
        let read = [qs.values::<T>()?, ks.values()?, vs.values()?, locked_out.values()?, locked_gradient.values()?];
        let mut gradients = inputs.map(|t| t.track_op().then(|| Vec::with_capacity(t.elem_count())));
        let [dq, dk, dv] = &mut gradients;
        let (width, kv_width) = (q.dim(1)?, k.dim(1)?);
        let columns = [
            dq.as_mut().map(|dq| Columns::new(dq, q.elem_count(), width)),
            dk.as_mut().map(|dk| Columns::new(dk, k.elem_count(), kv_width)),
            dv.as_mut().map(|dv| Columns::new(dv, v.elem_count(), kv_width)),
        ];
        let [dq, dk, dv] = columns.each_ref().map(|wanted| u64::from(wanted.is_some()));
        // The scores again; with a gradient of them, that gradient's own product.
        let products = 1 + dq.max(dk) + dq + dk + dv;
        self.with_bias(|bias| {
            self.for_each_task(products, |scratch, task| backward(task, scratch, read, bias, &columns))
        })?;
        let [dq, dk, dv] = gradients;
        let wrap = |values: Option<Vec<T>>, like: &Tensor| {
            let Some(mut values) = values else { return Ok(None) };
            // SAFETY: as in `forward`, for the queries; the keys and values of a sequence and a key head are one
            // task's, which has written all of their elements.
            unsafe { values.set_len(like.elem_count()) };
            tensor(values, like).map(Some)
        };
        Ok([wrap(dq, q)?, wrap(dk, k)?, wrap(dv, v)?])
    }
}

impl CustomOp3 for Attention {
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
            let out = self.forward::<T>(values(q, ql)?, values(k, kl)?, values(v, vl)?)?;
            Ok((T::to_cpu_storage_owned(out), ql.shape().clone()))
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
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize, causal: bool) -> AttentionShape {
        AttentionShape {
            heads,
            kv_heads,
            head_dim,
            causal,
            scale: 0.7 / (head_dim as f64).sqrt(),
            reach: None,
            soft_cap: None,
        }
    }

    fn inputs(n: usize, shape: AttentionShape) -> [Tensor; 3] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(heads, seed)| check::normal(&[n, heads * head_dim], seed))
    }

    fn naive(qkv: &[Tensor; 3], shape: AttentionShape, offsets: &[usize]) -> Vec<f64> {
        biased(qkv, shape, offsets, |_, _, _| 0.0)
    }

    /// `bias(head, query, key)`.
    fn biased(
        qkv: &[Tensor; 3],
        shape: AttentionShape,
        offsets: &[usize],
        bias: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let [q, k, v] = qkv.each_ref().map(|t| t.to_vec2::<f64>().unwrap());
        let d = shape.head_dim;
        let mut out = Vec::new();
        for pair in offsets.windows(2) {
            for (i, query) in q.iter().enumerate().take(pair[1]).skip(pair[0]) {
                for head in 0..shape.heads {
                    let kv = head / (shape.heads / shape.kv_heads);
                    let near = |j: usize| shape.reach.is_none_or(|reach| i.abs_diff(j) <= reach);
                    let keys: Vec<usize> =
                        (pair[0]..pair[1]).filter(|&j| near(j) && (!shape.causal || j <= i)).collect();
                    let score = |j: usize| {
                        let score = (0..d).map(|e| query[head * d + e] * k[j][kv * d + e]).sum::<f64>() * shape.scale;
                        shape.soft_cap.map_or(score, |cap| cap * (score / cap).tanh()) + bias(head, i, j)
                    };
                    let weights: Vec<f64> = keys.iter().map(|&j| score(j).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mean = |e: usize| keys.iter().zip(&weights).map(|(&j, w)| w * v[j][kv * d + e]).sum::<f64>();
                    out.extend((0..d).map(|e| mean(e) / total));
                }
            }
        }
        out
    }

    #[test]
    fn the_attention_and_its_gradients() {
        let cases: [(usize, usize, usize, &[usize]); 5] = [
            (1, 1, 1, &[0, 1]),
            (2, 2, 4, &[0, 5]),
            (4, 2, 3, &[0, 1, 8, 8, 12]),
            (3, 1, 2, &[0, 6, 7]),
            (1, 1, 2, &[0, 70]),
        ];
        for (heads, kv_heads, head_dim, offsets) in cases {
            for causal in [true, false] {
                let shape = shape(heads, kv_heads, head_dim, causal);
                let qkv = inputs(*offsets.last().unwrap(), shape);
                let offsets: Arc<[usize]> = offsets.into();
                let want = naive(&qkv, shape, &offsets);
                let [q, k, v] = &qkv;
                check::close(&attention(q, k, v, shape, None, &offsets).unwrap(), &want, 1e-12);
                let moved = attention(&check::strided(q), &check::offset(k), &check::strided(v), shape, None, &offsets)
                    .unwrap();
                check::close(&moved, &want, 1e-12);
                check::gradients(&[q, k, v], |t| attention(&t[0], &t[1], &t[2], shape, None, &offsets));
                check::f32_agrees(&[q, k, v], 1e-5, |t| attention(&t[0], &t[1], &t[2], shape, None, &offsets));
            }
        }
    }

    #[test]
    fn windows_soft_caps_and_biases() {
        let offsets: Arc<[usize]> = [0, 1, 8, 8, 90].into();
        let plain = |causal| shape(4, 2, 3, causal);
        let bent = [
            AttentionShape { reach: Some(3), ..plain(true) },
            AttentionShape { reach: Some(3), ..plain(false) },
            AttentionShape { reach: Some(70), soft_cap: Some(0.8), ..plain(true) },
            AttentionShape { soft_cap: Some(1.5), ..plain(false) },
            AttentionShape { reach: Some(0), ..plain(false) },
        ];
        let table = check::normal(&[4, 2 * 85 - 1], 9);
        let rows = table.to_vec2::<f64>().unwrap();
        let bias = |t: &Tensor| RelativeBias::new(table.to_dtype(crate::kernels::wide(t.dtype())).unwrap()).unwrap();
        for shape in bent {
            let qkv = inputs(90, shape);
            let [q, k, v] = &qkv;
            let want = naive(&qkv, shape, &offsets);
            check::close(&attention(q, k, v, shape, None, &offsets).unwrap(), &want, 1e-12);
            let want = biased(&qkv, shape, &offsets, |head, i, j| rows[head][j + 84 - i]);
            check::close(&attention(q, k, v, shape, Some(&bias(q)), &offsets).unwrap(), &want, 1e-12);
            let by_key = RelativeBias::by_key(table.narrow(1, 0, 85).unwrap()).unwrap();
            let start = |i: usize| *offsets.iter().rev().find(|&&offset| offset <= i).unwrap();
            let want = biased(&qkv, shape, &offsets, |head, i, j| rows[head][j - start(i)]);
            check::close(&attention(q, k, v, shape, Some(&by_key), &offsets).unwrap(), &want, 1e-12);
            let pairs = by_key.pairs(3).unwrap().to_vec3::<f64>().unwrap();
            assert!(pairs.iter().zip(&rows).all(|(pairs, row)| pairs.iter().all(|pair| *pair == row[..3])));
            let any = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], shape, Some(&bias(&t[0])), &offsets);
            check::gradients(&[q, k, v], any);
            check::f32_agrees(&[q, k, v], 2e-5, any);
            check::threads_agree(&[q, k, v], any);
        }
        let [q, k, v] = inputs(90, plain(true));
        let refused = |shape, table: Tensor| {
            let bias = RelativeBias::new(table)?;
            attention(&q, &k, &v, shape, Some(&bias), &offsets)
        };
        assert!(refused(plain(true), check::normal(&[4, 8], 1)).is_err());
        assert!(refused(plain(true), check::normal(&[3, 169], 1)).is_err());
        assert!(refused(plain(true), check::normal(&[4, 161], 1)).is_err());
        assert!(refused(AttentionShape { soft_cap: Some(0.0), ..plain(true) }, table.clone()).is_err());
    }

    #[test]
    fn long_sequences_of_several_blocks_agree_with_the_formula() {
        for causal in [true, false] {
            let shape = shape(4, 2, 16, causal);
            let offsets: Arc<[usize]> = [0, 130, 131, 195, 323].into();
            let qkv = inputs(323, shape);
            let [q, k, v] = &qkv;
            check::close(&attention(q, k, v, shape, None, &offsets).unwrap(), &naive(&qkv, shape, &offsets), 1e-12);
            check::f32_agrees(&[q, k, v], 2e-5, |t| attention(&t[0], &t[1], &t[2], shape, None, &offsets));
            check::threads_agree(&[q, k, v], |t| attention(&t[0], &t[1], &t[2], shape, None, &offsets));
        }
    }

    #[test]
    fn untracked_arguments_get_no_gradient() {
        let shape = shape(4, 2, 3, true);
        let offsets: Arc<[usize]> = [0, 3, 10].into();
        let [q, k, v] = inputs(10, shape);
        for which in 0..3 {
            check::untracked(&[&q, &k, &v], Untracked(which), |t| {
                attention(&t[0], &t[1], &t[2], shape, None, &offsets)
            });
        }
    }

    #[test]
    fn a_later_token_changes_no_earlier_output() {
        let shape = shape(4, 2, 16, true);
        let offsets: Arc<[usize]> = [0, 100].into();
        let inputs = inputs(100, shape).map(|t| t.to_dtype(DType::F32).unwrap());
        for changed in [1, 50, 64, 99] {
            let change = |t: &Tensor| {
                let last = (t.narrow(0, changed, 100 - changed).unwrap() * 5.0).unwrap();
                Tensor::cat(&[&t.narrow(0, 0, changed).unwrap(), &last], 0).unwrap()
            };
            let run = |[q, k, v]: &[Tensor; 3]| check::flat(&attention(q, k, v, shape, None, &offsets).unwrap());
            let (before, after) = (run(&inputs), run(&inputs.each_ref().map(change)));
            assert_eq!(before[..changed * 64], after[..changed * 64]);
            assert_ne!(before[changed * 64..], after[changed * 64..]);
        }
    }

    #[test]
    fn a_packed_batch_has_the_bits_of_each_sequence_alone() {
        for causal in [true, false] {
            let shape = shape(2, 1, 16, causal);
            let inputs = inputs(180, shape).map(|t| t.to_dtype(DType::F32).unwrap());
            let run = |[q, k, v]: &[Tensor; 3], offsets: &[usize]| {
                check::flat(&attention(q, k, v, shape, None, &offsets.into()).unwrap())
            };
            let whole = run(&inputs, &[0, 7, 8, 180]);
            for (start, length) in [(0, 7), (7, 1), (8, 172)] {
                let part = inputs.each_ref().map(|t| t.narrow(0, start, length).unwrap());
                assert_eq!(whole[start * 32..(start + length) * 32], run(&part, &[0, length]));
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let shape = AttentionShape { scale: 1e4, ..shape(1, 1, 4, true) };
        let offsets: Arc<[usize]> = [0, 9].into();
        let [q, k, v] = inputs(9, shape);
        check::f32_agrees(&[&q, &k, &v], 1e-4, |t| {
            attention(&t[0], &t[1], &t[2], AttentionShape { scale: 0.5, ..shape }, None, &offsets)
        });
        let [q, k, v] = [q, k, v].map(|t| t.to_dtype(DType::F32).unwrap());
        assert!(check::flat(&attention(&q, &k, &v, shape, None, &offsets).unwrap()).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn multiplications_are_those_of_the_blocks_that_are_not_skipped() {
        // 130 queries: two blocks of 64 and one of 2; two query heads share the key head.
        let task = |causal| Task { shape: shape(4, 2, 3, causal), start: 5, length: 130, kv_head: 1 };
        assert_eq!(task(false).multiplications(), 2 * 3 * 130 * 130);
        assert_eq!(task(true).multiplications(), 2 * 3 * (64 * 64 + 64 * 128 + 2 * 130));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shape = shape(4, 2, 3, true);
        let [q, k, v] = inputs(10, shape);
        let run = |shape, offsets: &[usize]| attention(&q, &k, &v, shape, None, &offsets.into()).is_err();
        assert!(!run(shape, &[0, 10]));
        for offsets in [&[0, 9][..], &[1, 10], &[0, 7, 5, 10], &[], &[0, 11]] {
            assert!(run(shape, offsets), "{offsets:?}");
        }
        assert!(run(AttentionShape { kv_heads: 3, ..shape }, &[0, 10]));
        assert!(run(AttentionShape { kv_heads: 0, ..shape }, &[0, 10]));
        assert!(run(AttentionShape { head_dim: 4, ..shape }, &[0, 10]));
    }
}
