//! Similarity curves of several runs over the same texts.

use super::layers::Layers;
use crate::data::Packed;
use crate::measures::{CosineProbe, CosineValue, Point, TokenSet};
use crate::model::{LoadedModel, ModelError, Pass};
use crate::peft::Peft;
use crate::report::{PerTextRow, SimilarityRow};
use crate::statistics::{self, Bootstrap, Interval, REPLICATES, StatisticsError};
use std::collections::BTreeMap;
use std::ops::Range;

/// The level of every interval.
const LEVEL: f64 = 0.95;

/// A text ready to be measured by one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedText {
    /// Its position in the input, from 0.
    pub index: u64,
    /// Its group.
    pub group: Option<String>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which tokens are special.
    pub special: Vec<bool>,
    /// Token types; empty where all are 0.
    pub types: Vec<u32>,
    /// The rows to measure; all run through the model.
    pub span: Range<usize>,
}

/// The two forms of the cosine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CosineForm {
    /// As it is.
    Plain,
    /// With the corpus mean subtracted.
    Centred,
}

impl CosineForm {
    /// The measure's name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "cosine",
            Self::Centred => "cosine_centred",
        }
    }
}

/// What one run gave for every text.
#[derive(Debug, Clone, PartialEq)]
pub struct RunValues {
    /// The run's name.
    pub run: String,
    /// Every point of its model.
    pub points: Vec<Point>,
    /// The texts' index, group and measured rows.
    pub texts: Vec<(u64, Option<String>, usize)>,
    /// By form, then text, point, token set.
    pub values: BTreeMap<CosineForm, Vec<Vec<[CosineValue; 3]>>>,
}

/// Why similarity cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SimilarityError {
    /// The model cannot be run.
    #[error("{run}: {source}")]
    Run {
        /// The run.
        run: String,
        /// Why.
        source: ModelError,
    },
    /// An interval cannot be computed.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// Measures one run: a forward pass over the texts for the plain cosine and the corpus means, a second one
/// for the centred form. `tick` hears how many texts each batch held.
///
/// # Errors
/// A hidden state is not finite, or the model cannot be run.
pub fn measure_run(
    run: &str,
    model: &LoadedModel,
    peft: Option<&Peft>,
    texts: &[EncodedText],
    layers: &Layers,
    batch_size: usize,
    tick: &mut dyn FnMut(usize),
) -> Result<RunValues, SimilarityError> {
    let architecture = model.transformer.architecture();
    let depth = architecture.layers;
    let frozen = peft.map(Peft::frozen);
    let pass = Pass::inference(frozen.as_ref());
    let mut forms = BTreeMap::new();
    let mut centre = None;
    let mut points = Vec::new();
    for form in [CosineForm::Plain, CosineForm::Centred] {
        let mut probe = CosineProbe::new(depth, centre.take()).only(|point| layers.contains(point));
        if !architecture.has_final_norm() {
            probe = probe.without_final_norm();
        }
        for group in texts.chunks(batch_size.max(1)) {
            let sequences: Vec<&[u32]> = group.iter().map(|t| t.ids.as_slice()).collect();
            let types: Vec<&[u32]> = group.iter().map(|t| t.types.as_slice()).collect();
            let batch = Packed::from_sequences(&sequences).with_types(&types);
            probe.expect(group.iter().map(|t| (t.special.as_slice(), t.span.clone())));
            model
                .transformer
                .hidden_states(&batch, &pass, &mut probe)
                .map_err(|source| SimilarityError::Run { run: run.to_owned(), source })?;
            tick(group.len());
        }
        centre = Some(probe.corpus_means());
        points = probe.points().to_vec();
        forms.insert(form, probe.values().to_vec());
    }
    let texts = texts.iter().map(|t| (t.index, t.group.clone(), t.span.len())).collect();
    Ok(RunValues { run: run.to_owned(), points, texts, values: forms })
}

/// The table of several runs over the same texts; `reference` is the run that differences are against.
///
/// # Errors
/// An interval cannot be computed.
pub fn similarity_rows(
    runs: &[RunValues],
    layers: &Layers,
    reference: usize,
    seed: u64,
) -> Result<Vec<SimilarityRow>, StatisticsError> {
    let mut rows = Vec::new();
    let mut intervals = Intervals::new(seed);
    for (index, run) in runs.iter().enumerate() {
        let against = runs.get(reference).filter(|_| index != reference);
        for group in groups(run) {
            for (at, point) in run.points.iter().enumerate().filter(|(_, p)| layers.contains(**p)) {
                for &form in run.values.keys() {
                    for tokens in TokenSet::ALL {
                        let own = series(run, &group, at, form, tokens);
                        let other = against.and_then(|r| {
                            let place = r.points.iter().position(|p| p == point)?;
                            Some(series(r, &group, place, form, tokens))
                        });
                        let row = SimilarityRow {
                            run: run.run.clone(),
                            group: group.clone(),
                            layer: point.layer as u32,
                            site: point.site.to_string(),
                            measure: form.name().to_owned(),
                            tokens: tokens.to_string(),
                            mean: None,
                            std: None,
                            ci_low: None,
                            ci_high: None,
                            texts: 0,
                            reference: against.map(|r| r.run.clone()),
                            diff: None,
                            diff_ci_low: None,
                            diff_ci_high: None,
                        };
                        intervals.fill(rows.len(), own, other)?;
                        rows.push(row);
                    }
                }
            }
        }
    }
    intervals.finish(&mut rows)?;
    Ok(rows)
}

/// `None` first (all texts), then every group in order of appearance.
fn groups(run: &RunValues) -> Vec<Option<String>> {
    let mut all = vec![None];
    for (_, group, _) in &run.texts {
        if group.is_some() && !all.contains(group) {
            all.push(group.clone());
        }
    }
    all
}

fn series(
    run: &RunValues,
    group: &Option<String>,
    point: usize,
    form: CosineForm,
    tokens: TokenSet,
) -> Vec<Option<f64>> {
    let values = run.values.get(&form).map(Vec::as_slice).unwrap_or_default();
    let members = run.texts.iter().zip(values).filter(|((_, g, _), _)| group.is_none() || g == group);
    members.map(|(_, text)| text.get(point).and_then(|sets| sets.get(tokens as usize)?.value)).collect()
}

/// Collects series that share their texts, so that each set of texts is resampled once.
struct Intervals {
    seed: u64,
    /// By which texts are defined.
    pending: BTreeMap<Vec<bool>, Vec<Pending>>,
    moments: Vec<(usize, bool, f64, Option<f64>, u64)>,
}

/// A series that waits for its interval.
struct Pending {
    /// The row that it belongs to.
    row: usize,
    /// Whether it is the difference to the reference.
    difference: bool,
    values: Vec<f64>,
}

impl Intervals {
    fn new(seed: u64) -> Self {
        Self { seed, pending: BTreeMap::new(), moments: Vec::new() }
    }

    fn fill(
        &mut self,
        row: usize,
        own: Vec<Option<f64>>,
        other: Option<Vec<Option<f64>>>,
    ) -> Result<(), StatisticsError> {
        if let Some(other) = other {
            let pairs = own.iter().zip(&other).map(|(a, b)| Some((*a)? - (*b)?)).collect();
            self.add(row, true, pairs)?;
        }
        self.add(row, false, own)
    }

    fn add(&mut self, row: usize, difference: bool, values: Vec<Option<f64>>) -> Result<(), StatisticsError> {
        let mask: Vec<bool> = values.iter().map(Option::is_some).collect();
        let defined: Vec<f64> = values.into_iter().flatten().collect();
        if defined.is_empty() {
            return Ok(());
        }
        let (mean, std) = statistics::mean_and_std(&defined)?;
        self.moments.push((row, difference, mean, std, defined.len() as u64));
        self.pending.entry(mask).or_default().push(Pending { row, difference, values: defined });
        Ok(())
    }

    fn finish(self, rows: &mut [SimilarityRow]) -> Result<(), StatisticsError> {
        for (row, difference, mean, std, texts) in self.moments {
            let Some(row) = rows.get_mut(row) else { continue };
            if difference {
                row.diff = Some(mean);
            } else {
                (row.mean, row.std, row.texts) = (Some(mean), std, texts);
            }
        }
        for entries in self.pending.into_values() {
            let items = entries.first().map_or(0, |entry| entry.values.len());
            let series: Vec<&[f64]> = entries.iter().map(|entry| entry.values.as_slice()).collect();
            let found = Bootstrap::new(items, REPLICATES, self.seed)?.intervals(&series, LEVEL)?;
            for (entry, Interval { low, high }) in entries.iter().zip(found) {
                let Some(row) = rows.get_mut(entry.row) else { continue };
                if entry.difference {
                    (row.diff_ci_low, row.diff_ci_high) = (Some(low), Some(high));
                } else {
                    (row.ci_low, row.ci_high) = (Some(low), Some(high));
                }
            }
        }
        Ok(())
    }
}

/// The table of every text.
#[must_use]
pub fn per_text_rows(runs: &[RunValues], layers: &Layers) -> Vec<PerTextRow> {
    let mut rows = Vec::new();
    for run in runs {
        for (text, (index, group, tokens_read)) in run.texts.iter().enumerate() {
            for (at, point) in run.points.iter().enumerate().filter(|(_, p)| layers.contains(**p)) {
                for (form, values) in &run.values {
                    for tokens in TokenSet::ALL {
                        let value = values.get(text).and_then(|t| t.get(at)?.get(tokens as usize)?.value);
                        rows.push(PerTextRow {
                            run: run.run.clone(),
                            group: group.clone(),
                            text: *index,
                            n_tokens: *tokens_read as u32,
                            layer: point.layer as u32,
                            site: point.site.to_string(),
                            measure: form.name().to_owned(),
                            tokens: tokens.to_string(),
                            value,
                        });
                    }
                }
            }
        }
    }
    rows
}
