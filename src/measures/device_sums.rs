//! The sums of [`super::streaming`] for a packed batch, made where the states are: rows stay there, and what comes
//! back are d-vectors and a few numbers a row.
//!
//! A sum over the rows of a text and token set is a row of a product of a matrix of zeros and ones with the states.
//! Such a product adds up in the states' own type; so that the digits lost do not grow with a text's length, the
//! matrix has a row for every [`BLOCK`] rows, and the blocks are added in `f64`. The measures are those of the slices
//! up to that rounding. Powers of two take the states to sizes whose squares fit the type, and means are taken off in
//! two parts, so that neither overflow nor cancellation costs more.

use super::TokenSet;
use super::streaming::{Residual, SetSums, TextRows, TextSums, Wanted, mean_rounding};
use candle_core::{D, DType, Device, Result, Tensor};
use std::ops::Range;

/// Rows that are added in the states' type.
const BLOCK: usize = 256;

/// Which rows of a packed batch belong to which text and token set, on the device of its states.
#[derive(Debug)]
pub struct BatchRows {
    /// Rows of the batch.
    rows: usize,
    dtype: DType,
    device: Device,
    texts: Vec<Members>,
    /// By token set.
    selections: [Selection; 3],
}

/// A text's rows in the batch, by token set.
#[derive(Debug)]
struct Members {
    range: Range<usize>,
    sets: [Vec<usize>; 3],
}

impl Members {
    fn set(&self, set: TokenSet) -> &[usize] {
        self.sets.get(set as usize).map(Vec::as_slice).unwrap_or_default()
    }

    /// The row that differences are taken to: the first that is in every set, else the set's first.
    fn origin(&self, set: TokenSet) -> Option<usize> {
        let everywhere = |row: &&usize| self.sets.iter().all(|own| own.binary_search(row).is_ok());
        let [all, ..] = &self.sets;
        all.iter().find(everywhere).or(self.set(set).first()).copied()
    }
}

/// A matrix of zeros and ones, a row for each block of rows of a text.
#[derive(Debug)]
struct Selection {
    /// The text of each block.
    texts: Vec<usize>,
    /// `[blocks, rows]`.
    matrix: Tensor,
}

/// What rows are compared with, `[rows, d]` each, in the type and on the device of the states.
#[derive(Debug, Clone, Copy, Default)]
pub struct References<'a> {
    /// Layer 0, if retention is wanted.
    pub layer0: Option<&'a Tensor>,
    /// h0, if retention of it is wanted.
    pub h0: Option<&'a Tensor>,
}

impl BatchRows {
    /// For `texts`, each with its rows in the batch, of states of this type on this device.
    ///
    /// # Errors
    /// The device has no memory for the selections.
    pub fn new(texts: &[(Range<usize>, &TextRows)], dtype: DType, device: &Device) -> Result<Self> {
        let rows = texts.iter().map(|(range, _)| range.end).max().unwrap_or(0);
        let members = |(range, text): &(Range<usize>, &TextRows)| {
            let sets =
                TokenSet::ALL.map(|set| text.of(set, range.len()).into_iter().map(|p| range.start + p).collect());
            Members { range: range.clone(), sets }
        };
        let texts: Vec<Members> = texts.iter().map(members).collect();
        let [all, no_first, no_special] = TokenSet::ALL.map(|set| selection(&texts, set, rows, dtype, device));
        Ok(Self { rows, dtype, device: device.clone(), texts, selections: [all?, no_first?, no_special?] })
    }

    /// Σ over the rows of each text and one token set of `values`, which are `[rows, d]`.
    fn sums(&self, set: TokenSet, values: &Tensor) -> Result<Vec<Vec<f64>>> {
        let width = values.dim(1)?;
        let mut sums = vec![vec![0.0; width]; self.texts.len()];
        let Some(selection) = self.selections.get(set as usize).filter(|s| !s.texts.is_empty()) else {
            return Ok(sums);
        };
        let blocks = numbers(&selection.matrix.matmul(values)?)?;
        for (&text, block) in selection.texts.iter().zip(blocks.chunks_exact(width.max(1))) {
            if let Some(sum) = sums.get_mut(text) {
                sum.iter_mut().zip(block).for_each(|(s, x)| *s += x);
            }
        }
        Ok(sums)
    }

    /// A column `[rows, 1]`.
    fn column(&self, values: &[f64]) -> Result<Tensor> {
        Tensor::from_slice(values, (self.rows, 1), &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }

    /// `values` without the rows that are not finite, which become zeros, and which those are.
    fn finite(&self, values: &Tensor) -> Result<(Tensor, Vec<bool>)> {
        // Zero times what is not finite is not a number.
        let bad: Vec<bool> = numbers(&(values * 0.0)?.sum(D::Minus1)?)?.iter().map(|zero| *zero != 0.0).collect();
        if !bad.contains(&true) {
            return Ok((values.clone(), bad));
        }
        let kept: Vec<u8> = bad.iter().map(|&bad| u8::from(!bad)).collect();
        let kept = Tensor::from_slice(&kept, (self.rows, 1), &self.device)?.broadcast_as(values.shape())?;
        Ok((kept.where_cond(values, &values.zeros_like()?)?, bad))
    }

    /// The rows' norms, and the rows by their norms; zeros where the norm is not above `zero`.
    fn unit_rows(&self, values: &Tensor, zero: f64) -> Result<(Vec<f64>, Tensor)> {
        let scales: Vec<f64> = numbers(&values.abs()?.max(D::Minus1)?)?.iter().map(|&m| self.scale(m)).collect();
        let scaled = values.broadcast_mul(&self.column(&scales)?)?;
        let roots: Vec<f64> = numbers(&scaled.sqr()?.sum(D::Minus1)?)?.into_iter().map(f64::sqrt).collect();
        let norms: Vec<f64> = roots.iter().zip(&scales).map(|(root, scale)| root / scale).collect();
        let inverse = |(&norm, root): (&f64, f64)| if norm > zero && norm * norm > 0.0 { 1.0 / root } else { 0.0 };
        let inverses: Vec<f64> = norms.iter().zip(roots).map(inverse).collect();
        Ok((norms, scaled.broadcast_mul(&self.column(&inverses)?)?))
    }

    /// A power of two that takes `magnitude` to about 1, as far as the type has one.
    fn scale(&self, magnitude: f64) -> f64 {
        if magnitude == 0.0 {
            return 1.0;
        }
        let limit = if self.dtype == DType::F64 { 1000 } else { 120 };
        let exponent = ((magnitude.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        2_f64.powi(-exponent.clamp(-limit, limit))
    }

    /// `f64` values as the sum of two tensors of the states' type.
    fn halves(&self, values: &[f64], shape: (usize, usize)) -> Result<[Tensor; 2]> {
        let on_cpu = |values: &[f64]| Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(self.dtype);
        let high = on_cpu(values)?;
        let rest: Vec<f64> = values.iter().zip(numbers(&high)?).map(|(value, high)| value - high).collect();
        Ok([high.to_device(&self.device)?, on_cpu(&rest)?.to_device(&self.device)?])
    }

    /// `of` of the text of every row.
    fn by_row(&self, of: impl Fn(usize, &Members, usize) -> usize) -> Result<Tensor> {
        let mut index = vec![0_u32; self.rows];
        for (number, text) in self.texts.iter().enumerate() {
            for row in text.range.clone() {
                if let Some(slot) = index.get_mut(row) {
                    *slot = of(number, text, row) as u32;
                }
            }
        }
        Tensor::from_slice(&index, self.rows, &self.device)
    }

    /// The sums of every text, as [`super::streaming::text_sums`] makes them of its rows.
    ///
    /// # Errors
    /// A shape does not fit, or the device cannot compute.
    pub fn text_sums(&self, states: &Tensor, references: References<'_>, wanted: Wanted) -> Result<Vec<TextSums>> {
        if self.rows == 0 {
            let nothing = |_| TextSums { sets: Vec::new(), place: [0; 3], finite: true };
            return Ok(self.texts.iter().map(nothing).collect());
        }
        let (states, mut bad) = self.finite(states)?;
        let (mut norms, unit) = self.unit_rows(&states, 0.0)?;
        for (bad, norm) in bad.iter_mut().zip(&mut norms) {
            // As with slices: a finite row of an f64 model whose square overflows is as useless.
            *bad |= !(*norm * *norm).is_finite();
            *norm = if *bad { f64::NAN } else { *norm };
        }
        let largest = numbers(&states.abs()?.max(D::Minus1)?)?.into_iter().fold(0.0, f64::max);
        let scale = self.scale(largest);
        let scaled = (&states * scale)?;
        let retention = references.layer0.map(|other| self.cosines(&unit, other)).transpose()?;
        let retention_h0 = references.h0.map(|other| self.cosines(&unit, other)).transpose()?;
        let mut by_set = Vec::with_capacity(3);
        for set in TokenSet::ALL {
            let mut all = self.plain_sums(set, &norms, self.sums(set, &unit)?);
            if wanted.squares {
                for (own, squares) in all.iter_mut().zip(self.sums(set, &scaled.sqr()?)?) {
                    own.squares = squares.iter().map(|x| x / scale / scale).collect();
                }
            }
            if wanted.residual {
                self.add_residuals(set, &mut all, &scaled, scale)?;
            } else if wanted.sum {
                for (own, sum) in all.iter_mut().zip(self.sums(set, &scaled)?) {
                    own.sum = sum.iter().map(|x| x / scale).collect();
                }
            }
            for (own, text) in all.iter_mut().zip(&self.texts) {
                own.retention = mean_parts(retention.as_ref(), text.set(set), &norms);
                own.retention_h0 = mean_parts(retention_h0.as_ref(), text.set(set), &norms);
                if text.set(set).iter().any(|&row| bad.get(row) == Some(&true)) {
                    own.spoil();
                }
            }
            by_set.push(all);
        }
        Ok(self.fold(by_set, &bad))
    }

    /// Counts, norms and Σ ĥ.
    fn plain_sums(&self, set: TokenSet, norms: &[f64], unit_sums: Vec<Vec<f64>>) -> Vec<SetSums> {
        let sums = self.texts.iter().zip(unit_sums).map(|(text, unit_sum)| {
            let norms: Vec<f64> = text.set(set).iter().filter_map(|&row| norms.get(row).copied()).collect();
            let directed = norms.iter().filter(|&norm| norm * norm != 0.0).count();
            SetSums { rows: norms.len(), directed, unit_sum, norms, ..SetSums::default() }
        });
        sums.collect()
    }

    /// The cosine of every unit row with its row of `other`, and whether that row is not zero.
    fn cosines(&self, unit: &Tensor, other: &Tensor) -> Result<Vec<Option<f64>>> {
        let (other, bad) = self.finite(other)?;
        let (norms, other) = self.unit_rows(&other, 0.0)?;
        let cosines = numbers(&(unit * other)?.sum(D::Minus1)?)?;
        let all = cosines.into_iter().zip(norms.iter().zip(bad));
        // A row that is not a number is no zero row.
        Ok(all
            .map(|(cosine, (norm, bad))| if bad { Some(f64::NAN) } else { (norm * norm > 0.0).then_some(cosine) })
            .collect())
    }

    /// Σ h and the second sweep of one token set; `scaled` are the states times `scale`.
    fn add_residuals(&self, set: TokenSet, all: &mut [SetSums], scaled: &Tensor, scale: f64) -> Result<()> {
        let width = scaled.dim(1)?;
        let origin = self.by_row(|_, text, row| text.origin(set).unwrap_or(row))?;
        let differences = (scaled - scaled.index_select(&origin, 0)?)?;
        let sums = self.sums(set, &differences)?;
        let firsts: Vec<u32> = self.texts.iter().map(|text| text.origin(set).unwrap_or_default() as u32).collect();
        let firsts = Tensor::from_slice(&firsts, firsts.len(), &self.device)?;
        let firsts = numbers(&scaled.index_select(&firsts, 0)?)?;
        let counts = || all.iter().map(|own| own.rows.max(1) as f64);
        let shifts: Vec<f64> =
            sums.iter().zip(counts()).flat_map(|(sum, count)| sum.iter().map(move |x| x / count)).collect();
        let text = self.by_row(|number, _, _| number)?;
        let mut away = differences;
        for part in self.halves(&shifts, (self.texts.len(), width))? {
            away = (away - part.index_select(&text, 0)?)?;
        }
        let (sizes, deviations) = (scaled.abs()?, away.abs()?);
        let (columns, residual_columns) = (self.sums(set, &sizes)?, self.sums(set, &deviations)?);
        let row = |values: &Tensor| numbers(&values.sum(D::Minus1)?);
        let (lines, residual_lines, squares) = (row(&sizes)?, row(&deviations)?, row(&away.sqr()?)?);
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let parts = sums.iter().zip(shifts.chunks(width.max(1)).zip(firsts.chunks(width.max(1))));
        let columns = columns.iter().zip(&residual_columns);
        for ((own, text), ((sum, (shift, first)), (column, residual))) in
            all.iter_mut().zip(&self.texts).zip(parts.zip(columns))
        {
            let count = own.rows as f64;
            own.sum = sum.iter().zip(first).map(|(s, first)| (s + count * first) / scale).collect();
            let rows = text.set(set);
            if rows.is_empty() {
                continue;
            }
            let of = |values: &[f64]| rows.iter().filter_map(|&row| values.get(row).copied()).collect::<Vec<f64>>();
            own.residual = Some(Residual {
                column: largest(&mut column.iter().copied()) / scale,
                row: largest(&mut of(&lines).into_iter()) / scale,
                residual_column: largest(&mut residual.iter().copied()) / scale,
                residual_row: largest(&mut of(&residual_lines).into_iter()) / scale,
                residual_square: of(&squares).iter().sum::<f64>() / scale / scale,
                mean_square: shift.iter().zip(first).map(|(s, first)| (s + first).powi(2)).sum::<f64>() / scale / scale,
            });
        }
        Ok(())
    }

    /// Puts the token sets of each text together; a set with the rows of an earlier one is that one.
    fn fold(&self, by_set: Vec<Vec<SetSums>>, bad: &[bool]) -> Vec<TextSums> {
        let mut columns: Vec<_> = by_set.into_iter().map(Vec::into_iter).collect();
        let texts = self.texts.iter().map(|text| {
            let (mut sets, mut place): (Vec<SetSums>, [usize; 3]) = (Vec::with_capacity(3), [0; 3]);
            for (index, column) in columns.iter_mut().enumerate() {
                let own = column.next().unwrap_or_default();
                let twin = text.sets.iter().take(index).position(|other| Some(other) == text.sets.get(index));
                let same = twin.and_then(|twin| place.get(twin).copied());
                if let Some(slot) = place.get_mut(index) {
                    *slot = same.unwrap_or(sets.len());
                }
                if same.is_none() {
                    sets.push(own);
                }
            }
            let finite = text.set(TokenSet::All).iter().all(|&row| bad.get(row) != Some(&true));
            TextSums { sets, place, finite }
        });
        texts.collect()
    }

    /// For every text what [`super::streaming::centred_unit_sum`] makes of its rows of a token set.
    ///
    /// # Errors
    /// As [`Self::text_sums`].
    pub fn centred_unit_sums(
        &self,
        states: &Tensor,
        set: TokenSet,
        mean: &[f64],
        scale: Option<&[f64]>,
    ) -> Result<Vec<(Vec<f64>, usize)>> {
        if self.rows == 0 {
            return Ok(vec![(vec![0.0; mean.len()], 0); self.texts.len()]);
        }
        let (mut moved, bad) = self.finite(states)?;
        let shape = (1, mean.len());
        for part in self.halves(mean, shape)? {
            moved = moved.broadcast_sub(&part)?;
        }
        if let Some(scale) = scale {
            let scale = Tensor::from_slice(scale, shape, &Device::Cpu)?.to_dtype(self.dtype)?;
            moved = moved.broadcast_mul(&scale.to_device(&self.device)?)?;
        }
        let zero = if scale.is_none() { mean_rounding(mean) } else { 0.0 };
        let (norms, unit) = self.unit_rows(&moved, zero)?;
        let spoils = |row: usize| bad.get(row) == Some(&true) || norms.get(row).is_some_and(|n| !n.is_finite());
        let directed = |row: usize| spoils(row) || norms.get(row).is_some_and(|&n| n > zero && n * n > 0.0);
        let sums = self.texts.iter().zip(self.sums(set, &unit)?).map(|(text, mut sum)| {
            let rows = text.set(set);
            if rows.iter().any(|&row| spoils(row)) {
                sum.fill(f64::NAN);
            }
            (sum, rows.iter().filter(|&&row| directed(row)).count())
        });
        Ok(sums.collect())
    }
}

fn selection(texts: &[Members], set: TokenSet, rows: usize, dtype: DType, device: &Device) -> Result<Selection> {
    let blocks = || texts.iter().enumerate().flat_map(|(n, text)| text.set(set).chunks(BLOCK).map(move |b| (n, b)));
    let owners: Vec<usize> = blocks().map(|(text, _)| text).collect();
    let mut matrix = vec![0.0_f32; owners.len() * rows];
    for (line, (_, block)) in matrix.chunks_exact_mut(rows.max(1)).zip(blocks()) {
        for &row in block {
            if let Some(cell) = line.get_mut(row) {
                *cell = 1.0;
            }
        }
    }
    let matrix = Tensor::from_vec(matrix, (owners.len(), rows), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
    Ok(Selection { texts: owners, matrix })
}

/// Σ and count of the cosines of directed rows.
fn mean_parts(cosines: Option<&Vec<Option<f64>>>, rows: &[usize], norms: &[f64]) -> (f64, usize) {
    let Some(cosines) = cosines else { return (0.0, 0) };
    let directed = rows.iter().filter(|&&row| norms.get(row).is_some_and(|norm| norm * norm > 0.0));
    let found = directed.filter_map(|&row| cosines.get(row).copied().flatten());
    found.fold((0.0, 0), |(sum, count), cosine| (sum + cosine, count + 1))
}

/// All values of a tensor, wherever it is.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
#[path = "device_sums_tests.rs"]
mod tests;
