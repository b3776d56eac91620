//! Measures of over-smoothing, one a file.
//!
//! A measure of one text is a pure function of its [`Rows`]; `None` is undefined and an empty cell in tables. A
//! measure of the corpus is an accumulator with `add`, `merge`, `finish` and a file form. Whoever feeds them refuses
//! a non-finite state first, with text and layer; a measure that meets one all the same is undefined, and no file
//! form with one is read. Every finite f32 state is safe from overflow; f64 states are below about 1e75.

mod accumulator;
mod anisotropy;
mod attention;
mod catalogue;
mod cka;
mod cosine;
pub mod device_sums;
mod dirichlet;
mod effective_rank;
mod entries;
mod frequency;
mod intrinsic_dimension;
mod moments;
mod nearest_embedding;
mod norms;
mod outlier_share;
mod participation;
mod rank_residual;
mod retention;
mod rows;
mod spectrum;
mod stable_rank;
pub mod streaming;
mod token_cosine;
mod token_sample;

pub use accumulator::FileFormError;
pub use anisotropy::Anisotropy;
pub use attention::{AttentionMaps, attention_entropy, attention_entropy_normalised};
pub use catalogue::{Class, Measure, Need, Scope, parse_measures};
pub use cka::Cka;
pub use cosine::{CorpusMeans, CosineProbe, CosineValue, Point, TokenSet, points};
pub use dirichlet::{dirichlet, dirichlet_attention};
pub use effective_rank::effective_rank;
pub use frequency::frequency_ratio;
pub use intrinsic_dimension::{MIN_POINTS, two_nn};
pub use moments::Moments;
pub use nearest_embedding::{EmbeddingTable, nearest_embedding};
pub use norms::{norm_mean, norm_std};
pub use outlier_share::{outlier_share, outlier_share_of};
pub use rank_residual::rank_residual;
pub use retention::retention;
pub use rows::{Real, Rows};
pub use spectrum::Spectrum;
pub use token_cosine::{cosine, cosine_centred, cosine_standardised};
pub use token_sample::{MAX_TOKENS, TokenSample};

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod golden_tests;
