//! Paired comparisons between arms, and the sentences that they allow.

use super::cell::{Arm, CellResult, StudyConfig};
use crate::statistics::{Comparison, Direction, StatisticsError, compare_seeds};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Test accuracy.
    Accuracy,
    /// Token similarity of the last block after the same number of steps; lower is less smooth.
    SimilarityAtEqualSteps,
    /// The same at the same validation loss.
    SimilarityAtEqualLoss,
}

impl Outcome {
    pub(super) const ALL: [Self; 3] = [Self::Accuracy, Self::SimilarityAtEqualSteps, Self::SimilarityAtEqualLoss];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "test accuracy",
            Self::SimilarityAtEqualSteps => "last-block similarity, equal steps",
            Self::SimilarityAtEqualLoss => "last-block similarity, equal validation loss",
        }
    }

    fn margin(self, study: &StudyConfig) -> f64 {
        if self == Self::Accuracy { study.accuracy_margin } else { study.similarity_margin }
    }

    fn direction(self) -> Direction {
        if self == Self::Accuracy { Direction::Higher } else { Direction::Lower }
    }
}

/// A comparison of two arms over their common seeds.
#[derive(Debug, Clone)]
pub(super) struct Paired {
    pub(super) treatment: Arm,
    pub(super) control: Arm,
    pub(super) outcome: Outcome,
    /// `None` where no seed has both values.
    pub(super) comparison: Option<Comparison>,
}

/// The comparisons that the study is for: SIBO against its control and against vanilla, and the control
/// against vanilla.
pub(super) fn comparisons(study: &StudyConfig, cells: &[CellResult]) -> Result<Vec<Paired>, StatisticsError> {
    let pairs = [
        (Arm::LoraSibo, Arm::LoraNone),
        (Arm::LoraSibo, Arm::LoraVanilla),
        (Arm::LoraNone, Arm::LoraVanilla),
        (Arm::AdapterSibo, Arm::AdapterNone),
        (Arm::AdapterSibo, Arm::AdapterVanilla),
        (Arm::AdapterNone, Arm::AdapterVanilla),
    ];
    let mut all = Vec::new();
    for (treatment, control) in pairs {
        for outcome in Outcome::ALL {
            let differences = differences(cells, treatment, control, outcome);
            let comparison = match differences.is_empty() {
                true => None,
                false => Some(compare_seeds(&differences, outcome.margin(study), outcome.direction())?),
            };
            all.push(Paired { treatment, control, outcome, comparison });
        }
    }
    Ok(all)
}

fn differences(cells: &[CellResult], treatment: Arm, control: Arm, outcome: Outcome) -> Vec<f64> {
    let of = |arm: Arm| cells.iter().filter(move |cell| cell.arm == arm);
    of(treatment)
        .filter_map(|a| {
            let b = of(control).find(|b| b.seed == a.seed)?;
            match outcome {
                Outcome::Accuracy => Some(a.accuracy - b.accuracy),
                Outcome::SimilarityAtEqualSteps => Some(last_block(a)? - last_block(b)?),
                Outcome::SimilarityAtEqualLoss => {
                    let loss = lowest_loss(a)?.max(lowest_loss(b)?);
                    Some(similarity_at(a, loss)? - similarity_at(b, loss)?)
                }
            }
        })
        .collect()
}

/// The last block's similarity after training.
pub(super) fn last_block(cell: &CellResult) -> Option<f64> {
    cell.similarity.get(cell.similarity.len().checked_sub(2)?).copied().flatten()
}

fn lowest_loss(cell: &CellResult) -> Option<f64> {
    cell.course.iter().map(|&(_, loss, _)| loss).reduce(f64::min)
}

/// The last block's similarity when the validation loss first fell to `loss`, interpolated between the
/// measurements around that moment.
fn similarity_at(cell: &CellResult, loss: f64) -> Option<f64> {
    let mut before: Option<(f64, f64)> = None;
    for &(_, at, similarity) in &cell.course {
        let similarity = similarity?;
        if at <= loss {
            return Some(match before {
                Some((earlier, value)) if earlier > at => {
                    value + (similarity - value) * (earlier - loss) / (earlier - at)
                }
                _ => similarity,
            });
        }
        before = Some((at, similarity));
    }
    None
}

/// A sentence for a comparison; it says "no difference" only where equivalence was shown.
pub(super) fn sentence(paired: &Paired) -> String {
    let (a, b, what) = (paired.treatment.name(), paired.control.name(), paired.outcome.name());
    let Some(comparison) = &paired.comparison else {
        return format!("{a} against {b}, {what}: no seed gave both values");
    };
    let interval = match comparison.interval {
        Some(i) => format!("{:+.4} [{:+.4}, {:+.4}], {} seeds", comparison.mean, i.low, i.high, comparison.seeds),
        None => format!("{:+.4}, 1 seed", comparison.mean),
    };
    format!("{a} against {b}, {what}: {interval}: **{comparison}**")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(arm: Arm, seed: u64, accuracy: f64, course: &[(u64, f64, f64)]) -> CellResult {
        CellResult {
            arm,
            seed,
            lr: 1e-3,
            trainable: 1,
            accuracy,
            loss: 1.0,
            majority: 0.1,
            similarity: vec![Some(0.0), course.last().map(|c| c.2), Some(0.9)],
            effective_rank: Vec::new(),
            course: course.iter().map(|&(step, loss, s)| (step, loss, Some(s))).collect(),
            seconds: 1.0,
        }
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let cells = [
            cell(Arm::LoraSibo, 1, 0.6, &[(1, 1.0, 0.3)]),
            cell(Arm::LoraSibo, 2, 0.8, &[(1, 1.0, 0.4)]),
            cell(Arm::LoraNone, 2, 0.5, &[(1, 1.0, 0.1)]),
        ];
        let found = differences(&cells, Arm::LoraSibo, Arm::LoraNone, Outcome::Accuracy);
        assert_eq!(found.len(), 1);
        assert!((found[0] - 0.3).abs() < 1e-12);
        let found = differences(&cells, Arm::LoraSibo, Arm::LoraNone, Outcome::SimilarityAtEqualSteps);
        assert!((found[0] - 0.3).abs() < 1e-12);
    }

    #[test]
    fn similarity_at_a_loss_is_interpolated() {
        let cell = cell(Arm::LoraSibo, 1, 0.5, &[(1, 2.0, 0.2), (2, 1.0, 0.4), (3, 0.5, 0.5)]);
        assert!((similarity_at(&cell, 1.5).unwrap() - 0.3).abs() < 1e-12);
        assert!((similarity_at(&cell, 2.0).unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(similarity_at(&cell, 0.1), None);
    }
}
