//! The one transformer that serves every family.

use super::architecture::{Architecture, H0Kind, Head, Role};
use super::block::{Block, Run};
use super::disentangled::DistanceTable;
use super::distance::DistanceBias;
use super::embeddings::{Embedded, Embedder, Projection};
use super::families::ConfigError;
use super::linear::Linear;
use super::norm::Norm;
use super::precision::Precision;
use super::rotary::RotaryTables;
use super::weights::WeightsError;
use crate::data::Packed;
use crate::kernels::{self, AttentionShape, HeadWeights};
use crate::peft::{BranchObserver, DropoutKey, PassState, Peft};
use crate::probe::{Probe, Silent, Site};
use crate::remedies::Applied;
use candle_core::{DType, Device, Tensor, Var};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    /// Weights that hold a part of an adapter are used without the rest.
    #[error(
        "{model}: an adapter with the initial residual was merged into these weights in part; alone they compute neither model. \
         Run them with the adapter that stands beside them"
    )]
    Partial {
        /// The model.
        model: String,
    },
    /// Texts are given to a model of images.
    #[error("{family} reads images and not texts; give a folder of them")]
    ReadsImages {
        /// The family.
        family: &'static str,
    },
    /// Images are given to a model of texts.
    #[error("{family} reads texts and not images; give a file of them")]
    ReadsTexts {
        /// The family.
        family: &'static str,
    },
    /// A loss over the vocabulary is wanted of a model without a language-model head.
    #[error(
        "this {family} model has no head for tokens: it can be measured, but not trained or evaluated by the loss of tokens"
    )]
    NoHead {
        /// The family.
        family: &'static str,
    },
    /// Classes are wanted of a family whose head for them is not known.
    #[error("{family} has no head for classes here; leave --label-field out")]
    NoClasses {
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
    /// Stochastic depth in training: the probability with which the last block is left out (Huang et al. 2016).
    pub drop_depth: f64,
}

impl<'a> Pass<'a> {
    /// A pass without dropout through the base model and `peft`.
    #[must_use]
    pub fn inference(peft: Option<&'a Peft>) -> Self {
        Self { peft, dropout: None, observer: None, drop_depth: 0.0 }
    }

    /// What a block's change of the stream is multiplied by, of block `layer` (from 0) among `layers`: 1 without stochastic
    /// depth, else 0 or `1 / p` with `p = 1 − drop_depth·(layer + 1)/layers`, drawn by the pass' key.
    #[must_use]
    pub fn depth_factor(&self, layer: usize, layers: usize) -> f64 {
        let Some(key) = self.dropout.filter(|_| self.drop_depth > 0.0) else { return 1.0 };
        let stays = 1.0 - self.drop_depth * (layer + 1) as f64 / layers.max(1) as f64;
        if key.uniform(&["depth", &layer.to_string()]) < stays { 1.0 / stays } else { 0.0 }
    }

    /// The same pass with its PEFT branches watched.
    #[must_use]
    pub fn observed_by(self, observer: &'a dyn BranchObserver) -> Self {
        Self { observer: Some(observer), ..self }
    }
}

/// What makes logits, beside the embedding table where that is the head.
#[derive(Debug, Clone)]
pub(super) struct HeadTensors {
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
    /// A linear in front, weight and bias.
    pub(super) dense: Option<(Tensor, Option<Tensor>)>,
    pub(super) norm: Option<Norm>,
    /// Those of them that the file did not have and that began at random.
    pub(super) fresh: BTreeSet<String>,
}

/// A pretrained decoder or encoder: embeddings, blocks, and where the family has them a final norm and a head.
#[derive(Debug, Clone)]
pub struct Transformer {
    pub(super) architecture: Architecture,
    pub(super) embedder: Embedder,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Option<Norm>,
    pub(super) head: HeadTensors,
    /// Everywhere, then in blocks that do not see all.
    pub(super) rotary: [Option<Arc<RotaryTables>>; 2],
    pub(super) distance_bias: Option<Arc<DistanceBias>>,
    pub(super) distances: Option<DistanceTable>,
    pub(super) precision: Precision,
    pub(super) device: Device,
}

impl Transformer {
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

    /// The embedding table, `[vocabulary, d]`, in the type that it is stored in; a model that reads images has none.
    #[must_use]
    pub fn embedding(&self) -> Option<&Tensor> {
        match &self.embedder {
            Embedder::Tokens(tables) => Some(&tables.tokens),
            Embedder::Patches(..) => None,
        }
    }

    /// The embedding table as blocks are given it: projected, where the family projects its rows, `[vocabulary, d]`.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub(crate) fn projected_embedding(&self) -> candle_core::Result<Option<Tensor>> {
        let Embedder::Tokens(tables) = &self.embedder else { return Ok(None) };
        match &tables.projection {
            Some(Projection { weight, bias }) => {
                let (rows, weight) = (tables.tokens.detach(), weight.detach());
                let rows = rows.to_dtype(self.precision.compute)?;
                kernels::linear(&rows, &weight, bias.as_ref().map(Tensor::detach).as_ref()).map(Some)
            }
            None => Ok(Some(tables.tokens.clone())),
        }
    }

    /// The linear of this role in a block (from 0), if it has one.
    #[must_use]
    pub(crate) fn linear(&self, layer: usize, role: Role) -> Option<&Linear> {
        self.blocks.get(layer)?.linear(role)
    }

    /// The tensors of the head that the files do not have in the shape that is asked for, and that began at random.
    #[must_use]
    pub fn fresh_head(&self) -> &BTreeSet<String> {
        &self.head.fresh
    }

    /// What makes logits of the states that [`Self::head_states`] gives.
    ///
    /// # Errors
    /// The model has no head.
    pub fn head(&self) -> Result<HeadWeights<'_>, ModelError> {
        let tied = || self.embedding().filter(|_| self.architecture.head != Head::Absent);
        let weight = self.head.weight.as_ref().or_else(tied);
        let weight = weight.ok_or(ModelError::NoHead { family: self.architecture.family })?;
        Ok(HeadWeights { weight, bias: self.head.bias.as_ref(), soft_cap: self.architecture.head_soft_cap })
    }

    /// What the head's last matrix reads of the last states, `[tokens, d]`: most heads read them as they are.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn head_states(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        let mut states = states.clone();
        if let Some((weight, bias)) = &self.head.dense {
            states = kernels::linear(&states, weight, bias.as_ref())?;
        }
        if let Some(activation) = self.architecture.head_activation.filter(|_| self.head.dense.is_some()) {
            states = kernels::activation(&states, activation)?;
        }
        match &self.head.norm {
            Some(norm) => norm.forward(&states),
            None => Ok(states),
        }
    }

    /// The negative log-likelihood of every target in nats and whether it has the largest logit, without gradients;
    /// `states` are the last ones, a row a target.
    ///
    /// # Errors
    /// The model has no head, or a target is outside the vocabulary.
    pub fn token_losses_and_hits(&self, states: &Tensor, targets: &[u32]) -> Result<(Vec<f64>, Vec<bool>), ModelError> {
        let head = self.head()?;
        let states = kernels::forget(|| self.head_states(states))?.detach();
        let (weight, bias) = (head.weight.detach(), head.bias.map(Tensor::detach));
        let head = HeadWeights { weight: &weight, bias: bias.as_ref(), ..head };
        Ok(kernels::token_losses_and_hits(&states, head, targets)?)
    }

    /// What the head makes of each of the last states, `[rows][outputs]`, without gradients: for heads of few outputs.
    ///
    /// # Errors
    /// The model has no head.
    pub fn head_outputs(&self, states: &Tensor) -> Result<Vec<Vec<f64>>, ModelError> {
        let head = self.head()?;
        let outputs = kernels::forget(|| -> Result<Tensor, ModelError> {
            let states = self.head_states(states)?;
            let dtype = states.dtype();
            let bias = head.bias.map(|bias| bias.detach().to_dtype(dtype)).transpose()?;
            Ok(kernels::linear(&states, &head.weight.detach().to_dtype(dtype)?, bias.as_ref())?)
        })?;
        Ok(outputs.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?)
    }

    /// Makes every weight trainable, in the type of [`Precision::trained`], and returns the variables by Hugging Face's
    /// names.
    ///
    /// # Errors
    /// A tensor cannot be copied.
    pub fn make_trainable(&mut self) -> Result<BTreeMap<String, Var>, ModelError> {
        let all = self.tensors_mut().into_iter().map(|(name, _)| name).collect();
        self.make_some_trainable(&all)
    }

    /// Makes the last linear of a head for classes trainable, and what else of the head began at random; the variables by
    /// Hugging Face's names.
    ///
    /// # Errors
    /// A tensor cannot be copied.
    pub fn make_classes_trainable(&mut self) -> Result<BTreeMap<String, Var>, ModelError> {
        if self.architecture.classes.is_none() {
            return Ok(BTreeMap::new());
        }
        let names = &self.architecture.names;
        let mut wanted = self.head.fresh.clone();
        wanted.extend([format!("{}.weight", names.head), names.head_bias.to_owned()]);
        self.make_some_trainable(&wanted)
    }

    /// Makes the weights of these names trainable, as [`Self::make_trainable`] does all.
    ///
    /// # Errors
    /// A tensor cannot be copied.
    pub fn make_some_trainable(&mut self, wanted: &BTreeSet<String>) -> Result<BTreeMap<String, Var>, ModelError> {
        let mut variables = BTreeMap::new();
        let trained = self.precision.trained();
        for (name, tensor) in self.tensors_mut().into_iter().filter(|(name, _)| wanted.contains(name)) {
            // Blocks may share their weights.
            let variable = match variables.entry(name) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Var::from_tensor(&tensor.to_dtype(trained)?)?),
            };
            *tensor = variable.as_tensor().clone();
        }
        Ok(variables)
    }

    /// The same model with other weights in the place of those of the same names.
    #[must_use]
    pub fn with_tensors(&self, tensors: &BTreeMap<String, Tensor>) -> Self {
        let mut other = self.clone();
        for (name, tensor) in other.tensors_mut() {
            if let Some(stated) = tensors.get(&name) {
                *tensor = stated.clone();
            }
        }
        other
    }

    /// What the weights take in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let plain: usize = self.clone().tensors().values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
        let all = (0..self.architecture.layers).step_by(self.architecture.names.shared.max(1));
        let linears = all.flat_map(|layer| Role::ALL.into_iter().filter_map(move |role| self.linear(layer, role)));
        (plain + linears.map(Linear::quantised_bytes).sum::<usize>()) as u64
    }

    /// Every weight by Hugging Face's names; what is quantised is not among them.
    #[must_use]
    pub fn tensors(&mut self) -> BTreeMap<String, Tensor> {
        self.tensors_mut().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect()
    }

    /// Every weight by Hugging Face's names, as the files hold it.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn stored_tensors(&self) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let all = self.clone().tensors();
        all.into_iter().map(|(name, tensor)| Ok((name.clone(), self.architecture.as_stored(&name, &tensor)?))).collect()
    }

    fn tensors_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let names = &self.architecture.names;
        let mut all = Vec::new();
        match &mut self.embedder {
            Embedder::Patches(grid, embedding) => {
                let tensors = self.architecture.patch_tensors(grid).into_iter().zip(embedding.tensors_mut());
                all.extend(tensors.map(|((name, _), tensor)| (name, tensor)));
            }
            Embedder::Tokens(tables) => {
                all.push((names.whole(names.embedding, "weight"), &mut tables.tokens));
                for (name, table) in [(names.positions, &mut tables.positions), (names.token_types, &mut tables.types)]
                {
                    all.extend(table.as_mut().map(|table| (names.whole(name, "weight"), table)));
                }
                let norm = tables.norm.iter_mut().flat_map(Norm::tensors_mut);
                all.extend(norm.map(|(tensor, value)| (names.whole(names.embedding_norm, tensor), value)));
                if let Some(Projection { weight, bias }) = &mut tables.projection {
                    all.push((names.whole(names.embedding_projection, "weight"), weight));
                    all.extend(bias.as_mut().map(|bias| (names.whole(names.embedding_projection, "bias"), bias)));
                }
            }
        }
        if let Some(DistanceTable { weight, norm, .. }) = &mut self.distances {
            all.push((names.whole(names.positions, "weight"), weight));
            let norm = norm.iter_mut().flat_map(Norm::tensors_mut);
            all.extend(norm.map(|(tensor, value)| (names.whole(names.positions_norm, tensor), value)));
        }
        let norm = self.final_norm.iter_mut().flat_map(Norm::tensors_mut);
        all.extend(norm.map(|(tensor, value)| (names.whole(names.final_norm, tensor), value)));
        let HeadTensors { weight, bias, dense, norm, .. } = &mut self.head;
        all.extend(weight.as_mut().map(|weight| (format!("{}.weight", names.head), weight)));
        all.extend(bias.as_mut().map(|bias| (names.head_bias.to_owned(), bias)));
        if let Some((weight, bias)) = dense {
            all.push((format!("{}.weight", names.head_dense), weight));
            all.extend(bias.as_mut().map(|bias| (format!("{}.bias", names.head_dense), bias)));
        }
        let norm = norm.iter_mut().flat_map(Norm::tensors_mut);
        all.extend(norm.map(|(tensor, value)| (format!("{}.{tensor}", names.head_norm), value)));
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
        let leading = self.leading(pass)?;
        let Some(leading) = &leading else { return self.states(batch, None, pass, probe) };
        let count = leading.dim(0)?;
        let longer = batch.behind_virtual(count);
        let mut behind = BehindVirtual { probe, count, batch };
        let states = self.states(&longer, Some(leading), pass, &mut behind)?;
        Ok(kernels::skip_leading(&states, count, &longer.offsets)?)
    }

    /// What stands in the place of a text's first tokens at layer 0, where virtual ones are put in front of it.
    pub(super) fn leading(&self, pass: &Pass<'_>) -> Result<Option<Tensor>, ModelError> {
        let rows = pass.peft.map(|peft| peft.virtual_rows(self.architecture.hidden_size)).transpose()?;
        Ok(rows.flatten())
    }

    /// The states of a batch, of whose texts the first tokens may be virtual.
    fn states(
        &self,
        batch: &Packed,
        leading: Option<&Tensor>,
        pass: &Pass<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor, ModelError> {
        let embedded = self.embed(batch, leading)?;
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
        Ok(self.embed(batch, None)?.h0(self.architecture.h0_kind).detach())
    }

    /// What h0 of the kind `token` is for these ids, `[ids, d]`.
    ///
    /// # Errors
    /// h0 is of another kind, or an id is outside the vocabulary.
    pub fn token_rows(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        if self.architecture.h0_kind != H0Kind::Token {
            let reason = format!("h0 of a {} model depends on more than the token", self.architecture.family);
            return Err(ModelError::Tensor(candle_core::Error::Msg(reason)));
        }
        // Positions do not enter, so that every id may stand alone.
        let batch = Packed::from_sequences(&ids.iter().map(|id| [*id]).collect::<Vec<_>>());
        Ok(self.embed(&batch, None)?.token.detach())
    }

    pub(super) fn embed(&self, batch: &Packed, leading: Option<&Tensor>) -> Result<Embedded, ModelError> {
        self.embedder.forward(batch, &self.architecture, self.precision.compute, leading)
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
        let mut run = self.run(batch, state)?;
        run.first_values = self.first_values(&h, &run)?;
        let fusing = state.remedies().filter(|remedies| remedies.fuses());
        let mut all = Vec::new();
        for block in &self.blocks {
            h = block.forward(&h, &run, probe)?;
            all.extend(fusing.map(|_| h.clone()));
        }
        match fusing {
            Some(remedies) => Ok(remedies.fused(&all)?.unwrap_or(h)),
            None => Ok(h),
        }
    }

    /// The values of the first block for the stream in front of it, where a remedy reads them everywhere.
    pub(super) fn first_values(&self, h: &Tensor, run: &Run<'_>) -> Result<Option<Tensor>, ModelError> {
        let read = run.state.remedies().is_some_and(Applied::reads_first_values);
        self.blocks.first().filter(|_| read).map(|block| block.values(h, run)).transpose()
    }

    /// What the blocks share.
    pub(super) fn run<'a>(&'a self, batch: &'a Packed, state: &'a PassState<'a>) -> Result<Run<'a>, ModelError> {
        let a = &self.architecture;
        let shape = |layer| AttentionShape {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            causal: a.causal,
            scale: a.attention_scale,
            reach: a.reach(layer),
            soft_cap: a.attention_soft_cap,
        };
        let rotation = |tables: &Option<Arc<RotaryTables>>| tables.as_ref().map(|tables| tables.of(batch)).transpose();
        let [everywhere, local] = &self.rotary;
        Ok(Run {
            shapes: (0..a.layers).map(shape).collect(),
            rotations: [rotation(everywhere)?, rotation(local)?],
            distances: self.distances.as_ref().map(|table| table.upto(batch.longest(), self.precision.compute)),
            bias: self.distance_bias.as_ref().map(|bias| bias.upto(batch.span())).transpose()?,
            first_values: None,
            batch,
            state,
            memories: None,
        })
    }

    /// The logits `[tokens, vocabulary]`. Large: for tests and small vocabularies.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn logits(&self, batch: &Packed, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        self.logits_of(&self.hidden_states(batch, pass, &mut Silent)?)
    }

    /// The logits `[tokens, vocabulary]` of states after the final norm, `[tokens, d]`.
    ///
    /// # Errors
    /// The model has no head.
    pub fn logits_of(&self, states: &Tensor) -> Result<Tensor, ModelError> {
        let head = self.head()?;
        let states = self.head_states(states)?;
        let logits = kernels::linear(&states, head.weight, head.bias)?;
        match head.soft_cap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
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
        let states = self.head_states(&self.hidden_states(batch, pass, &mut Silent)?)?;
        Ok(kernels::linear_cross_entropy(&states, head, targets, weights)?)
    }
}

/// Shows a probe the states of the texts alone, without the virtual tokens in front.
struct BehindVirtual<'p> {
    probe: &'p mut dyn Probe,
    count: usize,
    batch: &'p Packed,
}

impl Probe for BehindVirtual<'_> {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, longer: &Packed) -> Result<(), ModelError> {
        let states = kernels::skip_leading(&states.detach(), self.count, &longer.offsets)?;
        self.probe.record(site, layer, &states, self.batch)
    }

    fn wants(&self, site: Site, layer: usize) -> bool {
        self.probe.wants(site, layer)
    }
}
