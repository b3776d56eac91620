//! Fine-tuning: trainer, optimizer, schedule, checkpoints, events.

mod checkpoint;
mod config;
mod dtype;
mod error;
mod events;
mod objective;
mod optimizer;
mod preset;
mod schedule;
mod step;
mod subject;
mod tensorboard;
mod trainer;

#[cfg(test)]
mod composed_tests;
#[cfg(test)]
mod gradient_tests;

pub use checkpoint::Checkpoint;
pub use config::{LambdaSchedule, MethodName, Schedule, SettingError, TrainConfig};
pub use dtype::{BaseDtypeName, DtypeName};
pub use error::TrainError;
pub use events::{StepEvent, read_events};
pub use objective::{Masking, Objective, Occasion, Prepared};
pub use optimizer::{AdamW, Moments, clip_factor, gradient_norm};
pub use preset::{UnknownPreset, preset};
pub use schedule::{lambda_share, learning_rate};
pub use step::{Evaluation, ExampleLoss, StepReport, evaluate, evaluate_examples, gradients, train_step};
pub use subject::Subject;
pub use tensorboard::{TensorBoard, TensorBoardError};
pub use trainer::{Observer, Outcome, ProbeSet, RunFiles, TrainData, Trainer};
