//! From the patches of an image to layer 0.

use super::ModelError;
use super::architecture::Architecture;
use super::embeddings::Embedded;
use crate::data::{Packed, PatchGrid};
use crate::kernels;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// What stands in front of the first block of a model that reads images: a convolution whose patches do not overlap,
/// which is a linear map of each patch.
#[derive(Debug, Clone)]
pub(super) struct PatchEmbedding {
    /// `[d, features]`.
    pub(super) weight: Tensor,
    /// `[d, 1]`: added to patches alone.
    pub(super) bias: Tensor,
    /// `[d, 1]`: the class token.
    pub(super) class: Tensor,
    /// `[1 + patches, d]`.
    pub(super) positions: Tensor,
}

impl PatchEmbedding {
    /// The tensors in the order of [`Architecture::patch_tensors`].
    pub(super) fn tensors_mut(&mut self) -> [&mut Tensor; 4] {
        [&mut self.weight, &mut self.bias, &mut self.class, &mut self.positions]
    }

    /// Layer 0 of a batch of images, in `dtype`.
    pub(super) fn forward(
        &self,
        batch: &Packed,
        (architecture, grid): (&Architecture, &PatchGrid),
        dtype: DType,
    ) -> Result<Embedded, ModelError> {
        if batch.images.len() != batch.sequences() {
            return Err(ModelError::ReadsImages { family: architecture.family });
        }
        let (n, features) = (batch.ids.len(), grid.features());
        let mut pixels = Vec::with_capacity(n * features);
        let mut is_patch = Vec::with_capacity(n);
        let mut places: Vec<u32> = Vec::with_capacity(n);
        for (text, image) in batch.images.iter().enumerate() {
            let ids = batch.sequence(text);
            if ids.len() > architecture.vocab_size {
                let (tokens, positions) = (ids.len(), architecture.vocab_size);
                return Err(ModelError::TooLong { text, tokens, positions });
            }
            places.extend(0..ids.len() as u32);
            for &id in ids {
                let patch = (id as usize).checked_sub(1).map(|patch| image.patch(patch));
                is_patch.push(if patch.is_some() { 1.0_f32 } else { 0.0 });
                match patch {
                    None => pixels.resize(pixels.len() + features, 0.0_f32),
                    Some(patch) if patch.len() == features => pixels.extend_from_slice(patch),
                    Some(_) => return Err(ModelError::Token { id, vocab: architecture.vocab_size }),
                }
            }
        }
        let is_class: Vec<f32> = is_patch.iter().map(|patch| 1.0 - patch).collect();
        let matrix = |values: Vec<f32>, width: usize| {
            Tensor::from_vec(values, (n, width), &Device::Cpu)?.to_dtype(dtype)?.to_device(self.weight.device())
        };
        let mut token = kernels::linear(&matrix(pixels, features)?, &self.weight, None)?;
        // Products of one column: a vector added to the rows that are marked, with its gradient.
        for (marks, vector) in [(is_patch, &self.bias), (is_class, &self.class)] {
            token = kernels::scaled_add(&token, &kernels::linear(&matrix(marks, 1)?, vector, None)?, 1.0)?;
        }
        let places: Arc<[u32]> = places.into();
        let input = kernels::scaled_add(&token, &kernels::embedding(&self.positions, &places, dtype)?, 1.0)?;
        Ok(Embedded { token, input })
    }
}
