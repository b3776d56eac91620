//! What a model keeps of a text that it goes on reading.

use super::block::Run;
use super::{ModelError, Pass, Transformer};
use crate::data::Packed;
use crate::kernels::{self, AttentionShape, KeyValues, RelativeBias};
use crate::peft::PassState;
use crate::probe::Silent;
use candle_core::Tensor;
use std::cell::RefCell;
use std::sync::Arc;

/// The keys and values of one text in every block. A copy shares them until one of both goes on.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// By block.
    blocks: Vec<KeyValues>,
}

impl Memory {
    /// The tokens that were read, virtual ones included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.blocks.first().map_or(0, KeyValues::tokens)
    }
}

/// The memories of a pass' texts, which its attention adds to.
pub(super) struct Memories<'a>(RefCell<Vec<&'a mut Memory>>);

impl Memories<'_> {
    /// Attention of block `layer` (from 0) over what is kept and the new tokens, which are kept too.
    pub(super) fn attention(
        &self,
        layer: usize,
        parts: [&Tensor; 3],
        shape: AttentionShape,
        bias: Option<&RelativeBias>,
        offsets: &Arc<[usize]>,
    ) -> candle_core::Result<Tensor> {
        let mut memories = self.0.borrow_mut();
        let mut kept: Vec<&mut KeyValues> =
            memories.iter_mut().filter_map(|memory| memory.blocks.get_mut(layer)).collect();
        kernels::remembered_attention(parts, shape, bias, offsets, &mut kept)
    }
}

impl Transformer {
    /// Reads on: `texts[i]` are the next tokens of the text that `memories[i]` holds, which holds them too afterwards.
    ///
    /// Returns their states after the final norm, `[tokens, d]`, as [`Self::hidden_states`] does for whole texts. Either
    /// all memories are new or none is. Up to 16 texts that go on by one token each are computed row by row: the
    /// bits of one do not depend on the others (f32 and f64 on the CPU).
    ///
    /// # Errors
    /// As [`Self::hidden_states`]; the pass reads what is not kept ([`Peft::reads_on`](crate::peft::Peft::reads_on)).
    pub fn read_on<S: AsRef<[u32]>>(
        &self,
        texts: &[S],
        memories: Vec<&mut Memory>,
        pass: &Pass<'_>,
    ) -> Result<Tensor, ModelError> {
        let unfit = |reason: &str| ModelError::Tensor(candle_core::Error::Msg(reason.to_owned()));
        if texts.len() != memories.len() {
            return Err(unfit("reading on: not one memory for each text"));
        }
        if !self.architecture.causal || pass.peft.is_some_and(|peft| !peft.reads_on()) {
            return Err(unfit("reading on: the model or its adapter reads more than the newest tokens"));
        }
        let first: Vec<usize> = memories.iter().map(|memory| memory.tokens()).collect();
        let new = first.iter().all(|&tokens| tokens == 0);
        if !new && first.contains(&0) {
            return Err(unfit("reading on: a new text among others"));
        }
        let batch = Packed::from_sequences(texts);
        let leading = if new { self.leading(pass)? } else { None };
        let virtual_tokens = leading.as_ref().map_or(Ok(0), |rows| rows.dim(0))?;
        let batch = match virtual_tokens {
            0 => batch.after(first),
            count => batch.behind_virtual(count),
        };
        let mut memories = memories;
        for memory in &mut memories {
            memory.blocks.resize_with(self.blocks.len(), KeyValues::default);
        }
        let embedded = self.embed(&batch, leading.as_ref())?;
        let state = PassState::new(pass, self, &embedded, &batch)?;
        let run = Run { memories: Some(Memories(RefCell::new(memories))), ..self.run(&batch, &state)? };
        let mut h = embedded.input;
        for block in &self.blocks {
            h = block.forward(&h, &run, &mut Silent)?;
        }
        if let Some(norm) = &self.final_norm {
            h = norm.forward(&h)?;
        }
        match virtual_tokens {
            0 => Ok(h),
            count => Ok(kernels::skip_leading(&h, count, &batch.offsets)?),
        }
    }
}
