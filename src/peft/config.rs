//! What a PEFT run is made of: method, targets, residual.

use crate::model::{Architecture, H0Kind, Role};
use crate::remedies::Remedies;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Everything that decides which modules exist and what they compute.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// The method and its sizes.
    pub method: Method,
    /// The last parts of the names of the linears that get a module: `q_proj`, `up_proj`, ….
    pub targets: Vec<String>,
    /// The initial residual; `None` is vanilla.
    pub residual: Option<ResidualConfig>,
    /// What it says beyond that.
    pub details: Details,
}

/// What a configuration says beyond method and targets, as PEFT's have it. A pattern is a regular expression that the end of
/// a module's path from a dot on matches, mostly that end itself; the first that does counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    /// Ranks that stand in for [`Method::Lora`]'s.
    pub ranks: Vec<(String, usize)>,
    /// α that stand in for [`Method::Lora`]'s.
    pub alphas: Vec<(String, f64)>,
    /// Of (IA)³: the targets whose input is rescaled, and not their output.
    pub feed_forward: Vec<String>,
    /// λ of every block, in the place of [`ResidualConfig::lambda`]; empty: that one everywhere.
    pub lambdas: Vec<f64>,
    /// Which biases of the base model are trained.
    pub biases: Biases,
    /// Modules of the base model that are trained whole, as targets name linears (`modules_to_save`).
    pub whole_modules: Vec<String>,
    /// Other remedies of over-smoothing.
    pub remedies: Remedies,
}

/// Which biases of the base model are trained beside LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Biases {
    /// None.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of the targets (PEFT's `lora_only`).
    Targets,
}

impl PeftConfig {
    /// A method over its targets, the same everywhere.
    #[must_use]
    pub fn new(method: Method, targets: Vec<String>, residual: Option<ResidualConfig>) -> Self {
        Self { method, targets, residual, details: Details::default() }
    }
}

/// A PEFT method with its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// `y = W·x + b + (α/r)·B·A·dropout(x~)` (Hu et al. 2021).
    Lora {
        /// Rank r.
        rank: usize,
        /// α.
        alpha: f64,
        /// Dropout probability on the branch's input.
        dropout: f64,
        /// Whether the scale is α/√r (rank-stabilised) in place of α/r.
        rank_stabilised: bool,
    },
    /// Weight-decomposed LoRA, `y = (m/‖V‖)·(W·x + s·B·A·dropout(x~)) + b` with `V = W + s·B·A`, whose row norms get no
    /// gradient (Liu et al. 2024). Sizes and scale as LoRA's.
    Dora {
        /// Rank r.
        rank: usize,
        /// α.
        alpha: f64,
        /// Dropout probability on the branch's input.
        dropout: f64,
        /// Whether the scale is α/√r in place of α/r.
        rank_stabilised: bool,
    },
    /// (IA)³ (Liu et al. 2022): a learned factor ℓ for every column of a linear's output, `ℓ·y`, or of its input,
    /// `x + (ℓ−1)·x~`.
    Ia3,
    /// Prefix tuning (Li and Liang, 2021): learned keys and values in front of every block's own.
    Prefix {
        /// Virtual tokens.
        tokens: usize,
    },
    /// Prompt tuning (Lester et al. 2021): learned embeddings in front of the text's.
    Prompt {
        /// Virtual tokens.
        tokens: usize,
    },
    /// Every bias of the base model, and nothing else (Ben Zaken et al. 2022).
    BitFit,
    /// The weights and biases of norms, and nothing else; targets name norms.
    Norms,
    /// A bottleneck adapter `s·U·tanh(D·x~)`, no biases (Houlsby et al. 2019; as SIBO released it).
    Adapter {
        /// Width of the bottleneck.
        bottleneck: usize,
        /// Scale s.
        scale: f64,
        /// Series (in front of a linear or after it, as its role decides) or parallel.
        placement: Placement,
    },
}

/// Where a bottleneck adapter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// In front of a linear that reads the residual stream, after one that writes to it.
    Series,
    /// Beside the linear: `y = W·x + s·U·tanh(D·x~)`.
    Parallel,
}

/// The initial residual: `x~ = (1−λ)·x + λ·r`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidualConfig {
    /// λ in (0, 1].
    pub lambda: f64,
    /// Which modules receive it.
    pub policy: Policy,
    /// What r is.
    pub arm: Arm,
    /// What h0 is.
    pub h0_kind: H0Kind,
    /// Seed of the arms `shuffled` and `random`.
    pub seed: u64,
    /// Whether λ is learned, and then where each has its own: `λ = 1/(1 + exp(−θ))`, from the λ above on.
    pub learned: Option<LearnedBy>,
}

/// Where each learned λ belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LearnedBy {
    /// To a block, and so to all of its modules.
    Layer,
    /// To a module.
    Module,
}

/// Which modules receive the initial residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// As the authors released it: the first feed-forward linear; series adapters in front of gate and up.
    Official,
    /// The paper's formula: every module whose input is a token state of width d.
    All,
}

/// What the λ term reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The token's initial representation: SIBO.
    H0,
    /// Nothing: `(1−λ)·x`, the scale control.
    None,
    /// h0 rescaled, token by token, to the norm of x (the factor gets no gradient).
    H0Normed,
    /// The h0 of another, earlier token of the same text.
    Shuffled,
    /// One fixed vector with the embedding table's mean norm.
    Random,
}

/// The sizes of a low-rank branch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank {
    /// Rank r.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// Dropout probability on the branch's input.
    pub dropout: f64,
    /// Whether the scale is α/√r in place of α/r.
    pub rank_stabilised: bool,
}

impl LowRank {
    /// The factor on the branch's output.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

macro_rules! words {
    ($type:ident, $what:literal, { $($variant:ident = $word:literal),+ }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!(
                        "\"{other}\" is not a {}; choose one of {}", $what, [$($word),+].join(", ")
                    )),
                }
            }
        }
    };
}

words!(Policy, "policy", { Official = "official", All = "all" });
words!(Arm, "residual", {
    H0 = "h0", None = "none", H0Normed = "h0-normed", Shuffled = "shuffled", Random = "random"
});
words!(Placement, "placement", { Series = "series", Parallel = "parallel" });

impl Method {
    /// Whether the method has modules on linears.
    #[must_use]
    pub fn has_modules(&self) -> bool {
        !matches!(self, Self::BitFit | Self::Norms | Self::Prefix { .. } | Self::Prompt { .. })
    }

    /// The virtual tokens in front of every text.
    #[must_use]
    pub fn virtual_tokens(&self) -> usize {
        match *self {
            Self::Prefix { tokens } | Self::Prompt { tokens } => tokens,
            _ => 0,
        }
    }

    /// The sizes of a low-rank method, LoRA or DoRA.
    #[must_use]
    pub fn low_rank(&self) -> Option<LowRank> {
        match *self {
            Self::Lora { rank, alpha, dropout, rank_stabilised }
            | Self::Dora { rank, alpha, dropout, rank_stabilised } => {
                Some(LowRank { rank, alpha, dropout, rank_stabilised })
            }
            _ => None,
        }
    }

    /// The factor on the branch's output, where no pattern says otherwise.
    #[must_use]
    pub fn scale(&self) -> f64 {
        match *self {
            Self::Adapter { scale, .. } => scale,
            _ => self.low_rank().map_or(1.0, |sizes| sizes.scale()),
        }
    }

    /// Dropout on what a branch reads.
    #[must_use]
    pub fn dropout(&self) -> f64 {
        self.low_rank().map_or(0.0, |sizes| sizes.dropout)
    }

    /// The linears that are trained if none are named: for LLaMA and GPT-J those of the released code. Of BERT's last
    /// feed-forward linear LoRA has none, since its name `output.dense` is also the end of attention's.
    #[must_use]
    pub fn default_targets(&self, architecture: &Architecture) -> Vec<String> {
        if *self == Self::Norms {
            let paths = architecture.norm_paths();
            let last = |path: &String| path.rsplit('.').next().unwrap_or(path).to_owned();
            return paths.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect();
        }
        let alone = |role: &Role| targets_of(architecture, *role).len() == 1;
        let released = |role: &Role| match (self, role) {
            // As PEFT has it by default: keys, values, and what the feed-forward's last linear reads.
            (Self::Ia3, role) => matches!(role, Role::Key | Role::Value | Role::QueryKeyValue | Role::Down),
            (Self::Lora { .. } | Self::Dora { .. }, role) => match role {
                Role::Query | Role::Key | Role::Value | Role::QueryKeyValue | Role::Up | Role::GateUp => true,
                Role::Gate => architecture.official_gate,
                Role::Down => alone(role),
                Role::AttentionOutput => false,
            },
            (Self::Adapter { .. }, role) => matches!(role, Role::Gate | Role::Up | Role::GateUp),
            (Self::BitFit | Self::Norms | Self::Prefix { .. } | Self::Prompt { .. }, _) => false,
        };
        architecture.roles().into_iter().filter(released).flat_map(|role| targets_of(architecture, role)).collect()
    }
}

/// The targets that name the linears of this role and no others: the name of its module, or where that is the end of
/// another's too, as in BERT, every path.
#[must_use]
pub fn targets_of(architecture: &Architecture, role: Role) -> Vec<String> {
    let names = &architecture.names;
    let target = names.target(role);
    let end = format!(".{target}");
    let others = architecture.roles().into_iter().filter(|&other| other != role);
    match others.map(|other| names.module(other)).any(|other| other == target || other.ends_with(&end)) {
        false => vec![target.to_owned()],
        true => {
            let layers = (0..architecture.layers).step_by(names.shared.max(1));
            layers.map(|layer| architecture.module_path(layer, role)).collect()
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lora { rank, alpha, .. } => write!(f, "lora (r {rank}, alpha {alpha})"),
            Self::Dora { rank, alpha, .. } => write!(f, "dora (r {rank}, alpha {alpha})"),
            Self::Ia3 => f.write_str("ia3"),
            Self::Prefix { tokens } => write!(f, "prefix ({tokens} virtual tokens)"),
            Self::Prompt { tokens } => write!(f, "prompt ({tokens} virtual tokens)"),
            Self::BitFit => f.write_str("bitfit"),
            Self::Norms => f.write_str("norms"),
            Self::Adapter { bottleneck, placement: Placement::Series, .. } => {
                write!(f, "adapter (bottleneck {bottleneck})")
            }
            Self::Adapter { bottleneck, .. } => write!(f, "adapter-parallel (bottleneck {bottleneck})"),
        }
    }
}
