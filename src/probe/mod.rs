//! What reads the hidden states during a forward pass.
//!
//! Layers are counted as in [`Site`]: 0 is the embedding, 1 to L the blocks, and whatever is taken inside a
//! block has the block's number. transformers' `hidden_states[l]` is our layer `l` for `l < L`. Where a model has
//! a final norm, `hidden_states[L]` is our [`Site::FinalNorm`] and our block L has no counterpart there; where it
//! has none (BERT), `hidden_states[L]` is our block L.

mod site;

pub use site::Site;

use crate::data::Packed;
use crate::model::ModelError;
use candle_core::Tensor;

/// A reader of hidden states.
pub trait Probe {
    /// Receives the states `[tokens, d]` of a packed batch at a site and layer that it wants.
    ///
    /// # Errors
    /// Whatever stops the forward pass, such as a non-finite state.
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError>;

    /// Whether the site is to be recorded at this layer. What is not wanted is not computed; without an answer of
    /// the probe's own these are the embedding, the blocks and the final norm.
    fn wants(&self, site: Site, layer: usize) -> bool {
        let _ = layer;
        site.is_usual()
    }

    /// Whether the attention probabilities of this layer (1 to L) are to be computed and recorded: `heads · n²`
    /// numbers for every sequence of n tokens, all sequences of a batch at once.
    fn wants_attention(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }

    /// Receives the attention probabilities of a layer: for every sequence of the batch a tensor `[heads, n, n]`
    /// whose rows (the queries) sum to 1; under a causal mask zero above the diagonal.
    ///
    /// # Errors
    /// Whatever stops the forward pass.
    fn record_attention(&mut self, layer: usize, maps: &[Tensor], batch: &Packed) -> Result<(), ModelError> {
        let _ = (layer, maps, batch);
        Ok(())
    }
}

/// The probe that reads nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Probe for Silent {
    fn record(&mut self, _: Site, _: usize, _: &Tensor, _: &Packed) -> Result<(), ModelError> {
        Ok(())
    }

    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }
}
