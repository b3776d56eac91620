//! What a PEFT run is made of: method, targets, residual.

use crate::model::{Architecture, H0Kind, Role};
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
    /// The factor on the branch's output.
    #[must_use]
    pub fn scale(&self) -> f64 {
        match *self {
            Self::Lora { rank, alpha, rank_stabilised: false, .. } => alpha / rank as f64,
            Self::Lora { rank, alpha, rank_stabilised: true, .. } => alpha / (rank as f64).sqrt(),
            Self::Adapter { scale, .. } => scale,
        }
    }

    /// The width inside the branch.
    #[must_use]
    pub fn width(&self) -> usize {
        match *self {
            Self::Lora { rank, .. } => rank,
            Self::Adapter { bottleneck, .. } => bottleneck,
        }
    }

    /// The linears that are trained if none are named: for LLaMA and GPT-J those of the released code. BERT's last
    /// feed-forward linear is not among them, since its name `output.dense` is also the end of attention's.
    #[must_use]
    pub fn default_targets(&self, architecture: &Architecture) -> Vec<String> {
        let names = &architecture.names;
        let alone = |role: Role| {
            let others = Role::ALL.into_iter().filter(|&other| other != role);
            others.map(|other| names.module(other)).all(|other| !other.ends_with(&format!(".{}", names.target(role))))
        };
        let released = |role: &Role| match (self, role) {
            (Self::Lora { .. }, Role::Query | Role::Key | Role::Value | Role::QueryKeyValue) => true,
            (Self::Lora { .. }, Role::Gate) => architecture.official_gate,
            (Self::Lora { .. }, Role::Down) => alone(Role::Down),
            (Self::Adapter { .. }, Role::Gate) | (_, Role::Up | Role::GateUp) => true,
            _ => false,
        };
        let roles = architecture.roles().into_iter().filter(released);
        roles.map(|role| names.target(role).to_owned()).collect()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lora { rank, alpha, .. } => write!(f, "lora (r {rank}, alpha {alpha})"),
            Self::Adapter { bottleneck, placement: Placement::Series, .. } => {
                write!(f, "adapter (bottleneck {bottleneck})")
            }
            Self::Adapter { bottleneck, .. } => write!(f, "adapter-parallel (bottleneck {bottleneck})"),
        }
    }
}
