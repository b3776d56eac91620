//! Does the initial residual help on somebody's own data?
//!
//! Vanilla fine-tuning, SIBO and its scale control are trained on the same examples with the same budget: each may choose
//! its learning rate, and where it has one its λ, among the same candidates by the validation loss of a seed that counts
//! for nothing else. What was chosen is then trained in paired seeds and read on the test items, which nothing was chosen
//! by. A run that was stopped goes on: finished cells lie in the folder.

mod cell;
mod design;
mod page;
mod run;
mod verdict;

pub use cell::{CellResult, Data, Found};
pub use design::{Arm, Chosen, Design, Kind};
pub use page::write_report;
pub use run::{Event, Finished, compare, settled};
pub use verdict::{Answer, Metric, Paired, answer, pairs};

use crate::analysis::study::StudyError;
use crate::data::DataError;
use crate::model::ModelError;
use crate::report::{RenderError, TableError};
use crate::statistics::StatisticsError;
use crate::train::{SettingError, TrainError};

/// Why a comparison cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// What is asked does not fit the time.
    #[error(
        "--budget {budget}: {cells} cells of {steps} steps need about {needed}; give that much, or fewer --steps, --lambdas, \
         --lrs or --seeds"
    )]
    Budget {
        /// What was given.
        budget: String,
        /// Cells to run.
        cells: usize,
        /// Steps of each.
        steps: u64,
        /// What they would take.
        needed: String,
    },
    /// A number that makes no sense.
    #[error("--{key} is {value}; it must be {range}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The folder holds a comparison of something else.
    #[error("{folder}: holds a comparison of other settings, data or model; give another --out, or remove it")]
    Another {
        /// The folder.
        folder: String,
    },
    /// Another process works on it.
    #[error("{folder}: another process runs a cell of this comparison; wait for it, or stop it")]
    Busy {
        /// The folder.
        folder: String,
    },
    /// A setting.
    #[error("{0}")]
    Setting(#[from] SettingError),
    /// Training or reading.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The store of cells.
    #[error(transparent)]
    Store(#[from] StudyError),
    /// A statistic.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table's columns.
    #[error(transparent)]
    Polars(#[from] polars::prelude::PolarsError),
    /// A figure.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// A file.
    #[error(transparent)]
    Persist(#[from] crate::persist::PersistError),
}
