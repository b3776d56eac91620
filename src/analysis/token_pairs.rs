//! Who is alike: pairs of tokens by their classes, by their distance, and one by one.
//!
//! One forward pass gives all that is asked for. Each text is measured alone and folded in its order; what is
//! kept of it is a few numbers a layer, and the matrix of a heat map.

use super::chunks::TextSupply;
use super::distance::{DistanceBand, DistanceCosine, distance_cosines};
use super::estimates::{Estimate, Estimates};
use super::heatmap::{self, CosineMatrix};
use super::layers::Layers;
use super::similarity::{EncodedText, SimilarityError, StateSource};
use super::states::StatesError;
use super::token_classes::{ClassCosine, ClassPair, TokenClass, class_cosines};
use super::token_text::visible;
use super::unit_rows::UnitRows;
use crate::data::Packed;
use crate::measures::Point;
use crate::model::{ModelError, Pass};
use crate::peft::Peft;
use crate::probe::{Probe, Site};
use crate::report::{DistanceRow, MIN_TEXTS, TokenClassRow};
use crate::statistics::StatisticsError;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairRequest {
    /// Similarity within and between classes of tokens, over all texts.
    pub classes: bool,
    /// Similarity against distance, over the first so many texts.
    pub distance_texts: Option<usize>,
    /// Token × token matrices.
    pub heatmap: Option<HeatMapRequest>,
}

/// Which matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatMapRequest {
    /// Of which layers: the embedding and block outputs.
    pub layers: Layers,
    /// Of which texts, by their position in the input.
    pub texts: Vec<u64>,
}

/// Why pairs of tokens cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A text for a heat map that was not measured.
    #[error(
        "--text {text}: no such text among the {measured} that are measured (--limit and --tokens leave texts out); \
         the first is {first}, the last {last}"
    )]
    NoSuchText {
        /// The text asked for.
        text: u64,
        /// How many texts there are.
        measured: usize,
        /// The first one's index.
        first: u64,
        /// The last one's.
        last: u64,
    },
    /// A text too long for a matrix.
    #[error("--heatmap: text {text} has {tokens} tokens, more than {longest}; cut it with --max-tokens {longest}")]
    TooLong {
        /// The text.
        text: u64,
        /// Its measured tokens.
        tokens: usize,
        /// What is possible.
        longest: usize,
    },
    /// The model cannot be run.
    #[error("{run}: {source}")]
    Run {
        /// The run.
        run: String,
        /// Why.
        source: ModelError,
    },
    /// Stored states cannot be read.
    #[error("{run}: {source}")]
    States {
        /// The run.
        run: String,
        /// Why.
        source: StatesError,
    },
    /// A text cannot be read.
    #[error(transparent)]
    Text(#[from] SimilarityError),
    /// A mean cannot be computed.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// A text whose pairs are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairText {
    index: u64,
    span: Range<usize>,
    /// Of every token of the text.
    classes: Vec<TokenClass>,
    /// Of every token of the text, as a reader sees it; empty unless a heat map is wanted.
    labels: Vec<String>,
    by_class: bool,
    by_distance: bool,
    as_matrix: bool,
}

impl PairRequest {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.classes && self.distance_texts.is_none() && self.heatmap.is_none()
    }

    /// How many pairs of tokens the similarity against distance forms at each layer.
    ///
    /// # Errors
    /// A text cannot be read.
    pub fn distance_pairs(&self, texts: &dyn TextSupply) -> Result<u64, SimilarityError> {
        let mut pairs = 0;
        for text in texts.open()?.take(self.distance_texts.unwrap_or(0)) {
            let n = text?.span.len() as u64;
            pairs += n * n.saturating_sub(1) / 2;
        }
        Ok(pairs)
    }

    /// How many of `texts` texts are read, if none is left out.
    #[must_use]
    pub fn reads(&self, texts: u64) -> u64 {
        let near = self.distance_texts.map_or(0, |n| n as u64).min(texts);
        let maps =
            self.heatmap.iter().flat_map(|request| &request.texts).filter(|index| **index >= near).count() as u64;
        if self.classes { texts } else { (near + maps).min(texts) }
    }

    /// Whether one of the analyses needs the text at `place` (from 0) among those that are measured.
    fn needs(&self, place: usize, index: u64) -> bool {
        self.classes || self.near(place) || self.maps(index)
    }

    fn near(&self, place: usize) -> bool {
        self.distance_texts.is_some_and(|n| place < n)
    }

    fn maps(&self, index: u64) -> bool {
        self.heatmap.as_ref().is_some_and(|request| request.texts.contains(&index))
    }

    /// Refuses a heat map of a text that is not there, or too long.
    ///
    /// # Errors
    /// As said, or a text cannot be read.
    pub fn check(&self, texts: &dyn TextSupply) -> Result<(), PairError> {
        let mut wanted: BTreeSet<u64> = self.heatmap.iter().flat_map(|request| request.texts.iter().copied()).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (mut measured, mut first, mut last) = (0, None, 0);
        for text in texts.open()? {
            let text = text?;
            (measured, first, last) = (measured + 1, first.or(Some(text.index)), text.index);
            if wanted.remove(&text.index) && text.span.len() > heatmap::LONGEST {
                let (text, tokens) = (text.index, text.span.len());
                return Err(PairError::TooLong { text, tokens, longest: heatmap::LONGEST });
            }
        }
        match wanted.pop_first() {
            Some(text) => Err(PairError::NoSuchText { text, measured, first: first.unwrap_or(0), last }),
            None => Ok(()),
        }
    }

    /// The text at `place` (from 0) among those that are measured, with the decoded text of each of its tokens.
    #[must_use]
    pub fn text(&self, place: usize, text: &EncodedText, decoded: &[String]) -> PairText {
        let as_matrix = self.maps(text.index);
        let kinds = decoded.iter().zip(&text.special).enumerate();
        PairText {
            index: text.index,
            span: text.span.clone(),
            classes: kinds.map(|(position, (decoded, &special))| TokenClass::of(position, special, decoded)).collect(),
            labels: if as_matrix { decoded.iter().map(|text| visible(text)).collect() } else { Vec::new() },
            by_class: self.classes,
            by_distance: self.near(place),
            as_matrix,
        }
    }
}

/// Values of the texts that have one, and the pairs behind them.
#[derive(Debug, Clone, PartialEq, Default)]
struct Series {
    values: Vec<f64>,
    pairs: u64,
}

impl Series {
    fn add(&mut self, value: f64, pairs: u64) {
        self.values.push(value);
        self.pairs += pairs;
    }
}

/// What was measured at one point.
#[derive(Debug, Clone, PartialEq, Default)]
struct PointPairs {
    classes: BTreeMap<ClassPair, Series>,
    distances: BTreeMap<DistanceBand, Series>,
}

/// A probe that measures pairs of tokens. Announce each batch with [`PairProbe::expect`].
#[derive(Debug)]
pub struct PairProbe<'r> {
    layers: &'r Layers,
    request: &'r PairRequest,
    texts: Vec<PairText>,
    /// In order of layer, then site.
    points: BTreeMap<(usize, Site), PointPairs>,
    matrices: Vec<CosineMatrix>,
}

/// What one text gives at one point.
struct TextPairs {
    classes: Vec<ClassCosine>,
    distances: Vec<DistanceCosine>,
    matrix: Option<CosineMatrix>,
}

impl<'r> PairProbe<'r> {
    /// A probe for what `request` asks, at `layers` (heat maps have layers of their own).
    #[must_use]
    pub fn new(request: &'r PairRequest, layers: &'r Layers) -> Self {
        Self { layers, request, texts: Vec::new(), points: BTreeMap::new(), matrices: Vec::new() }
    }

    /// Announces the texts of the next batch.
    pub fn expect(&mut self, texts: Vec<PairText>) {
        self.texts = texts;
    }

    /// What was measured, under the run's name.
    #[must_use]
    pub fn finish(self, run: &str) -> RunPairs {
        RunPairs { run: run.to_owned(), points: self.points, matrices: self.matrices }
    }

    fn maps(&self, point: Point) -> bool {
        point.site != Site::FinalNorm
            && self.request.heatmap.as_ref().is_some_and(|request| request.layers.contains(point))
    }

    fn measure<T: Copy + Into<f64> + Sync>(
        &self,
        data: &[T],
        width: usize,
        point: Point,
        batch: &Packed,
    ) -> Result<Vec<TextPairs>, ModelError> {
        let (curves, maps) = (self.layers.contains(point), self.maps(point));
        let measured = self.texts.par_iter().enumerate().map(|(place, text)| {
            let rows = batch.rows(place);
            let rows = data.get(rows.start * width..rows.end * width).unwrap_or_default();
            let unit = UnitRows::new(rows, width, text.span.clone()).ok_or(ModelError::NotFinite {
                text: text.index as usize,
                site: point.site,
                layer: point.layer,
            })?;
            let labels = || text.labels.get(text.span.clone()).unwrap_or_default();
            let matrix = || CosineMatrix::new(text.index, point, text.span.start, labels(), &unit);
            Ok(TextPairs {
                classes: if curves && text.by_class { class_cosines(&unit, &text.classes) } else { Vec::new() },
                distances: if curves && text.by_distance { distance_cosines(&unit) } else { Vec::new() },
                matrix: (maps && text.as_matrix).then(matrix),
            })
        });
        measured.collect()
    }
}

impl Probe for PairProbe<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        let point = Point { site, layer };
        let known = matches!(site, Site::Embedding | Site::Block | Site::FinalNorm);
        if !known || !(self.layers.contains(point) || self.maps(point)) {
            return Ok(());
        }
        if self.texts.len() != batch.sequences() {
            let reason = format!("{} texts were announced for {} sequences", self.texts.len(), batch.sequences());
            return Err(ModelError::Tensor(candle_core::Error::Msg(reason)));
        }
        let width = states.dim(1)?;
        let flat = states.to_device(&Device::Cpu)?.flatten_all()?;
        let measured = match flat.dtype() {
            DType::F64 => self.measure(&flat.to_vec1::<f64>()?, width, point, batch)?,
            _ => self.measure(&flat.to_dtype(DType::F32)?.to_vec1::<f32>()?, width, point, batch)?,
        };
        let found = self.points.entry((layer, site)).or_default();
        for text in measured {
            for ClassCosine { classes, cosine, pairs } in text.classes {
                found.classes.entry(classes).or_default().add(cosine, pairs);
            }
            for DistanceCosine { band, cosine, pairs } in text.distances {
                found.distances.entry(band).or_default().add(cosine, pairs);
            }
            self.matrices.extend(text.matrix);
        }
        Ok(())
    }
}

/// What one run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPairs {
    /// The run's name.
    pub run: String,
    points: BTreeMap<(usize, Site), PointPairs>,
    /// The matrices of its heat maps.
    pub matrices: Vec<CosineMatrix>,
}

/// Measures the pairs of one run in a forward pass over the texts that are needed, `batch_size` at a time.
/// `decode` gives the text of every token of a text; `done` is told of every batch how many texts it held.
///
/// # Errors
/// A text cannot be read, a hidden state is not finite, or the model cannot be run.
#[expect(clippy::too_many_arguments, reason = "a run, its texts, what is asked of them, and who follows")]
pub fn measure_pairs(
    run: &str,
    source: StateSource<'_>,
    texts: &dyn TextSupply,
    decode: &mut dyn FnMut(&EncodedText) -> Vec<String>,
    layers: &Layers,
    request: &PairRequest,
    batch_size: usize,
    done: &mut dyn FnMut(usize),
) -> Result<RunPairs, PairError> {
    let failed = |source| PairError::Run { run: run.to_owned(), source };
    let frozen = source.model().and_then(|model| model.peft).map(Peft::frozen);
    let mut probe = PairProbe::new(request, layers);
    let mut measure = |batch: &[(usize, EncodedText)]| -> Result<(), PairError> {
        probe.expect(batch.iter().map(|(place, text)| request.text(*place, text, &decode(text))).collect());
        match source {
            StateSource::Model(model) => {
                let packed = Packed::pack(batch.iter().map(|(_, text)| text.sequence()));
                let pass = Pass::inference(frozen.as_ref());
                model.transformer.hidden_states(&packed, &pass, &mut probe).map_err(failed)?;
            }
            StateSource::Stored(states) => {
                let indices: Vec<u64> = batch.iter().map(|(_, text)| text.index).collect();
                let run = run.to_owned();
                states.replay(&indices, &mut probe).map_err(|source| PairError::States { run, source })?;
            }
        }
        done(batch.len());
        Ok(())
    };
    let mut batch: Vec<(usize, EncodedText)> = Vec::new();
    for (place, text) in texts.open()?.enumerate() {
        let text = text?;
        if request.needs(place, text.index) {
            batch.push((place, text));
        }
        if batch.len() >= batch_size.max(1) {
            measure(&batch)?;
            batch.clear();
        }
    }
    if !batch.is_empty() {
        measure(&batch)?;
    }
    Ok(probe.finish(run))
}

/// A series' place in its table, with its estimate.
type Estimated<'a, K> = (&'a RunPairs, usize, Site, K, &'a Series, Estimate);

/// Every series that `of` lists, in the order of the runs, layers and sites; `seed` draws the resamples.
fn estimated<'a, K: Copy + 'a>(
    runs: &'a [RunPairs],
    of: impl Fn(&'a PointPairs) -> &'a BTreeMap<K, Series>,
    seed: u64,
) -> Result<Vec<Estimated<'a, K>>, StatisticsError> {
    let mut estimates = Estimates::new(seed);
    let mut found = Vec::new();
    for run in runs {
        for (&(layer, site), point) in &run.points {
            for (&key, series) in of(point) {
                estimates.add(&series.values.iter().copied().map(Some).collect::<Vec<_>>());
                found.push((run, layer, site, key, series));
            }
        }
    }
    // Every series has a value: a class or a band that no text has is not listed.
    let estimates = estimates.finish()?.into_iter();
    let rows = found.into_iter().zip(estimates).filter_map(|((run, layer, site, key, series), estimate)| {
        estimate.map(|estimate| (run, layer, site, key, series, estimate))
    });
    Ok(rows.collect())
}

/// The ends of an interval of enough texts.
fn ends(estimate: &Estimate) -> (Option<f64>, Option<f64>) {
    let enough = Some(estimate.interval).filter(|_| estimate.n >= MIN_TEXTS);
    (enough.map(|interval| interval.low), enough.map(|interval| interval.high))
}

/// The table of similarity by class of token; `seed` draws the resamples of its intervals.
///
/// # Errors
/// A value is not finite.
pub fn token_class_rows(runs: &[RunPairs], seed: u64) -> Result<Vec<TokenClassRow>, StatisticsError> {
    let row = |(run, layer, site, (a, b), series, estimate): Estimated<'_, ClassPair>| {
        let (ci_low, ci_high) = ends(&estimate);
        TokenClassRow {
            run: run.run.clone(),
            layer: layer as u32,
            site: site.to_string(),
            class_a: a.to_string(),
            class_b: b.to_string(),
            mean: estimate.mean,
            std: estimate.std,
            ci_low,
            ci_high,
            pairs: series.pairs,
            texts: estimate.n,
        }
    };
    Ok(estimated(runs, |point| &point.classes, seed)?.into_iter().map(row).collect())
}

/// The table of similarity against distance; `seed` draws the resamples of its intervals.
///
/// # Errors
/// A value is not finite.
pub fn distance_rows(runs: &[RunPairs], seed: u64) -> Result<Vec<DistanceRow>, StatisticsError> {
    let row = |(run, layer, site, band, series, estimate): Estimated<'_, DistanceBand>| {
        let (ci_low, ci_high) = ends(&estimate);
        DistanceRow {
            run: run.run.clone(),
            layer: layer as u32,
            site: site.to_string(),
            distance_from: band.from,
            distance_to: band.to,
            mean: estimate.mean,
            std: estimate.std,
            ci_low,
            ci_high,
            pairs: series.pairs,
            texts: estimate.n,
        }
    };
    Ok(estimated(runs, |point| &point.distances, seed)?.into_iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(index: u64, n: usize) -> EncodedText {
        let special = (0..n).map(|i| i == 0).collect();
        EncodedText { index, ids: (0..n as u32).collect(), special, span: 0..n, ..EncodedText::default() }
    }

    fn words(n: usize) -> Vec<String> {
        (0..n).map(|i| if i == 2 { ".".to_owned() } else { format!(" w{i}") }).collect()
    }

    /// Feeds two texts, of 3 and 2 tokens, as one batch of block 1.
    fn measured(request: &PairRequest, layers: &Layers, states: &[f32]) -> Result<RunPairs, ModelError> {
        let texts = [text(4, 3), text(7, 2)];
        let mut probe = PairProbe::new(request, layers);
        probe.expect(texts.iter().enumerate().map(|(p, t)| request.text(p, t, &words(t.ids.len()))).collect());
        let sequences: Vec<&[u32]> = texts.iter().map(|t| t.ids.as_slice()).collect();
        let states = Tensor::from_slice(states, (5, 2), &Device::Cpu)?;
        probe.record(Site::Block, 1, &states, &Packed::from_sequences(&sequences))?;
        Ok(probe.finish("base"))
    }

    const STATES: [f32; 10] = [1.0, 0.0, 0.0, 2.0, 3.0, 4.0, 5.0, 0.0, 3.0, 4.0];

    #[test]
    fn every_text_weighs_one_in_both_tables() {
        let request = PairRequest { classes: true, distance_texts: Some(9), heatmap: None };
        let run = measured(&request, &Layers::All, &STATES).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let classes = token_class_rows(std::slice::from_ref(&run), 1).unwrap();
        let names: Vec<(&str, &str)> = classes.iter().map(|r| (r.class_a.as_str(), r.class_b.as_str())).collect();
        assert_eq!(names, [("first", "punctuation"), ("first", "words"), ("punctuation", "words")]);
        // first with a word: 0 in the one text, 0.6 in the other
        close(classes[1].mean, 0.3);
        close(classes[1].std.unwrap(), 0.18_f64.sqrt());
        assert_eq!((classes[1].pairs, classes[1].texts, classes[1].site.as_str()), (2, 2, "block"));
        close(classes[2].mean, 0.8);
        let distances = distance_rows(&[run], 1).unwrap();
        assert_eq!(
            distances.iter().map(|r| (r.distance_from, r.pairs, r.texts)).collect::<Vec<_>>(),
            [(1, 3, 2), (2, 1, 1)]
        );
        // neighbours: (0 + 0.8)/2 in the one, 0.6 in the other
        close(distances[0].mean, 0.5);
        close(distances[1].mean, 0.6);
        assert_eq!((distances[1].layer, distances[1].std), (1, None));
        assert_eq!((distances[0].ci_low, distances[0].ci_high), (None, None), "two texts are too few");
    }

    #[test]
    fn five_texts_have_an_interval() {
        let series = |n: u32| Series { values: (0..n).map(|i| f64::from(i).sin()).collect(), pairs: 9 };
        let band = DistanceBand::of;
        let distances = BTreeMap::from([(band(1), series(5)), (band(2), series(4))]);
        let points = BTreeMap::from([((1, Site::Block), PointPairs { distances, ..PointPairs::default() })]);
        let rows = distance_rows(&[RunPairs { run: "base".into(), points, matrices: vec![] }], 3).unwrap();
        let wanted = crate::statistics::bootstrap_mean_interval(&series(5).values, 0.95, 3).unwrap();
        assert_eq!((rows[0].ci_low, rows[0].ci_high), (Some(wanted.low), Some(wanted.high)));
        assert_eq!((rows[1].texts, rows[1].ci_low, rows[1].ci_high), (4, None, None));
    }

    #[test]
    fn only_what_is_asked_for_is_measured() {
        let heatmap = HeatMapRequest { layers: Layers::Some(vec![1]), texts: vec![7] };
        let request = PairRequest { classes: false, distance_texts: Some(1), heatmap: Some(heatmap) };
        let run = measured(&request, &Layers::Some(vec![0]), &STATES).unwrap();
        assert!(distance_rows(std::slice::from_ref(&run), 1).unwrap().is_empty(), "layer 1 is not among the layers");
        let [matrix] = run.matrices.as_slice() else { panic!("{run:?}") };
        assert_eq!((matrix.text, matrix.tokens.as_slice()), (7, ["␣w0", "␣w1"].map(str::to_owned).as_slice()));
        assert!((matrix.cosines[1].unwrap() - 0.6).abs() < 1e-12);
        let run = measured(&request, &Layers::All, &STATES).unwrap();
        assert_eq!(distance_rows(&[run], 1).unwrap()[0].texts, 1, "the first text alone");
        assert_eq!(request.distance_pairs(&vec![text(0, 5), text(1, 9)]).unwrap(), 10);
    }

    #[test]
    fn what_cannot_be_measured_is_named() {
        let request = PairRequest { classes: true, ..PairRequest::default() };
        let mut states = STATES;
        states[7] = f32::NAN;
        let error = measured(&request, &Layers::All, &states).unwrap_err().to_string();
        assert!(error.starts_with("text 7: a hidden state is not finite at block layer 1"), "{error}");
        let asks = |texts: Vec<u64>| {
            let heatmap = Some(HeatMapRequest { layers: Layers::All, texts });
            PairRequest { heatmap, ..PairRequest::default() }.check(&vec![text(3, 4), text(5, 1025)])
        };
        assert!(asks(vec![3]).is_ok());
        let error = asks(vec![3, 4]).unwrap_err().to_string();
        assert!(error.contains("--text 4") && error.contains("the first is 3, the last 5"), "{error}");
        let error = asks(vec![5]).unwrap_err().to_string();
        assert!(error.contains("text 5 has 1025 tokens") && error.contains("--max-tokens 1024"), "{error}");
    }
}
