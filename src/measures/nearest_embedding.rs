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
}

impl<'a> EmbeddingTable<'a> {
    /// The table with these values, row by row; `None` without rows, for more than 2³² and for values that are not
    /// finite.
    #[must_use]
    pub fn new(values: &'a [f32], width: usize) -> Option<Self> {
        let rows = Rows::new(values, width);
        let norms: Vec<f64> = rows.values().par_chunks(width.max(1)).map(norm).collect();
        let sound = rows.n() > 0 && u32::try_from(rows.n()).is_ok() && norms.iter().all(|n| n.is_finite());
        sound.then_some(Self { rows, norms })
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
                let table: Vec<f32> =
                    ids.clone().flat_map(|id| unit(self.rows.row(id), self.norms.get(id).copied())).collect();
                let table = MatRef::from_row_major_slice(&table, ids.len(), width);
                let mut cosines = Mat::<f32>::zeros(ids.len(), block.len());
                matmul(&mut cosines, Accum::Replace, table, units.transpose(), 1.0, Par::Seq);
                let near = |column: faer::ColRef<'_, f32>| {
                    let known = || {
                        let all = ids.clone().zip(column.iter().copied());
                        all.filter(|(id, _)| self.norms.get(*id).is_some_and(|&n| n > 0.0))
                    };
                    let largest = known().map(|(_, c)| c).fold(f32::NEG_INFINITY, f32::max);
                    known().filter(|(_, c)| *c >= largest - slack).map(|(id, c)| (id as u32, c)).collect()
                };
                cosines.col_iter().map(near).collect()
            })
            .collect();
        (0..block.len())
            .map(|row| {
                let known = || parts.iter().filter_map(|part| part.get(row)).flatten();
                let largest = known().map(|&(_, c)| c).fold(f32::NEG_INFINITY, f32::max);
                known().filter(|(_, c)| *c >= largest - slack).map(|&(id, _)| id).collect()
            })
            .collect()
    }

    /// The candidate of the largest cosine in f64, the lowest id among equals; candidates come in order of id. Equal
    /// up to rounding: multiples of one row have one direction, and in one dimension half of all rows have.
    fn exact<T: Real>(&self, row: &[T], candidates: &[u32]) -> Option<u32> {
        let length = norm(row);
        let cosine = |id: u32| {
            let at = id as usize;
            self.norms.get(at).map(|norm| dot(row, self.rows.row(at)) / norm / length)
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
