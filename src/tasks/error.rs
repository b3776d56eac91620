//! What can be wrong with a task, its data or a score, said in one line with the place and the remedy.

use crate::data::DataError;
use crate::generate::GenerateError;
use crate::model::ModelError;
use crate::model::tokenizer::TokenizerError;
use crate::persist::PersistError;
use crate::statistics::StatisticsError;
use std::io;

/// An error of a task. Each message is one line that names the place, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task's file is no TOML, or lacks a key.
    #[error("{place}: {reason}; docs/tasks.md has the keys of a task")]
    Definition {
        /// The file, or the name of a compiled-in task.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// No task of that name.
    #[error("--task {name}: no such task; there are {known}, or give a .toml file")]
    Unknown {
        /// The name.
        name: String,
        /// Groups and tasks.
        known: String,
    },
    /// The data hold no file of the task.
    #[error("{task}: no file of it in {folder}; wanted is one of {wanted}")]
    NoFile {
        /// The task.
        task: String,
        /// Where was looked.
        folder: String,
        /// What was looked for.
        wanted: String,
    },
    /// A row lacks a field.
    #[error("{place}: no field {field} for the task {task} among {found}; wanted is one of {wanted}")]
    MissingField {
        /// File and row.
        place: String,
        /// The field by its name in the task.
        field: String,
        /// The task.
        task: String,
        /// The fields that are there.
        found: String,
        /// Its names in files.
        wanted: String,
    },
    /// A field that cannot be what the task says.
    #[error("{place}: the field {field} of the task {task} is {value:?}; it must be {wanted}")]
    Value {
        /// File and row.
        place: String,
        /// The field by its name in the file.
        field: String,
        /// The task.
        task: String,
        /// What it is.
        value: String,
        /// What it must be.
        wanted: String,
    },
    /// A task is asked for a mode that it does not know.
    #[error("--mode {mode}: {task} has no such mode; it has {modes}")]
    Mode {
        /// The mode.
        mode: String,
        /// The task.
        task: String,
        /// Its modes.
        modes: String,
    },
    /// The model cannot do what a mode asks for.
    #[error("{task}, --mode {mode}: {reason}")]
    Unfit {
        /// The task.
        task: String,
        /// The mode.
        mode: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An answer is not a number.
    #[error("{place}: the answer is not finite; the weights are damaged or overflow their type")]
    NotFinite {
        /// The item.
        place: String,
    },
    /// An item was asked otherwise before.
    #[error("{place}: an earlier evaluation in --out asked this item otherwise; choose another --out")]
    AskedOtherwise {
        /// The item.
        place: String,
    },
    /// A file of earlier items belongs to something else.
    #[error("{path}: {reason}; choose another --out, or remove the file")]
    Journal {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}; check the name, the permissions and the room")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A text cannot be continued.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A result cannot be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A statistic is undefined.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
