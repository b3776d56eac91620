//! What distinguishes one model family from another, as data.

use crate::kernels::Activation;
use std::collections::BTreeMap;
use std::fmt;

/// The shape and the choices that steer the one [`Transformer`](super::Transformer).
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The family's `model_type`, for messages and manifests.
    pub family: &'static str,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
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
    /// The kind of every norm.
    pub norm: NormKind,
    /// Where a block's norms stand.
    pub norm_place: NormPlace,
    /// Added to the mean square (or variance) inside a norm.
    pub norm_eps: f64,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// How a token knows its position.
    pub positions: Positions,
    /// Rows of the table of token types; 0 where there is none.
    pub token_types: usize,
    /// Whether the sum of the embeddings goes through a norm before the first block.
    pub embedding_norm: bool,
    /// The form of the feed-forward.
    pub feed_forward: FeedForward,
    /// The language-model head.
    pub head: Head,
    /// Whether q, k, v and o carry a bias.
    pub attention_bias: bool,
    /// Whether the feed-forward's linears carry a bias.
    pub mlp_bias: bool,
    /// What h0 is where the initial residual is used.
    pub h0_kind: H0Kind,
    /// Hugging Face's tensor names.
    pub names: Names,
}

impl Architecture {
    /// Every tensor of the model by its full name, with its shape.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let (names, d) = (&self.names, self.hidden_size);
        let mut all = BTreeMap::new();
        let norm = |all: &mut BTreeMap<String, Vec<usize>>, path: String| {
            if self.norm == NormKind::Layer {
                all.insert(format!("{path}.bias"), vec![d]);
            }
            all.insert(format!("{path}.weight"), vec![d]);
        };
        let table = vec![self.vocab_size, d];
        all.insert(names.whole(names.embedding, "weight"), table.clone());
        if let Positions::Learned { first, .. } = self.positions {
            all.insert(names.whole(names.positions, "weight"), vec![first + self.max_positions, d]);
        }
        if self.token_types > 0 {
            all.insert(names.whole(names.token_types, "weight"), vec![self.token_types, d]);
        }
        if self.embedding_norm {
            norm(&mut all, format!("{}{}", names.prefix, names.embedding_norm));
        }
        if self.has_final_norm() {
            norm(&mut all, format!("{}{}", names.prefix, names.final_norm));
        }
        if self.head == Head::Own {
            all.insert(names.whole(names.head, "weight"), table);
        }
        for layer in 0..self.layers {
            norm(&mut all, names.in_block(layer, names.attention_norm));
            norm(&mut all, names.in_block(layer, names.feed_forward_norm));
            for &role in self.roles() {
                let (path, out) = (self.linear_path(layer, role), self.output_width(role));
                all.insert(format!("{path}.weight"), vec![out, self.input_width(role)]);
                if self.has_bias(role) {
                    all.insert(format!("{path}.bias"), vec![out]);
                }
            }
        }
        all
    }

    /// The number of weights, biases and norms included.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.tensors().values().map(|shape| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// The linears that a block has, in the order in which it computes them.
    #[must_use]
    pub fn roles(&self) -> &'static [Role] {
        match self.feed_forward {
            FeedForward::Gated => &Role::ALL,
            FeedForward::Plain(_) => &Role::WITHOUT_GATE,
        }
    }

    /// Whether a norm follows the last block: post-norm models have it inside the block.
    #[must_use]
    pub fn has_final_norm(&self) -> bool {
        self.norm_place == NormPlace::Before
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
            Role::Gate | Role::Up => self.intermediate_size,
            Role::AttentionOutput | Role::Down => self.hidden_size,
        }
    }

    /// Whether the linear of this role carries a bias.
    #[must_use]
    pub fn has_bias(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value | Role::AttentionOutput => self.attention_bias,
            Role::Gate | Role::Up | Role::Down => self.mlp_bias,
        }
    }

    /// The Hugging Face module path of a block's linear, such as `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn linear_path(&self, layer: usize, role: Role) -> String {
        self.names.in_block(layer, self.names.linear(role))
    }

    /// The rotary embedding, where positions are told so.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        match &self.positions {
            Positions::Rotary(rope) => Some(rope),
            Positions::Learned { .. } => None,
        }
    }
}

/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm: a weight, no bias, no mean.
    Rms,
    /// Layer norm: weight and bias.
    Layer,
}

/// Where a block's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// In front of each sub-layer, and once more after the last block (LLaMA).
    Before,
    /// Behind each sum of stream and sub-layer (BERT).
    After,
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
}

/// The form of the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// `down(silu(gate(x)) · up(x))`.
    Gated,
    /// `down(activation(up(x)))`.
    Plain(Activation),
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

/// Rotary position embedding over the whole head width, in the half-split pairing of Hugging Face.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// LLaMA 3.1's stretching of the long wavelengths.
    pub scaling: Option<RopeScaling>,
}

/// LLaMA 3.1's rope scaling (`rope_type: llama3`).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeScaling {
    /// Long wavelengths are stretched by this.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// The context that the model was first trained with.
    pub original_max_positions: f64,
}

impl Rope {
    /// The `head_dim / 2` inverse frequencies, in radians a position.
    #[must_use]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                match &self.scaling {
                    None => frequency,
                    Some(scaling) => scaling.apply(frequency),
                }
            })
            .collect()
    }
}

impl RopeScaling {
    /// Source: transformers, `_compute_llama3_parameters`.
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_max_positions / wavelength;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
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

/// What a linear of a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// Attention's output projection.
    AttentionOutput,
    /// The gate of a gated feed-forward.
    Gate,
    /// The feed-forward's first linear.
    Up,
    /// The feed-forward's last linear.
    Down,
}

impl Role {
    /// Every role, in the order in which a block computes them.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::AttentionOutput, Self::Gate, Self::Up, Self::Down];

    /// The roles of a feed-forward without a gate.
    pub const WITHOUT_GATE: [Self; 6] =
        [Self::Query, Self::Key, Self::Value, Self::AttentionOutput, Self::Up, Self::Down];

    /// The role's place in [`Role::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether the linear reads the residual stream or a norm of it (token states of width d).
    #[must_use]
    pub fn reads_stream(self) -> bool {
        !matches!(self, Self::AttentionOutput | Self::Down)
    }
}

/// Hugging Face's names of a family's tensors, without `.weight`; what a family does not have is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// What stands in front of every name, such as `bert.`; loading the weights corrects it.
    pub prefix: &'static str,
    /// What may stand there, as the same weights are saved with a head or without.
    pub prefixes: &'static [&'static str],
    /// The embedding table.
    pub embedding: &'static str,
    /// The table of learned positions.
    pub positions: &'static str,
    /// The table of token types.
    pub token_types: &'static str,
    /// The norm of the embeddings.
    pub embedding_norm: &'static str,
    /// Prefix of the blocks; a block is `{layers}.{index}`.
    pub layers: &'static str,
    /// The norm of attention, inside a block.
    pub attention_norm: &'static str,
    /// The norm of the feed-forward, inside a block.
    pub feed_forward_norm: &'static str,
    /// The norm after the last block.
    pub final_norm: &'static str,
    /// The language-model head.
    pub head: &'static str,
    /// The linears of a block, in the order of [`Role::ALL`].
    pub linears: [&'static str; 7],
}

impl Names {
    /// A tensor's full name.
    #[must_use]
    pub fn whole(&self, name: &str, tensor: &str) -> String {
        format!("{}{name}.{tensor}", self.prefix)
    }

    /// The full path of what a block calls `name`.
    #[must_use]
    pub fn in_block(&self, layer: usize, name: &str) -> String {
        format!("{}{}.{layer}.{name}", self.prefix, self.layers)
    }

    /// The name of a linear inside its block, such as `mlp.up_proj`.
    #[must_use]
    pub fn linear(&self, role: Role) -> &'static str {
        match role {
            Role::Query => self.linears[0],
            Role::Key => self.linears[1],
            Role::Value => self.linears[2],
            Role::AttentionOutput => self.linears[3],
            Role::Gate => self.linears[4],
            Role::Up => self.linears[5],
            Role::Down => self.linears[6],
        }
    }

    /// By what PEFT's `target_modules` speak of a linear: the last part of its name, `up_proj`, or the whole name
    /// inside the block where several end alike, `intermediate.dense`.
    #[must_use]
    pub fn target(&self, role: Role) -> &'static str {
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        let name = self.linear(role);
        let alike = self.linears.iter().filter(|other| last(other) == last(name)).count();
        if alike > 1 { name } else { last(name) }
    }
}
