//! Measures of over-smoothing, one a file.

mod cosine;
mod effective_rank;

pub use cosine::{CorpusMeans, CosineProbe, CosineValue, Point, TokenSet, points};
pub use effective_rank::effective_rank;
