//! Loss and gradients, block by block.

use super::block::Block;
use super::transformer::{ModelError, Pass, Transformer};
use crate::data::Packed;
use crate::kernels::{self, Gradients, Tape};
use crate::peft::PassState;
use crate::probe::Silent;
use crate::profile::{self, Phase};
use crate::remedies::cosine_penalty;
use candle_core::Tensor;
use std::time::Instant;

/// What the rows of a batch are to predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wanted<'a> {
    /// A token or a class by its id, `[tokens]`; the loss is the cross-entropy.
    Ids(&'a [u32]),
    /// A score, `[tokens]`; the loss is the squared error of a head of one output.
    Scores(&'a [f32]),
}

impl<'a> From<&'a [u32]> for Wanted<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::Ids(ids)
    }
}

impl<'a> From<&'a Vec<u32>> for Wanted<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// How gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backward {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Keep the input of each block alone and compute the block again in the backward pass (Chen et al., 2016): the
    /// same bits, less memory, more time.
    pub checkpointing: bool,
    /// What [`Losses::penalty`] is multiplied by in what is differentiated: the cosine regulariser's γ over the texts of a step.
    pub penalty: f64,
}

/// What a backward pass found of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Losses {
    /// The weighted sum of the losses of the targets, in nats.
    pub loss: f64,
    /// The sum over the texts of how alike their tokens are behind the last block, `mean_{i≠j} |cos(h_i, h_j)|` (Gong et
    /// al. 2021); 0 where it is not asked for.
    pub penalty: f64,
}

/// What the backward pass needs of a block.
enum Kept {
    Recorded(Tape),
    /// To be computed again from the block's input.
    Input,
}

impl Transformer {
    /// The weighted sum of the rows' losses, of ids as in [`Self::loss_sum`]; adds the gradients of `scale` times that
    /// loss with respect to every tracked tensor to `gradients`.
    ///
    /// Memory is freed as the backward pass proceeds, and nothing is computed below the lowest tracked tensor.
    ///
    /// # Errors
    /// As [`Self::loss_sum`].
    pub fn loss_gradients<'w>(
        &self,
        batch: &Packed,
        (wanted, weights): (impl Into<Wanted<'w>>, &[f32]),
        pass: &Pass<'_>,
        how: Backward,
        gradients: &mut Gradients,
    ) -> Result<Losses, ModelError> {
        let (started, wanted) = (Instant::now(), wanted.into());
        let head = self.head()?;
        let leading = self.leading(pass)?;
        let count = leading.as_ref().map_or(Ok(0), |rows| rows.dim(0))?;
        let longer = leading.as_ref().map(|_| batch.behind_virtual(count));
        let batch = longer.as_ref().unwrap_or(batch);
        let (embedded, embedding_tape) = kernels::record(|| self.embed(batch, leading.as_ref()));
        let embedded = embedded?;
        let state = PassState::new(pass, self, &embedded, batch)?;
        let mut run = self.run(batch, &state)?;
        let first = embedded.input.clone();
        drop(embedded);
        // Beside the first block and not in it: later blocks read them, and its tape may be made again.
        let (first_values, values_tape) = kernels::record(|| self.first_values(&first, &run));
        run.first_values = first_values?;
        let mut h = first.clone();
        let mut kept: Vec<(Tensor, Kept)> = Vec::with_capacity(self.blocks.len());
        let layers = self.blocks.len();
        // With stochastic depth h + f·(block(h) − h); a block that is left out runs all the same, so that what it trains has a
        // gradient, of zero.
        let through = |block: &Block, layer: usize, h: &Tensor| -> Result<Tensor, ModelError> {
            let out = block.forward(h, &run, &mut Silent)?;
            match pass.depth_factor(layer, layers) {
                1.0 => Ok(out),
                factor => Ok(kernels::scaled_add(&kernels::scale(h, 1.0 - factor)?, &out, factor)?),
            }
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let forward = || through(block, layer, &h);
            let (next, how_kept) = match how.checkpointing {
                true => (kernels::forget(forward)?, Kept::Input),
                false => {
                    let (next, tape) = kernels::record(forward);
                    (next?, Kept::Recorded(tape))
                }
            };
            kept.push((std::mem::replace(&mut h, next), how_kept));
        }
        let (states, tape) = kernels::record(|| {
            let fused = match state.remedies().filter(|remedies| remedies.fuses()) {
                Some(remedies) => {
                    let all: Vec<Tensor> = kept.iter().skip(1).map(|(h, _)| h).chain([&h]).cloned().collect();
                    remedies.fused(&all)?
                }
                None => None,
            };
            let last = fused.as_ref().unwrap_or(&h);
            let states = match &self.final_norm {
                Some(norm) => norm.forward(last)?,
                None => last.clone(),
            };
            // Virtual tokens predict nothing.
            match &leading {
                Some(_) => self.head_states(&kernels::skip_leading(&states, count, &batch.offsets)?),
                None => self.head_states(&states),
            }
        });
        let states = states?;
        profile::settle(self.device())?;
        profile::add(Phase::Forward, started);
        profile::timed(Phase::Backward, || {
            let (loss, [d_states, d_weight, d_bias]) = match wanted {
                Wanted::Ids(targets) => kernels::cross_entropy_gradients(&states, head, targets, weights, how.scale)?,
                Wanted::Scores(scores) => kernels::squared_error_gradients(&states, head, scores, weights, how.scale)?,
            };
            if let Some(gradient) = d_weight {
                gradients.add(head.weight.id(), gradient)?;
            }
            if let (Some(bias), Some(gradient)) = (head.bias, d_bias) {
                gradients.add(bias.id(), gradient)?;
            }
            let mut losses = Losses { loss, penalty: 0.0 };
            if let Some(gradient) = d_states {
                tape.backward(&states, gradient, gradients)?;
            }
            drop(states);
            if how.penalty != 0.0 && h.track_op() {
                let (penalty, gradient) = cosine_penalty(&h, &batch.offsets, count, how.penalty)?;
                losses.penalty = penalty;
                gradients.add(h.id(), gradient)?;
            }
            for ((layer, block), (input, how_kept)) in self.blocks.iter().enumerate().zip(kept).rev() {
                // A stream that nothing trainable has touched ends the pass.
                let Some(gradient) = gradients.take(&h) else { return Ok(losses) };
                let (out, tape) = match how_kept {
                    Kept::Recorded(tape) => (h, tape),
                    Kept::Input => {
                        drop(h);
                        let (out, tape) = kernels::record(|| through(block, layer, &input));
                        (out?, tape)
                    }
                };
                tape.backward(&out, gradient, gradients)?;
                h = input;
            }
            if let Some(values) = &run.first_values
                && let Some(gradient) = gradients.take(values)
            {
                values_tape.backward(values, gradient, gradients)?;
            }
            if let Some(gradient) = gradients.take(&first) {
                embedding_tape.backward(&first, gradient, gradients)?;
            }
            Ok(losses)
        })
    }
}
