//! Analyses over models and adapters: similarity curves and the headline study.

pub mod dose;
pub mod dose_grid;
pub mod dose_table;
pub mod headline;
pub mod layers;
pub mod manifest;
pub mod residual_figure;
pub mod residual_share;
pub mod runs;
pub mod similarity;
