//! Token-wise cosine similarity, plain and centred on the corpus mean.
//!
//! For one text and one layer with token vectors `h_1 … h_n`,
//! `CosSim = 1/(n(n−1)) · Σ_{i≠j} <h_i, h_j> / (‖h_i‖‖h_j‖)`
//! (Shi et al., *Revisiting Over-smoothing in BERT from the Perspective of Graph*, ICLR 2022).
//! With unit rows this is `(‖Σ ĥ_i‖² − n) / (n(n−1))`: one pass over the rows, O(n·d), no n×n matrix.
//!
//! A zero row has no direction and does not count towards n; n < 2 is undefined (`None`). The centred form
//! subtracts the corpus mean of the same run, layer, site and token set, each token weighing 1: never the
//! text's own mean, which forces the result to −1/(n−1) whatever the data.

use super::Real;
use super::streaming::{States, TextRows, Wanted, centred_unit_sum, pairwise, text_sums};
use crate::data::Packed;
use crate::kernels;
use crate::model::ModelError;
use crate::probe::{Probe, Site};
use candle_core::{CpuStorage, Device, Storage, Tensor};
use rayon::prelude::*;
use std::fmt;

/// Which tokens of a text enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenSet {
    /// Every token.
    All,
    /// Without the first position, whatever it holds: it often is an outlier.
    NoFirst,
    /// Without special tokens.
    NoSpecial,
}

impl TokenSet {
    /// Every token set, in the order in which tables list them.
    pub const ALL: [Self; 3] = [Self::All, Self::NoFirst, Self::NoSpecial];
}

impl fmt::Display for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::NoFirst => "no_first",
            Self::NoSpecial => "no_special",
        })
    }
}

/// A place where hidden states are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The site.
    pub site: Site,
    /// The layer: 0 for the embedding, 1 to L for blocks, L for the final norm.
    pub layer: usize,
}

/// Every point of a model of `layers` blocks, in the order in which a forward pass reaches them.
#[must_use]
pub fn points(layers: usize) -> Vec<Point> {
    let blocks = (1..=layers).map(|layer| Point { site: Site::Block, layer });
    let first = Point { site: Site::Embedding, layer: 0 };
    let last = Point { site: Site::FinalNorm, layer: layers };
    std::iter::once(first).chain(blocks).chain(std::iter::once(last)).collect()
}

/// The mean pairwise cosine of one text at one point for one token set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineValue {
    /// How many non-zero rows counted.
    pub rows: usize,
    /// The mean pairwise cosine; `None` for fewer than two rows.
    pub value: Option<f64>,
}

/// The corpus means of every point and token set: the frozen first pass of the centred form.
#[derive(Debug, Clone, PartialEq)]
pub struct CorpusMeans {
    /// By point (as [`points`] lists them), then by token set; `[d]`, empty if no token entered.
    means: Vec<[Vec<f64>; 3]>,
}

/// A probe that measures the cosine of every text of a batch at every point, as training and pre-training want it;
/// `similarity` has its own, which measures everything.
///
/// Feed it batches in the order of the texts; it holds O(points · d) sums and three numbers a text and point.
#[derive(Debug)]
pub struct CosineProbe {
    points: Vec<Point>,
    wanted: Vec<bool>,
    centre: Option<CorpusMeans>,
    /// For every text of the batch to come: which of its tokens are special, and which rows are measured.
    texts: Vec<TextRows>,
    /// By point: the corpus sums of hidden states and their counts, by token set.
    sums: Vec<[(Vec<f64>, u64); 3]>,
    /// By text, then by point, then by token set.
    values: Vec<Vec<[CosineValue; 3]>>,
}

const UNDEFINED: CosineValue = CosineValue { rows: 0, value: None };

impl CosineProbe {
    /// A probe for a model of `layers` blocks; with `centre` it measures the centred form.
    #[must_use]
    pub fn new(layers: usize, centre: Option<CorpusMeans>) -> Self {
        let points = points(layers);
        let sums = points.iter().map(|_| Default::default()).collect();
        Self { wanted: vec![true; points.len()], points, centre, texts: Vec::new(), sums, values: Vec::new() }
    }

    /// Measures only the points for which `wanted` answers true; the others stay undefined.
    #[must_use]
    pub fn only(mut self, wanted: impl Fn(Point) -> bool) -> Self {
        self.wanted = self.points.iter().map(|&point| wanted(point)).collect();
        self
    }

    /// For a model without a final norm: leaves that point out.
    #[must_use]
    pub fn without_final_norm(mut self) -> Self {
        self.points.pop();
        self.sums.pop();
        self.wanted.pop();
        self
    }

    /// Announces the texts of the next batch: for each its special-token flags and the rows to measure.
    pub fn expect<'t>(&mut self, texts: impl IntoIterator<Item = (&'t [bool], std::ops::Range<usize>)>) {
        self.texts = texts.into_iter().map(|(special, span)| TextRows { special: special.to_vec(), span }).collect();
        let empty = vec![[UNDEFINED; 3]; self.points.len()];
        self.values.extend(self.texts.iter().map(|_| empty.clone()));
    }

    /// The points, in the order of the inner dimension of [`Self::values`].
    #[must_use]
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// What was measured: by text, then by point, then by token set (as [`TokenSet::ALL`]).
    #[must_use]
    pub fn values(&self) -> &[Vec<[CosineValue; 3]>] {
        &self.values
    }

    /// The corpus means of all texts so far.
    #[must_use]
    pub fn corpus_means(&self) -> CorpusMeans {
        let mean = |(sum, count): &(Vec<f64>, u64)| sum.iter().map(|s| s / (*count).max(1) as f64).collect();
        CorpusMeans { means: self.sums.iter().map(|sets| sets.each_ref().map(mean)).collect() }
    }

    /// The mean over texts at every point for one token set; `None` where no text is defined.
    #[must_use]
    pub fn curve(&self, tokens: TokenSet) -> Vec<Option<f64>> {
        (0..self.points.len())
            .map(|point| {
                let defined = self.values.iter().filter_map(|text| text.get(point)?.get(tokens as usize)?.value);
                let (sum, count) = defined.fold((0.0, 0u32), |(s, c), v| (s + v, c + 1));
                (count > 0).then(|| sum / f64::from(count))
            })
            .collect()
    }
}

impl Probe for CosineProbe {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        let Some(index) = self.points.iter().position(|&p| p == Point { site, layer }) else { return Ok(()) };
        if !self.wanted.get(index).copied().unwrap_or(false) {
            return Ok(());
        }
        if self.texts.len() != batch.sequences() {
            return Err(refused(format!(
                "{} texts were announced for {} sequences",
                self.texts.len(),
                batch.sequences()
            )));
        }
        let states = states.to_device(&Device::Cpu)?.to_dtype(kernels::wide(states.dtype()))?.contiguous()?;
        let width = states.dim(1)?;
        let centre = self.centre.as_ref().and_then(|c| c.means.get(index));
        let (storage, layout) = states.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(refused("hidden states are not contiguous".to_owned()));
        };
        let measured: Vec<TextCosine> = match &*storage {
            Storage::Cpu(CpuStorage::F32(data)) => {
                measure_texts(data.get(start..end).unwrap_or_default(), width, &self.texts, batch, centre)
            }
            Storage::Cpu(CpuStorage::F64(data)) => {
                measure_texts(data.get(start..end).unwrap_or_default(), width, &self.texts, batch, centre)
            }
            _ => return Err(refused("hidden states must be f32 or f64 to be measured".to_owned())),
        };
        let first_text = self.values.len() - self.texts.len();
        for (offset, text) in measured.into_iter().enumerate() {
            if !text.finite {
                return Err(ModelError::NotFinite { text: first_text + offset, site, layer });
            }
            if let Some(slot) = self.values.get_mut(first_text + offset).and_then(|v| v.get_mut(index)) {
                *slot = text.values;
            }
            if let Some(sums) = self.sums.get_mut(index) {
                for ((sum, count), (add, n)) in sums.iter_mut().zip(&text.sums) {
                    sum.resize(width, 0.0);
                    sum.iter_mut().zip(add).for_each(|(s, a)| *s += a);
                    *count += n;
                }
            }
        }
        Ok(())
    }
}

fn refused(reason: String) -> ModelError {
    ModelError::Tensor(candle_core::Error::Msg(reason))
}

/// What one text gives at one point.
struct TextCosine {
    values: [CosineValue; 3],
    sums: [(Vec<f64>, u64); 3],
    finite: bool,
}

fn measure_texts<T: Real>(
    data: &[T],
    width: usize,
    texts: &[TextRows],
    batch: &Packed,
    centre: Option<&[Vec<f64>; 3]>,
) -> Vec<TextCosine> {
    texts
        .par_iter()
        .enumerate()
        .map(|(index, text)| {
            let rows = batch.rows(index);
            measure_text(data.get(rows.start * width..rows.end * width).unwrap_or_default(), width, text, centre)
        })
        .collect()
}

fn measure_text<T: Real>(values: &[T], width: usize, text: &TextRows, centre: Option<&[Vec<f64>; 3]>) -> TextCosine {
    let states = States { values, width, layer0: None, h0: None };
    let wanted = Wanted { sum: centre.is_none(), ..Wanted::default() };
    let sums = text_sums(states, text, wanted);
    let measured = match centre {
        None => TokenSet::ALL.map(|set| {
            let sums = sums.set(set);
            CosineValue { rows: sums.directed, value: sums.cosine() }
        }),
        Some(means) => TokenSet::ALL.map(|set| {
            let positions = text.of(set, values.len() / width.max(1));
            let mean = means.get(set as usize).map(Vec::as_slice).unwrap_or_default();
            let (sum, rows) = centred_unit_sum(values, width, &positions, mean, None);
            CosineValue { rows, value: pairwise(&sum, rows) }
        }),
    };
    let corpus = TokenSet::ALL.map(|set| (sums.set(set).sum.clone(), sums.set(set).rows as u64));
    TextCosine { values: measured, sums: corpus, finite: sums.finite }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize) -> TextRows {
        TextRows { special: (0..n).map(|i| i == 0).collect(), span: 0..n }
    }

    fn all(rows: &[f64], width: usize) -> CosineValue {
        measure_text(rows, width, &text(rows.len() / width), None).values[0]
    }

    fn norm(values: &[f64]) -> f64 {
        values.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// The definition itself, O(n²).
    fn naive(rows: &[f64], width: usize) -> f64 {
        let rows: Vec<&[f64]> = rows.chunks(width).collect();
        let n = rows.len();
        let mut sum = 0.0;
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                if i != j {
                    let dot: f64 = a.iter().zip(*b).map(|(x, y)| x * y).sum();
                    sum += dot / (norm(a) * norm(b));
                }
            }
        }
        sum / (n * (n - 1)) as f64
    }

    #[test]
    fn equals_the_definition() {
        let rows: Vec<f64> = (0..21 * 5).map(|i| ((i * 37 % 101) as f64 - 40.0) / 7.0).collect();
        let value = all(&rows, 5).value.unwrap();
        assert!((value - naive(&rows, 5)).abs() < 1e-13);
    }

    #[test]
    fn known_cases() {
        assert_eq!(all(&[1.0, 0.0, 0.0, 2.0], 2).value, Some(0.0), "orthogonal");
        assert_eq!(all(&[1.0, 1.0, -3.0, -3.0], 2).value.map(|v| v.round()), Some(-1.0), "opposite");
        assert_eq!(all(&[1.0, 2.0], 2), CosineValue { rows: 1, value: None }, "one token");
        let zero_row = all(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 2);
        assert_eq!(zero_row, CosineValue { rows: 2, value: Some(1.0) }, "a zero row does not count");
    }

    #[test]
    fn token_sets_drop_their_tokens() {
        // rows: special first (1,0), special second (0,1), then two equal rows
        let rows = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        let text = TextRows { special: vec![true, true, false, false], span: 0..4 };
        let values = measure_text(&rows, 2, &text, None).values;
        assert_eq!(values[0].value, Some(6.0 / 12.0));
        assert_eq!(values[1].value, Some(2.0 / 6.0));
        assert_eq!(values[2], CosineValue { rows: 2, value: Some(1.0) });
    }

    #[test]
    fn a_span_measures_its_rows_only() {
        let rows = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        let text = TextRows { special: vec![false; 4], span: 2..4 };
        let values = measure_text(&rows, 2, &text, None).values;
        assert_eq!(values[0], CosineValue { rows: 2, value: Some(1.0) });
        assert_eq!(values[1].rows, 2, "the first position of the text lies outside the span");
    }

    #[test]
    fn the_centred_form_subtracts_the_given_mean() {
        // (2,1), (1,2), (1,1) less (1,1): two orthogonal rows and a zero row.
        let rows = [2.0, 1.0, 1.0, 2.0, 1.0, 1.0];
        let means = [vec![1.0, 1.0], vec![1.0, 1.0], vec![0.0, 0.0]];
        let values = measure_text(&rows, 2, &text(3), Some(&means)).values;
        assert_eq!(values[0], CosineValue { rows: 2, value: Some(0.0) });
        assert_eq!(values[1], CosineValue { rows: 1, value: None });
        assert!((values[2].value.unwrap() - 3.0 / 10.0f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_non_finite_state_is_seen() {
        assert!(!measure_text(&[1.0, f64::NAN, 1.0, 1.0], 2, &text(2), None).finite);
        assert!(!measure_text(&[1.0, f64::INFINITY], 2, &text(1), None).finite);
    }
}
