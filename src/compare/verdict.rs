//! What the differences allow to be said.

use super::CompareError;
use super::design::{Arm, Kind};
use super::run::Finished;
use crate::statistics::{Comparison, Direction, Verdict, compare_seeds};
use serde::{Deserialize, Serialize};

/// What the verdict is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Metric {
    /// Mean loss of a target token of the test items, in nats.
    Loss,
    /// Share of target tokens with the largest logit.
    Tokens,
    /// Share of items all of whose target tokens have the largest logit.
    Items,
}

impl Metric {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "test loss (nats a token)",
            Self::Tokens => "test tokens right",
            Self::Items => "test items right",
        }
    }

    /// The least difference that matters, unless another is given.
    #[must_use]
    pub fn margin(self) -> f64 {
        match self {
            Self::Loss | Self::Tokens | Self::Items => 0.02,
        }
    }

    fn direction(self) -> Direction {
        if self == Self::Loss { Direction::Lower } else { Direction::Higher }
    }

    pub(super) fn of(self, result: &super::CellResult) -> Option<f64> {
        let found = result.test?;
        Some(match self {
            Self::Loss => found.loss,
            Self::Tokens => found.tokens,
            Self::Items => found.items,
        })
    }
}

/// Two arms over their common seeds.
#[derive(Debug, Clone)]
pub struct Paired {
    /// Whose effect it is.
    pub treatment: Kind,
    /// Against whom.
    pub control: Kind,
    /// Treatment − control.
    pub comparison: Comparison,
}

/// The three comparisons: SIBO against its control and against vanilla, the control against vanilla.
///
/// # Errors
/// A value is not finite.
pub fn pairs(finished: &Finished, metric: Metric, margin: f64) -> Result<Vec<Paired>, CompareError> {
    let value = |kind: Kind, seed: u64| {
        let own = finished.cells.iter().find(|(arm, at, _)| arm.kind == kind && *at == seed);
        own.and_then(|(.., result)| metric.of(result))
    };
    let seeds: Vec<u64> =
        finished.cells.iter().filter(|(arm, ..)| arm.kind == Kind::Sibo).map(|(_, s, _)| *s).collect();
    let mut all = Vec::new();
    for (treatment, control) in [(Kind::Sibo, Kind::None), (Kind::Sibo, Kind::Vanilla), (Kind::None, Kind::Vanilla)] {
        let both = seeds.iter().filter_map(|&seed| Some(value(treatment, seed)? - value(control, seed)?));
        let comparison = compare_seeds(&both.collect::<Vec<f64>>(), margin, metric.direction())?;
        all.push(Paired { treatment, control, comparison });
    }
    Ok(all)
}

/// The one line that a comparison ends in, and what it is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What the initial residual does beyond its scale control: `helps`, `hurts`, `equivalent`, `undecided`, or that there
    /// are too few seeds.
    pub verdict: String,
    /// Mean of SIBO − none.
    pub difference: f64,
    /// Its 95 % interval over seeds.
    pub interval: Option<[f64; 2]>,
    /// Paired seeds.
    pub seeds: usize,
    /// A step of SIBO over a step of vanilla.
    pub step_ratio: f64,
    /// What follows for whoever runs the result.
    pub consequence: String,
}

/// What comes of a comparison.
#[must_use]
pub fn answer(finished: &Finished, pairs: &[Paired], metric: Metric, modules: usize) -> Answer {
    let of = |kind: Kind| -> Vec<&(Arm, u64, super::CellResult)> {
        finished.cells.iter().filter(|(arm, ..)| arm.kind == kind).collect()
    };
    let step = |kind: Kind| {
        let all: Vec<f64> = of(kind).iter().map(|(.., result)| result.step_seconds).collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    };
    let comparison = pairs.first().map(|paired| &paired.comparison);
    let against_vanilla = pairs.get(1).map(|paired| &paired.comparison);
    let gains = comparison.is_some_and(|c| c.verdict == Some(Verdict::Helps))
        && against_vanilla.is_some_and(|c| c.verdict == Some(Verdict::Helps));
    let consequence = match gains {
        true => format!(
            "adopt it if {} by that much is worth {modules} modules that stay beside the weights: what they read depends on \
             the token, so that they merge in part only and run here or through `export --python`, not in PEFT",
            if metric == Metric::Loss { "lower loss" } else { "higher accuracy" }
        ),
        false => "stay with vanilla: it merges into the weights and runs everywhere".to_owned(),
    };
    Answer {
        verdict: comparison.map_or_else(|| "not compared".to_owned(), ToString::to_string),
        difference: comparison.map_or(f64::NAN, |c| c.mean),
        interval: comparison.and_then(|c| c.interval).map(|i| [i.low, i.high]),
        seeds: comparison.map_or(0, |c| c.seeds),
        step_ratio: step(Kind::Sibo) / step(Kind::Vanilla),
        consequence,
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let interval = self.interval.map_or_else(String::new, |[low, high]| format!(" [{low:+.4}, {high:+.4}]"));
        write!(
            f,
            "initial residual: {} ({:+.4}{interval}, {} seeds); a step takes {:.2} of vanilla's; {}",
            self.verdict, self.difference, self.seeds, self.step_ratio, self.consequence
        )
    }
}
