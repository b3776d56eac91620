//! Which doses are given: the values of λ, the blocks, the arms, and so the points of a dose study.

use crate::peft::{Arm, Dose, Mixing, Plan, ResidualConfig};
use std::collections::BTreeSet;
use std::str::FromStr;

/// Most values of a grid: more is a slip, and would run for days.
const MOST: usize = 1001;

/// The values of λ, each in [0, 1], in increasing order.
#[derive(Debug, Clone, PartialEq)]
pub struct LambdaGrid(Vec<f64>);

impl LambdaGrid {
    /// The values.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The grid with `lambda` among its values.
    #[must_use]
    pub fn with(&self, lambda: f64) -> Self {
        let mut values = self.0.clone();
        if !values.contains(&lambda) {
            values.push(lambda);
            values.sort_by(f64::total_cmp);
        }
        Self(values)
    }
}

impl FromStr for LambdaGrid {
    type Err = String;

    /// Parses `0:1:0.1` (first, last, step; both ends included) or a list `0,0.1,0.5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim().parse::<f64>().map_err(|_| {
                format!(
                    "\"{part}\" is not a number; write FIRST:LAST:STEP such as 0:1:0.1, or a list such as 0,0.1,0.5"
                )
            })
        };
        let mut values = match text.split(':').collect::<Vec<_>>().as_slice() {
            [list] => list.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
            [first, last, step] => spaced(number(first)?, number(last)?, number(step)?)?,
            parts => {
                return Err(format!("{} numbers between colons; write FIRST:LAST:STEP such as 0:1:0.1", parts.len()));
            }
        };
        if let Some(outside) = values.iter().find(|lambda| !(0.0..=1.0).contains(*lambda)) {
            return Err(format!("lambda {outside} is outside [0, 1]: x~ = (1-lambda)*x + lambda*r is a mix"));
        }
        values.sort_by(f64::total_cmp);
        values.dedup();
        Ok(Self(values))
    }
}

fn spaced(first: f64, last: f64, step: f64) -> Result<Vec<f64>, String> {
    if !(step.is_finite() && step > 0.0) {
        return Err(format!("the step is {step}; it must be above 0"));
    }
    if first.is_nan() || last.is_nan() || first > last {
        return Err(format!("{first} to {last} holds nothing; the first value must not be above the last"));
    }
    // A last value that rounding put a hair beyond is still the last.
    let steps = ((last - first) / step + 1e-9).floor();
    if steps.is_nan() || steps >= MOST as f64 {
        return Err(format!("{steps} values are too many; take at most {MOST}"));
    }
    // Twelve decimals: 3 · 0.1 is to be the 0.3 that an adapter was trained with.
    Ok((0..=steps as usize).map(|i| ((first + i as f64 * step) * 1e12).round() / 1e12).collect())
}

/// Which blocks a point doses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DosedLayers {
    /// All of them at once.
    All,
    /// One at a time, the others as they were trained.
    Each,
}

impl FromStr for DosedLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "each" => Ok(Self::Each),
            other => Err(format!("\"{other}\" is neither all (every block at once) nor each (one block at a time)")),
        }
    }
}

/// One point of a study: what is turned, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DosePoint {
    /// The dosed block, from 1; `None` for all of them.
    pub layer: Option<usize>,
    /// λ and arm of what is dosed.
    pub dose: Dose,
}

impl DosePoint {
    /// Whether this is the adapter as it was trained.
    #[must_use]
    pub fn is_trained(&self, trained: &ResidualConfig) -> bool {
        self.dose.lambda == trained.lambda && (self.dose.lambda == 0.0 || self.dose.arm == trained.arm)
    }

    /// The dose of every block, from block 1 to L.
    #[must_use]
    pub fn doses(&self, trained: &ResidualConfig, blocks: usize) -> Vec<Dose> {
        let rest = Dose { lambda: trained.lambda, arm: trained.arm };
        (1..=blocks).map(|block| if self.layer.is_none_or(|layer| layer == block) { self.dose } else { rest }).collect()
    }
}

/// The blocks, from 1, that hold a module with the residual.
#[must_use]
pub fn mixed_blocks(plan: &Plan) -> Vec<usize> {
    let mixed = plan.modules.iter().filter(|module| module.residual == Mixing::Mixed).map(|module| module.layer + 1);
    mixed.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The points of a study, by arm, block and λ. The trained λ is among every arm's, and the adapter as it was trained
/// is a point even if its arm is none of `arms`.
#[must_use]
pub fn dose_points(
    plan: &Plan,
    trained: &ResidualConfig,
    grid: &LambdaGrid,
    layers: DosedLayers,
    arms: &[Arm],
) -> Vec<DosePoint> {
    let blocks: Vec<Option<usize>> = match layers {
        DosedLayers::All => vec![None],
        DosedLayers::Each => mixed_blocks(plan).into_iter().map(Some).collect(),
    };
    let grid = grid.with(trained.lambda);
    let mut points = Vec::new();
    for &arm in arms {
        for &layer in &blocks {
            points.extend(grid.values().iter().map(|&lambda| DosePoint { layer, dose: Dose { lambda, arm } }));
        }
    }
    if !points.iter().any(|point| point.is_trained(trained)) {
        let dose = Dose { lambda: trained.lambda, arm: trained.arm };
        points.extend(blocks.iter().map(|&layer| DosePoint { layer, dose }));
    }
    points
}

/// What a point computes, in a form that is equal for points that compute the same: an arm matters only where
/// λ > 0, and a dose only where a module reads it.
#[must_use]
pub fn canonical(doses: &[Dose], mixed: &[usize]) -> Vec<Dose> {
    let nothing = Dose { lambda: 0.0, arm: Arm::None };
    let read = |(index, dose): (usize, &Dose)| match dose.lambda > 0.0 && mixed.contains(&(index + 1)) {
        true => *dose,
        false => nothing,
    };
    doses.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::H0Kind;
    use crate::peft::Policy;

    fn grid(text: &str) -> LambdaGrid {
        text.parse().unwrap()
    }

    #[test]
    fn a_grid_is_spaced_or_a_list() {
        let tenths = grid("0:1:0.1");
        assert_eq!(tenths.values(), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]);
        assert_eq!(grid("0.5, 0,0.25,0.5").values(), [0.0, 0.25, 0.5]);
        assert_eq!(grid("0.1:0.35:0.1").values(), [0.1, 0.2, 0.3]);
        assert_eq!(grid("0.3:0.3:0.1").values(), [0.3]);
        assert_eq!(tenths.with(0.3), tenths);
        assert_eq!(grid("0,1").with(0.15).values(), [0.0, 0.15, 1.0]);
    }

    #[test]
    fn what_is_no_grid_is_refused_with_the_remedy() {
        for (text, words) in [
            ("", "is not a number; write FIRST:LAST:STEP"),
            ("0:1", "2 numbers between colons"),
            ("0:1:0.1:2", "4 numbers between colons"),
            ("0:1:a", "\"a\" is not a number"),
            ("0:1:0", "the step is 0; it must be above 0"),
            ("0:1:-0.1", "must be above 0"),
            ("0:1:nan", "must be above 0"),
            ("0.5:0.2:0.1", "0.5 to 0.2 holds nothing"),
            ("nan:1:0.1", "holds nothing"),
            ("0:1:1e-7", "too many"),
            ("0:inf:0.1", "too many"),
            ("0,1.5", "lambda 1.5 is outside [0, 1]"),
            ("-0.1:0.5:0.1", "lambda -0.1 is outside [0, 1]"),
            ("0,NaN", "lambda NaN is outside [0, 1]"),
        ] {
            let error = text.parse::<LambdaGrid>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!("some".parse::<DosedLayers>().unwrap_err().contains("neither all"));
    }

    #[test]
    fn a_point_doses_its_block_and_leaves_the_others_as_trained() {
        let trained = ResidualConfig {
            lambda: 0.3,
            policy: Policy::All,
            arm: Arm::H0,
            h0_kind: H0Kind::Token,
            seed: 1,
            learned: None,
        };
        let rest = Dose { lambda: 0.3, arm: Arm::H0 };
        let dose = Dose { lambda: 0.6, arm: Arm::Shuffled };
        let one = DosePoint { layer: Some(2), dose };
        assert_eq!(one.doses(&trained, 3), [rest, dose, rest]);
        let all = DosePoint { layer: None, dose };
        assert_eq!(all.doses(&trained, 2), [dose, dose]);
        assert!(!one.is_trained(&trained) && DosePoint { layer: Some(2), dose: rest }.is_trained(&trained));
        // λ = 0 computes the same under every arm, and a block without a mixed module does nothing with its dose.
        let zero = |arm| vec![Dose { lambda: 0.0, arm }, dose];
        assert_eq!(canonical(&zero(Arm::H0), &[1, 2]), canonical(&zero(Arm::Random), &[1, 2]));
        assert_ne!(canonical(&[dose, rest], &[1, 2]), canonical(&[rest, rest], &[1, 2]));
        assert_eq!(canonical(&[dose, rest], &[2]), canonical(&[rest, rest], &[2]));
    }
}
