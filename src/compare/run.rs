//! The course of a comparison: how long a step takes, the search, the seeds.

use super::CompareError;
use super::cell::{CellResult, Data, run_cell};
use super::design::{Arm, Chosen, Design, Kind, in_words};
use crate::analysis::study::{Identity, State, Store, StudyError};
use crate::model::Transformer;
use crate::persist;
use crate::train::{TrainConfig, TrainError};
use std::collections::BTreeMap;
use std::path::Path;

/// What was trained, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The search's cells.
    pub search: Vec<(Arm, CellResult)>,
    /// What each trained arm chose.
    pub chosen: Vec<Chosen>,
    /// The cells that are compared, with their seeds; the base model's has seed 0.
    pub cells: Vec<(Arm, u64, CellResult)>,
    /// Seeds that the budget did not hold.
    pub left_out: u64,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    /// A cell is finished.
    Cell {
        /// The arm.
        arm: Arm,
        /// The seed; `None` in the search.
        seed: Option<u64>,
        /// What it gave.
        result: &'a CellResult,
    },
    /// The search is over.
    Chosen(&'a [Chosen]),
}

/// Runs a comparison in `folder`, or what is left of it; `inputs` are the digests of model and data.
///
/// Seeds are added as long as the budget holds the next one, by the time that cells took.
///
/// # Errors
/// Training fails, or the folder holds another comparison.
pub fn compare(
    model: &Transformer,
    data: &Data,
    design: &Design,
    inputs: &BTreeMap<String, String>,
    folder: &Path,
    watch: impl Fn(Event<'_>),
) -> Result<Finished, CompareError> {
    let store = Store::open(&folder.join("cells"))?;
    let cell = |arm: Arm, seed: Option<u64>| -> Result<CellResult, CompareError> {
        let identity = identity(design, arm, seed, inputs)?;
        let result = match store.begin::<CellResult>(&identity)? {
            State::Finished(result) => result,
            State::Free(claim) => {
                let result = match run_cell(model, data, design, arm, seed) {
                    // A rate that is too large is no reason to stop the search.
                    Err(CompareError::Train(TrainError::Diverged { .. } | TrainError::NotFinite { .. }))
                        if seed.is_none() =>
                    {
                        diverged()
                    }
                    other => other?,
                };
                store.finish(&identity, claim, result)?
            }
            State::Busy(_) => {
                let folder = folder.display().to_string();
                return Err(CompareError::Busy { folder });
            }
        };
        watch(Event::Cell { arm, seed, result: &result });
        Ok(result)
    };
    let mut search = Vec::new();
    for arm in design.candidates() {
        search.push((arm, cell(arm, None)?));
    }
    let chosen = choose(&search);
    watch(Event::Chosen(&chosen));
    let base = Arm { kind: Kind::Base, lambda: 0.0, lr: 0.0 };
    let mut cells = vec![(base, 0, cell(base, Some(0))?)];
    let mut left_out = 0;
    for seed in 1..=design.seeds {
        let longest = |kind: Kind| {
            let own = cells.iter().filter(|(arm, ..)| arm.kind == kind).map(|(.., result)| result.seconds);
            own.chain(search.iter().filter(|(arm, _)| arm.kind == kind).map(|(_, result)| result.seconds))
                .fold(0.0, f64::max)
        };
        let next: f64 = Kind::TRAINED.into_iter().map(longest).sum();
        let so_far: f64 = search.iter().map(|(_, r)| r.seconds).chain(cells.iter().map(|(.., r)| r.seconds)).sum();
        if seed > 1 && so_far + next > design.budget {
            left_out = design.seeds + 1 - seed;
            break;
        }
        for Chosen { arm, .. } in &chosen {
            cells.push((*arm, seed, cell(*arm, Some(seed))?));
        }
    }
    Ok(Finished { search, chosen, cells, left_out })
}

/// What stands for a cell whose training diverged.
fn diverged() -> CellResult {
    let nothing = super::cell::Found { loss: f64::INFINITY, tokens: 0.0, items: 0.0 };
    CellResult { trainable: 0, validation: nothing, test: None, similarity: None, seconds: 0.0, step_seconds: 0.0 }
}

/// The candidate of each arm with the lowest validation loss, the first where several have it.
fn choose(search: &[(Arm, CellResult)]) -> Vec<Chosen> {
    let best = |kind: Kind| {
        let own = search.iter().filter(|(arm, _)| arm.kind == kind);
        own.min_by(|(_, a), (_, b)| a.validation.loss.total_cmp(&b.validation.loss))
    };
    let found = Kind::TRAINED.into_iter().filter_map(best);
    found.map(|(arm, result)| Chosen { arm: *arm, validation_loss: result.validation.loss }).collect()
}

fn identity(
    design: &Design,
    arm: Arm,
    seed: Option<u64>,
    inputs: &BTreeMap<String, String>,
) -> Result<Identity, CompareError> {
    // What is read and written elsewhere decides nothing here.
    let training = TrainConfig { out: Default::default(), data: Default::default(), ..design.settings(arm, seed) };
    let text = toml::to_string(&training).map_err(|error| StudyError::Settings { problem: error.to_string() })?;
    let mut entries = inputs.clone();
    entries.insert("training".to_owned(), text);
    entries.insert("arm".to_owned(), arm.kind.name().to_owned());
    entries.insert("read".to_owned(), if seed.is_some() { "validation, test" } else { "validation" }.to_owned());
    Ok(Identity::new(entries))
}

/// The design that lies in `folder`, if it began there, else `design`, which is laid there: what is settled stays settled
/// when a run goes on.
///
/// # Errors
/// Another comparison began there, or the folder cannot be written.
pub fn settled(
    folder: &Path,
    asked: &str,
    settle: impl FnOnce() -> Result<Design, CompareError>,
) -> Result<Design, CompareError> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Laid {
        asked: String,
        design: Design,
    }
    let path = folder.join("design.toml");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return match toml::from_str::<Laid>(&text) {
            Ok(laid) if laid.asked == asked => Ok(laid.design),
            _ => Err(CompareError::Another { folder: folder.display().to_string() }),
        };
    }
    let design = settle()?;
    let laid = Laid { asked: asked.to_owned(), design };
    let text = toml::to_string(&laid).map_err(|error| StudyError::Settings { problem: error.to_string() })?;
    persist::write_file(&path, text.as_bytes())?;
    Ok(laid.design)
}

impl Design {
    /// The design with its steps: what is asked for, else as many as the budget holds but no more than `most`. `step` is the
    /// time of one, in seconds, and `reading` that of reading the items once.
    ///
    /// # Errors
    /// The budget does not hold what is asked for, or not enough steps to learn anything.
    pub fn within_budget(self, steps: Option<u64>, most: u64, step: f64, reading: f64) -> Result<Self, CompareError> {
        // Steps of SIBO take a little longer than vanilla's, and clocks are not exact.
        const SLACK: f64 = 1.15;
        // Fewer steps teach nothing.
        const LEAST: u64 = 20;
        let cells = self.cells() as f64;
        let needed = |steps: u64| SLACK * cells * (steps as f64 * step + reading);
        let hold = ((self.budget / SLACK / cells - reading) / step).max(0.0) as u64;
        let steps = steps.unwrap_or(hold.min(most).max(LEAST.min(most)));
        if needed(steps) > self.budget {
            return Err(CompareError::Budget {
                budget: in_words(self.budget),
                cells: self.cells(),
                steps,
                needed: in_words(needed(steps)),
            });
        }
        let training = TrainConfig {
            steps: Some(steps),
            warmup_steps: self.training.warmup_steps.min(steps / 10),
            ..self.training
        };
        Ok(Self { training, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::super::cell::Found;
    use super::*;

    fn result(loss: f64) -> CellResult {
        let validation = Found { loss, tokens: 0.0, items: 0.0 };
        CellResult { trainable: 1, validation, test: None, similarity: None, seconds: 1.0, step_seconds: 0.1 }
    }

    #[test]
    fn each_arm_chooses_its_own_lowest_loss() {
        let arm = |kind, lambda, lr| Arm { kind, lambda, lr };
        let search = [
            (arm(Kind::Vanilla, 0.0, 1.0), result(2.0)),
            (arm(Kind::Vanilla, 0.0, 2.0), result(1.0)),
            (arm(Kind::None, 0.1, 1.0), result(0.5)),
            (arm(Kind::None, 0.1, 2.0), result(f64::INFINITY)),
            (arm(Kind::Sibo, 0.1, 1.0), result(0.7)),
            (arm(Kind::Sibo, 0.3, 1.0), result(0.6)),
        ];
        let chosen: Vec<(f64, f64)> = choose(&search).iter().map(|c| (c.arm.lambda, c.arm.lr)).collect();
        assert_eq!(chosen, [(0.0, 2.0), (0.1, 1.0), (0.3, 1.0)]);
    }

    #[test]
    fn the_budget_decides_the_steps() {
        let design = Design {
            lambdas: vec![0.3],
            lrs: vec![1e-3],
            seeds: 1,
            budget: 115.0,
            training: TrainConfig { warmup_steps: 100, ..TrainConfig::default() },
        };
        // Six cells: 100 s without the slack, 16.7 s each, of which 1.7 s go to reading.
        let settled = |steps, most| design.clone().within_budget(steps, most, 0.5, 5.0 / 3.0);
        let found = settled(None, 1000).unwrap().training;
        assert_eq!((found.steps, found.warmup_steps), (Some(30), 3));
        assert_eq!(settled(None, 12).unwrap().training.steps, Some(12));
        let error = settled(Some(60), 1000).unwrap_err().to_string();
        assert!(error.starts_with("--budget 2 min: 6 cells of 60 steps need about 4 min;"), "{error}");
        let short = Design { budget: 20.0, ..design.clone() }.within_budget(None, 1000, 0.5, 1.0).unwrap_err();
        assert!(short.to_string().contains("of 20 steps"), "{short}");
    }

    #[test]
    fn what_is_settled_stays_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let design = |seeds| Design {
            lambdas: vec![0.1],
            lrs: vec![0.1 + 0.2],
            seeds,
            budget: 1.0,
            training: TrainConfig::default(),
        };
        let first = settled(dir.path(), "a", || Ok(design(3))).unwrap();
        assert_eq!(settled(dir.path(), "a", || Ok(design(4))).unwrap(), first);
        assert!(settled(dir.path(), "b", || Ok(design(3))).unwrap_err().to_string().contains("another --out"));
    }
}
