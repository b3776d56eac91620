//! The head and its cross-entropy, in chunks of rows.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{Composed, wide, widened};
use crate::kernels::cross_entropy::{Bend, CrossEntropy, Row};

/// Logits in memory at a time, unless one row has more: 64 MiB of `f32`, of which a backward pass holds about four. Few
/// in tests, which are to walk over several chunks.
const CHUNK_LOGITS: usize = if cfg!(test) { 1 << 6 } else { 1 << 24 };

/// The logits of some rows and what the losses need of them, all wide.
struct Chunk {
    /// `[rows, d]`, in the type of the hidden states.
    hidden: Tensor,
    /// `[rows, vocabulary]`.
    logits: Tensor,
    /// The largest logit of each row, `[rows, 1]`.
    largest: Tensor,
    /// The id of each row's target, `[rows, 1]`.
    targets: Tensor,
    /// The slope of the soft cap at every logit, if there is one.
    slope: Option<Tensor>,
}

impl Chunk {
    fn new(hidden: &Tensor, weight: &Tensor, bend: &Bend, rows: &[Row]) -> Result<Self> {
        let device = hidden.device();
        let index: Vec<u32> = rows.iter().map(|row| row.row as u32).collect();
        let hidden = hidden.index_select(&Tensor::new(index, device)?, 0)?;
        let mut logits = widened(&hidden.matmul(&weight.t()?)?)?;
        if let Some(bias) = &bend.bias {
            logits = logits.broadcast_add(&bias.to_dtype(logits.dtype())?)?;
        }
        let mut slope = None;
        if let Some(cap) = bend.soft_cap {
            let tanh = (logits / cap)?.tanh()?;
            slope = Some(tanh.sqr()?.affine(-1.0, 1.0)?);
            logits = (tanh * cap)?;
        }
        let largest = logits.max_keepdim(D::Minus1)?;
        let targets: Vec<u32> = rows.iter().map(|row| row.target as u32).collect();
        let targets = Tensor::from_vec(targets, (rows.len(), 1), device)?;
        Ok(Self { hidden, logits, largest, targets, slope })
    }

    /// The exponentials of the logits less the largest, their sums and the losses, `[rows, 1]` both.
    fn losses(&self) -> Result<(Tensor, Tensor, Tensor)> {
        let powers = self.logits.broadcast_sub(&self.largest)?.exp()?;
        let sums = powers.sum_keepdim(D::Minus1)?;
        let of_target = self.logits.gather(&self.targets, 1)?;
        let losses = (sums.log()? + (&self.largest - of_target)?)?;
        Ok((powers, sums, losses))
    }

    /// One where the target is the first of the largest logits, else zero, `[rows, 1]`.
    fn hits(&self) -> Result<Tensor> {
        let (_, vocabulary) = self.logits.dims2()?;
        // Whole numbers are exact in f32 up to 2^24, more than any vocabulary holds.
        let ids = Tensor::arange(0_u32, vocabulary as u32, self.logits.device())?.to_dtype(DType::F32)?;
        let smaller = self.logits.broadcast_lt(&self.largest)?.to_dtype(DType::F32)?;
        let first = (smaller * vocabulary as f64)?.broadcast_add(&ids)?.min_keepdim(D::Minus1)?;
        first.eq(&self.targets.to_dtype(DType::F32)?)?.to_dtype(DType::F32)
    }
}

/// Calls `visit(rows, chunk)` for chunk after chunk of `rows`.
fn for_each_chunk(
    hidden: &Tensor,
    weight: &Tensor,
    bend: &Bend,
    rows: &[Row],
    mut visit: impl FnMut(&[Row], &Chunk) -> Result<()>,
) -> Result<()> {
    let size = (CHUNK_LOGITS / weight.dim(0)?.max(1)).max(1);
    rows.chunks(size).try_for_each(|rows| visit(rows, &Chunk::new(hidden, weight, bend, rows)?))
}

/// The values of columns `[rows, 1]`, brought to the CPU at once.
fn values(columns: &[Tensor]) -> Result<Vec<f64>> {
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    Tensor::cat(columns, 0)?.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
}

/// The loss of every row, and whether it is a hit.
pub(in crate::kernels) fn losses_and_hits(
    hidden: &Tensor,
    weight: &Tensor,
    bend: &Bend,
    rows: &[Row],
) -> Result<Vec<(f64, bool)>> {
    let weight = weight.to_dtype(hidden.dtype())?;
    let (mut losses, mut hits) = (Vec::new(), Vec::new());
    for_each_chunk(hidden, &weight, bend, rows, |_, chunk| {
        losses.push(chunk.losses()?.2);
        hits.push(chunk.hits()?);
        Ok(())
    })?;
    Ok(values(&losses)?.into_iter().zip(values(&hits)?.into_iter().map(|hit| hit > 0.5)).collect())
}

/// The weighted loss, and the gradients that are wanted of `factor` times it.
pub(in crate::kernels) fn gradients(
    hidden: &Tensor,
    weight: &Tensor,
    bend: &Bend,
    rows: &[Row],
    factor: f64,
    [wants_hidden, wants_weight, wants_bias]: [bool; 3],
) -> Result<(f64, [Option<Tensor>; 3])> {
    let (dtype, device) = (hidden.dtype(), hidden.device());
    let read = weight.to_dtype(dtype)?;
    let (mut losses, mut d_rows) = (Vec::new(), Vec::new());
    let (mut d_weight, mut d_bias): (Option<Tensor>, Option<Tensor>) = (None, None);
    for_each_chunk(hidden, &read, bend, rows, |rows, chunk| {
        let (powers, sums, loss) = chunk.losses()?;
        losses.push(loss);
        let weights: Vec<f64> = rows.iter().map(|row| f64::from(row.weight) * factor).collect();
        let weights = Tensor::from_vec(weights, (rows.len(), 1), &Device::Cpu)?.to_dtype(wide(dtype))?;
        let weights = weights.to_device(device)?;
        let d_logits = powers.broadcast_mul(&(&weights / sums)?)?;
        d_logits.scatter_add_set(&chunk.targets, &weights.neg()?, 1)?;
        let d_logits = match &chunk.slope {
            Some(slope) => (d_logits * slope)?,
            None => d_logits,
        };
        if wants_bias {
            let part = d_logits.sum(0)?;
            d_bias = Some(match d_bias.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let d_logits = d_logits.to_dtype(dtype)?;
        if wants_hidden {
            d_rows.push(d_logits.matmul(&read)?);
        }
        if wants_weight {
            let part = widened(&d_logits.t()?.matmul(&chunk.hidden)?)?;
            d_weight = Some(match d_weight.take() {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        Ok(())
    })?;
    let loss = values(&losses)?.iter().zip(rows).map(|(loss, row)| loss * f64::from(row.weight)).sum();
    let d_hidden = wants_hidden.then(|| spread(d_rows, rows, hidden)).transpose()?;
    let d_weight = match (wants_weight, d_weight) {
        (false, _) => None,
        (true, Some(sum)) => Some(sum.to_dtype(weight.dtype())?),
        (true, None) => Some(weight.zeros_like()?),
    };
    let d_bias = match (wants_bias, d_bias, &bend.bias) {
        (true, Some(sum), Some(bias)) => Some(sum.to_dtype(bias.dtype())?),
        (true, None, Some(bias)) => Some(bias.zeros_like()?),
        _ => None,
    };
    Ok((loss, [d_hidden, d_weight, d_bias]))
}

/// The gradients of the rows that count, in their places; the others' are zero.
fn spread(mut parts: Vec<Tensor>, rows: &[Row], hidden: &Tensor) -> Result<Tensor> {
    let (n, width) = hidden.dims2()?;
    if rows.len() == n && n > 0 {
        return Tensor::cat(&parts, 0);
    }
    parts.insert(0, Tensor::zeros((1, width), hidden.dtype(), hidden.device())?);
    let mut from = vec![0_u32; n];
    for (place, row) in (1..).zip(rows) {
        if let Some(from) = from.get_mut(row.row) {
            *from = place;
        }
    }
    Tensor::cat(&parts, 0)?.index_select(&Tensor::new(from, hidden.device())?, 0)
}

impl Composed<2> for CrossEntropy {
    fn forward(&self, [hidden, weight]: [&Tensor; 2]) -> Result<Tensor> {
        let scores = losses_and_hits(hidden, weight, &self.bend, &self.rows)?;
        let sum: f64 = scores.iter().zip(&self.rows).map(|((loss, _), row)| loss * f64::from(row.weight)).sum();
        Tensor::new(sum, &Device::Cpu)?.to_dtype(wide(hidden.dtype()))?.to_device(hidden.device())
    }

    fn backward(
        &self,
        [hidden, weight]: [&Tensor; 2],
        wanted: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        let factor = gradient.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let wanted = [wanted[0], wanted[1], false];
        let (_, [d_hidden, d_weight, _]) = gradients(hidden, weight, &self.bend, &self.rows, factor, wanted)?;
        Ok([d_hidden, d_weight])
    }
}
