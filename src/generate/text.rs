//! Texts as the model reads them on.

use super::GenerateError;
use crate::data::Packed;
use crate::kernels::FEW_ROWS;
use crate::model::{Memory, Pass, Transformer};
use crate::peft::Peft;
use crate::probe::Silent;
use candle_core::{DType, Tensor};

/// A prompt and what was written behind it. A copy shares what the model keeps of it.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// The tokens of the prompt, then the new ones.
    pub(super) ids: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// What the model keeps, where it keeps anything: of all tokens that were read.
    memory: Option<Memory>,
}

impl Text {
    /// The new tokens.
    pub(super) fn new_ids(&self) -> &[u32] {
        self.ids.get(self.prompt..).unwrap_or_default()
    }

    /// The same text with one more token.
    pub(super) fn with(&self, id: u32) -> Self {
        let mut longer = self.clone();
        longer.ids.push(id);
        longer
    }
}

/// Reads texts on: by their newest tokens, or whole each time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) model: &'a Transformer,
    pub(super) peft: Option<&'a Peft>,
    pub(super) cached: bool,
}

impl Reader<'_> {
    /// The logits of the token behind a prompt, `[vocabulary]`. Every prompt is read by itself, so that its numbers are those
    /// that it has alone.
    pub(super) fn begin(&self, prompt: &[u32]) -> Result<(Text, Vec<f64>), GenerateError> {
        let mut text = Text { ids: prompt.to_vec(), prompt: prompt.len(), memory: None };
        if !self.cached {
            let logits = self.whole(&text)?;
            return Ok((text, logits));
        }
        let mut memory = Memory::default();
        let states = self.model.read_on(&[prompt], vec![&mut memory], &Pass::inference(self.peft))?;
        text.memory = Some(memory);
        Ok((text, self.last_logits(&states)?))
    }

    /// The logits of the token behind each text, `[vocabulary]` each; all but the last token of a text were read before.
    pub(super) fn next(&self, texts: &mut [&mut Text]) -> Result<Vec<Vec<f64>>, GenerateError> {
        if !self.cached {
            return texts.iter().map(|text| self.whole(text)).collect();
        }
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks_mut(FEW_ROWS) {
            let newest: Vec<Vec<u32>> =
                texts.iter().map(|text| text.ids.last().copied().into_iter().collect()).collect();
            let memories = texts.iter_mut().map(|text| text.memory.get_or_insert_default()).collect();
            let states = self.model.read_on(&newest, memories, &Pass::inference(self.peft))?;
            all.extend(rows(&self.model.logits_of(&states)?)?);
        }
        Ok(all)
    }

    /// The logits of the token behind a text that is read whole.
    fn whole(&self, text: &Text) -> Result<Vec<f64>, GenerateError> {
        let batch = Packed::from_sequences(&[&text.ids]);
        let states = self.model.hidden_states(&batch, &Pass::inference(self.peft), &mut Silent)?;
        self.last_logits(&states)
    }

    /// The logits of the last row of states.
    fn last_logits(&self, states: &Tensor) -> Result<Vec<f64>, GenerateError> {
        let last = states.dim(0).and_then(|rows| states.narrow(0, rows.saturating_sub(1), 1));
        let logits = self.model.logits_of(&last.map_err(crate::model::ModelError::from)?)?;
        Ok(rows(&logits)?.pop().unwrap_or_default())
    }
}

/// The rows of a matrix.
fn rows(matrix: &Tensor) -> Result<Vec<Vec<f64>>, GenerateError> {
    let read = || matrix.detach().to_dtype(DType::F64)?.to_vec2::<f64>();
    Ok(read().map_err(crate::model::ModelError::from)?)
}
