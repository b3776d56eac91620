//! Virtual tokens: prefix tuning and prompt tuning.
//!
//! They stand in front of every text and are taken off before anyone sees states. A prompt's rows are embeddings and go
//! through all blocks; a prefix' rows are keys and values, which stand in the place of those of rows that hold nothing else.

use super::Peft;
use super::config::Method;
use crate::kernels::{self, Columns};
use crate::model::Transformer;
use crate::random::stream;
use candle_core::{Device, Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

/// What PEFT calls their table in an adapter file.
pub(super) const NAME: &str = "prompt_embeddings";

/// Deviation of a prefix' start values.
const DEVIATION: f64 = 0.02;

/// Seeded start values: embeddings of drawn tokens for a prompt (PEFT's `SAMPLE_VOCAB`), N(0, 0.02²) for keys and values.
pub(super) fn initial(model: &Transformer, method: Method, [rows, columns]: [usize; 2], seed: u64) -> Result<Tensor> {
    let mut random = stream(seed, &["init", NAME]);
    let (dtype, device) = (model.precision().trained(), model.device());
    if let (Method::Prompt { .. }, Some(table)) = (method, model.embedding())
        && table.dim(1)? == columns
    {
        let vocab = table.dim(0)? as u32;
        let drawn: Vec<u32> = (0..rows).map(|_| random.random_range(0..vocab.max(1))).collect();
        return table.detach().index_select(&Tensor::new(drawn, table.device())?, 0)?.to_dtype(dtype)?.copy();
    }
    let values: Vec<f64> = match Normal::new(0.0, DEVIATION) {
        Ok(normal) => (0..rows * columns).map(|_| normal.sample(&mut random)).collect(),
        Err(_) => vec![0.0; rows * columns],
    };
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

impl Peft {
    /// The virtual tokens in front of every text.
    #[must_use]
    pub fn virtual_tokens(&self) -> usize {
        self.config.method.virtual_tokens()
    }

    /// What stands at layer 0 for the virtual tokens, `[virtual, d]`: a prompt's embeddings, or zeros.
    pub(crate) fn virtual_rows(&self, width: usize) -> Result<Option<Tensor>> {
        match (&self.virtual_table, self.config.method) {
            (Some(table), Method::Prompt { .. }) => Ok(Some(table.clone())),
            (Some(table), _) => Ok(Some(Tensor::zeros((table.dim(0)?, width), table.dtype(), table.device())?)),
            (None, _) => Ok(None),
        }
    }

    /// The prefix of a block: keys and values, `[virtual, key width]` each. PEFT lays a row out by block, key or value, head.
    pub(super) fn prefix(&self, layer: usize) -> Result<Option<[Tensor; 2]>> {
        let (Some(table), Method::Prefix { .. }) = (&self.virtual_table, self.config.method) else { return Ok(None) };
        let width = table.dim(1)? / (2 * self.modules.len()).max(1);
        let part = |which: usize| {
            let range: Columns = [((2 * layer + which) * width, width)].into();
            kernels::columns(table, &range)
        };
        Ok(Some([part(0)?, part(1)?]))
    }
}
