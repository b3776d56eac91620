//! The one transformer that serves every family.

use super::architecture::{Architecture, FeedForward, Head, NormKind, Positions, Role};
use super::block::{Block, Inner, Run};
use super::embeddings::{Embedded, Embeddings};
use super::families::ConfigError;
use super::linear::Linear;
use super::norm::Norm;
use super::precision::Precision;
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
    /// A text that is longer than the table of learned positions.
    #[error(
        "text {text} of the batch has {tokens} tokens and the model {positions} learned positions; lower --max-tokens"
    )]
    TooLong {
        /// The text, counted from 0 in its batch.
        text: usize,
        /// Its tokens.
        tokens: usize,
        /// What the table has.
        positions: usize,
    },
    /// A token type that the model's table does not have.
    #[error("token type {kind} is outside the model's {types} token types; does the tokenizer belong to the model?")]
    TokenType {
        /// The type.
        kind: u32,
        /// The table's rows.
        types: usize,
    },
    /// A next-token loss is wanted of a model without a language-model head.
    #[error(
        "{family} is an encoder: it has no next-token loss; it can be measured, but not trained or evaluated by that loss"
    )]
    NoHead {
        /// The family.
        family: &'static str,
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

/// A pretrained decoder or encoder: embeddings, blocks, and where the family has them a final norm and a head.
#[derive(Debug)]
pub struct Transformer {
    architecture: Architecture,
    embeddings: Embeddings,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Option<Norm>,
    head: Option<Tensor>,
    rotary: Option<RotaryTables>,
    precision: Precision,
    device: Device,
}

impl Transformer {
    /// Reads every tensor that `architecture` names from `source`; a type alone is both stored and computed in.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or cannot be read.
    pub fn load(
        name: &str,
        mut architecture: Architecture,
        source: &dyn TensorSource,
        precision: impl Into<Precision>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let precision = precision.into();
        architecture.names.prefix = prefix(&architecture, source);
        let expected = architecture.tensors();
        let missing: Vec<&str> =
            expected.keys().filter(|n| stored_name(source, n).is_none()).map(String::as_str).collect();
        if !missing.is_empty() {
            let shown = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let missing = match missing.len() {
                n @ 4.. => format!("{shown} and {} more", n - 3),
                _ => shown,
            };
            return Err(ModelError::Missing { model: name.to_owned(), missing });
        }
        let load = |tensor: String| -> Result<Tensor, ModelError> {
            let shape = expected.get(&tensor).map(Vec::as_slice).unwrap_or_default();
            let stored = stored_name(source, &tensor).unwrap_or(tensor);
            Ok(source.load(&stored, shape, precision.base, device)?)
        };
        let names = &architecture.names;
        let norm = |path: String| -> Result<Norm, ModelError> {
            let bias = match architecture.norm {
                NormKind::Rms => None,
                NormKind::Layer => Some(load(format!("{path}.bias"))?),
            };
            Ok(Norm { weight: load(format!("{path}.weight"))?, bias, eps: architecture.norm_eps })
        };
        let mut blocks = Vec::with_capacity(architecture.layers);
        for index in 0..architecture.layers {
            let linear = |role: Role| -> Result<Linear, ModelError> {
                let path = architecture.linear_path(index, role);
                let bias = match architecture.has_bias(role) {
                    true => Some(load(format!("{path}.bias"))?),
                    false => None,
                };
                Ok(Linear { layer: index, role, weight: load(format!("{path}.weight"))?, bias })
            };
            blocks.push(Block {
                index,
                norm_place: architecture.norm_place,
                attention_norm: norm(names.in_block(index, names.attention_norm))?,
                feed_forward_norm: norm(names.in_block(index, names.feed_forward_norm))?,
                query: linear(Role::Query)?,
                key: linear(Role::Key)?,
                value: linear(Role::Value)?,
                output: linear(Role::AttentionOutput)?,
                inner: match architecture.feed_forward {
                    FeedForward::Gated => Inner::Gated { gate: linear(Role::Gate)?, up: linear(Role::Up)? },
                    FeedForward::Plain(activation) => Inner::Plain { up: linear(Role::Up)?, activation },
                },
                down: linear(Role::Down)?,
            });
        }
        let embeddings = Embeddings {
            tokens: load(names.whole(names.embedding, "weight"))?,
            positions: match architecture.positions {
                Positions::Learned { .. } => Some(load(names.whole(names.positions, "weight"))?),
                Positions::Rotary(_) => None,
            },
            types: match architecture.token_types {
                0 => None,
                _ => Some(load(names.whole(names.token_types, "weight"))?),
            },
            norm: match architecture.embedding_norm {
                true => Some(norm(format!("{}{}", names.prefix, names.embedding_norm))?),
                false => None,
            },
        };
        let final_norm = match architecture.has_final_norm() {
            true => Some(norm(format!("{}{}", names.prefix, names.final_norm))?),
            false => None,
        };
        let head = match architecture.head {
            Head::Own => Some(load(names.whole(names.head, "weight"))?),
            Head::Tied | Head::Absent => None,
        };
        let angles = kernels::wide(precision.compute);
        let rotary = architecture.rope().map(|rope| RotaryTables::new(rope, architecture.head_dim, angles, device));
        Ok(Self { embeddings, blocks, final_norm, head, rotary, precision, device: device.clone(), architecture })
    }

    /// The model's shape.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// What the model computes in.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.precision.compute
    }

    /// What the model is stored and computed in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where the model lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The embedding table, `[vocabulary, d]`, in the type that it is stored in.
    #[must_use]
    pub fn embedding(&self) -> &Tensor {
        &self.embeddings.tokens
    }

    /// The head's weight, `[vocabulary, d]`: the embedding table where the head is tied.
    ///
    /// # Errors
    /// An encoder has none.
    pub fn head(&self) -> Result<&Tensor, ModelError> {
        match (&self.head, self.architecture.head) {
            (Some(head), _) => Ok(head),
            (None, Head::Absent) => Err(ModelError::NoHead { family: self.architecture.family }),
            (None, _) => Ok(self.embedding()),
        }
    }

    /// Makes every weight trainable, in the type of [`Precision::trained`], and returns the variables by Hugging Face's
    /// names.
    ///
    /// # Errors
    /// A tensor cannot be copied.
    pub fn make_trainable(&mut self) -> Result<BTreeMap<String, Var>, ModelError> {
        let mut variables = BTreeMap::new();
        let trained = self.precision.trained();
        for (name, tensor) in self.tensors_mut() {
            let variable = Var::from_tensor(&tensor.to_dtype(trained)?)?;
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
        let mut all = vec![(names.whole(names.embedding, "weight"), &mut self.embeddings.tokens)];
        for (name, table) in
            [(names.positions, &mut self.embeddings.positions), (names.token_types, &mut self.embeddings.types)]
        {
            all.extend(table.as_mut().map(|table| (names.whole(name, "weight"), table)));
        }
        for (name, norm) in
            [(names.embedding_norm, &mut self.embeddings.norm), (names.final_norm, &mut self.final_norm)]
        {
            let tensors = norm.iter_mut().flat_map(Norm::tensors_mut);
            all.extend(tensors.map(|(tensor, value)| (names.whole(name, tensor), value)));
        }
        if let Some(head) = &mut self.head {
            all.push((names.whole(names.head, "weight"), head));
        }
        for block in &mut self.blocks {
            all.extend(block.tensors_mut(names));
        }
        all
    }

    /// Runs the tokens through every block and the final norm, if there is one; `probe` sees each layer.
    ///
    /// Returns `[tokens, d]` after the final norm, or after the last block of a model that has none.
    ///
    /// # Errors
    /// A token id outside the vocabulary, a text longer than the learned positions, or what the probe answers.
    pub fn hidden_states(&self, batch: &Packed, pass: &Pass<'_>, probe: &mut dyn Probe) -> Result<Tensor, ModelError> {
        let embedded = self.embed(batch)?;
        let state = PassState::new(pass, self, &embedded, batch)?;
        let h = self.run_blocks(embedded.input, batch, &state, probe)?;
        let Some(final_norm) = &self.final_norm else { return Ok(h) };
        let normed = final_norm.forward(&h)?;
        if probe.wants(Site::FinalNorm, self.architecture.layers) {
            probe.record(Site::FinalNorm, self.architecture.layers, &normed, batch)?;
        }
        Ok(normed)
    }

    /// What the initial residual of this family reads for every token, `[tokens, d]`, without a gradient.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn h0(&self, batch: &Packed) -> Result<Tensor, ModelError> {
        Ok(self.embed(batch)?.h0(self.architecture.h0_kind).detach())
    }

    pub(super) fn embed(&self, batch: &Packed) -> Result<Embedded, ModelError> {
        self.embeddings.forward(batch, &self.architecture, self.precision.compute)
    }

    fn run_blocks(
        &self,
        mut h: Tensor,
        batch: &Packed,
        state: &PassState<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor, ModelError> {
        if probe.wants(Site::Embedding, 0) {
            probe.record(Site::Embedding, 0, &h, batch)?;
        }
        let run = self.run(batch, state)?;
        for block in &self.blocks {
            h = block.forward(&h, &run, probe)?;
        }
        Ok(h)
    }

    /// What the blocks share.
    pub(super) fn run<'a>(&self, batch: &'a Packed, state: &'a PassState<'a>) -> Result<Run<'a>, ModelError> {
        let rotary = match &self.rotary {
            Some(tables) => {
                let (cos, sin) = tables.upto(batch.longest())?;
                Some((cos, sin, batch.positions()))
            }
            None => None,
        };
        Ok(Run {
            shape: AttentionShape {
                heads: self.architecture.heads,
                kv_heads: self.architecture.kv_heads,
                head_dim: self.architecture.head_dim,
                causal: self.architecture.causal,
                scale: 1.0 / (self.architecture.head_dim as f64).sqrt(),
            },
            rotary,
            batch,
            state,
        })
    }

    /// The logits `[tokens, vocabulary]`. Large: for tests and small vocabularies.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn logits(&self, batch: &Packed, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        let head = self.head()?;
        let normed = self.hidden_states(batch, pass, &mut Silent)?;
        Ok(kernels::linear(&normed, head, None)?)
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
        let head = self.head()?;
        let normed = self.hidden_states(batch, pass, &mut Silent)?;
        Ok(kernels::linear_cross_entropy(&normed, head, targets, weights)?)
    }
}

/// What stands in front of the tensors' names in this file: the same weights are saved with and without a head.
fn prefix(architecture: &Architecture, source: &dyn TensorSource) -> &'static str {
    let names = &architecture.names;
    let here = |prefix: &&&'static str| source.contains(&format!("{prefix}{}.weight", names.embedding));
    [&names.prefix].into_iter().chain(names.prefixes).find(here).copied().unwrap_or(names.prefix)
}

/// The name under which `source` has a tensor; old files of BERT call a norm's weight gamma and its bias beta.
fn stored_name(source: &dyn TensorSource, name: &str) -> Option<String> {
    let old = || {
        let (path, tensor) = name.rsplit_once('.').filter(|(path, _)| path.ends_with("LayerNorm"))?;
        Some(format!("{path}.{}", if tensor == "weight" { "gamma" } else { "beta" }))
    };
    if source.contains(name) { Some(name.to_owned()) } else { old().filter(|old| source.contains(old)) }
}
