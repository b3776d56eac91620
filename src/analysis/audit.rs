//! The audit: how far the numbers are from what another road gives, on a sample of texts.
//!
//! Three roads: each text alone instead of in a batch, f64 instead of the compute type, and the definition of the
//! cosine written out over all pairs. There is no padding in this program, so padding cannot enter; that a text's
//! company in a packed batch does not enter either is what the first road shows.

use super::chunks::TextSupply;
use super::means::RunMeans;
use super::plan::MeasurePlan;
use super::run_values::RunValues;
use super::similarity::{
    EncodedText, RunInput, RunModel, RunState, SimilarityError, StateSource, Unwatched, measure_run,
};
use crate::data::Packed;
use crate::measures::{Measure, Point, Scope, TokenSet};
use crate::model::{ModelError, Pass};
use crate::peft::Peft;
use crate::probe::{Probe, Site};
use crate::report::{CellReader, TableError};
use candle_core::{DType, Device, Tensor};
use polars::df;
use polars::prelude::{DataFrame, PolarsError};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Texts of an audit, unless asked otherwise.
pub const AUDIT_TEXTS: usize = 8;

/// A number of the similarity tables.
pub type Place = (Measure, Point, TokenSet);

/// The largest deviations of a text's value that an audit found, place by place: what is added at a site may be so
/// small that its direction is noise, and must not speak for the residual stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Audit {
    /// How many texts were looked at.
    pub texts: usize,
    /// Alone against in a batch.
    pub company: BTreeMap<Place, f64>,
    /// In f64 against the compute type.
    pub precision: BTreeMap<Place, f64>,
    /// All pairs against the one sweep, for both forms of the cosine.
    pub pairs: BTreeMap<Place, f64>,
}

impl Audit {
    fn roads(&self) -> [(&'static str, &BTreeMap<Place, f64>); 3] {
        [
            ("alone_against_batch", &self.company),
            ("f64_against_compute_type", &self.precision),
            ("all_pairs_against_one_sweep", &self.pairs),
        ]
    }

    /// The error of a number: the largest of its deviations, in the unit of the measure.
    #[must_use]
    pub fn error(&self, place: Place) -> Option<f64> {
        self.roads().into_iter().filter_map(|(_, road)| road.get(&place).copied()).reduce(f64::max)
    }

    /// The largest error of a measure for one token set, at the usual sites or inside the blocks.
    #[must_use]
    pub fn largest(&self, measure: Measure, tokens: TokenSet, usual: bool) -> Option<f64> {
        let of = |road: &BTreeMap<Place, f64>| {
            let own = road
                .iter()
                .filter(|((m, point, set), _)| *m == measure && *set == tokens && point.site.is_usual() == usual);
            own.map(|(_, error)| *error).reduce(f64::max)
        };
        self.roads().into_iter().filter_map(|(_, road)| of(road)).reduce(f64::max)
    }

    /// Takes in the audit of another run: the larger deviations stay.
    pub fn merge(&mut self, other: &Self) {
        self.texts = self.texts.max(other.texts);
        let roads = [
            (&mut self.company, &other.company),
            (&mut self.precision, &other.precision),
            (&mut self.pairs, &other.pairs),
        ];
        for (own, other) in roads {
            for (&place, &deviation) in other {
                raise(own, place, deviation);
            }
        }
    }

    /// For a manifest: each road's largest deviation by measure, at the usual sites and inside the blocks.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut found = Map::new();
        found.insert("texts".to_owned(), json!(self.texts));
        for (name, road) in self.roads() {
            for (usual, suffix) in [(true, ""), (false, "_inside_blocks")] {
                let mut largest: BTreeMap<Measure, f64> = BTreeMap::new();
                for ((measure, ..), deviation) in
                    road.iter().filter(|((_, point, _), _)| point.site.is_usual() == usual)
                {
                    let slot = largest.entry(*measure).or_insert(0.0);
                    *slot = slot.max(*deviation);
                }
                if !largest.is_empty() {
                    let named = largest.iter().map(|(measure, value)| (measure.name().to_owned(), json!(value)));
                    found.insert(format!("{name}{suffix}"), named.collect::<Map<_, _>>().into());
                }
            }
        }
        found.into()
    }

    /// `audit.csv` and `audit.parquet`: every place with its deviations on each road.
    ///
    /// # Errors
    /// polars refuses the columns.
    pub fn frame(&self) -> Result<DataFrame, PolarsError> {
        let places: BTreeSet<Place> = self.roads().into_iter().flat_map(|(_, road)| road.keys().copied()).collect();
        let road =
            |road: &BTreeMap<Place, f64>| places.iter().map(|place| road.get(place).copied()).collect::<Vec<_>>();
        df!(
            "measure" => places.iter().map(|(measure, ..)| measure.name()).collect::<Vec<_>>(),
            "layer" => places.iter().map(|(_, point, _)| point.layer as u32).collect::<Vec<_>>(),
            "site" => places.iter().map(|(_, point, _)| point.site.to_string()).collect::<Vec<_>>(),
            "tokens" => places.iter().map(|(.., tokens)| tokens.to_string()).collect::<Vec<_>>(),
            "alone_against_batch" => road(&self.company),
            "f64_against_compute_type" => road(&self.precision),
            "all_pairs_against_one_sweep" => road(&self.pairs),
            "error" => places.iter().map(|place| self.error(*place)).collect::<Vec<_>>(),
        )
    }
}

/// An audit's table that is none.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A column.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A place that this program does not know.
    #[error(
        "row {row}: {measure} at {site}, {tokens}: no such number; write the table again with the command that made it"
    )]
    Place {
        /// The row, from 0.
        row: usize,
        /// The measure's name.
        measure: String,
        /// The site's.
        site: String,
        /// The token set's.
        tokens: String,
    },
}

impl Audit {
    /// The audit that [`Self::frame`] was made of; `texts` is how many texts it looked at.
    ///
    /// # Errors
    /// A column is missing or of another type, or names nothing that is measured.
    pub fn of_frame(frame: &DataFrame, texts: usize) -> Result<Self, AuditError> {
        let mut cells = CellReader::new(frame);
        let (measure, layer) = (cells.strings("measure")?, cells.integers("layer")?);
        let (site, tokens) = (cells.strings("site")?, cells.strings("tokens")?);
        let company = cells.floats("alone_against_batch")?;
        let precision = cells.floats("f64_against_compute_type")?;
        let pairs = cells.floats("all_pairs_against_one_sweep")?;
        let mut audit = Self { texts, ..Self::default() };
        for row in 0..frame.height() {
            let names = (measure.filled(row)?, site.filled(row)?, tokens.filled(row)?);
            let set = TokenSet::ALL.into_iter().find(|set| set.to_string() == names.2);
            let known = Measure::from_name(names.0).zip(names.1.parse::<Site>().ok()).zip(set);
            let Some(((measure, site), set)) = known else {
                let (measure, site, tokens) = (names.0.to_owned(), names.1.to_owned(), names.2.to_owned());
                return Err(AuditError::Place { row, measure, site, tokens });
            };
            let place = (measure, Point { site, layer: layer.filled(row)? as usize }, set);
            let roads =
                [(&mut audit.company, &company), (&mut audit.precision, &precision), (&mut audit.pairs, &pairs)];
            for (road, cells) in roads {
                road.extend(cells.get(row).map(|deviation| (place, deviation)));
            }
        }
        Ok(audit)
    }
}

fn raise(road: &mut BTreeMap<Place, f64>, place: Place, deviation: f64) {
    let slot = road.entry(place).or_insert(0.0);
    // A NaN is the largest deviation of all.
    *slot = if deviation.is_nan() { f64::INFINITY } else { slot.max(deviation) };
}

/// A run in the compute type and in f64.
#[derive(Debug, Clone, Copy)]
pub struct Precisions<'a> {
    /// As measured.
    pub model: RunModel<'a>,
    /// The same weights in f64.
    pub exact: RunModel<'a>,
}

/// Audits a run on `sample`, with the corpus means that it was measured with.
///
/// # Errors
/// As [`measure_run`].
pub fn audit(
    name: &str,
    models: Precisions<'_>,
    sample: &[EncodedText],
    plan: &MeasurePlan,
    means: Option<&RunMeans>,
    batch_size: usize,
) -> Result<Audit, SimilarityError> {
    // Lookups are too dear to be taken twice more, and corpus measures are not of a sample.
    let measures: Vec<Measure> = plan
        .measures
        .iter()
        .copied()
        .filter(|m| m.scope() == Scope::Text && m.class() != crate::measures::Class::Lookup)
        .filter(|m| !m.second_pass() || means.is_some())
        .collect();
    let plan = MeasurePlan { measures, ..plan.clone() };
    let texts: Vec<EncodedText> = sample.to_vec();
    let none = BTreeSet::new();
    let run = |model: RunModel<'_>, texts: &dyn TextSupply, batch_size: usize| -> Result<RunValues, SimilarityError> {
        let input = RunInput {
            name,
            source: StateSource::Model(model),
            reference: None,
            reference_means: None,
            texts,
            lookup: &none,
            means,
            other_texts: false,
            batch_size,
            scratch: None,
        };
        Ok(measure_run(&input, &plan, RunState::default(), &mut Unwatched)?.0)
    };
    let together = run(models.model, &texts, batch_size)?;
    let alone = run(models.model, &texts, 1)?;
    let exact = run(models.exact, &texts, batch_size)?;
    let mut found = Audit { texts: sample.len(), ..Audit::default() };
    compare(&together, &alone, &mut found.company);
    compare(&together, &exact, &mut found.precision);
    for (number, text) in sample.iter().enumerate() {
        let mut probe = AllPairs { plan: &plan, means, text, found: BTreeMap::new() };
        let frozen = models.model.peft.map(Peft::frozen);
        let packed = Packed::pack([text.sequence()]);
        let pass = Pass::inference(frozen.as_ref());
        let forward = models.model.transformer.hidden_states(&packed, &pass, &mut probe);
        forward.map_err(|source| SimilarityError::Run { run: name.to_owned(), source })?;
        for ((point, measure, set), value) in &probe.found {
            let (Some(at), Some(slot)) = (alone.place(*point), alone.slot(*measure)) else { continue };
            let apart = deviation(alone.value(number, at, slot, *set), *value);
            raise(&mut found.pairs, (*measure, *point, *set), apart);
        }
    }
    Ok(found)
}

/// How far two values are apart; where only one is defined, infinitely far.
fn deviation(a: Option<f64>, b: Option<f64>) -> f64 {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs(),
        (None, None) => 0.0,
        _ => f64::INFINITY,
    }
}

fn compare(a: &RunValues, b: &RunValues, road: &mut BTreeMap<Place, f64>) {
    for (slot, &measure) in a.measures.iter().enumerate() {
        for (at, &point) in a.points.iter().enumerate() {
            for set in TokenSet::ALL {
                for text in 0..a.texts.len() {
                    let apart = deviation(a.value(text, at, slot, set), b.value(text, at, slot, set));
                    raise(road, (measure, point, set), apart);
                }
            }
        }
    }
}

/// The cosine by its definition, O(n²), in f64.
struct AllPairs<'a> {
    plan: &'a MeasurePlan,
    means: Option<&'a RunMeans>,
    text: &'a EncodedText,
    found: BTreeMap<(Point, Measure, TokenSet), Option<f64>>,
}

impl Probe for AllPairs<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, _: &Packed) -> Result<(), ModelError> {
        let point = Point { site, layer };
        let rows: Vec<Vec<f64>> = states.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?;
        let text =
            crate::measures::streaming::TextRows { special: self.text.special.clone(), span: self.text.span.clone() };
        for set in TokenSet::ALL {
            let own: Vec<&Vec<f64>> = text.of(set, rows.len()).into_iter().filter_map(|p| rows.get(p)).collect();
            if self.plan.measures.contains(&Measure::Cosine) {
                self.found.insert((point, Measure::Cosine, set), all_pairs(&own));
            }
            let mean = self.means.and_then(|means| means.get(point, set));
            if let (true, Some(mean)) = (self.plan.measures.contains(&Measure::CosineCentred), mean) {
                let less = |row: &&Vec<f64>| row.iter().zip(&mean.mean).map(|(x, m)| x - m).collect::<Vec<f64>>();
                let moved: Vec<Vec<f64>> = own.iter().map(less).collect();
                let value = all_pairs(&moved.iter().collect::<Vec<_>>());
                self.found.insert((point, Measure::CosineCentred, set), value);
            }
        }
        Ok(())
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.plan.point(site, layer).is_some()
    }
}

fn all_pairs(rows: &[&Vec<f64>]) -> Option<f64> {
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let rows: Vec<(&Vec<f64>, f64)> = rows.iter().map(|row| (*row, norm(row))).filter(|(_, n)| *n > 0.0).collect();
    let (mut sum, mut pairs) = (0.0, 0u64);
    for (i, (a, of_a)) in rows.iter().enumerate() {
        for (b, of_b) in rows.iter().skip(i + 1) {
            sum += a.iter().zip(*b).map(|(x, y)| x * y).sum::<f64>() / (of_a * of_b);
            pairs += 1;
        }
    }
    (pairs > 0).then(|| sum / pairs as f64)
}

/// The texts that a scan drew, in the order of the input.
///
/// # Errors
/// A text cannot be read.
pub fn sample(texts: &dyn TextSupply, drawn: &BTreeSet<u64>) -> Result<Vec<EncodedText>, SimilarityError> {
    texts.open()?.filter(|text| text.as_ref().map_or(true, |text| drawn.contains(&text.index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pairs_by_hand() {
        let rows = [vec![1.0, 0.0], vec![0.0, 2.0], vec![0.0, 0.0], vec![3.0, 0.0]];
        let value = all_pairs(&rows.iter().collect::<Vec<_>>()).unwrap();
        assert!((value - 1.0 / 3.0).abs() < 1e-15, "a zero row does not count");
        assert_eq!(all_pairs(&[&rows[0]]), None);
    }

    #[test]
    fn the_error_is_the_largest_deviation_of_its_own_place() {
        let at = |site, layer| (Measure::Cosine, Point { site, layer }, TokenSet::All);
        let (block, inner) = (at(Site::Block, 3), at(Site::AttentionH0, 3));
        let mut one = Audit { texts: 3, ..Audit::default() };
        raise(&mut one.company, block, 1e-9);
        raise(&mut one.precision, block, 1e-6);
        raise(&mut one.precision, inner, 1e-2);
        raise(&mut one.company, at(Site::Block, 2), f64::NAN);
        let mut two = Audit { texts: 2, ..Audit::default() };
        raise(&mut two.pairs, block, 1e-5);
        one.merge(&two);
        assert_eq!((one.texts, one.error(block)), (3, Some(1e-5)));
        assert_eq!(one.error(at(Site::Block, 2)), Some(f64::INFINITY));
        assert_eq!(one.error(at(Site::Block, 1)), None);
        assert_eq!(one.largest(Measure::Cosine, TokenSet::All, false), Some(1e-2));
        assert_eq!(one.largest(Measure::Cosine, TokenSet::All, true), Some(f64::INFINITY));
        assert_eq!(one.largest(Measure::Cosine, TokenSet::NoFirst, true), None);
        assert_eq!(deviation(Some(1.0), None), f64::INFINITY);
        let json = one.json();
        assert_eq!(json["f64_against_compute_type"]["cosine"], 1e-6);
        assert_eq!(json["f64_against_compute_type_inside_blocks"]["cosine"], 1e-2);
        let frame = one.frame().unwrap();
        assert_eq!(frame.shape(), (3, 8));
        let errors = frame.column("error").unwrap().f64().unwrap().to_vec();
        assert_eq!(errors, [Some(1e-2), Some(f64::INFINITY), Some(1e-5)], "by site, then layer");
        assert_eq!(Audit::of_frame(&frame, 3).unwrap(), one);
        let mut frame = frame;
        frame.with_column(polars::prelude::Column::new("site".into(), ["block", "blok", "block"])).unwrap();
        let error = Audit::of_frame(&frame, 3).unwrap_err().to_string();
        assert!(error.contains("row 1: cosine at blok, all"), "{error}");
    }
}
