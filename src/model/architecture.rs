//! What distinguishes one model family from another, as data.

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
    /// Added to the mean square inside RMSNorm.
    pub norm_eps: f64,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the language-model head is the embedding table.
    pub tied_head: bool,
    /// Whether q, k, v and o carry a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down carry a bias.
    pub mlp_bias: bool,
    /// What h0 is where the initial residual is used.
    pub h0_kind: H0Kind,
    /// Hugging Face's tensor names.
    pub names: Names,
}

impl Architecture {
    /// The number of weights, biases and norms included.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        let d = self.hidden_size as u64;
        let table = self.vocab_size as u64 * d;
        let linears: u64 = Role::ALL
            .iter()
            .map(|&role| {
                let (input, output) = (self.input_width(role) as u64, self.output_width(role) as u64);
                input * output + if self.has_bias(role) { output } else { 0 }
            })
            .sum();
        let heads = if self.tied_head { table } else { 2 * table };
        heads + self.layers as u64 * (linears + 2 * d) + d
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
        format!("{}.{layer}.{}", self.names.layers, self.names.linear(role))
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

/// Hugging Face's names of a family's tensors, without `.weight`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The embedding table.
    pub embedding: &'static str,
    /// Prefix of the blocks; a block is `{layers}.{index}`.
    pub layers: &'static str,
    /// The norm before attention, inside a block.
    pub attention_norm: &'static str,
    /// The norm before the feed-forward, inside a block.
    pub feed_forward_norm: &'static str,
    /// The norm after the last block.
    pub final_norm: &'static str,
    /// The language-model head.
    pub head: &'static str,
    /// The linears of a block, in the order of [`Role::ALL`].
    pub linears: [&'static str; 7],
}

impl Names {
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

    /// The last part of a linear's name, by which PEFT's `target_modules` speak: `up_proj`.
    #[must_use]
    pub fn target(&self, role: Role) -> &'static str {
        let name = self.linear(role);
        name.rsplit('.').next().unwrap_or(name)
    }
}
