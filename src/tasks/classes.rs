//! What a head for classes, or for a score, says of texts.

use super::TaskError;
use crate::data::{Packed, Sequence};
use crate::kernels;
use crate::model::{Pass, Transformer};
use crate::peft::Peft;
use crate::probe::Silent;
use candle_core::Tensor;

/// What a model's head makes of each text, `[texts][outputs]`, before any softmax. The last token of a text answers in a
/// model that sees the past alone, else the first, as in training.
///
/// # Errors
/// The model has no head or cannot be run.
pub fn head_outputs(
    model: &Transformer,
    peft: Option<&Peft>,
    texts: &[Sequence<'_>],
) -> Result<Vec<Vec<f64>>, TaskError> {
    let batch = Packed::pack(texts.iter().copied());
    let last = model.architecture().causal;
    let answering = |index: usize| {
        let rows = batch.rows(index);
        (if last { rows.end.saturating_sub(1) } else { rows.start }) as u32
    };
    let rows: Vec<u32> = (0..batch.sequences()).map(answering).collect();
    let states = kernels::forget(|| model.hidden_states(&batch, &Pass::inference(peft), &mut Silent))?.detach();
    Ok(model.head_outputs(&states.index_select(&Tensor::new(rows, states.device())?, 0)?)?)
}
