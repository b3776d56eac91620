//! Other remedies of over-smoothing than the initial residual, alone or beside it.
//!
//! Those that change what a model computes belong to an adapter: they are trained with its modules, saved with them, and
//! applied wherever the adapter is. In a decoder none lets a token see a later one.

mod attention;
mod contra_norm;
mod cosine_regulariser;
mod fusion;
#[cfg(test)]
mod tests;

pub(crate) use attention::Heads;
pub(crate) use cosine_regulariser::cosine_penalty;
pub use fusion::Fusion;

use crate::model::Architecture;
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Which remedies are applied, with their strengths; by default none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Remedies {
    /// ContraNorm in front of the norm that the feed-forward reads through (Guo et al. 2023).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contranorm: Option<ContraNorm>,
    /// Values drawn back to those of the first block (Nguyen et al. 2023).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neutreno: Option<Neutreno>,
    /// A learned gain of each head on how far its attention is from uniform (Wang et al. 2022).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub attn_scale: bool,
    /// Learned gains on the mean of attention's output and on what deviates from it (Wang et al. 2022).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub feat_scale: bool,
    /// What stands for the last block's states (Shi et al. 2022).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion: Option<Fusion>,
}

/// `(1 + s)·X − s·softmax(X̂X̂ᵀ/τ)·X`, with the rows of X̂ of unit length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContraNorm {
    /// s.
    pub strength: f64,
    /// τ.
    pub temperature: f64,
}

/// `softmax(QKᵀ/√d)·V + μ·(V₁ − V)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neutreno {
    /// μ.
    pub mu: f64,
}

/// Remedies that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemedyError {
    /// A number that makes no sense.
    #[error("{key} is {value}; it must be {range}")]
    OutOfRange {
        /// The remedy's number.
        key: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// States of all blocks are fused in a decoder.
    #[error("fusion of the blocks' states is defined for encoders; {family} is a decoder, leave it out")]
    FusesADecoder {
        /// The family.
        family: &'static str,
    },
}

impl Remedies {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses what cannot be applied to a model.
    ///
    /// # Errors
    /// A number is out of range, or the model is of the wrong kind.
    pub fn check(&self, architecture: &Architecture) -> std::result::Result<(), RemedyError> {
        let fail = |key, value: f64, range| Err(RemedyError::OutOfRange { key, value: value.to_string(), range });
        if let Some(ContraNorm { strength, temperature }) = self.contranorm {
            if !strength.is_finite() {
                return fail("contranorm", strength, "a finite number");
            }
            if !(temperature.is_finite() && temperature > 0.0) {
                return fail("contranorm-temperature", temperature, "a number above 0");
            }
        }
        if let Some(Neutreno { mu }) = self.neutreno.filter(|n| !n.mu.is_finite()) {
            return fail("neutreno", mu, "a finite number");
        }
        match self.fusion {
            Some(_) if architecture.causal => Err(RemedyError::FusesADecoder { family: architecture.family }),
            _ => Ok(()),
        }
    }

    /// The names of what is learned, with their shapes, in the files of an adapter.
    #[must_use]
    pub fn tensors(&self, architecture: &Architecture) -> Vec<(String, Vec<usize>)> {
        let blocks = (0..architecture.layers).step_by(architecture.names.shared.max(1));
        let fused = (1..=architecture.layers).flat_map(|layer| self.of_fusion(architecture, layer));
        blocks.flat_map(|layer| self.of_block(architecture, layer)).chain(fused).collect()
    }

    /// What weighs the states of a block, from 1.
    fn of_fusion(&self, architecture: &Architecture, layer: usize) -> Vec<(String, Vec<usize>)> {
        let parts = self.fusion.map(|fusion| fusion.tensors(architecture.hidden_size)).unwrap_or_default();
        parts.into_iter().map(|(name, shape)| (format!("fusion.{layer}.{name}"), shape)).collect()
    }

    /// What is learned of a block, from 0.
    fn of_block(&self, architecture: &Architecture, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (heads, width) = (architecture.heads, architecture.hidden_size);
        let mut own = Vec::new();
        if self.attn_scale {
            own.push((architecture.names.in_block(layer, "attn_scale.omega"), vec![heads]));
        }
        if self.feat_scale {
            own.extend(
                ["s", "t"].map(|name| (architecture.names.in_block(layer, &format!("feat_scale.{name}")), vec![width])),
            );
        }
        own
    }
}

/// Remedies with what they have learned, for one model.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    config: Remedies,
    /// What is learned of each block, by its name in an adapter's files: ω, then s and t, those that there are.
    blocks: Vec<Vec<(String, Tensor)>>,
    /// What weighs the states of each block at the end.
    fused: Vec<Vec<(String, Tensor)>>,
}

impl Applied {
    /// Remedies whose learned tensors come from `tensor(name, shape)`.
    ///
    /// # Errors
    /// What `tensor` answers.
    pub(crate) fn new<E>(
        config: Remedies,
        architecture: &Architecture,
        mut tensor: impl FnMut(&str, &[usize]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        let mut named = |parts: Vec<(String, Vec<usize>)>| {
            let one = |(name, shape): (String, Vec<usize>)| {
                let value = tensor(&name, &shape)?;
                Ok((name, value))
            };
            parts.into_iter().map(one).collect::<std::result::Result<Vec<_>, E>>()
        };
        let layers = if config.is_none() { 0 } else { architecture.layers };
        let blocks = (0..layers)
            .map(|layer| named(config.of_block(architecture, layer)))
            .collect::<std::result::Result<_, E>>()?;
        let fused = (1..=layers)
            .map(|layer| named(config.of_fusion(architecture, layer)))
            .collect::<std::result::Result<_, E>>()?;
        Ok(Self { config, blocks, fused })
    }

    /// Start values, which change nothing or next to nothing: gains of 0, and a fusion that takes the last block.
    ///
    /// # Errors
    /// A tensor cannot be made.
    pub(crate) fn initial(config: Remedies, architecture: &Architecture, place: (DType, &Device)) -> Result<Self> {
        let last = format!("fusion.{}.", architecture.layers);
        Self::new(config, architecture, |name, shape| match config.fusion.filter(|_| name.starts_with("fusion.")) {
            Some(fusion) => fusion.initial(name.starts_with(&last), shape)?.to_dtype(place.0)?.to_device(place.1),
            None => Tensor::zeros(shape, place.0, place.1),
        })
    }

    /// What is applied.
    #[must_use]
    pub fn config(&self) -> &Remedies {
        &self.config
    }

    /// What is learned, by its name in an adapter's files; what blocks share comes once for each of them.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &(String, Tensor)> {
        self.blocks.iter().chain(&self.fused).flatten()
    }

    /// As [`Self::tensors`].
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut (String, Tensor)> {
        self.blocks.iter_mut().chain(&mut self.fused).flatten()
    }

    /// ω of a block, from 0, `[heads]`.
    fn omega(&self, layer: usize) -> Option<&Tensor> {
        let (_, omega) = self.blocks.get(layer)?.first().filter(|_| self.config.attn_scale)?;
        Some(omega)
    }

    /// s and t of a block, from 0, `[d]` each.
    fn gains(&self, layer: usize) -> Option<[&Tensor; 2]> {
        match self.blocks.get(layer)?.as_slice() {
            [.., (_, s), (_, t)] if self.config.feat_scale => Some([s, t]),
            _ => None,
        }
    }
}
