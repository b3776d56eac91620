//! What a study would take, before it is run.

use super::StudyError;
use super::cell::{CellResult, Job, SearchResult, trainable};
use super::file::Study;
use super::store::Store;

/// An arm's share of the work.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmEstimate {
    /// Its name.
    pub arm: String,
    /// Its cells.
    pub cells: usize,
    /// Those that are finished.
    pub finished: usize,
    /// Numbers that it trains.
    pub trained: usize,
    /// Seconds of a cell on one thread: the mean of its finished ones or, where there are none, of the study's others in
    /// proportion to their steps. `None` where nothing is known.
    pub cell_seconds: Option<f64>,
}

/// What a study would take.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Arm by arm, in the order of the study.
    pub arms: Vec<ArmEstimate>,
}

impl Estimate {
    /// Seconds of one thread that are left; `None` where that of an arm is not known.
    #[must_use]
    pub fn thread_seconds(&self) -> Option<f64> {
        self.arms
            .iter()
            .filter(|arm| arm.finished < arm.cells)
            .try_fold(0.0, |sum, arm| Some(sum + (arm.cells - arm.finished) as f64 * arm.cell_seconds?))
    }
}

/// Looks into the store for what is finished, and guesses the rest.
///
/// # Errors
/// An arm's modules cannot be made.
pub fn estimate(study: &Study, jobs: &[Job], store: &Store) -> Result<Estimate, StudyError> {
    let seconds = |job: &Job| {
        let tested = store.finished::<CellResult>(&job.identity).map(|result| result.seconds);
        tested.or_else(|| store.finished::<SearchResult>(&job.identity).map(|result| result.seconds))
    };
    let mut arms = Vec::new();
    // Seconds of a step, over all finished cells that trained.
    let (mut spent, mut steps) = (0.0, 0);
    for arm in &study.arms {
        let own: Vec<&Job> = jobs.iter().filter(|job| job.arm == arm.name).collect();
        let Some(first) = own.first() else { continue };
        let known: Vec<f64> = own.iter().filter_map(|job| seconds(job)).collect();
        if let Some(per_cell) = arm.steps() {
            spent += known.iter().sum::<f64>();
            steps += per_cell * known.len() as u64;
        }
        let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        let finished = known.len();
        arms.push(ArmEstimate {
            arm: arm.name.clone(),
            cells: own.len(),
            finished,
            trained: trainable(first)?,
            cell_seconds: mean,
        });
    }
    for estimate in arms.iter_mut().filter(|estimate| estimate.cell_seconds.is_none() && steps > 0) {
        let own = study.arm(&estimate.arm).and_then(super::file::Arm::steps);
        estimate.cell_seconds = own.map(|own| spent / steps as f64 * own as f64);
    }
    Ok(Estimate { arms })
}
