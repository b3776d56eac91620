//! Nearest embedding: can a token still be told as the token it was?
//!
//! The share of a text's tokens whose nearest row of the embedding table, by cosine, is their own; ties go to the
//! lowest id. 0 to 1. A zero row, of the text or of the table, has no direction: it does not count, or is never
//! nearest. Lookup class: 2·n·V·d operations a text, so a sample of texts.
//!
//! It reveals identity lost to smoothing while states live in the embedding's space. Once layers have rotated or
//! shifted it away, it is 0 for sharp states too.

use super::rows::{Real, Rows, dot, norm};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

/// Rows of the table that are compared together.
const TABLE_BLOCK: usize = 512;
/// Rows of a text that are compared together.
const ROW_BLOCK: usize = 256;

/// An embedding table, `[V, d]`, with the norms of its rows.
#[derive(Debug, Clone)]
pub struct EmbeddingTable<'a> {
    rows: Rows<'a, f32>,
    norms: Vec<f64>,
    /// One over each norm; NaN where f32 has no such number, so that the row is always looked at in f64.
    inverses: Vec<f32>,
}

/// Norms whose inverses and products f32 holds with all its digits.
const PLAIN_NORMS: std::ops::Range<f64> = 1e-15..1e15;

impl<'a> EmbeddingTable<'a> {
    /// The table with these values, row by row; `None` without rows, for more than 2³² and for values that are not
    /// finite.
    #[must_use]
    pub fn new(values: &'a [f32], width: usize) -> Option<Self> {
        let rows = Rows::new(values, width);
        let norms: Vec<f64> = rows.values().par_chunks(width.max(1)).map(norm).collect();
        let sound = rows.n() > 0 && u32::try_from(rows.n()).is_ok() && norms.iter().all(|n| n.is_finite());
        let inverse = |norm: &f64| if PLAIN_NORMS.contains(norm) { (1.0 / norm) as f32 } else { f32::NAN };
        sound.then(|| Self { rows, inverses: norms.iter().map(inverse).collect(), norms })
    }

    /// For every row the id of the nearest table row; inner `None` for a zero row, `None` for another width, a value
    /// that is not finite, or a table of zeros.
    #[must_use]
    pub fn nearest<T: Real>(&self, rows: Rows<'_, T>) -> Option<Vec<Option<u32>>> {
        if rows.width() != self.rows.width() {
            return None;
        }
        let norms: Vec<f64> = rows.iter().map(norm).collect();
        if norms.iter().any(|n| !n.is_finite()) || self.norms.iter().all(|&n| n == 0.0) {
            return None;
        }
        let indices: Vec<usize> = (0..rows.n()).collect();
        let mut nearest = Vec::with_capacity(rows.n());
        for block in indices.chunks(ROW_BLOCK) {
            let candidates = self.candidates(rows, &norms, block);
            for (&i, candidates) in block.iter().zip(candidates) {
                let zero = norms.get(i).is_none_or(|&n| n == 0.0);
                nearest.push(if zero { None } else { self.exact(rows.row(i), &candidates) });
            }
        }
        Some(nearest)
    }

    /// For each of the text's rows in `block` the ids whose f32 cosine is within rounding of the largest.
    fn candidates<T: Real>(&self, rows: Rows<'_, T>, norms: &[f64], block: &[usize]) -> Vec<Vec<u32>> {
        let width = rows.width();
        let units: Vec<f32> = block.iter().flat_map(|&i| unit(rows.row(i), norms.get(i).copied())).collect();
        let units = MatRef::from_row_major_slice(&units, block.len(), width);
        // Twice the bound of an inner product of unit vectors in f32.
        let slack = (width as f32 + 8.0) * f32::EPSILON;
        let starts: Vec<usize> = (0..self.rows.n()).step_by(TABLE_BLOCK).collect();
        let parts: Vec<Vec<Vec<(u32, f32)>>> = starts
            .into_par_iter()
            .map(|start| {
                let ids = start..self.rows.n().min(start + TABLE_BLOCK);
                let table = self.rows.values().get(ids.start * width..ids.end * width).unwrap_or_default();
                let table = MatRef::from_row_major_slice(table, ids.len(), width);
                let inverses = self.inverses.get(ids.clone()).unwrap_or_default();
                let mut cosines = Mat::<f32>::zeros(ids.len(), block.len());
                matmul(&mut cosines, Accum::Replace, table, units.transpose(), 1.0, Par::Seq);
                let near = |column: faer::ColRef<'_, f32>| {
                    // A zero row gives NaN, as every row does that f64 must decide on.
                    let cosines = || column.iter().zip(inverses).map(|(product, inverse)| product * inverse);
                    let largest = cosines().fold(f32::NEG_INFINITY, f32::max);
                    let near = cosines().enumerate().filter(|(_, c)| c.is_nan() || *c >= largest - slack);
                    near.map(|(place, c)| ((ids.start + place) as u32, c)).collect()
                };
                cosines.col_iter().map(near).collect()
            })
            .collect();
        (0..block.len())
            .map(|row| {
                let known = || parts.iter().filter_map(|part| part.get(row)).flatten();
                let largest = known().map(|&(_, c)| c).fold(f32::NEG_INFINITY, f32::max);
                known().filter(|(_, c)| c.is_nan() || *c >= largest - slack).map(|&(id, _)| id).collect()
            })
            .collect()
    }

    /// The candidate of the largest cosine in f64, the lowest id among equals; candidates come in order of id. Equal
    /// up to rounding: multiples of one row have one direction, and in one dimension half of all rows have.
    fn exact<T: Real>(&self, row: &[T], candidates: &[u32]) -> Option<u32> {
        let length = norm(row);
        let cosine = |id: u32| {
            let at = id as usize;
            let norm = self.norms.get(at).copied()?;
            // A row without a direction is never nearest.
            Some(if norm > 0.0 { dot(row, self.rows.row(at)) / norm / length } else { f64::NEG_INFINITY })
        };
        let cosines: Vec<f64> = candidates.iter().map(|&id| cosine(id)).collect::<Option<_>>()?;
        let largest = cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let slack = (row.len() as f64 + 8.0) * f64::EPSILON;
        candidates.iter().zip(cosines).find(|(_, cosine)| *cosine >= largest - slack).map(|(&id, _)| id)
    }
}

/// The unit vector of a row in f32; zeros for a zero row.
fn unit<T: Real>(row: &[T], norm: Option<f64>) -> impl Iterator<Item = f32> {
    let norm = norm.filter(|&n| n > 0.0).unwrap_or(f64::INFINITY);
    row.iter().map(move |&x| (x.into() / norm) as f32)
}

/// The share of rows whose nearest row of `table` has the row's own id; `ids[k]` is the token of row k.
///
/// `None` where no row counts, for an id that the table does not have, and as [`EmbeddingTable::nearest`].
#[must_use]
pub fn nearest_embedding<T: Real>(rows: Rows<'_, T>, ids: &[u32], table: &EmbeddingTable<'_>) -> Option<f64> {
    if ids.len() != rows.n() || ids.iter().any(|&id| id as usize >= table.rows.n()) {
        return None;
    }
    let nearest = table.nearest(rows)?;
    let (mut own, mut count) = (0u64, 0u64);
    for (nearest, &id) in nearest.iter().zip(ids) {
        if let Some(nearest) = nearest {
            count += 1;
            own += u64::from(*nearest == id);
        }
    }
    (count > 0).then(|| own as f64 / count as f64)
}
