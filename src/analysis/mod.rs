//! Analyses over models and adapters: similarity curves and the headline study.

pub mod layers;
pub mod manifest;
pub mod runs;
pub mod similarity;
