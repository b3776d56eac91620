//! Tables, plots and pages: views over results that never need the model again.

pub mod chart;
pub mod curves;
pub mod markdown;
pub mod rows;
pub mod table;
