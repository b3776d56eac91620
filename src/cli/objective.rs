//! What a model is trained and evaluated on: decoders by the next token, encoders by hidden ones.

use crate::model::LoadedModel;
use crate::train::{Masking, Objective};
use anyhow::{Context, Result, ensure};

/// Share of an encoder's tokens that are hidden (Devlin et al., 2019).
const MASK_SHARE: f64 = 0.15;

/// The objective of `model`; `share` is what --mask-share says.
pub(super) fn of(model: &LoadedModel, share: Option<f64>, seed: u64) -> Result<Objective> {
    let architecture = model.transformer.architecture();
    if architecture.causal {
        let family = architecture.family;
        ensure!(share.is_none(), "--mask-share is for encoders; a {family} model learns the next token: leave it out");
        return Ok(Objective::NextToken);
    }
    let share = share.unwrap_or(MASK_SHARE);
    ensure!(share > 0.0 && share <= 1.0, "--mask-share {share}: give a share above 0 and up to 1");
    let tokenizer = model.tokenizer()?;
    let mask = tokenizer.mask().with_context(|| {
        format!("--model {}: its tokenizer has no mask token, which an encoder is trained with", model.name)
    })?;
    let vocab = architecture.vocab_size.min(tokenizer.vocab_size()) as u32;
    Ok(Objective::MaskedTokens(Masking { mask, vocab, share, seed }))
}
