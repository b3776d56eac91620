//! Tables, plots and pages: views over results that never need the model again.
