//! What one run gave: a number for every text, point, measure and token set, and the corpus measures.

use super::plan::MeasurePlan;
use super::pooled::Pooled;
use crate::measures::{Measure, Point, Scope, TokenSet};
use std::collections::BTreeMap;

/// A text that was measured.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MeasuredText {
    /// Its position in the input, from 0.
    pub index: u64,
    /// Its group.
    pub group: Option<String>,
    /// Its measured rows.
    pub tokens: usize,
}

/// What one run gave. Eight bytes for every text, point, measure and token set are held.
#[derive(Debug, Clone, PartialEq)]
pub struct RunValues {
    /// The run's name.
    pub run: String,
    /// The points, in the order of a forward pass.
    pub points: Vec<Point>,
    /// The measures.
    pub measures: Vec<Measure>,
    /// The texts, in the order of the input.
    pub texts: Vec<MeasuredText>,
    /// By text, point, measure, token set; NaN is undefined.
    values: Vec<f64>,
    corpus: BTreeMap<(Point, Measure, TokenSet), CorpusValue>,
}

/// A corpus measure and what it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CorpusValue {
    /// The value, if it is defined.
    pub value: Option<f64>,
    /// Texts that entered; 0 where there is no value.
    pub texts: u64,
    /// Tokens that were pooled, also where they were too few for a value; `None` if the measure was not taken.
    pub tokens: Option<u64>,
}

impl RunValues {
    /// Puts together what the passes gave.
    #[must_use]
    pub fn new(
        run: &str,
        plan: &MeasurePlan,
        texts: Vec<MeasuredText>,
        values: Vec<f64>,
        pooled: &[[Pooled; 3]],
    ) -> Self {
        let mut corpus = BTreeMap::new();
        for (&point, sets) in plan.points.iter().zip(pooled) {
            for measure in plan.corpus() {
                for (set, pooled) in TokenSet::ALL.into_iter().zip(sets) {
                    let value = pooled.measure(measure);
                    let texts = if value.is_some() { pooled.texts } else { 0 };
                    let found = CorpusValue { value, texts, tokens: pooled.tokens(measure) };
                    corpus.insert((point, measure, set), found);
                }
            }
        }
        let (points, measures) = (plan.points.clone(), plan.measures.clone());
        Self { run: run.to_owned(), points, measures, texts, values, corpus }
    }

    /// A text's value; `None` where it is undefined.
    #[must_use]
    pub fn value(&self, text: usize, point: usize, measure: usize, set: TokenSet) -> Option<f64> {
        let place = ((text * self.points.len() + point) * self.measures.len() + measure) * 3 + set as usize;
        self.values.get(place).copied().filter(|value| !value.is_nan())
    }

    /// The values of the texts of a group (all texts for `None`), in the order of the input.
    #[must_use]
    pub fn series(&self, group: &Option<String>, point: usize, measure: usize, set: TokenSet) -> Vec<Option<f64>> {
        let members = self.texts.iter().enumerate().filter(|(_, text)| group.is_none() || text.group == *group);
        members.map(|(text, _)| self.value(text, point, measure, set)).collect()
    }

    /// For each text that [`Self::series`] lists, the value of `other` for the text of the same index: `None` where
    /// that run has no such text, so that runs over different texts are never paired by place.
    #[must_use]
    pub fn partners(
        &self,
        other: &Self,
        group: &Option<String>,
        point: usize,
        measure: usize,
        set: TokenSet,
    ) -> Vec<Option<f64>> {
        let members = self.texts.iter().filter(|text| group.is_none() || text.group == *group);
        let value = |text: &MeasuredText| {
            let place = other.texts.binary_search_by_key(&text.index, |theirs| theirs.index).ok()?;
            other.value(place, point, measure, set)
        };
        members.map(value).collect()
    }

    /// A corpus measure.
    #[must_use]
    pub fn corpus(&self, point: Point, measure: Measure, set: TokenSet) -> CorpusValue {
        self.corpus.get(&(point, measure, set)).copied().unwrap_or_default()
    }

    /// The place of a point.
    #[must_use]
    pub fn place(&self, point: Point) -> Option<usize> {
        self.points.iter().position(|&p| p == point)
    }

    /// The place of a measure.
    #[must_use]
    pub fn slot(&self, measure: Measure) -> Option<usize> {
        self.measures.iter().position(|&m| m == measure)
    }

    /// Whether a measure has a value anywhere.
    #[must_use]
    pub fn is_defined(&self, measure: Measure) -> bool {
        match measure.scope() {
            Scope::Corpus => self.corpus.iter().any(|((_, m, _), found)| *m == measure && found.value.is_some()),
            Scope::Text => self.slot(measure).is_some_and(|slot| {
                let width = self.measures.len() * 3;
                self.values.chunks(width).any(|c| c.iter().skip(slot * 3).take(3).any(|v| !v.is_nan()))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Site;

    #[test]
    fn texts_are_paired_by_index_and_not_by_place() {
        let run = |indices: &[u64]| {
            let texts = indices.iter().map(|&index| MeasuredText { index, group: None, tokens: 2 }).collect();
            let plan = MeasurePlan {
                measures: vec![Measure::Cosine],
                points: vec![Point { site: Site::Block, layer: 1 }],
                seed: 0,
            };
            let values = indices.iter().flat_map(|&index| [index as f64 / 10.0; 3]).collect();
            RunValues::new("run", &plan, texts, values, &[])
        };
        let (all, some) = (run(&[0, 1, 2, 5]), run(&[1, 5, 7]));
        assert_eq!(all.partners(&some, &None, 0, 0, TokenSet::All), [None, Some(0.1), None, Some(0.5)]);
        assert_eq!(some.partners(&all, &None, 0, 0, TokenSet::All), [Some(0.1), Some(0.5), None]);
    }
}
