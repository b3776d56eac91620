//! Studies: what is asked, what is run for it and what comes of it, each a file in `analyses/`.
//!
//! A study tunes the embedded model in several *arms* on one task, in paired seeds: every arm of a seed starts from the
//! same matrices, reads the same batches and drops the same inputs out. The arm `none` of a method shrinks the branch's
//! input as SIBO does and adds nothing; only the difference to it is the initial residual's. Every arm chose its learning
//! rate on the validation items of a seed that is not the study's.
//!
//! A *cell* is an arm at a seed. It is kept under the digest of everything that decides its result ([`Identity`]) in a
//! [`Store`] that all studies and processes share, so that no cell is run twice and a killed run goes on where it was.

mod cell;
mod claim;
mod course;
mod cpu_time;
mod drain;
mod estimate;
mod figures;
mod file;
mod gates;
mod grid;
mod identity;
mod missing;
mod page;
mod phenomenon;
mod schema;
mod store;
mod summary;
mod sweep;
mod tables;
mod verdicts;

pub use cell::{Cell, CellResult, Job, SearchResult, plan, run_cell, run_search, search_plan, trainable};
pub use claim::{Claim, Holder};
pub use course::{CoursePoint, Pause};
pub use drain::{Event, drain};
pub use estimate::{ArmEstimate, Estimate, estimate};
pub use file::{Arm, Refusal, Study, StudyFileError};
pub use identity::{Digests, Identity};
pub use page::{write_report, write_search};
pub use phenomenon::write_base_figure;
pub use schema::{
    ArmEntry, ArmValue, Column, ComparisonEntry, Contrast, Figure, Gate, LayerValue, Margins, Measurement, MethodEntry,
    Outcome, PageWords, StudyFile, StudyScale, Variant,
};
pub use store::{State, Store};
pub use sweep::{ClusterJob, Standing, ranges, standings};

use crate::persist::PersistError;
use crate::report::{RenderError, TableError};
use crate::statistics::StatisticsError;
use crate::train::TrainError;

/// Why a study cannot be run or its report not be written.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// An arm has no learning rate.
    #[error(
        "study {study}: arm {arm} has no lr yet; run `reproduce {study} --search` and write the best one into the file"
    )]
    NoRate {
        /// The study.
        study: String,
        /// The arm.
        arm: String,
    },
    /// A cell's settings or result cannot be written as TOML.
    #[error("a cell cannot be written as TOML: {problem}; this is a defect of smooth-probe, please report it")]
    Settings {
        /// What the writer said.
        problem: String,
    },
    /// A cell that was just written cannot be read.
    #[error("{file}: cannot be read just after it was written; check the disk")]
    Unreadable {
        /// The file.
        file: String,
    },
    /// The work was asked to stop.
    #[error(
        "asked to stop; what is finished is kept and what was begun goes on from its checkpoint: run the same command again"
    )]
    Interrupted,
    /// No threads.
    #[error("no thread for a cell: {0}; lower --threads")]
    Threads(rayon::ThreadPoolBuildError),
    /// A cell's thread ended in a panic, which it has printed.
    #[error("a cell stopped; this is a defect of smooth-probe, please report what stands above")]
    Stopped,
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// The model.
    #[error(transparent)]
    Load(#[from] crate::model::LoadError),
    /// The task's items.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A figure.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table's columns.
    #[error(transparent)]
    Polars(#[from] polars::prelude::PolarsError),
    /// A file.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// An interval.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}
