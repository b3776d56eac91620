//! How far the numbers of a dose study are to be trusted: intervals over texts, and paired differences to the adapter
//! as it was trained and to the arm `none`.
//!
//! Texts are resampled for similarity and effective rank, whole examples for the loss, whose mean is over tokens.

use super::dose::Measured;
use super::dose_grid::DosePoint;
use super::estimates::{Estimate, Estimates, LEVEL};
use crate::peft::{Arm, ResidualConfig};
use crate::statistics::{self, Bootstrap, Interval, REPLICATES, StatisticsError};
use crate::train::ExampleLoss;
use polars::prelude::Column;

/// What is known of a mean besides itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// Sample deviation over texts; of the loss that of the examples' own means.
    pub std: Option<f64>,
    /// 95 % percentile bootstrap interval of the mean.
    pub interval: Option<Interval>,
    /// Texts or examples that entered.
    pub n: u64,
    /// This point minus the adapter as it was trained; `None` for that itself.
    pub trained: Option<Difference>,
    /// This point minus the arm `none` at the same λ and blocks; `None` for that itself, and where it was not run.
    pub none: Option<Difference>,
}

/// A mean of paired differences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// The mean.
    pub mean: f64,
    /// Its 95 % paired bootstrap interval.
    pub interval: Interval,
    /// Pairs.
    pub n: u64,
}

/// The spreads of a layer of a point.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spreads {
    /// Of the similarity over all tokens.
    pub similarity: Spread,
    /// Of the effective rank; of the last block only.
    pub effective_rank: Spread,
    /// Of the loss: the same in every layer of the point.
    pub loss: Spread,
}

/// The spreads of every point, by layer; `seed` draws the resamples.
///
/// # Errors
/// A value is not finite.
pub fn dose_spreads(
    points: &[(DosePoint, Measured)],
    trained: &ResidualConfig,
    seed: u64,
) -> Result<Vec<Vec<Spreads>>, StatisticsError> {
    let as_trained = points.iter().position(|(point, _)| point.is_trained(trained));
    let references: Vec<[Option<usize>; 2]> = points
        .iter()
        .map(|(point, _)| {
            let control = |(other, _): &(DosePoint, Measured)| {
                other.layer == point.layer && other.dose.lambda == point.dose.lambda && other.dose.arm == Arm::None
            };
            let none = points.iter().position(control).filter(|_| point.dose.arm != Arm::None);
            [as_trained.filter(|_| !point.is_trained(trained)), none]
        })
        .collect();
    let losses = loss_spreads(points, &references, seed)?;
    let mut estimates = Estimates::new(seed);
    let mut asked = Vec::new();
    for ((_, measured), references) in points.iter().zip(&references) {
        let others = references.map(|place| place.and_then(|place| points.get(place)).map(|(_, other)| other));
        let layers = measured.layers.iter().enumerate().map(|(layer, values)| {
            let others = others.map(|other| other.and_then(|o| o.layers.get(layer)).map(|v| v.by_text.as_slice()));
            Asked::new(&mut estimates, &values.by_text, others)
        });
        let layers: Vec<Asked> = layers.collect();
        let ranks = others.map(|other| other.map(|other| other.ranks.as_slice()));
        asked.push((layers, Asked::new(&mut estimates, &measured.ranks, ranks)));
    }
    let found = estimates.finish()?;
    let spreads = asked.into_iter().zip(losses).map(|((layers, rank), loss)| {
        let last = layers.len().saturating_sub(1);
        let rank = |layer| if layer == last { rank.spread(&found) } else { Spread::default() };
        let layers = layers.iter().enumerate();
        layers
            .map(|(layer, own)| Spreads { similarity: own.spread(&found), effective_rank: rank(layer), loss })
            .collect()
    });
    Ok(spreads.collect())
}

/// Where the estimates of a series and of its differences will stand.
struct Asked {
    own: usize,
    differences: [Option<usize>; 2],
}

impl Asked {
    fn new(estimates: &mut Estimates, values: &[Option<f64>], others: [Option<&[Option<f64>]>; 2]) -> Self {
        let own = estimates.add(values);
        Self { own, differences: others.map(|other| other.map(|other| estimates.add_difference(values, other))) }
    }

    fn spread(&self, found: &[Option<Estimate>]) -> Spread {
        let at = |place: usize| found.get(place).copied().flatten();
        let difference = |place: Option<usize>| {
            let Estimate { mean, interval, n, .. } = place.and_then(at)?;
            Some(Difference { mean, interval, n })
        };
        let own = at(self.own);
        let [trained, none] = self.differences.map(difference);
        Spread {
            std: own.and_then(|own| own.std),
            interval: own.map(|own| own.interval),
            n: own.map_or(0, |own| own.n),
            trained,
            none,
        }
    }
}

/// The spread of every point's loss. Its mean is over tokens, so an interval is that of a ratio: whole examples are
/// drawn, with their tokens.
fn loss_spreads(
    points: &[(DosePoint, Measured)],
    references: &[[Option<usize>; 2]],
    seed: u64,
) -> Result<Vec<Spread>, StatisticsError> {
    // Every point is measured on the same examples.
    let examples = points.first().map(|(_, measured)| measured.losses.as_slice()).unwrap_or_default();
    let weights: Vec<f64> = examples.iter().filter(|e| e.targets > 0).map(|e| e.targets as f64).collect();
    if weights.is_empty() {
        return Ok(vec![Spread::default(); points.len()]);
    }
    let sums = |losses: &[ExampleLoss]| losses.iter().filter(|e| e.targets > 0).map(|e| e.sum).collect::<Vec<f64>>();
    let own: Vec<Vec<f64>> = points.iter().map(|(_, measured)| sums(&measured.losses)).collect();
    let mut series = own.clone();
    let mut places = Vec::new();
    for (sums, references) in own.iter().zip(references) {
        places.push(references.map(|place| {
            let other = own.get(place?)?;
            series.push(sums.iter().zip(other).map(|(a, b)| a - b).collect());
            Some(series.len() - 1)
        }));
    }
    let views: Vec<&[f64]> = series.iter().map(Vec::as_slice).collect();
    let found = Bootstrap::new(weights.len(), REPLICATES, seed)?.ratio_intervals(&views, &weights, LEVEL)?;
    let (tokens, n) = (weights.iter().sum::<f64>(), weights.len() as u64);
    let difference = |place: Option<usize>| {
        let (values, &interval) = (series.get(place?)?, found.get(place?)?);
        Some(Difference { mean: values.iter().sum::<f64>() / tokens, interval, n })
    };
    let spread = |((place, sums), differences): ((usize, &Vec<f64>), &[Option<usize>; 2])| {
        let means: Vec<f64> = sums.iter().zip(&weights).map(|(sum, targets)| sum / targets).collect();
        let [trained, none] = differences.map(difference);
        let (_, std) = statistics::mean_and_std(&means)?;
        Ok(Spread { std, interval: found.get(place).copied(), n, trained, none })
    };
    own.iter().enumerate().zip(&places).map(spread).collect()
}

/// The columns that stand behind those of the means in `dose.csv`.
#[must_use]
pub fn spread_columns(rows: &[Spreads]) -> Vec<Column> {
    type Pick = fn(&Spreads) -> &Spread;
    let quantities: [(&str, Pick); 3] =
        [("similarity", |s| &s.similarity), ("effective_rank", |s| &s.effective_rank), ("loss", |s| &s.loss)];
    let numbers = |name: String, cell: &dyn Fn(&Spreads) -> Option<f64>| {
        Column::new(name.into(), rows.iter().map(cell).collect::<Vec<_>>())
    };
    let mut columns = Vec::new();
    for (name, of) in quantities {
        columns.push(numbers(format!("{name}_std"), &|row| of(row).std));
        columns.push(numbers(format!("{name}_ci_low"), &|row| of(row).interval.map(|i| i.low)));
        columns.push(numbers(format!("{name}_ci_high"), &|row| of(row).interval.map(|i| i.high)));
    }
    columns.push(Column::new("examples".into(), rows.iter().map(|row| row.loss.n).collect::<Vec<_>>()));
    type Against = fn(&Spread) -> Option<Difference>;
    let references: [(&str, Against); 2] = [("trained", |s| s.trained), ("none", |s| s.none)];
    for (reference, against) in references {
        for (name, of) in quantities {
            let name = format!("{name}_diff_{reference}");
            columns.push(numbers(name.clone(), &|row| against(of(row)).map(|d| d.mean)));
            columns.push(numbers(format!("{name}_ci_low"), &|row| against(of(row)).map(|d| d.interval.low)));
            columns.push(numbers(format!("{name}_ci_high"), &|row| against(of(row)).map(|d| d.interval.high)));
            let n = rows.iter().map(|row| against(of(row)).map(|d| d.n)).collect::<Vec<_>>();
            columns.push(Column::new(format!("{name}_n").into(), n));
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::dose::LayerValues;
    use crate::model::H0Kind;
    use crate::peft::{Dose, Policy};
    use crate::statistics::paired_bootstrap_difference;

    fn point(arm: Arm, lambda: f64, shift: f64) -> (DosePoint, Measured) {
        let by_text: Vec<Option<f64>> =
            (0..12).map(|i| (i != 3).then(|| f64::from(i).sin() / 9.0 + shift * f64::from(i % 4))).collect();
        let losses = (0..9)
            .map(|i| ExampleLoss { sum: f64::from(i) * (2.0 + shift), targets: i as usize % 3, hits: 0 })
            .collect();
        let layer = |layer| LayerValues {
            layer,
            similarity: None,
            similarity_no_first: None,
            texts: 11,
            by_text: by_text.clone(),
        };
        let measured = Measured {
            layers: vec![layer(0), layer(1)],
            effective_rank: None,
            ranks: by_text.iter().map(|v| v.map(|v| v + 3.0)).collect(),
            loss: 0.0,
            losses,
            residual: vec![],
        };
        (DosePoint { layer: None, dose: Dose { lambda, arm } }, measured)
    }

    fn series(measured: &Measured) -> Vec<f64> {
        measured.layers[1].by_text.iter().copied().flatten().collect()
    }

    #[test]
    fn differences_are_paired_to_the_trained_point_and_to_none_at_the_same_lambda() {
        let trained = ResidualConfig {
            lambda: 0.3,
            policy: Policy::All,
            arm: Arm::H0,
            h0_kind: H0Kind::Token,
            seed: 3,
            learned: None,
        };
        let points = [
            point(Arm::H0, 0.3, 0.0),
            point(Arm::H0, 0.6, 0.1),
            point(Arm::None, 0.6, 0.2),
            point(Arm::None, 0.9, 0.4),
        ];
        let spreads = dose_spreads(&points, &trained, 5).unwrap();
        let at = |point: usize, layer: usize| spreads[point][layer];
        assert_eq!((at(0, 1).similarity.trained, at(0, 1).similarity.none), (None, None), "no reference but itself");
        assert_eq!((at(2, 1).similarity.none, at(3, 1).similarity.none), (None, None));
        for (found, other) in [(at(1, 1).similarity.trained, 0), (at(1, 1).similarity.none, 2)] {
            let (a, b) = (series(&points[1].1), series(&points[other].1));
            let (mean, interval) = paired_bootstrap_difference(&a, &b, 0.95, 5).unwrap();
            assert_eq!(found, Some(Difference { mean, interval, n: 11 }));
        }
        let rank = |layer| at(1, layer).effective_rank;
        assert_eq!(rank(0), Spread::default(), "of the last block only");
        let (found, same) = (rank(1).none.unwrap(), at(1, 1).similarity.none.unwrap());
        assert!((found.mean - same.mean).abs() < 1e-12 && (found.interval.low - same.interval.low).abs() < 1e-12);

        // Six examples with 9 targets: Σ(a − b) of 1, 2, 4, 5, 7, 8 times 0.1.
        let loss = at(1, 0).loss;
        assert_eq!((loss, loss.n), (at(1, 1).loss, 6));
        let difference = loss.trained.unwrap();
        assert!((difference.mean - 2.7 / 9.0).abs() < 1e-12 && difference.interval.contains(difference.mean));
        assert!(loss.interval.unwrap().contains(27.0 * 2.1 / 9.0));
        let means = [2.1, 2.1, 8.4, 5.25, 14.7, 8.4];
        assert!((loss.std.unwrap() - statistics::mean_and_std(&means).unwrap().1.unwrap()).abs() < 1e-12);
    }

    #[test]
    fn a_study_without_targets_has_no_loss_to_resample() {
        let trained = ResidualConfig {
            lambda: 0.3,
            policy: Policy::All,
            arm: Arm::H0,
            h0_kind: H0Kind::Token,
            seed: 3,
            learned: None,
        };
        let (place, mut measured) = point(Arm::H0, 0.3, 0.0);
        measured.losses.iter_mut().for_each(|example| *example = ExampleLoss::default());
        assert_eq!(dose_spreads(&[(place, measured)], &trained, 5).unwrap()[0][0].loss, Spread::default());
    }
}
