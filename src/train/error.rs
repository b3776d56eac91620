//! Why a training run stops.

use super::config::SettingError;
use crate::model::ModelError;
use crate::peft::AdapterError;
use crate::persist::PersistError;

/// Why a training run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting makes no sense.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter cannot be made or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A file cannot be written.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// A trainable tensor receives no gradient.
    #[error("{tensor} receives no gradient; this is a defect of smooth-probe, please report it with the command line")]
    NoGradient {
        /// The tensor.
        tensor: String,
    },
    /// An encoder sees the token that it is to predict.
    #[error(
        "this {family} model sees the whole text: the loss of the next token asks nothing of it; hide tokens instead"
    )]
    SeesTheAnswer {
        /// The family.
        family: &'static str,
    },
    /// A gradient is not finite.
    #[error("step {step}: the gradient of {tensor} is not finite; lower --lr or check the data")]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The tensor.
        tensor: String,
    },
    /// The loss is not finite.
    #[error("step {step}: the loss is {loss}; lower --lr or check the data")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// No training example is left.
    #[error("no training example has a target token; check --loss-on, --cutoff and the data")]
    NoData,
    /// A checkpoint cannot be continued.
    #[error("checkpoint: {problem}; start again without --resume in another --out")]
    Checkpoint {
        /// What is wrong.
        problem: String,
    },
    /// A file of the run cannot be read or written.
    #[error("{file}: {source}; check that it can be read and written and that the disk has room")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
