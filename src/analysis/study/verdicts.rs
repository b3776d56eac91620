//! Paired comparisons between arms, and the sentences that they allow.

use super::cell::{Cell, CellResult};
use super::file::Study;
use super::schema::{ComparisonEntry, Outcome};
use crate::statistics::{Comparison, Direction, FamilyMember, StatisticsError, compare_family, compare_seeds};

impl Outcome {
    pub(super) const ALL: [Self; 3] = [Self::Accuracy, Self::SimilarityAtEqualSteps, Self::SimilarityAtEqualLoss];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "test accuracy",
            Self::SimilarityAtEqualSteps => "last-block similarity, equal steps",
            Self::SimilarityAtEqualLoss => "last-block similarity, equal validation loss",
        }
    }

    fn margin(self, study: &Study) -> f64 {
        if self == Self::Accuracy { study.margins.accuracy } else { study.margins.similarity }
    }

    fn direction(self) -> Direction {
        if self == Self::Accuracy { Direction::Higher } else { Direction::Lower }
    }
}

/// A comparison of two arms over their common seeds.
#[derive(Debug, Clone)]
pub(super) struct Paired<'s> {
    pub(super) entry: &'s ComparisonEntry,
    pub(super) outcome: Outcome,
    /// Treatment − control, a seed each.
    pub(super) differences: Vec<f64>,
    /// `None` where no seed has both values.
    pub(super) comparison: Option<Comparison>,
    /// Holm-adjusted over the family: that the difference is 0, and that it is as large as the margin. `None` where it is
    /// judged alone or has too few seeds.
    pub(super) adjusted: Option<(f64, f64)>,
}

/// The study's comparisons, each for every outcome; those of a family are judged together, outcome by outcome.
pub(super) fn comparisons<'s>(study: &'s Study, cells: &[Cell]) -> Result<Vec<Paired<'s>>, StatisticsError> {
    let mut all = Vec::new();
    for entry in &study.comparisons {
        for outcome in Outcome::ALL {
            let differences = differences(cells, entry, outcome);
            let comparison = match differences.is_empty() {
                true => None,
                false => Some(compare_seeds(&differences, outcome.margin(study), outcome.direction())?),
            };
            all.push(Paired { entry, outcome, differences, comparison, adjusted: None });
        }
    }
    let mut families: Vec<&str> = study.comparisons.iter().filter_map(|entry| entry.family.as_deref()).collect();
    families.sort_unstable();
    families.dedup();
    for family in families {
        for outcome in Outcome::ALL {
            let belongs = |paired: &Paired| {
                paired.entry.family.as_deref() == Some(family)
                    && paired.outcome == outcome
                    && paired.comparison.is_some()
            };
            let members: Vec<Vec<f64>> =
                all.iter().filter(|paired| belongs(paired)).map(|paired| paired.differences.clone()).collect();
            let members: Vec<&[f64]> = members.iter().map(Vec::as_slice).collect();
            let judged = compare_family(&members, outcome.margin(study), outcome.direction())?;
            for (paired, FamilyMember { comparison, p_differs, p_equivalent }) in
                all.iter_mut().filter(|paired| belongs(paired)).zip(judged)
            {
                (paired.comparison, paired.adjusted) = (Some(comparison), p_differs.zip(p_equivalent));
            }
        }
    }
    Ok(all)
}

fn differences(cells: &[Cell], entry: &ComparisonEntry, outcome: Outcome) -> Vec<f64> {
    let of = |arm: &'_ str| cells.iter().filter(move |cell| cell.arm == arm).collect::<Vec<_>>();
    let controls = of(&entry.control);
    of(&entry.treatment)
        .into_iter()
        .filter_map(|a| {
            let b = &controls.iter().find(|b| b.seed == a.seed)?.result;
            let a = &a.result;
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
    cell.course.iter().map(|point| point.loss).reduce(f64::min)
}

/// The last block's similarity when the validation loss first fell to `loss`, interpolated between the
/// measurements around that moment.
fn similarity_at(cell: &CellResult, loss: f64) -> Option<f64> {
    let mut before: Option<(f64, f64)> = None;
    for point in &cell.course {
        let (at, similarity) = (point.loss, point.similarity?);
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
    let (a, b, what) = (&paired.entry.treatment, &paired.entry.control, paired.outcome.name());
    let Some(comparison) = &paired.comparison else {
        return format!("{a} against {b}, {what}: no seed gave both values");
    };
    let interval = match comparison.interval {
        Some(i) => format!("{:+.4} [{:+.4}, {:+.4}], {} seeds", comparison.mean, i.low, i.high, comparison.seeds),
        None => format!("{:+.4}, 1 seed", comparison.mean),
    };
    let adjusted = paired.adjusted.map_or_else(String::new, |(p, _)| format!(", Holm p = {}", p_value(p)));
    format!("{a} against {b}, {what}: {interval}{adjusted}: **{comparison}**")
}

/// A p-value with two digits.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "< .001".to_owned() } else { format!("{p:.3}") }
}

/// Whether a method has learned enough of the task to be interpreted: its best arm lies more than the study's
/// `above-base` over the base model and over the commonest answer, whichever scores more. `None` where the study asks for
/// nothing of the kind or has no cell that tells.
pub(super) fn is_interpreted(study: &Study, cells: &[Cell], group: &str) -> Option<bool> {
    let above = study.margins.above_base?;
    let arms = |wanted: &dyn Fn(&super::file::Arm) -> bool, value: fn(&CellResult) -> f64| -> Option<f64> {
        let means = study.arms.iter().filter(|arm| wanted(arm)).filter_map(|arm| {
            let own: Vec<f64> = cells.iter().filter(|c| c.arm == arm.name).map(|c| value(&c.result)).collect();
            (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
        });
        means.reduce(f64::max)
    };
    let best = arms(&|arm| arm.group == group, |cell| cell.accuracy)?;
    let task = study.task_of(group)?;
    let commonest = arms(&|arm| arm.group == group, |cell| cell.majority)?;
    let base = arms(&|arm| !arm.is_tuned() && arm.task == task, |cell| cell.accuracy);
    Some(best > base.unwrap_or(commonest).max(commonest) + above)
}

#[cfg(test)]
mod tests {
    use super::super::course::CoursePoint;
    use super::*;

    fn result(accuracy: f64, course: &[(u64, f64, f64)]) -> CellResult {
        CellResult {
            trainable: 1,
            accuracy,
            loss: 1.0,
            majority: 0.1,
            similarity: vec![Some(0.0), course.last().map(|c| c.2), Some(0.9)],
            effective_rank: Vec::new(),
            course: course.iter().map(|&(step, loss, s)| CoursePoint { step, loss, similarity: Some(s) }).collect(),
            seconds: 1.0,
            step_cpu_seconds: None,
        }
    }

    fn cell(arm: &str, seed: u64, accuracy: f64, similarity: f64) -> Cell {
        Cell { arm: arm.to_owned(), seed, lr: 1e-3, result: result(accuracy, &[(1, 1.0, similarity)]) }
    }

    fn entry(treatment: &str, control: &str, family: Option<&str>) -> ComparisonEntry {
        let [treatment, control] = [treatment, control].map(str::to_owned);
        ComparisonEntry { treatment, control, family: family.map(str::to_owned), answer: true }
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let cells = [cell("lora-sibo", 1, 0.6, 0.3), cell("lora-sibo", 2, 0.8, 0.4), cell("lora-none", 2, 0.5, 0.1)];
        let pair = entry("lora-sibo", "lora-none", None);
        let found = differences(&cells, &pair, Outcome::Accuracy);
        assert_eq!(found.len(), 1);
        assert!((found[0] - 0.3).abs() < 1e-12);
        let found = differences(&cells, &pair, Outcome::SimilarityAtEqualSteps);
        assert!((found[0] - 0.3).abs() < 1e-12);
    }

    #[test]
    fn similarity_at_a_loss_is_interpolated() {
        let cell = result(0.5, &[(1, 2.0, 0.2), (2, 1.0, 0.4), (3, 0.5, 0.5)]);
        assert!((similarity_at(&cell, 1.5).unwrap() - 0.3).abs() < 1e-12);
        assert!((similarity_at(&cell, 2.0).unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(similarity_at(&cell, 0.1), None);
    }

    /// Two comparisons over five seeds: a weak difference, p = 0.026 alone, and a wide one.
    fn judged(family: Option<&str>) -> (Study, Vec<Cell>) {
        let weak = [0.4, 3.5, 1.2, 3.6, 2.1];
        let wide = [-6.0, 9.0, 1.0, -4.0, 5.0];
        let mut cells = Vec::new();
        for (i, (a, b)) in weak.into_iter().zip(wide).enumerate() {
            let seed = i as u64 + 1;
            cells.extend([cell("lora-none", seed, 0.2, 0.1), cell("lora-sibo", seed, 0.2 + a / 20.0, 0.1)]);
            cells.extend([cell("adapter-none", seed, 0.2, 0.1), cell("adapter-sibo", seed, 0.2 + b / 20.0, 0.1)]);
        }
        let mut study = Study::open("headline").unwrap();
        study.comparisons =
            vec![entry("lora-sibo", "lora-none", family), entry("adapter-sibo", "adapter-none", family)];
        (study, cells)
    }

    #[test]
    fn a_family_is_judged_together_and_by_outcome() {
        let verdicts = |family| -> Vec<String> {
            let (study, cells) = judged(family);
            let all = comparisons(&study, &cells).unwrap();
            let accuracy = all.iter().filter(|paired| paired.outcome == Outcome::Accuracy);
            accuracy.map(|paired| paired.comparison.as_ref().unwrap().to_string()).collect()
        };
        assert_eq!(verdicts(None), ["helps", "undecided"]);
        assert_eq!(verdicts(Some("methods")), ["undecided", "undecided"]);
        let (study, cells) = judged(Some("methods"));
        let first = comparisons(&study, &cells).unwrap().remove(0);
        let alone = crate::statistics::student_t_p_value(&first.differences).unwrap();
        assert!((first.adjusted.unwrap().0 - 2.0 * alone).abs() < 1e-12);
        assert!(sentence(&first).ends_with("5 seeds, Holm p = 0.053: **undecided**"), "{}", sentence(&first));
    }

    #[test]
    fn a_method_is_interpreted_by_its_best_arm() {
        let (mut study, mut cells) = judged(None);
        assert_eq!(is_interpreted(&study, &cells, "LoRA"), None);
        study.margins.above_base = Some(0.15);
        // LoRA's best mean is .308 and the commonest answer scores .1; the adapter's best is .25.
        assert_eq!(is_interpreted(&study, &cells, "LoRA"), Some(true));
        assert_eq!(is_interpreted(&study, &cells, "Adapter"), Some(false));
        cells.push(cell("base", 1, 0.2, 0.1));
        assert_eq!(is_interpreted(&study, &cells, "LoRA"), Some(false));
        assert_eq!(is_interpreted(&study, &cells, "Prefix"), None);
    }
}
