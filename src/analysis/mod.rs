//! Analyses over models and adapters: similarity curves, pairs of tokens, the headline study.

pub mod audit;
pub mod baselines;
pub mod chunks;
pub mod distance;
pub mod headline;
pub mod heatmap;
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
pub mod states;
pub mod states_save;
pub mod tables;
pub mod text_values;
pub mod texts;
pub mod token_classes;
pub mod token_pairs;
pub mod token_text;
pub mod unit_rows;
