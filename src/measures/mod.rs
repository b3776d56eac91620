//! Measures of over-smoothing, one a file.

mod cosine;

pub use cosine::{CorpusMeans, CosineProbe, CosineValue, Point, TokenSet, points};
