//! The language model's head and its cross-entropy in one, without a stored table of logits or probabilities.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, matrix_dims, tensor, values};
use super::gemm::{Matrix, Threads, gemm};
use super::mixed::{self, widened};
use super::tape::{self, Reads};
use super::{composed, parallel, vector};

const NAME: &str = "linear_cross_entropy";
/// Logits in memory at a time, unless [`CHUNK_ROWS`] rows have more.
const CHUNK_LOGITS: usize = 1 << 20;
/// Rows of a chunk at least, since each chunk reads the whole weight.
const CHUNK_ROWS: usize = 64;

/// What makes logits of hidden rows: `cap(hidden · weightᵀ + bias)` with `cap(x) = soft_cap · tanh(x / soft_cap)`.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights<'a> {
    /// `[vocabulary, d]`.
    pub weight: &'a Tensor,
    /// `[vocabulary]`, if there is one.
    pub bias: Option<&'a Tensor>,
    /// Logits stay below it, if there is one (Gemma 2).
    pub soft_cap: Option<f64>,
}

impl<'a> From<&'a Tensor> for HeadWeights<'a> {
    fn from(weight: &'a Tensor) -> Self {
        Self { weight, bias: None, soft_cap: None }
    }
}

impl HeadWeights<'_> {
    fn bend(&self) -> Result<Bend> {
        let bias = self.bias.map(|bias| bias.detach().contiguous()).transpose()?;
        Ok(Bend { bias, soft_cap: self.soft_cap })
    }
}

/// What happens to the products of a head.
#[derive(Clone)]
pub(super) struct Bend {
    pub(super) bias: Option<Tensor>,
    pub(super) soft_cap: Option<f64>,
}

/// `Σ token_weights[i] · nll[i]`, a scalar, with `nll[i] = logsumexp(logits[i]) - logits[i][targets[i]]` and the logits
/// that `head` makes of `hidden`.
///
/// `hidden` is `[n, d]`. Rows of weight zero are not computed at all. The sum is taken in `f64`; the result has the
/// [`wide`](super::wide) type of `hidden`.
///
/// # Errors
/// If the shapes, element types or lengths do not fit, a target is outside the vocabulary, the tensors are not on
/// the same device, or the head has a bias that wants a gradient: that needs a recorded pass.
pub fn linear_cross_entropy<'a>(
    hidden: &Tensor,
    head: impl Into<HeadWeights<'a>>,
    targets: &[u32],
    token_weights: &[f32],
) -> Result<Tensor> {
    let head = head.into();
    if head.bias.is_some_and(Tensor::track_op) {
        bail!("linear_cross_entropy: the gradient of a head's bias is computed by a recorded pass alone")
    }
    let rows = rows(hidden, &head, targets, token_weights)?;
    let arguments = [&hidden.contiguous()?, &head.weight.contiguous()?];
    tape::apply2(CrossEntropy { rows, bend: head.bend()? }, arguments, Reads::arguments([true; 2]))
}

/// [`linear_cross_entropy`] and the gradients of `factor` times it with respect to `hidden`, the head's weight and its
/// bias, where those are tracked; the logits are made once for all.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub(crate) fn cross_entropy_gradients<'a>(
    hidden: &Tensor,
    head: impl Into<HeadWeights<'a>>,
    targets: &[u32],
    token_weights: &[f32],
    factor: f64,
) -> Result<(f64, [Option<Tensor>; 3])> {
    let head = head.into();
    let (weight, bend) = (head.weight, head.bend()?);
    let rows = rows(hidden, &head, targets, token_weights)?;
    let wanted = [hidden.track_op(), weight.track_op(), head.bias.is_some_and(Tensor::track_op)];
    let (h, w) = (hidden.contiguous()?, weight.contiguous()?);
    if !composed::is_fused(hidden) {
        return composed::cross_entropy_gradients(&h.detach(), &w.detach(), &bend, &rows, factor, wanted);
    }
    let locked = (Locked::new(&h), Locked::new(&w));
    by_dtype!(hidden.dtype(), NAME, T => {
        let read = locked.1.widened::<T>()?;
        let bias = bend.bias::<T>()?;
        let made = Head::<T>::new(locked.0.values()?, &read, w.dims2()?, (&bias, bend.soft_cap));
        // As a tensor of one factor would hold it.
        let factor = T::from_f64(factor).to_f64();
        let (loss, [d_hidden, d_weight, d_bias]) = made.gradients(&rows, factor, wanted)?;
        let wrap = |values: Option<Vec<T>>, like| values.map(|values| tensor(values, like)).transpose();
        let d_weight = mixed::in_type_of(wrap(d_weight, weight)?, weight)?;
        let d_bias = match head.bias {
            Some(bias) => mixed::in_type_of(wrap(d_bias, bias)?, bias)?,
            None => None,
        };
        Ok((T::from_f64(loss).to_f64(), [wrap(d_hidden, hidden)?, d_weight, d_bias]))
    })
}

impl Bend {
    /// The bias in the type of the states; empty where there is none.
    fn bias<T: Element>(&self) -> Result<Vec<T>> {
        match &self.bias {
            Some(bias) => Ok(Locked::new(bias).widened::<T>()?.into_owned()),
            None => Ok(Vec::new()),
        }
    }
}

/// The rows that count, or an error unless the arguments fit.
fn rows(hidden: &Tensor, head: &HeadWeights<'_>, targets: &[u32], token_weights: &[f32]) -> Result<Vec<Row>> {
    fit(hidden, head, targets)?;
    if token_weights.len() != targets.len() {
        bail!("linear_cross_entropy: {} token weights for {} targets", token_weights.len(), targets.len())
    }
    let pairs = targets.iter().zip(token_weights).enumerate();
    let active = pairs.filter(|(_, (_, weight))| **weight != 0.0);
    Ok(active.map(|(row, (&target, &weight))| Row { row, target: target as usize, weight }).collect())
}

/// The negative log-likelihood of every target in nats, without gradients; arguments as in [`linear_cross_entropy`].
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn token_losses<'a>(hidden: &Tensor, head: impl Into<HeadWeights<'a>>, targets: &[u32]) -> Result<Vec<f64>> {
    token_losses_and_hits(hidden, head, targets).map(|(losses, _)| losses)
}

/// [`token_losses`] and whether each target has the largest logit; of equal logits the lowest id counts.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn token_losses_and_hits<'a>(
    hidden: &Tensor,
    head: impl Into<HeadWeights<'a>>,
    targets: &[u32],
) -> Result<(Vec<f64>, Vec<bool>)> {
    let head = head.into();
    fit(hidden, &head, targets)?;
    let (hidden, weight, bend) = (hidden.contiguous()?, head.weight.contiguous()?, head.bend()?);
    let row = |(row, &target): (usize, &u32)| Row { row, target: target as usize, weight: 1.0 };
    let rows: Vec<Row> = targets.iter().enumerate().map(row).collect();
    if !composed::is_fused(&hidden) {
        return Ok(composed::losses_and_hits(&hidden.detach(), &weight.detach(), &bend, &rows)?.into_iter().unzip());
    }
    let locked = (Locked::new(&hidden), Locked::new(&weight));
    let scores = by_dtype!(hidden.dtype(), NAME, T => {
        let read = locked.1.widened::<T>()?;
        let bias = bend.bias::<T>()?;
        Head::<T>::new(locked.0.values()?, &read, weight.dims2()?, (&bias, bend.soft_cap)).score(&rows)?
    });
    Ok(scores.into_iter().map(|score| (score.loss, score.hit)).unzip())
}

/// An error unless the arguments fit.
fn fit(hidden: &Tensor, head: &HeadWeights<'_>, targets: &[u32]) -> Result<()> {
    let weight = head.weight;
    let (n, width) = matrix_dims(NAME, "hidden", hidden)?;
    let (vocabulary, columns) = matrix_dims(NAME, "weight", weight)?;
    if width != columns {
        bail!("linear_cross_entropy: hidden {:?} does not fit weight {:?}", hidden.dims(), weight.dims())
    }
    mixed::float(NAME, "weight", weight)?;
    if let Some(bias) = head.bias {
        if bias.dims() != [vocabulary] {
            bail!("linear_cross_entropy: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims())
        }
        mixed::float(NAME, "bias", bias)?;
    }
    if let Some(cap) = head.soft_cap.filter(|&cap| cap.is_nan() || cap <= 0.0) {
        bail!("linear_cross_entropy: a soft cap of {cap}")
    }
    if targets.len() != n {
        bail!("linear_cross_entropy: {} targets for {n} rows", targets.len())
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        bail!("linear_cross_entropy: target {target} is outside the vocabulary of {vocabulary}")
    }
    Ok(())
}

/// A row that counts.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) row: usize,
    pub(super) target: usize,
    pub(super) weight: f32,
}

#[derive(Clone, Copy, Default)]
struct Score {
    loss: f64,
    hit: bool,
}

/// The arguments as slices.
struct Head<'a, T> {
    hidden: &'a [T],
    weight: &'a [T],
    vocabulary: usize,
    width: usize,
    /// Empty, or one for each token of the vocabulary.
    bias: &'a [T],
    soft_cap: Option<T>,
}

impl<'a, T: Element> Head<'a, T> {
    fn new(
        hidden: &'a [T],
        weight: &'a [T],
        (vocabulary, width): (usize, usize),
        (bias, soft_cap): (&'a [T], Option<f64>),
    ) -> Self {
        Self { hidden, weight, vocabulary, width, bias, soft_cap: soft_cap.map(T::from_f64) }
    }

    /// Makes logits of a row of products.
    fn bend(&self, logits: &mut [T]) {
        if !self.bias.is_empty() {
            vector::add(logits, self.bias);
        }
        if let Some(cap) = self.soft_cap {
            vector::soft_cap(logits, cap);
        }
    }

    fn weight(&self) -> Matrix<'a, T> {
        Matrix::new(self.weight, self.vocabulary, self.width, self.width)
    }

    /// Calls `visit(rows, hidden rows, logits)` for chunk after chunk of `rows`.
    fn for_each_chunk(
        &self,
        rows: &[Row],
        mut visit: impl FnMut(&[Row], Matrix<'_, T>, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let size = (CHUNK_LOGITS / self.vocabulary.max(1)).max(CHUNK_ROWS).min(rows.len().max(1));
        let mut logits = vec![T::zero(); size * self.vocabulary];
        let mut gathered = Vec::new();
        for rows in rows.chunks(size) {
            let first = rows.first().map_or(0, |row| row.row);
            let consecutive = rows.last().is_some_and(|row| row.row - first + 1 == rows.len());
            let hidden = if consecutive {
                parallel::from(self.hidden, first * self.width)
            } else {
                gathered.clear();
                for row in rows {
                    gathered.extend_from_slice(parallel::row(self.hidden, row.row, self.width));
                }
                &gathered
            };
            let hidden = Matrix::new(hidden, rows.len(), self.width, self.width);
            let logits = logits.get_mut(..rows.len() * self.vocabulary).unwrap_or_default();
            gemm(logits, T::zero(), T::one(), hidden, self.weight().t(), Threads::All)?;
            visit(rows, hidden, logits)?;
        }
        Ok(())
    }

    /// The loss of every row and whether it is a hit.
    fn score(&self, rows: &[Row]) -> Result<Vec<Score>> {
        use rayon::prelude::*;
        let mut scores = Vec::with_capacity(rows.len());
        self.for_each_chunk(rows, |rows, _, logits| {
            let score = |(row, logits): (&Row, &mut [T])| {
                self.bend(logits);
                let target = logits.get(row.target).copied().unwrap_or_default();
                let (before, after) = logits.split_at(row.target.min(logits.len()));
                let maximum = vector::max(logits);
                let earliest = vector::max(before) < target || before.is_empty();
                let hit = earliest && vector::max(after) <= target && !target.to_f64().is_nan();
                let sum = vector::exp_shifted(logits, maximum);
                Score { loss: sum.to_f64().ln() + (maximum.to_f64() - target.to_f64()), hit }
            };
            if parallel::worth_sharing(logits.len()) {
                scores.par_extend(rows.par_iter().zip(logits.par_chunks_exact_mut(self.vocabulary)).map(score));
            } else {
                scores.extend(rows.iter().zip(logits.chunks_exact_mut(self.vocabulary)).map(score));
            }
            Ok(())
        })?;
        Ok(scores)
    }

    /// The gradients that are wanted of the hidden rows, the weight and the bias, for a loss of gradient `factor`.
    /// Returns the loss before the factor too: it costs nothing beside them.
    fn gradients(&self, rows: &[Row], factor: f64, wanted: [bool; 3]) -> Result<(f64, [Option<Vec<T>>; 3])> {
        use rayon::prelude::*;
        let lengths = [self.hidden.len(), self.weight.len(), self.vocabulary];
        let mut lengths = lengths.into_iter().zip(wanted);
        let mut zeros = || lengths.next().filter(|(_, wanted)| *wanted).map(|(length, _)| vec![T::zero(); length]);
        let (mut d_hidden, mut d_weight, mut d_bias) = (zeros(), zeros(), zeros());
        let mut scratch = Vec::new();
        let mut losses = Vec::with_capacity(rows.len());
        self.for_each_chunk(rows, |rows, hidden, logits| {
            let differentiate = |(row, logits): (&Row, &mut [T])| {
                self.bend(logits);
                let capped = self.soft_cap.map(|cap| (cap, logits.to_vec()));
                let target = logits.get(row.target).copied().unwrap_or_default();
                let maximum = vector::max(logits);
                let sum = vector::exp_shifted(logits, maximum);
                let weight = T::from_f64(f64::from(row.weight) * factor);
                vector::scale(logits, weight / sum);
                if let Some(target) = logits.get_mut(row.target) {
                    *target -= weight;
                }
                if let Some((cap, capped)) = capped {
                    vector::soft_cap_backward(&capped, cap, logits);
                }
                (sum.to_f64().ln() + (maximum.to_f64() - target.to_f64())) * f64::from(row.weight)
            };
            if parallel::worth_sharing(logits.len()) {
                losses.par_extend(rows.par_iter().zip(logits.par_chunks_exact_mut(self.vocabulary)).map(differentiate));
            } else {
                losses.extend(rows.iter().zip(logits.chunks_exact_mut(self.vocabulary)).map(differentiate));
            }
            if let Some(d_bias) = &mut d_bias {
                let logits = &*logits;
                parallel::sum_columns(d_bias, rows.len(), |index, first, sums| {
                    vector::add(sums, parallel::from(logits, index * self.vocabulary + first));
                });
            }
            let d_logits = Matrix::new(&*logits, rows.len(), self.vocabulary, self.vocabulary);
            if let Some(d_hidden) = &mut d_hidden {
                scratch.resize(rows.len() * self.width, T::zero());
                gemm(&mut scratch, T::zero(), T::one(), d_logits, self.weight(), Threads::All)?;
                for (row, values) in rows.iter().zip(scratch.chunks_exact(self.width.max(1))) {
                    let start = row.row * self.width;
                    if let Some(out) = d_hidden.get_mut(start..start + self.width) {
                        out.copy_from_slice(values);
                    }
                }
            }
            if let Some(d_weight) = &mut d_weight {
                gemm(d_weight, T::one(), T::one(), d_logits.t(), hidden, Threads::All)?;
            }
            Ok(())
        })?;
        Ok((losses.iter().sum(), [d_hidden, d_weight, d_bias]))
    }
}

pub(super) struct CrossEntropy {
    /// In ascending order.
    pub(super) rows: Vec<Row>,
    pub(super) bend: Bend,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, h: &CpuStorage, hl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(h.dtype(), NAME, T => {
            let read = widened::<T>(w, wl)?;
            let bias = self.bend.bias::<T>()?;
            let head = Head::<T>::new(values(h, hl)?, &read, wl.shape().dims2()?, (&bias, self.bend.soft_cap));
            let scores = head.score(&self.rows)?;
            let sum: f64 = scores.iter().zip(&self.rows).map(|(score, row)| score.loss * f64::from(row.weight)).sum();
            Ok((T::to_cpu_storage_owned(vec![T::from_f64(sum)]), Shape::from(())))
        })
    }

    fn bwd(&self, h: &Tensor, w: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = [h.track_op(), w.track_op(), false];
        let locked = (Locked::new(h), Locked::new(w), Locked::new(gradient));
        by_dtype!(h.dtype(), NAME, T => {
            let factor = locked.2.values::<T>()?.first().copied().unwrap_or_default().to_f64();
            let read = locked.1.widened::<T>()?;
            let bias = self.bend.bias::<T>()?;
            let head = Head::<T>::new(locked.0.values()?, &read, w.dims2()?, (&bias, self.bend.soft_cap));
            let (_, [d_hidden, d_weight, _]) = head.gradients(&self.rows, factor, wanted)?;
            let wrap = |values: Option<Vec<T>>, like| values.map(|values| tensor(values, like)).transpose();
            Ok((wrap(d_hidden, h)?, mixed::in_type_of(wrap(d_weight, w)?, w)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{self, Untracked};
    use super::*;
    use crate::kernels::instead_of_fused;
    use candle_core::{DType, Device, Var};

    #[test]
    fn a_head_of_another_type_is_read_in_the_type_of_the_states() {
        let (h, w, targets, weights) = case(8, 3, 5);
        for (compute, stored) in [(DType::F32, DType::BF16), (DType::F64, DType::F32), (DType::BF16, DType::F32)] {
            let h = Var::from_tensor(&h.to_dtype(compute).unwrap()).unwrap();
            let w = Var::from_tensor(&w.to_dtype(stored).unwrap()).unwrap();
            let read = Var::from_tensor(&w.to_dtype(compute).unwrap().detach()).unwrap();
            let gradients = |w: &Tensor| cross_entropy_gradients(&h, w, &targets, &weights, 0.5).unwrap();
            let ((loss, [dh, dw, _]), (want, [dh_of_read, dw_of_read, _])) = (gradients(&w), gradients(&read));
            assert_eq!(loss, want);
            let (dw, dw_of_read) = (dw.unwrap(), dw_of_read.unwrap());
            assert_eq!((dw.dtype(), check::flat(&dh.unwrap())), (stored, check::flat(&dh_of_read.unwrap())));
            // Chunks are summed wide, so that a gradient of a wider type may have more digits.
            check::close(&dw.to_dtype(compute).unwrap(), &check::flat(&dw_of_read.to_dtype(stored).unwrap()), 4e-3);
            let losses = |w: &Tensor| token_losses_and_hits(&h, w, &targets).unwrap();
            assert_eq!(losses(&w), losses(&read));
        }
    }

    #[test]
    fn gradients_with_the_loss_are_those_of_the_loss() {
        let (h, w, targets, weights) = case(8, 3, 5);
        let (h, w) = (Var::from_tensor(&h).unwrap(), Var::from_tensor(&w).unwrap());
        let gradients = || cross_entropy_gradients(&h, w.as_tensor(), &targets, &weights, 0.5).unwrap();
        let ((loss, fused), (composed_loss, composed)) = (gradients(), instead_of_fused(gradients));
        assert!((loss - composed_loss).abs() < 1e-12);
        assert!(fused[2].is_none() && composed[2].is_none());
        for (fused, composed) in fused.iter().zip(&composed).take(2) {
            check::close(composed.as_ref().unwrap(), &check::flat(fused.as_ref().unwrap()), 1e-12);
        }
    }

    fn naive(hidden: &Tensor, weight: &Tensor, targets: &[u32]) -> Vec<f64> {
        let logits = hidden.matmul(&weight.t().unwrap()).unwrap().to_vec2::<f64>().unwrap();
        let loss = |row: &Vec<f64>, t: u32| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[t as usize];
        logits.iter().zip(targets).map(|(row, &t)| loss(row, t)).collect()
    }

    fn case(n: usize, d: usize, vocabulary: usize) -> (Tensor, Tensor, Vec<u32>, Vec<f32>) {
        let targets = (0..n).map(|i| (i * 7 % vocabulary) as u32).collect();
        let weights = (0..n).map(|i| [0.5, 0.0, 2.0][i % 3]).collect();
        (check::normal(&[n, d], 1), check::normal(&[vocabulary, d], 2), targets, weights)
    }

    #[test]
    fn the_loss_and_its_gradients() {
        for (n, d, vocabulary) in [(1, 1, 2), (1, 4, 9), (8, 3, 5), (5, 6, 33)] {
            let (h, w, targets, weights) = case(n, d, vocabulary);
            let losses = naive(&h, &w, &targets);
            let want: f64 = losses.iter().zip(&weights).map(|(l, w)| l * f64::from(*w)).sum();
            let f = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, &weights);
            check::close(&f(&[h.clone(), w.clone()]).unwrap(), &[want], 1e-12);
            check::close(&f(&[check::strided(&h), check::offset(&w)]).unwrap(), &[want], 1e-12);
            check::gradients(&[&h, &w], f);
            check::f32_agrees(&[&h, &w], 1e-5, f);
            check::untracked(&[&h, &w], Untracked(0), f);
            check::untracked(&[&h, &w], Untracked(1), f);
            for found in [token_losses(&h, &w, &targets), instead_of_fused(|| token_losses(&h, &w, &targets))] {
                for (got, want) in found.unwrap().iter().zip(&losses) {
                    assert!((got - want).abs() < 1e-12 * want.max(1.0));
                }
            }
        }
    }

    #[test]
    fn a_bias_and_a_soft_cap_and_their_gradients() {
        let (n, d, vocabulary) = (7, 4, 9);
        let (h, w, targets, weights) = case(n, d, vocabulary);
        let bias = check::normal(&[vocabulary], 3);
        for soft_cap in [None, Some(1.5)] {
            let loss_of = |h: &Tensor, w: &Tensor, bias: &Tensor| {
                let logits = h.matmul(&w.t().unwrap()).unwrap().broadcast_add(bias).unwrap().to_vec2::<f64>().unwrap();
                let bent = |x: &f64| soft_cap.map_or(*x, |cap: f64| cap * (x / cap).tanh());
                let loss = |row: &Vec<f64>, t: u32| {
                    row.iter().map(|x| bent(x).exp()).sum::<f64>().ln() - bent(&row[t as usize])
                };
                logits.iter().zip(&targets).map(|(row, &t)| loss(row, t)).collect::<Vec<f64>>()
            };
            let losses = loss_of(&h, &w, &bias);
            let sum = |losses: &[f64]| losses.iter().zip(&weights).map(|(l, w)| l * f64::from(*w)).sum::<f64>();
            let head = HeadWeights { weight: &w, bias: Some(&bias), soft_cap };
            let f = |t: &[Tensor]| {
                let bias = bias.to_dtype(t[0].dtype())?;
                let head = HeadWeights { weight: &t[1], bias: Some(&bias), soft_cap };
                linear_cross_entropy(&t[0], head, &targets, &weights)
            };
            check::close(&linear_cross_entropy(&h, head, &targets, &weights).unwrap(), &[sum(&losses)], 1e-12);
            check::gradients(&[&h, &w], f);
            check::f32_agrees(&[&h, &w], 1e-5, f);
            let found = [token_losses(&h, head, &targets), instead_of_fused(|| token_losses(&h, head, &targets))];
            for found in found {
                assert!(found.unwrap().iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-12 * b.max(1.0)));
            }
            let [vh, vw, vb] = [&h, &w, &bias].map(|t| Var::from_tensor(t).unwrap());
            let head = HeadWeights { weight: &vw, bias: Some(&vb), soft_cap };
            assert!(linear_cross_entropy(&vh, head, &targets, &weights).is_err());
            let gradients = || cross_entropy_gradients(&vh, head, &targets, &weights, 0.5).unwrap();
            let ((loss, fused), (_, composed)) = (gradients(), instead_of_fused(gradients));
            assert!((loss - sum(&losses)).abs() < 1e-12);
            for (fused, composed) in fused.iter().zip(&composed) {
                check::close(composed.as_ref().unwrap(), &check::flat(fused.as_ref().unwrap()), 1e-12);
            }
            let d_bias = check::flat(fused[2].as_ref().unwrap());
            for (index, got) in d_bias.iter().enumerate() {
                let moved = |step: f64| {
                    let mut values = check::flat(&bias);
                    values[index] += step;
                    sum(&loss_of(&h, &w, &Tensor::new(values, &Device::Cpu).unwrap()))
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 4e-5;
                assert!((slope - got).abs() < 1e-8, "{index}: {got} for {slope}");
            }
        }
    }

    #[test]
    fn several_chunks_agree_with_the_formula_on_any_number_of_threads() {
        // 262 rows a chunk.
        let (h, w, targets, weights) = case(600, 5, 4000);
        let want: f64 = naive(&h, &w, &targets).iter().zip(&weights).map(|(l, w)| l * f64::from(*w)).sum();
        let f = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, &weights);
        check::close(&f(&[h.clone(), w.clone()]).unwrap(), &[want], 1e-12);
        check::f32_agrees(&[&h, &w], 1e-4, f);
        check::threads_agree(&[&h, &w], f);
    }

    #[test]
    fn rows_of_weight_zero_count_for_nothing_and_need_not_be_finite() {
        let (h, w, targets, weights) = case(6, 3, 5);
        let mut rows = h.to_vec2::<f64>().unwrap();
        rows[1] = vec![f64::NAN; 3];
        let h = Var::new(rows, &Device::Cpu).unwrap();
        let loss = linear_cross_entropy(&h, &w, &targets, &weights).unwrap();
        assert!(loss.to_scalar::<f64>().unwrap().is_finite());
        let gradient = loss.backward().unwrap().get(&h).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!((&gradient[1], &gradient[4]), (&vec![0.0; 3], &vec![0.0; 3]));
        let composed = || cross_entropy_gradients(&h, &w, &targets, &weights, 1.0).unwrap();
        let (_, [composed, ..]) = instead_of_fused(composed);
        check::close(&composed.unwrap(), &gradient.concat(), 1e-12);
        let none = linear_cross_entropy(&h, &w, &targets, &[0.0; 6]).unwrap();
        assert_eq!(none.to_scalar::<f64>().unwrap(), 0.0);
        assert_eq!(check::flat(none.backward().unwrap().get(&h).unwrap()), vec![0.0; 18]);
        let (none, [d_hidden, ..]) =
            instead_of_fused(|| cross_entropy_gradients(&h, &w, &targets, &[0.0; 6], 1.0).unwrap());
        assert_eq!((none, check::flat(&d_hidden.unwrap())), (0.0, vec![0.0; 18]));
    }

    #[test]
    fn a_hit_is_the_largest_logit_and_the_lowest_id_of_equals() {
        let hidden = Tensor::new(&[[1.0_f32], [1.0], [1.0], [-1.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[[1.0_f32], [3.0], [3.0], [0.0]], &Device::Cpu).unwrap();
        let (losses, hits) = token_losses_and_hits(&hidden, &weight, &[1, 2, 0, 3]).unwrap();
        assert_eq!(hits, [true, false, false, true]);
        let composed = instead_of_fused(|| token_losses_and_hits(&hidden, &weight, &[1, 2, 0, 3]).unwrap());
        assert_eq!(composed.1, hits);
        let total = (1f64.exp() + 2.0 * 3f64.exp() + 1.0).ln();
        for (got, want) in losses.iter().zip([total - 3.0, total - 3.0, total - 1.0]) {
            assert!((got - want).abs() < 1e-6);
        }
        let first = Tensor::new(&[[9.0_f32], [1.0]], &Device::Cpu).unwrap();
        let hits = || token_losses_and_hits(&hidden, &first, &[0, 1, 0, 1]).unwrap().1;
        assert_eq!(hits(), [true, false, true, true]);
        assert_eq!(instead_of_fused(hits), [true, false, true, true]);
    }

    #[test]
    fn large_logits_do_not_overflow_and_misfits_are_refused() {
        let (h, w, targets, weights) = case(6, 3, 5);
        let large = (h.to_dtype(DType::F32).unwrap() * 1e4).unwrap();
        let losses = token_losses(&large, &w.to_dtype(DType::F32).unwrap(), &targets).unwrap();
        assert!(losses.iter().all(|loss| loss.is_finite() && *loss >= 0.0));
        assert!(linear_cross_entropy(&h, &w, &targets[1..], &weights).is_err());
        assert!(linear_cross_entropy(&h, &w, &targets, &weights[1..]).is_err());
        let message = token_losses(&h, &w, &[0, 1, 2, 3, 4, 5]).unwrap_err().to_string();
        assert!(message.starts_with("linear_cross_entropy: target 5 is outside the vocabulary of 5"), "{message}");
    }
}
