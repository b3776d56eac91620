//! From token ids to layer 0.

use super::ModelError;
use super::architecture::{Architecture, H0Kind, Positions};
use super::norm::Norm;
use super::patches::PatchEmbedding;
use crate::data::{Packed, PatchGrid};
use crate::kernels;
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// What makes layer 0.
#[derive(Debug, Clone)]
pub(super) enum Embedder {
    /// Of a text's tokens.
    Tokens(Embeddings),
    /// Of an image's patches.
    Patches(PatchGrid, PatchEmbedding),
}

impl Embedder {
    /// Layer 0 of a batch, in `dtype`; `leading` are the rows in the place of the first tokens of every text.
    pub(super) fn forward(
        &self,
        batch: &Packed,
        architecture: &Architecture,
        dtype: DType,
        leading: Option<&Tensor>,
    ) -> Result<Embedded, ModelError> {
        match self {
            Self::Tokens(_) if !batch.images.is_empty() => Err(ModelError::ReadsTexts { family: architecture.family }),
            Self::Tokens(tables) => tables.forward(batch, architecture, dtype, leading),
            Self::Patches(grid, embedding) => embedding.forward(batch, (architecture, grid), dtype),
        }
    }
}

/// The tables that stand in front of the first block.
#[derive(Debug, Clone)]
pub(super) struct Embeddings {
    /// `[vocabulary, d]`.
    pub(super) tokens: Tensor,
    /// Learned positions, `[rows, d]`.
    pub(super) positions: Option<Tensor>,
    /// Token types, `[types, d]`.
    pub(super) types: Option<Tensor>,
    pub(super) norm: Option<Norm>,
    /// From the embeddings' width to the stream's.
    pub(super) projection: Option<Projection>,
}

/// `[d, embedding width]`, and a bias of d.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Projection {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        kernels::linear(x, &self.weight, self.bias.as_ref())
    }
}

/// What a batch becomes, `[tokens, d]` each.
pub(crate) struct Embedded {
    /// The rows of the token table, at the family's scale and in the stream's width.
    pub(crate) token: Tensor,
    /// Layer 0: what the first block receives.
    pub(crate) input: Tensor,
}

impl Embedded {
    /// What the initial residual reads.
    pub(crate) fn h0(&self, kind: H0Kind) -> &Tensor {
        match kind {
            H0Kind::Token => &self.token,
            H0Kind::Input => &self.input,
        }
    }
}

impl Embeddings {
    /// Layer 0 of a batch, in `dtype`.
    pub(super) fn forward(
        &self,
        batch: &Packed,
        architecture: &Architecture,
        dtype: DType,
        leading: Option<&Tensor>,
    ) -> Result<Embedded, ModelError> {
        let vocab = architecture.vocab_size;
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        let mut rows = kernels::embedding(&self.tokens, &batch.ids, dtype)?;
        if let Some(scale) = architecture.embedding_scale {
            // The factor has the type of the rows, as in transformers.
            let scale = match dtype {
                DType::BF16 => half::bf16::from_f64(scale).to_f64(),
                DType::F16 => half::f16::from_f64(scale).to_f64(),
                _ => scale,
            };
            rows = kernels::scale(&rows, scale)?;
        }
        if let Some(leading) = leading.filter(|_| !architecture.projects_tokens()) {
            rows = kernels::replace_leading(&rows, leading, &batch.offsets)?;
        }
        // What is read as h0 has no gradient, so that the projection of the bare rows needs none.
        let token = match &self.projection {
            None => rows.clone(),
            Some(projection) if architecture.projects_tokens() => projection.apply(&rows)?,
            Some(projection) => kernels::forget(|| projection.apply(&rows.detach()))?.detach(),
        };
        let mut input = if architecture.projects_tokens() { token.clone() } else { rows };
        if let Some(leading) = leading.filter(|_| architecture.projects_tokens()) {
            input = kernels::replace_leading(&input, leading, &batch.offsets)?;
        }
        if let (Some(table), Positions::Learned { first, padding }) = (&self.positions, &architecture.positions) {
            let rows = positions(batch, *first, *padding, architecture.max_positions)?;
            input = kernels::scaled_add(&input, &kernels::embedding(table, &rows, dtype)?, 1.0)?;
        }
        if let Some(table) = &self.types {
            let rows = types(batch, architecture)?;
            input = kernels::scaled_add(&input, &kernels::embedding(table, &rows, dtype)?, 1.0)?;
        }
        if let Some(norm) = &self.norm {
            input = norm.forward(&input)?;
        }
        if let Some(projection) = self.projection.as_ref().filter(|_| !architecture.projects_tokens()) {
            input = projection.apply(&input)?;
        }
        Ok(Embedded { token, input })
    }
}

/// The row of the position table of every token. A padding token reads the row before the first and is no
/// position to those behind it (transformers, `create_position_ids_from_input_ids`).
fn positions(batch: &Packed, first: usize, padding: Option<u32>, most: usize) -> Result<Arc<[u32]>, ModelError> {
    let mut rows = Vec::with_capacity(batch.ids.len());
    for text in 0..batch.sequences() {
        let ids = batch.sequence(text);
        let before = batch.first(text);
        let tokens = before + ids.len();
        if tokens > most {
            return Err(ModelError::TooLong { text, tokens, positions: most });
        }
        let mut next = first + before;
        for &id in ids {
            if Some(id) == padding {
                rows.push(first.saturating_sub(1) as u32);
            } else {
                rows.push(next as u32);
                next += 1;
            }
        }
    }
    Ok(rows.into())
}

/// The type of every token; 0 where the batch names none.
fn types(batch: &Packed, architecture: &Architecture) -> Result<Arc<[u32]>, ModelError> {
    if batch.types.is_empty() {
        return Ok(vec![0; batch.ids.len()].into());
    }
    if batch.types.len() != batch.ids.len() {
        let reason = format!("{} token types for {} tokens", batch.types.len(), batch.ids.len());
        return Err(ModelError::Tensor(candle_core::Error::Msg(reason)));
    }
    match batch.types.iter().find(|&&kind| kind as usize >= architecture.token_types) {
        Some(&kind) => Err(ModelError::TokenType { kind, types: architecture.token_types }),
        None => Ok(Arc::clone(&batch.types)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_no_position_and_a_long_text_is_refused() {
        let batch = Packed::from_sequences(&[vec![0, 5, 1, 6], vec![7]]);
        assert_eq!(*positions(&batch, 2, Some(1), 4).unwrap(), [2, 3, 1, 4, 2]);
        assert_eq!(*positions(&batch, 0, None, 4).unwrap(), [0, 1, 2, 3, 0]);
        let error = positions(&batch, 0, None, 3).unwrap_err().to_string();
        assert_eq!(error, "text 0 of the batch has 4 tokens and the model 3 learned positions; lower --max-tokens");
    }
}
