//! Analyses over models and adapters: similarity curves and the headline study.

pub mod audit;
pub mod baselines;
pub mod chunks;
pub mod headline;
pub mod layers;
pub mod manifest;
pub mod means;
mod partner;
pub mod plan;
pub mod pooled;
mod recorder;
pub mod run_values;
pub mod runs;
pub mod saved;
pub mod similarity;
pub mod tables;
pub mod text_values;
pub mod texts;
