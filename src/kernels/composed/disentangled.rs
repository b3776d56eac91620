//! Disentangled attention by padded, batched products; what a pair reads by its distance is gathered from products with
//! the whole tables.

use candle_core::{D, Result, Tensor};

use super::attention_layout::{Group, groups};
use super::{Composed, wide, widened};
use crate::kernels::disentangled::{Disentangled, DisentangledShape};

/// Queries and keys of some heads, `[sequences, heads, length, head_dim]`, and those heads of the tables, `[1, heads, rows,
/// head_dim]`.
struct Scores {
    scale: f64,
    q: Tensor,
    k: Tensor,
    q_pos: Option<Tensor>,
    k_pos: Option<Tensor>,
    /// The row that query i reads with key j, `[length, length]`.
    places: Tensor,
}

impl Scores {
    /// The places of all pairs, of every sequence and head.
    fn index(&self) -> Result<Tensor> {
        let (sequences, heads, length, _) = self.q.dims4()?;
        self.places.broadcast_as((sequences, heads, length, length))?.contiguous()
    }

    /// The same with query and key exchanged.
    fn turned(&self) -> Result<Tensor> {
        let (sequences, heads, length, _) = self.q.dims4()?;
        self.places.t()?.broadcast_as((sequences, heads, length, length))?.contiguous()
    }

    /// The scaled scores, wide, `[sequences, heads, length, length]`.
    fn forward(&self) -> Result<Tensor> {
        let mut scores = widened(&self.q.matmul(&self.k.transpose(2, 3)?.contiguous()?)?)?;
        if let Some(table) = &self.k_pos {
            scores = (scores + terms(&self.q, table)?.gather(&self.index()?, D::Minus1)?)?;
        }
        if let Some(table) = &self.q_pos {
            scores = (scores + terms(&self.k, table)?.gather(&self.turned()?, D::Minus1)?.transpose(2, 3)?)?;
        }
        scores * self.scale
    }

    /// The gradients of q, k, q_pos and k_pos, wide, the tables' without their first dimension.
    fn backward(&self, d_scores: &Tensor) -> Result<([Tensor; 2], [Option<Tensor>; 2])> {
        let d_scores = (d_scores * self.scale)?;
        let plain = d_scores.to_dtype(self.q.dtype())?;
        let mut dq = widened(&plain.matmul(&self.k)?)?;
        let mut dk = widened(&plain.transpose(2, 3)?.contiguous()?.matmul(&self.q)?)?;
        let mut tables = [None, None];
        if let Some(table) = &self.k_pos {
            let (dx, d_table) = d_terms(&self.q, table, &self.index()?, &d_scores)?;
            (dq, tables[1]) = ((dq + dx)?, Some(d_table));
        }
        if let Some(table) = &self.q_pos {
            let turned = d_scores.transpose(2, 3)?.contiguous()?;
            let (dx, d_table) = d_terms(&self.k, table, &self.turned()?, &turned)?;
            (dk, tables[0]) = ((dk + dx)?, Some(d_table));
        }
        Ok(([dq, dk], tables))
    }
}

/// Every row of `x` times every row of the table, wide, `[sequences, heads, length, rows]`.
fn terms(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    widened(&x.broadcast_matmul(&table.transpose(2, 3)?.contiguous()?)?)
}

/// The gradients of `x` and of the table, from that of what was gathered of their [`terms`].
fn d_terms(x: &Tensor, table: &Tensor, index: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let (sequences, heads, length, _) = x.dims4()?;
    let zeros = Tensor::zeros((sequences, heads, length, table.dim(2)?), gradient.dtype(), gradient.device())?;
    let sums = zeros.scatter_add(index, gradient, D::Minus1)?.to_dtype(x.dtype())?;
    let dx = widened(&sums.broadcast_matmul(table)?)?;
    let d_table = widened(&sums.transpose(2, 3)?.contiguous()?.matmul(x)?)?.sum(0)?;
    Ok((dx, d_table))
}

impl DisentangledShape {
    /// The places of all pairs of a sequence, `[length, length]`.
    fn pairs(&self, length: usize, like: &Tensor) -> Result<Tensor> {
        let near = self.near(length);
        let rows = (0..length).flat_map(|i| near.get(i..i + length).unwrap_or_default().iter().rev());
        Tensor::from_vec(rows.copied().collect::<Vec<u32>>(), (length, length), like.device())
    }

    /// The scaled scores of one sequence, `[heads, length, length]`, of queries and keys `[heads, length, head_dim]` and
    /// tables `[rows, heads · head_dim]`; wide.
    pub(crate) fn scores(&self, [q, k]: [&Tensor; 2], tables: [Option<&Tensor>; 2]) -> Result<Tensor> {
        let [q_pos, k_pos] = tables.map(|table| table.map(|table| self.by_head(table)).transpose());
        let places = self.pairs(q.dim(1)?, q)?;
        let (q, k) = (q.unsqueeze(0)?, k.unsqueeze(0)?);
        Scores { scale: self.scale, q, k, q_pos: q_pos?, k_pos: k_pos?, places }.forward()?.squeeze(0)
    }

    /// A table as `[1, heads, rows, head_dim]`.
    fn by_head(&self, table: &Tensor) -> Result<Tensor> {
        table.reshape((1, (), self.heads, self.head_dim))?.transpose(1, 2)?.contiguous()
    }
}

/// Some heads of a group of sequences.
struct Part<'a> {
    group: &'a Group,
    scores: Scores,
    v: Tensor,
}

impl Part<'_> {
    fn probabilities(&self) -> Result<Tensor> {
        let mut scores = self.scores.forward()?;
        if let Some(mask) = &self.group.mask {
            scores = scores.broadcast_add(mask)?;
        }
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
    }

    fn forward(&self) -> Result<Tensor> {
        self.probabilities()?.to_dtype(self.v.dtype())?.matmul(&self.v)
    }

    /// The gradients of q, k and v, and of q_pos and k_pos, wide.
    fn backward(&self, gradient: &Tensor) -> Result<([Tensor; 3], [Option<Tensor>; 2])> {
        let p = self.probabilities()?;
        let turned = p.to_dtype(self.v.dtype())?.transpose(2, 3)?.contiguous()?;
        let dv = widened(&turned.matmul(gradient)?)?;
        let dp = widened(&gradient.matmul(&self.v.transpose(2, 3)?.contiguous()?)?)?;
        let along = (&p * &dp)?.sum_keepdim(D::Minus1)?;
        let ([dq, dk], tables) = self.scores.backward(&(p * dp.broadcast_sub(&along)?)?)?;
        Ok(([dq, dk, dv], tables))
    }
}

impl Disentangled {
    /// Queries, keys and values of the tokens, and the tables.
    fn split(&self, [q, k, v]: [&Tensor; 3]) -> Result<([Tensor; 3], [Option<Tensor>; 2])> {
        let n = v.dim(0)?;
        let [q_rows, k_rows] = self.rows;
        let table =
            |x: &Tensor, rows: usize| (rows > 0).then(|| self.shape.by_head(&x.narrow(0, n, rows)?)).transpose();
        Ok(([q.narrow(0, 0, n)?, k.narrow(0, 0, n)?, v.clone()], [table(q, q_rows)?, table(k, k_rows)?]))
    }

    /// Calls `run(part, first head, heads)` for the parts of a group, in order.
    fn over_parts(
        &self,
        group: &Group,
        (tokens, tables): &([Tensor; 3], [Option<Tensor>; 2]),
        mut run: impl FnMut(&Part<'_>, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let heads = self.shape.heads;
        let padded = tokens.each_ref().map(|t| group.pad(t, heads)).into_iter().collect::<Result<Vec<_>>>()?;
        let at_once = group.heads_at_once(heads, 1);
        for first in (0..heads).step_by(at_once) {
            let count = at_once.min(heads - first);
            let some = |t: &Tensor| t.narrow(1, first, count)?.contiguous();
            let parts = padded.iter().map(some).collect::<Result<Vec<_>>>()?;
            let [q_pos, k_pos] = tables.each_ref().map(|table| table.as_ref().map(some).transpose());
            let [q, k, v] = <[Tensor; 3]>::try_from(parts)
                .map_err(|_| candle_core::Error::Msg("disentangled_attention: a part is missing".to_owned()))?;
            let places = self.shape.pairs(group.length, &q)?;
            let scores = Scores { scale: self.shape.scale, q, k, q_pos: q_pos?, k_pos: k_pos?, places };
            run(&Part { group, scores, v }, first, count)?;
        }
        Ok(())
    }
}

impl Composed<3> for Disentangled {
    fn forward(&self, arguments: [&Tensor; 3]) -> Result<Tensor> {
        let [q, _, v] = arguments;
        let groups = groups(&self.offsets, self.shape.plain(), wide(q.dtype()), q.device())?;
        if groups.is_empty() {
            return v.zeros_like();
        }
        let split = self.split(arguments)?;
        let mut rows = Vec::with_capacity(groups.len());
        for group in groups.iter() {
            let mut heads = Vec::new();
            self.over_parts(group, &split, |part, _, _| {
                heads.push(part.forward()?);
                Ok(())
            })?;
            rows.push(group.pack(&Tensor::cat(&heads, 1)?)?);
        }
        Tensor::cat(&rows, 0)
    }

    fn backward(
        &self,
        arguments: [&Tensor; 3],
        wanted: [bool; 3],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [q, k, v] = arguments;
        let groups = groups(&self.offsets, self.shape.plain(), wide(q.dtype()), q.device())?;
        if groups.is_empty() {
            let zeros = [q.zeros_like()?, k.zeros_like()?, v.zeros_like()?];
            let [q, k, v] = zeros.map(Some);
            let [wants_q, wants_k, wants_v] = wanted;
            return Ok([q.filter(|_| wants_q), k.filter(|_| wants_k), v.filter(|_| wants_v)]);
        }
        let split = self.split(arguments)?;
        let mut tokens: [Vec<Tensor>; 3] = [const { Vec::new() }; 3];
        let mut tables: [Option<Tensor>; 2] = [None, None];
        for group in groups.iter() {
            let gradient = group.pad_with_zeros(gradient, self.shape.heads)?;
            let mut of_tokens: [Vec<Tensor>; 3] = [const { Vec::new() }; 3];
            let mut of_tables: [Vec<Tensor>; 2] = [const { Vec::new() }; 2];
            self.over_parts(group, &split, |part, first, count| {
                let (found, found_tables) = part.backward(&gradient.narrow(1, first, count)?.contiguous()?)?;
                of_tokens.iter_mut().zip(found).for_each(|(all, own)| all.push(own));
                of_tables.iter_mut().zip(found_tables).for_each(|(all, own)| all.extend(own));
                Ok(())
            })?;
            for (all, own) in tokens.iter_mut().zip(&of_tokens) {
                all.push(group.pack(&Tensor::cat(own, 1)?)?);
            }
            for (sum, own) in tables.iter_mut().zip(&of_tables).filter(|(_, own)| !own.is_empty()) {
                let own = Tensor::cat(own, 0)?;
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + own)?,
                    None => own,
                });
            }
        }
        // [heads, rows, head_dim] behind the tokens' rows.
        let [q_pos, k_pos] = tables;
        let join = |(tokens, table): (Vec<Tensor>, Option<Tensor>), like: &Tensor| {
            let mut rows = tokens;
            if let Some(table) = table {
                let (heads, count, dim) = table.dims3()?;
                rows.push(table.transpose(0, 1)?.contiguous()?.reshape((count, heads * dim))?);
            }
            Tensor::cat(&rows, 0)?.to_dtype(like.dtype())
        };
        let [dq, dk, dv] = tokens;
        let mut found = [None, None, None];
        let parts = [((dq, q_pos), q), ((dk, k_pos), k), ((dv, None), v)];
        for ((slot, wanted), (part, like)) in found.iter_mut().zip(wanted).zip(parts) {
            *slot = wanted.then(|| join(part, like)).transpose()?;
        }
        Ok(found)
    }
}
