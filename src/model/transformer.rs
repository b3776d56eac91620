//! The one transformer that serves every family.

use super::architecture::{Architecture, Role};
use super::block::{Block, Run};
use super::families::ConfigError;
use super::linear::Linear;
use super::rotary::RotaryTables;
use super::weights::{TensorSource, WeightsError};
use crate::data::Packed;
use crate::kernels::{self, AttentionShape};
use crate::peft::{BranchObserver, DropoutKey, PassState, Peft};
use crate::probe::{Probe, Silent, Site};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;

/// Why a model could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights are not usable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights lack what the configuration promises.
    #[error("{model}: lacks the tensors {missing}; is this the weights file that belongs to its config.json?")]
    Missing {
        /// The model's name.
        model: String,
        /// The first few missing names.
        missing: String,
    },
    /// A token that the embedding table does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to the model?")]
    Token {
        /// The id.
        id: u32,
        /// The table's rows.
        vocab: usize,
    },
    /// A hidden state is not finite.
    #[error(
        "text {text}: a hidden state is not finite at {site} layer {layer}; the weights are damaged or overflow their type"
    )]
    NotFinite {
        /// The text, counted from 0.
        text: usize,
        /// The site.
        site: Site,
        /// The layer.
        layer: usize,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What one forward pass carries beside the tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass<'a> {
    /// The PEFT modules to apply, if any.
    pub peft: Option<&'a Peft>,
    /// Present in training: names the dropout masks.
    pub dropout: Option<DropoutKey>,
    /// Watches what the PEFT branches read, if anyone does.
    pub observer: Option<&'a dyn BranchObserver>,
}

impl<'a> Pass<'a> {
    /// A pass without dropout through the base model and `peft`.
    #[must_use]
    pub fn inference(peft: Option<&'a Peft>) -> Self {
        Self { peft, dropout: None, observer: None }
    }

    /// The same pass with its PEFT branches watched.
    #[must_use]
    pub fn observed_by(self, observer: &'a dyn BranchObserver) -> Self {
        Self { observer: Some(observer), ..self }
    }
}

/// A pretrained decoder: embedding, blocks, final norm, head.
#[derive(Debug)]
pub struct Transformer {
    architecture: Architecture,
    embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: Tensor,
    head: Option<Tensor>,
    rotary: RotaryTables,
    dtype: DType,
    device: Device,
}

impl Transformer {
    /// Reads every tensor that `architecture` names from `source`, to be computed in `dtype`.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or cannot be read.
    pub fn load(
        name: &str,
        architecture: Architecture,
        source: &dyn TensorSource,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let expected = expected_tensors(&architecture);
        let missing: Vec<&str> = expected.keys().filter(|n| !source.contains(n)).map(String::as_str).collect();
        if !missing.is_empty() {
            let shown = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let missing = match missing.len() {
                n @ 4.. => format!("{shown} and {} more", n - 3),
                _ => shown,
            };
            return Err(ModelError::Missing { model: name.to_owned(), missing });
        }
        let load = |tensor: &str| -> Result<Tensor, ModelError> {
            let shape = expected.get(tensor).map(Vec::as_slice).unwrap_or_default();
            Ok(source.load(tensor, shape, dtype, device)?)
        };
        let names = &architecture.names;
        let mut blocks = Vec::with_capacity(architecture.layers);
        for layer in 0..architecture.layers {
            let linear = |role: Role| -> Result<Linear, ModelError> {
                let path = architecture.linear_path(layer, role);
                let bias = match architecture.has_bias(role) {
                    true => Some(load(&format!("{path}.bias"))?),
                    false => None,
                };
                Ok(Linear { layer, role, weight: load(&format!("{path}.weight"))?, bias })
            };
            let [q, k, v, o, gate, up, down] = Role::ALL.map(linear);
            blocks.push(Block {
                attention_norm: load(&format!("{}.{layer}.{}.weight", names.layers, names.attention_norm))?,
                feed_forward_norm: load(&format!("{}.{layer}.{}.weight", names.layers, names.feed_forward_norm))?,
                linears: [q?, k?, v?, o?, gate?, up?, down?],
            });
        }
        Ok(Self {
            embedding: load(&format!("{}.weight", names.embedding))?,
            final_norm: load(&format!("{}.weight", names.final_norm))?,
            head: if architecture.tied_head { None } else { Some(load(&format!("{}.weight", names.head))?) },
            rotary: RotaryTables::new(&architecture.rope, architecture.head_dim, dtype, device),
            blocks,
            dtype,
            device: device.clone(),
            architecture,
        })
    }

    /// The model's shape.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// What the model computes in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the model lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The embedding table, `[vocabulary, d]`.
    #[must_use]
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The head's weight, `[vocabulary, d]`: the embedding table where the head is tied.
    #[must_use]
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Makes every weight trainable and returns the variables by Hugging Face's names.
    ///
    /// # Errors
    /// A tensor cannot be copied.
    pub fn make_trainable(&mut self) -> Result<BTreeMap<String, Var>, ModelError> {
        let mut variables = BTreeMap::new();
        for (name, tensor) in self.tensors_mut() {
            let variable = Var::from_tensor(tensor)?;
            *tensor = variable.as_tensor().clone();
            variables.insert(name, variable);
        }
        Ok(variables)
    }

    /// Every weight by Hugging Face's names.
    #[must_use]
    pub fn tensors(&mut self) -> BTreeMap<String, Tensor> {
        self.tensors_mut().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect()
    }

    fn tensors_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let names = &self.architecture.names;
        let mut all = vec![
            (format!("{}.weight", names.embedding), &mut self.embedding),
            (format!("{}.weight", names.final_norm), &mut self.final_norm),
        ];
        if let Some(head) = &mut self.head {
            all.push((format!("{}.weight", names.head), head));
        }
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let prefix = format!("{}.{layer}", names.layers);
            all.push((format!("{prefix}.{}.weight", names.attention_norm), &mut block.attention_norm));
            all.push((format!("{prefix}.{}.weight", names.feed_forward_norm), &mut block.feed_forward_norm));
            for linear in &mut block.linears {
                let path = format!("{prefix}.{}", names.linear(linear.role));
                all.push((format!("{path}.weight"), &mut linear.weight));
                if let Some(bias) = &mut linear.bias {
                    all.push((format!("{path}.bias"), bias));
                }
            }
        }
        all
    }

    /// Runs the tokens through every block and the final norm; `probe` sees each layer.
    ///
    /// Returns `[tokens, d]` after the final norm.
    ///
    /// # Errors
    /// A token id outside the vocabulary, or what the probe answers.
    pub fn hidden_states(&self, batch: &Packed, pass: &Pass<'_>, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let mut h = self.embed(batch)?;
        let state = PassState::new(pass, self, &h, batch)?;
        self.run_blocks(&mut h, batch, &state, probe)?;
        let normed = kernels::rms_norm(&h, &self.final_norm, self.architecture.norm_eps)?;
        if probe.wants(Site::FinalNorm, self.architecture.layers) {
            probe.record(Site::FinalNorm, self.architecture.layers, &normed, batch)?;
        }
        Ok(normed)
    }

    /// What the initial residual of this family reads for every token, `[tokens, d]`, without a gradient.
    ///
    /// # Errors
    /// A token id outside the vocabulary.
    pub fn h0(&self, batch: &Packed) -> Result<Tensor, ModelError> {
        // Token embedding and layer 0 are the same here.
        Ok(self.embed(batch)?.detach())
    }

    /// Layer 0.
    fn embed(&self, batch: &Packed) -> Result<Tensor, ModelError> {
        let vocab = self.architecture.vocab_size;
        if let Some(&id) = batch.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::Token { id, vocab });
        }
        Ok(kernels::embedding(&self.embedding, &batch.ids)?)
    }

    fn run_blocks(
        &self,
        h: &mut Tensor,
        batch: &Packed,
        state: &PassState<'_>,
        probe: &mut dyn Probe,
    ) -> Result<(), ModelError> {
        if probe.wants(Site::Embedding, 0) {
            probe.record(Site::Embedding, 0, h, batch)?;
        }
        let (cos, sin) = self.rotary.upto(batch.longest())?;
        let run = Run {
            architecture: &self.architecture,
            shape: AttentionShape {
                heads: self.architecture.heads,
                kv_heads: self.architecture.kv_heads,
                head_dim: self.architecture.head_dim,
                causal: true,
                scale: 1.0 / (self.architecture.head_dim as f64).sqrt(),
            },
            rotary: (cos, sin, batch.positions()),
            batch,
            state,
        };
        for (index, block) in self.blocks.iter().enumerate() {
            *h = block.forward(h, index + 1, &run, probe)?;
        }
        Ok(())
    }

    /// The logits `[tokens, vocabulary]`. Large: for tests and small vocabularies.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn logits(&self, batch: &Packed, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        let normed = self.hidden_states(batch, pass, &mut Silent)?;
        Ok(kernels::linear(&normed, self.head(), None)?)
    }

    /// The weighted sum of the next-token losses, a scalar in nats: `Σ_t weight_t · −ln p(target_t)`.
    ///
    /// `targets` and `weights` have an entry for every row of the batch; a row of weight 0 costs nothing.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn loss_sum(
        &self,
        batch: &Packed,
        targets: &[u32],
        weights: &[f32],
        pass: &Pass<'_>,
    ) -> Result<Tensor, ModelError> {
        let normed = self.hidden_states(batch, pass, &mut Silent)?;
        Ok(kernels::linear_cross_entropy(&normed, self.head(), targets, weights)?)
    }
}

/// Every tensor that a model of this architecture has, with its shape.
fn expected_tensors(architecture: &Architecture) -> BTreeMap<String, Vec<usize>> {
    let (names, d) = (&architecture.names, architecture.hidden_size);
    let mut all = BTreeMap::new();
    let table = vec![architecture.vocab_size, d];
    all.insert(format!("{}.weight", names.embedding), table.clone());
    all.insert(format!("{}.weight", names.final_norm), vec![d]);
    if !architecture.tied_head {
        all.insert(format!("{}.weight", names.head), table);
    }
    for layer in 0..architecture.layers {
        for norm in [names.attention_norm, names.feed_forward_norm] {
            all.insert(format!("{}.{layer}.{norm}.weight", names.layers), vec![d]);
        }
        for role in Role::ALL {
            let (path, out) = (architecture.linear_path(layer, role), architecture.output_width(role));
            all.insert(format!("{path}.weight"), vec![out, architecture.input_width(role)]);
            if architecture.has_bias(role) {
                all.insert(format!("{path}.bias"), vec![out]);
            }
        }
    }
    all
}
