//! The values of measured runs, read back from `per_text.parquet`: what every mean and interval of a run is made of.

use super::plan::MeasurePlan;
use super::run_values::{MeasuredText, RunValues};
use crate::measures::{Measure, Point, TokenSet};
use crate::report::{CellReader, TableError};
use polars::prelude::DataFrame;
use std::collections::BTreeMap;

/// Why a table of every text's values is not one.
#[derive(Debug, thiserror::Error)]
pub enum StoredValuesError {
    /// A column.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A name that this program does not know.
    #[error(
        "column `{column}`: \"{value}\" is none that this program knows; write the table again with the command that made it"
    )]
    Unknown {
        /// The column.
        column: &'static str,
        /// What it holds.
        value: String,
    },
    /// A run says two things of a text.
    #[error(
        "run \"{run}\", text {text}: its rows differ in group or n_tokens; write the table again with the command that made it"
    )]
    Text {
        /// The run.
        run: String,
        /// The text.
        text: u64,
    },
}

/// What is found of one run while its rows pass.
#[derive(Default)]
struct Found {
    points: Vec<Point>,
    measures: Vec<Measure>,
    texts: Vec<MeasuredText>,
    /// Where each text stands in `texts`.
    places: BTreeMap<u64, usize>,
    values: Vec<([usize; 3], TokenSet, f64)>,
}

/// The runs of the frame, in order of appearance, with the measures that are a number a text.
///
/// # Errors
/// A column is missing or of another type, holds a name that is not known, or contradicts itself.
pub fn stored_values(frame: &DataFrame) -> Result<Vec<RunValues>, StoredValuesError> {
    let mut runs: Vec<(String, Found)> = Vec::new();
    let mut cells = CellReader::new(frame);
    let (run, group) = (cells.strings("run")?, cells.strings("group")?);
    let (text, n_tokens) = (cells.integers("text")?, cells.integers("n_tokens")?);
    let (layer, site) = (cells.integers("layer")?, cells.strings("site")?);
    let (measure, tokens) = (cells.strings("measure")?, cells.strings("tokens")?);
    let value = cells.floats("value")?;
    for row in 0..frame.height() {
        let name = run.filled(row)?;
        let here = match runs.iter().rposition(|(known, _)| known == name) {
            Some(here) => here,
            None => {
                runs.push((name.to_owned(), Found::default()));
                runs.len() - 1
            }
        };
        let Some((_, found)) = runs.get_mut(here) else { continue };
        let site = known("site", site.filled(row)?, |name| name.parse().ok())?;
        let point = Point { site, layer: layer.filled(row)? as usize };
        let measure = known("measure", measure.filled(row)?, Measure::from_name)?;
        let set =
            known("tokens", tokens.filled(row)?, |name| TokenSet::ALL.into_iter().find(|set| set.to_string() == name))?;
        let own = MeasuredText {
            index: text.filled(row)?,
            group: group.get(row).map(str::to_owned),
            tokens: n_tokens.filled(row)? as usize,
        };
        let (index, place) = (own.index, found.texts.len());
        let place = *found.places.entry(own.index).or_insert(place);
        match found.texts.get(place) {
            None => found.texts.push(own),
            Some(known) if *known == own => {}
            Some(_) => return Err(StoredValuesError::Text { run: name.to_owned(), text: index }),
        }
        let at = [place, number(&mut found.points, point), number(&mut found.measures, measure)];
        found.values.push((at, set, value.get(row).unwrap_or(f64::NAN)));
    }
    Ok(runs.into_iter().map(|(run, found)| found.run(&run)).collect())
}

impl Found {
    fn run(self, run: &str) -> RunValues {
        let (points, measures) = (self.points.len(), self.measures.len());
        let mut values = vec![f64::NAN; self.texts.len() * points * measures * 3];
        // Texts stand in the order of the input, whatever the file's.
        let order: BTreeMap<usize, usize> = self.places.values().enumerate().map(|(new, old)| (*old, new)).collect();
        for ([text, point, measure], set, value) in self.values {
            let text = order.get(&text).copied().unwrap_or(text);
            if let Some(cell) = values.get_mut(((text * points + point) * measures + measure) * 3 + set as usize) {
                *cell = value;
            }
        }
        let mut texts = self.texts;
        texts.sort_by_key(|text| text.index);
        let plan = MeasurePlan { measures: self.measures, points: self.points, seed: 0 };
        RunValues::new(run, &plan, texts, values, &[])
    }
}

fn known<T>(column: &'static str, name: &str, of: impl Fn(&str) -> Option<T>) -> Result<T, StoredValuesError> {
    of(name).ok_or_else(|| StoredValuesError::Unknown { column, value: name.to_owned() })
}

/// The place of an item, which is added if it is new. Rows stand in the order of points and measures, so few are looked at.
fn number<T: PartialEq>(all: &mut Vec<T>, item: T) -> usize {
    match all.iter().position(|known| *known == item) {
        Some(place) => place,
        None => {
            all.push(item);
            all.len() - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tables::per_text_rows;
    use crate::probe::Site;
    use crate::report::per_text_frame;

    #[test]
    fn runs_come_back_as_they_were() {
        let run = |name: &str, indices: &[u64], shift: f64| {
            let group = |index: u64| (index > 2).then(|| "late".to_owned());
            let text = |&index: &u64| MeasuredText { index, group: group(index), tokens: 7 };
            let plan = MeasurePlan {
                measures: vec![Measure::Cosine, Measure::EffectiveRank],
                points: vec![Point { site: Site::Embedding, layer: 0 }, Point { site: Site::Block, layer: 1 }],
                seed: 0,
            };
            let values: Vec<f64> =
                (0..indices.len() * 12).map(|i| if i % 5 == 3 { f64::NAN } else { shift + i as f64 }).collect();
            RunValues::new(name, &plan, indices.iter().map(text).collect(), values, &[])
        };
        let runs = vec![run("base", &[0, 1, 5], 0.5), run("a", &[1, 5], -3.0)];
        let frame = per_text_frame(&per_text_rows(&runs)).unwrap();
        let back = stored_values(&frame).unwrap();
        assert_eq!(back.len(), 2);
        for (back, run) in back.iter().zip(&runs) {
            // NaN equals nothing: compared through what reads them.
            assert_eq!(
                (&back.run, &back.points, &back.measures, &back.texts),
                (&run.run, &run.points, &run.measures, &run.texts)
            );
            for (point, slot) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for set in TokenSet::ALL {
                    for group in [None, Some("late".to_owned())] {
                        assert_eq!(back.series(&group, point, slot, set), run.series(&group, point, slot, set));
                    }
                }
            }
        }
    }

    #[test]
    fn nonsense_is_named() {
        let rows = |measure: &str, tokens: u32| crate::report::PerTextRow {
            run: "base".into(),
            group: None,
            text: 4,
            n_tokens: tokens,
            layer: 0,
            site: "embedding".into(),
            measure: measure.into(),
            tokens: "all".into(),
            value: None,
        };
        let error =
            |all: &[crate::report::PerTextRow]| stored_values(&per_text_frame(all).unwrap()).unwrap_err().to_string();
        assert!(error(&[rows("cosin", 2)]).contains("`measure`: \"cosin\""));
        assert!(error(&[rows("cosine", 2), rows("mad", 3)]).contains("run \"base\", text 4"));
    }
}
