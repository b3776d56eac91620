//! What distinguishes one model family from another, as data.

pub use super::disentangled::Disentangled;
pub use super::names::{ClassHead, Modules, Names, SubLayerNorms};
pub use super::role::Role;
pub use super::rope::{Llama3Scaling, Rope, RopeScaling};
use crate::data::PatchGrid;
use crate::kernels::{Activation, Columns};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fmt;

/// The shape and the choices that steer the one [`Transformer`](super::Transformer).
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The family's `model_type`, for messages and manifests.
    pub family: &'static str,
    /// Rows of the embedding table; of a model that reads images the class token and the patches.
    pub vocab_size: usize,
    /// How a model that reads images cuts them; `None` for one that reads texts.
    pub patches: Option<PatchGrid>,
    /// Whether an adapter was merged into the weights in part, so that they are no model without what is left of it.
    pub partial: bool,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Width of the embedding table; where it is not d, a projection follows.
    pub embedding_size: usize,
    /// What the rows of the embedding table are multiplied by (Gemma: √d).
    pub embedding_scale: Option<f64>,
    /// Width of the feed-forward's inner activation.
    pub intermediate_size: usize,
    /// Number of blocks L.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether a token sees only itself and what stands before it.
    pub causal: bool,
    /// What scores are multiplied by before the softmax; usually `1 / sqrt(head_dim)`.
    pub attention_scale: f64,
    /// Scores are bent to `cap · tanh(score / cap)`.
    pub attention_soft_cap: Option<f64>,
    /// How far a token sees in each block, in tokens; a block without an entry sees all.
    pub reaches: Vec<Option<usize>>,
    /// The rotary embedding of the blocks that do not see all, where it is another.
    pub local_rope: Option<Rope>,
    /// How a linear that makes queries, keys and values together orders its outputs.
    pub fused_order: FusedOrder,
    /// The kind of every norm; where the norms stand is said by [`Names::norms`].
    pub norm: NormKind,
    /// Added to the mean square (or variance) inside a norm.
    pub norm_eps: f64,
    /// Whether the feed-forward reads the block's input, beside attention, and not what attention left.
    pub parallel: bool,
    /// Whether the first block's attention reads the stream without a norm (ModernBERT).
    pub bare_first: bool,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// How a token knows its position.
    pub positions: Positions,
    /// Rows of the table of token types; 0 where there is none.
    pub token_types: usize,
    /// Whether the sum of the embeddings goes through a norm before the first block.
    pub embedding_norm: bool,
    /// The activation of the feed-forward: of the gate where there is one, else between its two linears.
    pub activation: Activation,
    /// The language-model head: of the next token, or of a masked one.
    pub head: Head,
    /// How many classes the head tells apart, where it classifies texts and does not predict tokens.
    pub classes: Option<usize>,
    /// The activation behind the head's first linear, where it has two.
    pub head_activation: Option<Activation>,
    /// Logits are bent to `cap · tanh(logit / cap)`.
    pub head_soft_cap: Option<f64>,
    /// The linears of a block that carry a bias.
    pub biased: Vec<Role>,
    /// Whether the files hold the blocks' linears as `[in, out]` (GPT-2).
    pub transposed: bool,
    /// Whether LoRA's targets and the policy `official` have the gate too (T5), and not the first linear alone.
    pub official_gate: bool,
    /// What h0 is where the initial residual is used.
    pub h0_kind: H0Kind,
    /// Hugging Face's tensor names.
    pub names: Names,
}

impl Architecture {
    /// Every tensor of the model by its full name, with its shape.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let (names, d, e) = (&self.names, self.hidden_size, self.embedding_size);
        let mut all = BTreeMap::new();
        let norm = |all: &mut BTreeMap<String, Vec<usize>>, path: String, width: usize| {
            if self.norm == NormKind::Layer {
                all.insert(format!("{path}.bias"), vec![width]);
            }
            all.insert(format!("{path}.weight"), vec![width]);
        };
        match &self.patches {
            Some(grid) => all.extend(self.patch_tensors(grid).into_iter().map(|(name, [shape, _])| (name, shape))),
            None => {
                all.insert(names.whole(names.embedding, "weight"), vec![self.vocab_size, e]);
            }
        }
        // OPT adds positions of the stream's width; the others project what they have summed.
        let summed = if self.projects_tokens() { d } else { e };
        if let (Positions::Learned { first, .. }, None) = (&self.positions, &self.patches) {
            all.insert(names.whole(names.positions, "weight"), vec![first + self.max_positions, summed]);
        }
        if let Positions::Buckets { buckets, .. } = self.positions {
            all.insert(names.whole(names.positions, "weight"), vec![buckets, self.heads]);
        }
        if let Positions::Disentangled(form) = self.positions {
            all.insert(names.whole(names.positions, "weight"), vec![form.rows(), d]);
            if form.normed {
                norm(&mut all, names.path(names.positions_norm), d);
            }
        }
        if self.token_types > 0 {
            all.insert(names.whole(names.token_types, "weight"), vec![self.token_types, summed]);
        }
        if self.embedding_norm {
            norm(&mut all, names.path(names.embedding_norm), summed);
        }
        if let Some(projection) = self.projection_path() {
            if !self.projects_tokens() {
                all.insert(format!("{projection}.bias"), vec![d]);
            }
            all.insert(format!("{projection}.weight"), vec![d, e]);
        }
        if self.has_final_norm() {
            norm(&mut all, names.path(names.final_norm), d);
        }
        all.extend(self.head_tensors());
        for layer in 0..self.layers {
            for (path, width) in self.block_norms(layer) {
                norm(&mut all, path, width);
            }
            for path in self.position_projections(layer).into_iter().flatten() {
                all.insert(format!("{path}.weight"), vec![self.heads * self.head_dim, d]);
                all.insert(format!("{path}.bias"), vec![self.heads * self.head_dim]);
            }
            for role in self.roles() {
                let (path, out, input) =
                    (self.linear_path(layer, role), self.output_width(role), self.input_width(role));
                all.insert(format!("{path}.weight"), if self.transposed { vec![input, out] } else { vec![out, input] });
                if self.has_bias(role) {
                    all.insert(format!("{path}.bias"), vec![out]);
                }
            }
        }
        all
    }

    /// What makes layer 0 of an image: a convolution's weight and bias, the class token, the positions, in this order; each
    /// with its shape in the files and the one that it is computed in.
    #[must_use]
    pub fn patch_tensors(&self, grid: &PatchGrid) -> [(String, [Vec<usize>; 2]); 4] {
        let (names, d, [tall, wide]) = (&self.names, self.hidden_size, grid.patch);
        [
            (names.whole(names.embedding, "weight"), [vec![d, grid.channels, tall, wide], vec![d, grid.features()]]),
            (names.whole(names.embedding, "bias"), [vec![d], vec![d, 1]]),
            (names.path(names.class_token), [vec![1, 1, d], vec![d, 1]]),
            (names.path(names.positions), [vec![1, self.vocab_size, d], vec![self.vocab_size, d]]),
        ]
    }

    /// The shape that the files hold a tensor in, where it is another than the one it is computed in.
    #[must_use]
    pub fn stored_shape(&self, tensor: &str) -> Option<Vec<usize>> {
        let all = self.patches.iter().flat_map(|grid| self.patch_tensors(grid));
        all.into_iter().find(|(name, _)| name == tensor).map(|(_, [stored, _])| stored)
    }

    /// A tensor as the files hold it, from the one that is computed with.
    ///
    /// # Errors
    /// The tensor does not fit.
    pub fn as_stored(&self, name: &str, tensor: &Tensor) -> candle_core::Result<Tensor> {
        let tensor = tensor.detach();
        match self.stored_shape(name) {
            _ if self.is_transposed(name) => tensor.t()?.contiguous(),
            Some(shape) => tensor.reshape(shape),
            None => Ok(tensor),
        }
    }

    /// The same with transformers' head for classifying texts in the place of that for tokens; `None` where the family has
    /// none.
    #[must_use]
    pub fn classifying(mut self, classes: usize) -> Option<Self> {
        let ClassHead { out, out_bias, dense, dense_bias, norm, activation } = self.names.classes;
        if out.is_empty() {
            return None;
        }
        (self.names.head, self.names.head_bias, self.names.head_norm) = (out, out_bias, norm);
        (self.names.head_dense, self.names.head_dense_bias) = (dense, dense_bias);
        (self.head, self.head_activation, self.head_soft_cap) = (Head::Own, activation, None);
        self.classes = Some(classes);
        Some(self)
    }

    /// The tensors of the head beyond the embedding table.
    #[must_use]
    pub fn head_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let (names, d) = (&self.names, self.hidden_size);
        // What the last matrix reads: a classifier has no table whose width it must have.
        let (rows, e) = self.classes.map_or((self.vocab_size, self.embedding_size), |classes| (classes, d));
        let mut all = BTreeMap::new();
        if self.head == Head::Absent {
            return all;
        }
        if self.head == Head::Own {
            all.insert(format!("{}.weight", names.head), vec![rows, e]);
        }
        if !names.head_bias.is_empty() {
            all.insert(names.head_bias.to_owned(), vec![rows]);
        }
        if !names.head_dense.is_empty() {
            all.insert(format!("{}.weight", names.head_dense), vec![e, d]);
            if names.head_dense_bias {
                all.insert(format!("{}.bias", names.head_dense), vec![e]);
            }
        }
        if !names.head_norm.is_empty() {
            all.insert(format!("{}.weight", names.head_norm), vec![e]);
            if self.norm == NormKind::Layer {
                all.insert(format!("{}.bias", names.head_norm), vec![e]);
            }
        }
        all
    }

    /// Every norm of a block by its full path, with its width.
    fn block_norms(&self, layer: usize) -> Vec<(String, usize)> {
        let (names, d) = (&self.names, self.hidden_size);
        let mut all = Vec::new();
        for (index, norms) in names.norms.iter().enumerate() {
            let before = if self.bare_first && layer == 0 && index == 0 { "" } else { norms.before };
            all.extend([before, norms.added, norms.after].map(|name| (name, d)));
        }
        let whole = |heads: usize| if names.norms_of_heads { self.head_dim } else { heads * self.head_dim };
        all.extend([(names.query_norm, whole(self.heads)), (names.key_norm, whole(self.kv_heads))]);
        let named = all.into_iter().filter(|(name, _)| !name.is_empty());
        named.map(|(name, width)| (names.in_block(layer, name), width)).collect()
    }

    /// The paths of all norms in the files.
    #[must_use]
    pub fn norm_paths(&self) -> Vec<String> {
        let names = &self.names;
        let mut all: Vec<String> =
            (0..self.layers).flat_map(|layer| self.block_norms(layer)).map(|(path, _)| path).collect();
        all.extend(self.embedding_norm.then(|| names.path(names.embedding_norm)));
        all.extend(self.has_final_norm().then(|| names.path(names.final_norm)));
        all.sort();
        all.dedup();
        all
    }

    /// The paths of the linears that project a table of distances for keys and for queries to meet, where a block has
    /// such besides its own.
    #[must_use]
    pub fn position_projections(&self, layer: usize) -> [Option<String>; 2] {
        let Positions::Disentangled(form @ Disentangled { shared: false, .. }) = self.positions else {
            return [None, None];
        };
        let ([q, k], [meets_q, meets_k]) = (self.names.position_projections, form.met());
        [(q, meets_q), (k, meets_k)].map(|(name, met)| met.then(|| self.names.in_block(layer, name)))
    }

    /// Whether the rows of the table are projected before positions are added to them (OPT).
    #[must_use]
    pub fn projects_tokens(&self) -> bool {
        self.embedding_size != self.hidden_size && self.causal
    }

    /// The path of the projection from the embeddings' width to the stream's, where they differ.
    #[must_use]
    pub fn projection_path(&self) -> Option<String> {
        (self.embedding_size != self.hidden_size).then(|| self.names.path(self.names.embedding_projection))
    }

    /// How far a token sees in a block, in tokens; `None`: as far as there are any.
    #[must_use]
    pub fn reach(&self, layer: usize) -> Option<usize> {
        self.reaches.get(layer).copied().flatten()
    }

    /// The columns of queries, keys and values in what [`Role::QueryKeyValue`] writes.
    #[must_use]
    pub fn fused_columns(&self) -> [Columns; 3] {
        let (groups, dim) = (self.kv_heads, self.head_dim);
        let shared = self.heads / groups.max(1);
        let (q, kv) = (self.heads * dim, groups * dim);
        match self.fused_order {
            FusedOrder::Blocks => [(0, q), (q, kv), (q + kv, kv)].map(|range| Columns::from([range])),
            FusedOrder::Groups => {
                let of = |first: usize, count: usize| {
                    (0..groups).map(|group| (group * (shared + 2) * dim + first * dim, count * dim)).collect()
                };
                [of(0, shared), of(shared, 1), of(shared + 1, 1)]
            }
        }
    }

    /// The number of weights, biases and norms included.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.tensors().values().map(|shape| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// The linears that a block has, in the order in which it computes them.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        Role::ALL.into_iter().filter(|&role| self.has(role)).collect()
    }

    /// Whether a block has a linear of this role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        !self.names.linear(role).is_empty()
    }

    /// Whether the feed-forward has a gate.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.has(Role::Gate) || self.has(Role::GateUp)
    }

    /// Whether a norm follows the last block: post-norm models have it inside the block.
    #[must_use]
    pub fn has_final_norm(&self) -> bool {
        !self.names.final_norm.is_empty()
    }

    /// The width of the vectors that the linear of this role reads.
    #[must_use]
    pub fn input_width(&self, role: Role) -> usize {
        match role {
            Role::AttentionOutput => self.heads * self.head_dim,
            Role::Down => self.intermediate_size,
            _ => self.hidden_size,
        }
    }

    /// The width of the vectors that the linear of this role writes.
    #[must_use]
    pub fn output_width(&self, role: Role) -> usize {
        match role {
            Role::Query => self.heads * self.head_dim,
            Role::Key | Role::Value => self.kv_heads * self.head_dim,
            Role::QueryKeyValue => (self.heads + 2 * self.kv_heads) * self.head_dim,
            Role::Gate | Role::Up => self.intermediate_size,
            Role::GateUp => 2 * self.intermediate_size,
            Role::AttentionOutput | Role::Down => self.hidden_size,
        }
    }

    /// Whether the linear of this role carries a bias.
    #[must_use]
    pub fn has_bias(&self, role: Role) -> bool {
        self.biased.contains(&role)
    }

    /// The path of a block's linear in the files, such as `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn linear_path(&self, layer: usize, role: Role) -> String {
        self.names.in_block(layer, self.names.linear(role))
    }

    /// The path of a block's linear among transformers' modules, by which PEFT knows it: that of the files, but for
    /// families whose modules were renamed and for models that were saved without their head.
    #[must_use]
    pub fn module_path(&self, layer: usize, role: Role) -> String {
        self.names.module_in_block(self.module_prefix(), layer, role)
    }

    /// The name of a tensor by the path of transformers' module that holds it, from its name in the files.
    #[must_use]
    pub fn module_name(&self, tensor: &str) -> String {
        for layer in 0..self.layers {
            let block = self.names.in_block(layer, "");
            let Some(inside) = tensor.strip_prefix(&block) else { continue };
            let of = |role: &Role| inside.strip_prefix(self.names.linear(*role)).filter(|rest| rest.starts_with('.'));
            return match self.roles().iter().find_map(|role| Some((*role, of(role)?))) {
                Some((role, rest)) => format!("{}{rest}", self.module_path(layer, role)),
                None => format!("{}.{inside}", self.block_path(layer)),
            };
        }
        match tensor.strip_prefix(self.names.prefix) {
            Some(rest) if !self.head_tensors().contains_key(tensor) => format!("{}{rest}", self.module_prefix()),
            _ => tensor.to_owned(),
        }
    }

    /// What transformers puts in front of the modules' names: a prefix that a model with a head has, whatever the file says.
    fn module_prefix(&self) -> &'static str {
        let with_head = self.causal || self.head != Head::Absent || self.classes.is_some();
        self.names.prefixes.first().filter(|_| with_head).copied().unwrap_or(self.names.prefix)
    }

    /// The path of a block among transformers' modules.
    #[must_use]
    pub fn block_path(&self, layer: usize) -> String {
        let role = self.roles().first().copied().unwrap_or(Role::Query);
        let path = self.module_path(layer, role);
        path.strip_suffix(&format!(".{}", self.names.module(role))).unwrap_or(&path).to_owned()
    }

    /// Every path by which an adapter may know a block's linear; the first is [`Self::module_path`].
    #[must_use]
    pub fn adapter_paths(&self, layer: usize, role: Role) -> Vec<String> {
        let names = &self.names;
        let mut all = vec![self.module_path(layer, role)];
        for prefix in names.prefixes {
            let file = Names { prefix, ..names.clone() }.in_block(layer, names.linear(role));
            all.extend([names.module_in_block(prefix, layer, role), file]);
        }
        all
    }

    /// Whether the files hold the tensor of this full name the other way round than it is computed with.
    #[must_use]
    pub fn is_transposed(&self, tensor: &str) -> bool {
        let names = |role: &Role| tensor.ends_with(&format!(".{}.weight", self.names.linear(*role)));
        self.transposed && self.roles().iter().any(names)
    }

    /// The rotary embedding, where positions are told so.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        match &self.positions {
            Positions::Rotary(rope) => Some(rope),
            _ => None,
        }
    }
}

/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm: a weight, no bias, no mean.
    Rms,
    /// RMS norm that multiplies by one plus its weight (Gemma).
    ShiftedRms,
    /// Layer norm: weight and bias.
    Layer,
    /// Layer norm without a bias.
    BareLayer,
}

/// How a linear that makes queries, keys and values together orders its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedOrder {
    /// All queries, all keys, all values.
    Blocks,
    /// For each key head its query heads, its key and its value.
    Groups,
}

/// How a token knows its position.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary(Rope),
    /// A table of vectors that are added to the token embedding.
    Learned {
        /// The table's row of the first position; the rows before it belong to no position.
        first: usize,
        /// The padding token, which counts as no position and reads row `first - 1` (RoBERTa).
        padding: Option<u32>,
    },
    /// Scores fall with distance, for each head at its own slope (ALiBi, Press et al., 2022).
    Alibi {
        /// What the slopes are multiplied by.
        factor: f64,
        /// Whether slopes and products are rounded to bfloat16 first, as transformers does for Falcon.
        rounded: bool,
    },
    /// Each head adds a learned number by the bucket of the distance (T5, Raffel et al., 2020).
    Buckets {
        /// Rows of the table.
        buckets: usize,
        /// Distances from here on share the last bucket.
        max_distance: usize,
    },
    /// Queries and keys meet vectors by distance, which each block projects (DeBERTa).
    Disentangled(Disentangled),
}

/// The language-model head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A matrix of its own.
    Own,
    /// The embedding table.
    Tied,
    /// None: an encoder predicts no next token.
    Absent,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::Tied => "tied",
            Self::Absent => "no",
        })
    }
}

/// What h0 is: the source of the initial residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum H0Kind {
    /// The token's embedding row, before position, type and norm.
    Token,
    /// Layer 0: what the first block receives.
    Input,
}

impl fmt::Display for H0Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token => "token",
            Self::Input => "input",
        })
    }
}
