//! DeBERTa's distances: a table of vectors that every block projects anew, for its queries and keys to meet.

use super::Linear;
use super::block::{Block, Projections};
use super::norm::Norm;
use crate::kernels::{self, AttentionShape, DisentangledShape};
use crate::peft::PassState;
use candle_core::{DType, Result, Tensor};
use std::sync::Arc;

/// How attention meets distances (He et al., 2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disentangled {
    /// Rows of the table for each direction where distances share them by their logarithm; `None`: a row a distance.
    pub buckets: Option<usize>,
    /// Distances from here on share the last row.
    pub max_distance: usize,
    /// Whether queries meet the distances of keys.
    pub content_to_position: bool,
    /// Whether keys meet the distances of queries.
    pub position_to_content: bool,
    /// Whether the linears of queries and keys project the table too, and not two of its own.
    pub shared: bool,
    /// Whether the table goes through a norm first.
    pub normed: bool,
}

impl Disentangled {
    /// Rows of the table for each direction.
    fn span(&self) -> usize {
        self.buckets.unwrap_or(self.max_distance)
    }

    /// Rows of the table.
    #[must_use]
    pub fn rows(&self) -> usize {
        2 * self.span()
    }

    /// Products that a score is the sum of.
    #[must_use]
    pub fn terms(&self) -> usize {
        1 + usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }

    /// Whether the table's projections for keys to meet (of queries), and for queries to meet (of keys), are there.
    #[must_use]
    pub fn met(&self) -> [bool; 2] {
        [self.position_to_content, self.content_to_position]
    }

    /// The row of the distance from key to query.
    fn row(&self, distance: i64) -> u32 {
        let place = match self.buckets {
            Some(buckets) => bucket(distance, buckets, self.max_distance),
            None => distance,
        };
        (place + self.span() as i64).clamp(0, self.rows() as i64 - 1) as u32
    }
}

/// Distances up to half the buckets are their own, further ones share a bucket by their logarithm (transformers'
/// `make_log_bucket_position`).
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> i64 {
    let middle = (buckets / 2) as i64;
    if distance.abs() <= middle {
        return distance;
    }
    // In f32, as transformers rounds.
    let log = |distance: f64| ((distance / middle as f64) as f32).ln();
    let share = log(distance.abs() as f64) / log(max_distance as f64 - 1.0);
    ((share * (middle - 1) as f32).ceil() as i64 + middle) * distance.signum()
}

/// The table with its norm.
#[derive(Debug, Clone)]
pub(super) struct DistanceTable {
    pub(super) form: Disentangled,
    /// `[rows, d]`.
    pub(super) weight: Tensor,
    pub(super) norm: Option<Norm>,
}

impl DistanceTable {
    /// What sequences of at most `longest` tokens meet, computed in `dtype`.
    pub(super) fn upto(&self, longest: usize, dtype: DType) -> Distances<'_> {
        let most = longest.max(1) as i64 - 1;
        let rows: Vec<u32> = (-most..=most).map(|distance| self.form.row(distance)).collect();
        let first = rows.iter().min().copied().unwrap_or(0);
        let last = rows.iter().max().copied().unwrap_or(0);
        let places = rows.iter().map(|row| row - first).collect();
        Distances { table: self, rows: (first..=last).collect(), places, dtype }
    }
}

/// The rows of the table that a batch meets.
#[derive(Debug, Clone)]
pub(super) struct Distances<'a> {
    table: &'a DistanceTable,
    rows: Arc<[u32]>,
    /// By distance, its place among `rows`.
    places: Arc<[u32]>,
    dtype: DType,
}

impl Distances<'_> {
    /// `[rows, d]`. Each block makes them anew, so that the gradient of the table is that of each block by itself.
    fn states(&self) -> Result<Tensor> {
        let states = kernels::embedding(&self.table.weight, &self.rows, self.dtype)?;
        match &self.table.norm {
            Some(norm) => norm.forward(&states),
            None => Ok(states),
        }
    }
}

/// What a block's queries and keys meet.
#[derive(Debug, Clone)]
pub(super) struct Projected {
    pub(super) shape: DisentangledShape,
    /// Met by keys, then by queries, `[rows, heads · head_dim]`.
    pub(super) tables: [Option<Tensor>; 2],
}

impl Projected {
    pub(super) fn tables(&self) -> [Option<&Tensor>; 2] {
        self.tables.each_ref().map(Option::as_ref)
    }

    /// Attention over queries, keys and values.
    pub(super) fn attention(&self, qkv: [&Tensor; 3], offsets: &Arc<[usize]>) -> Result<Tensor> {
        kernels::disentangled_attention(qkv, self.tables(), &self.shape, offsets)
    }
}

impl Block {
    /// The table as this block projects it, PEFT modules and all; distances are no tokens and have no h0.
    pub(super) fn project(
        &self,
        distances: &Distances<'_>,
        shape: AttentionShape,
        state: &PassState<'_>,
    ) -> Result<Projected> {
        let states = distances.states()?;
        let state = state.without_tokens();
        let form = distances.table.form;
        let shared = match &self.projections {
            Projections::Separate { query, key, .. } if form.shared => [Some(query), Some(key)],
            _ => [None, None],
        };
        let [q, k] = &self.distance_projections;
        let project = |(shared, own, met): (Option<&Linear>, &Option<(Tensor, Tensor)>, bool)| match (shared, own) {
            (Some(linear), _) if met => linear.forward(&states, &state).map(Some),
            (_, Some((weight, bias))) if met => kernels::linear(&states, weight, Some(bias)).map(Some),
            _ => Ok(None),
        };
        let ([shared_q, shared_k], [meets_q, meets_k]) = (shared, form.met());
        let AttentionShape { heads, head_dim, scale, .. } = shape;
        Ok(Projected {
            shape: DisentangledShape { heads, head_dim, scale, places: Arc::clone(&distances.places) },
            tables: [project((shared_q, q, meets_q))?, project((shared_k, k, meets_k))?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn form(buckets: Option<usize>, max_distance: usize) -> Disentangled {
        Disentangled {
            buckets,
            max_distance,
            content_to_position: true,
            position_to_content: true,
            shared: true,
            normed: false,
        }
    }

    #[test]
    fn buckets_are_those_of_transformers() {
        // make_log_bucket_position: buckets, greatest distance, some buckets, Σ (distance + 1) · bucket for 0..=700.
        let cases = [
            (
                256,
                512,
                [(128, 128), (129, 129), (200, 169), (300, 207), (511, 255), (512, 256), (600, 270)],
                58_693_805,
            ),
            (8, 24, [(3, 3), (4, 4), (5, 5), (9, 6), (23, 7), (127, 10), (200, 11)], 3_066_884),
            (7, 20, [(3, 3), (4, 4), (5, 4), (9, 5), (23, 6), (127, 8), (511, 9)], 2_159_580),
            (
                256,
                1024,
                [(127, 127), (129, 129), (200, 156), (300, 181), (511, 213), (512, 213), (600, 223)],
                49_531_589,
            ),
        ];
        for (buckets, most, some, sum) in cases {
            for (distance, want) in some {
                assert_eq!(bucket(distance, buckets, most), want, "{distance} of {buckets}, {most}");
                assert_eq!(bucket(-distance, buckets, most), -want);
            }
            assert_eq!((0..=700).map(|d| (d + 1) * bucket(d, buckets, most)).sum::<i64>(), sum, "{buckets}, {most}");
        }
        // Far ones share the last row.
        let form = form(Some(256), 512);
        assert_eq!([-9000, -512, -511, 0, 511, 9000].map(|d| form.row(d)), [0, 0, 1, 256, 511, 511]);
    }

    #[test]
    fn a_batch_meets_the_rows_of_its_distances_alone() {
        let weight = Tensor::arange(0f64, 36.0, &Device::Cpu).unwrap().reshape((18, 2)).unwrap();
        let table = DistanceTable { form: form(None, 9), weight, norm: None };
        let distances = table.upto(3, DType::F64);
        assert_eq!((&*distances.rows, &*distances.places), (&[7, 8, 9, 10, 11][..], &[0, 1, 2, 3, 4][..]));
        assert_eq!(distances.states().unwrap().to_vec2::<f64>().unwrap()[2], [18.0, 19.0]);
        // The last distance of each side is shared; the table has a row more before the middle.
        let distances = table.upto(12, DType::F64);
        assert_eq!(distances.rows.len(), 18);
        assert_eq!(distances.places[..4], [0, 0, 0, 1]);
        assert_eq!(distances.places[18..], [16, 17, 17, 17, 17]);
        assert_eq!(&*table.upto(0, DType::F64).places, [0]);
    }
}
