//! What reads the hidden states during a forward pass.
//!
//! Layers are counted as in [`Site`]: 0 is the embedding, 1 to L the blocks. transformers'
//! `hidden_states[l]` is our layer `l` for `l < L`; its last one, `hidden_states[L]`, is our
//! [`Site::FinalNorm`], since it lies after the final norm; our block L has no counterpart there.

use crate::data::Packed;
use crate::model::ModelError;
use candle_core::Tensor;
use std::fmt;

/// Where in the model a hidden state was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Layer 0: what the first block receives.
    Embedding,
    /// The residual stream after a block, layers 1 to L.
    Block,
    /// After the final norm, layer L.
    FinalNorm,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedding => "embedding",
            Self::Block => "block",
            Self::FinalNorm => "final_norm",
        })
    }
}

/// A reader of hidden states.
pub trait Probe {
    /// Receives the states `[tokens, d]` of a packed batch at a site and layer.
    ///
    /// # Errors
    /// Whatever stops the forward pass, such as a non-finite state.
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError>;
}

/// The probe that reads nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Probe for Silent {
    fn record(&mut self, _: Site, _: usize, _: &Tensor, _: &Packed) -> Result<(), ModelError> {
        Ok(())
    }
}
