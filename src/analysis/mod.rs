//! Analyses over models and adapters: similarity curves, pairs of tokens, the headline study.

pub mod distance;
pub mod headline;
pub mod heatmap;
pub mod layers;
pub mod manifest;
pub mod runs;
pub mod similarity;
pub mod states;
pub mod states_save;
pub mod stored_run;
pub mod token_classes;
pub mod token_pairs;
pub mod token_text;
pub mod unit_rows;
