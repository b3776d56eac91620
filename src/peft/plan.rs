//! Which linears get a module, and where the initial residual goes and why not elsewhere.

use super::config::{Arm, Method, PeftConfig, Placement, Policy};
use crate::model::{Architecture, Role};
use std::fmt;

/// One linear that gets a module.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModule {
    /// The block, from 0.
    pub layer: usize,
    /// The linear's role.
    pub role: Role,
    /// Its Hugging Face module path, such as `model.layers.3.mlp.up_proj`.
    pub path: String,
    /// The paths by which adapters may know it.
    pub other_paths: Vec<String>,
    /// Where the branch stands.
    pub position: Position,
    /// Width that the branch reads.
    pub input: usize,
    /// Width that the branch writes.
    pub output: usize,
    /// Trainable numbers: `width·(input + output)`.
    pub trainable: u64,
    /// Whether the residual is mixed into the branch's input, or why not.
    pub residual: Mixing,
}

/// Where a branch stands relative to its linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Reads the linear's input, adds to its output.
    Beside,
    /// Changes the linear's input.
    Before,
    /// Changes the linear's output.
    After,
}

/// Whether the initial residual enters a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixing {
    /// It does.
    Mixed,
    /// No residual was asked for.
    Vanilla,
    /// The policy `official` mixes into the first feed-forward linear only.
    NotFirstFeedForward,
    /// The branch reads attention's output, not a token state of width d.
    ReadsAttention,
    /// The branch reads the feed-forward's inner activation, not a token state of width d.
    ReadsInner,
}

impl fmt::Display for Mixing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mixed => "yes",
            Self::Vanilla => "no: vanilla (lambda 0)",
            Self::NotFirstFeedForward => "no: policy official mixes into the first feed-forward linear only",
            Self::ReadsAttention => "no: its input is attention's output, not a token state",
            Self::ReadsInner => "no: its input is the feed-forward's inner activation, not a token state",
        })
    }
}

/// Why a plan cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A target names no linear of the model.
    #[error("target \"{target}\" matches no linear of the model; its linears are {names}")]
    NoSuchTarget {
        /// The target.
        target: String,
        /// The names that would match.
        names: String,
    },
    /// No targets at all.
    #[error("no targets were given; name some of {names}")]
    NoTargets {
        /// The names that would match.
        names: String,
    },
    /// A number that makes no sense.
    #[error("{key} is {value}; it must be {range}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The arm `random` in a model of images.
    #[error("the residual \"random\" has the length of embedding rows, and a model of images has none; choose another")]
    NoRows,
    /// Doses without a residual that says where they go.
    #[error("the modules were made without an initial residual; name the policy that says which of them are dosed")]
    NoPolicy,
    /// Doses for another number of blocks.
    #[error("{found} doses were given for {blocks} blocks; give one for each")]
    DoseCount {
        /// How many were given.
        found: usize,
        /// The model's blocks.
        blocks: usize,
    },
}

/// The plan of a PEFT run over a model, in the model's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The modules, by block and role.
    pub modules: Vec<PlannedModule>,
    /// Whether the model predicts the next token.
    pub causal: bool,
    /// Whether the model's files hold its linears as `[in, out]`.
    pub transposed: bool,
}

impl Plan {
    /// Plans `config` over a model.
    ///
    /// # Errors
    /// A target that matches nothing, or a size or λ out of range.
    pub fn new(architecture: &Architecture, config: &PeftConfig) -> Result<Self, PlanError> {
        check_ranges(config)?;
        let random = config.residual.as_ref().is_some_and(|residual| residual.arm == Arm::Random);
        if random && architecture.patches.is_some() {
            return Err(PlanError::NoRows);
        }
        let roles = architecture.roles();
        let names = || roles.iter().map(|&role| architecture.names.target(role)).collect::<Vec<_>>().join(", ");
        if config.targets.is_empty() {
            return Err(PlanError::NoTargets { names: names() });
        }
        let mut modules = Vec::new();
        let mut used = vec![false; config.targets.len()];
        // Blocks that share their weights share the module too.
        for layer in (0..architecture.layers).step_by(architecture.names.shared.max(1)) {
            for &role in &roles {
                // PEFT may have named it by the files' names, as they were those of transformers 4's modules.
                let paths = architecture.adapter_paths(layer, role);
                let mut hit = false;
                for (target, used) in config.targets.iter().zip(&mut used) {
                    if paths.iter().any(|path| is_target(path, target)) {
                        (hit, *used) = (true, true);
                    }
                }
                if hit {
                    modules.push(planned(architecture, config, layer, role));
                }
            }
        }
        match config.targets.iter().zip(used).find(|(_, used)| !used) {
            Some((target, _)) => Err(PlanError::NoSuchTarget { target: target.clone(), names: names() }),
            None => Ok(Self { modules, causal: architecture.causal, transposed: architecture.transposed }),
        }
    }

    /// Trainable numbers of the whole plan.
    #[must_use]
    pub fn trainable(&self) -> u64 {
        self.modules.iter().map(|m| m.trainable).sum()
    }

    /// How many modules receive the residual.
    #[must_use]
    pub fn mixed(&self) -> usize {
        self.modules.iter().filter(|m| m.residual == Mixing::Mixed).count()
    }
}

/// PEFT's rule: the whole path, or its end from a dot on.
fn is_target(path: &str, target: &str) -> bool {
    path.strip_suffix(target).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn planned(architecture: &Architecture, config: &PeftConfig, layer: usize, role: Role) -> PlannedModule {
    let position = match config.method {
        Method::Adapter { placement: Placement::Series, .. } if role.reads_stream() => Position::Before,
        Method::Adapter { placement: Placement::Series, .. } => Position::After,
        _ => Position::Beside,
    };
    let (linear_input, linear_output) = (architecture.input_width(role), architecture.output_width(role));
    let (input, output) = match position {
        Position::Beside => (linear_input, linear_output),
        Position::Before => (linear_input, linear_input),
        Position::After => (linear_output, linear_output),
    };
    PlannedModule {
        layer,
        role,
        path: architecture.module_path(layer, role),
        other_paths: architecture.adapter_paths(layer, role),
        position,
        input,
        output,
        trainable: (config.method.width() * (input + output)) as u64,
        residual: mixing(architecture, config, role, position),
    }
}

fn mixing(architecture: &Architecture, config: &PeftConfig, role: Role, position: Position) -> Mixing {
    let Some(residual) = &config.residual else { return Mixing::Vanilla };
    // An adapter after a linear reads that linear's output, a token state of width d.
    let reads_state = role.reads_stream() || position == Position::After;
    match (reads_state, role) {
        (false, Role::AttentionOutput) => return Mixing::ReadsAttention,
        (false, _) => return Mixing::ReadsInner,
        _ => {}
    }
    let official = match config.method {
        // The released adapters stand at gate and up, both with h0.
        Method::Adapter { .. } => matches!(role, Role::Gate | Role::Up | Role::GateUp),
        Method::Lora { .. } => {
            matches!(role, Role::Up | Role::GateUp) || (role == Role::Gate && architecture.official_gate)
        }
    };
    match residual.policy {
        Policy::All => Mixing::Mixed,
        Policy::Official if official => Mixing::Mixed,
        Policy::Official => Mixing::NotFirstFeedForward,
    }
}

/// Beyond every model's widths: a larger rank or bottleneck is a slip, and would exhaust the memory.
const WIDEST: usize = 1 << 16;

fn check_ranges(config: &PeftConfig) -> Result<(), PlanError> {
    let fail = |key, value: String, range| Err(PlanError::OutOfRange { key, value, range });
    let width = config.method.width();
    if width > WIDEST {
        let key = if matches!(config.method, Method::Lora { .. }) { "rank" } else { "bottleneck" };
        return fail(key, width.to_string(), "at most 65536");
    }
    match config.method {
        Method::Lora { rank, alpha, dropout, .. } => {
            if rank == 0 {
                return fail("rank", rank.to_string(), "at least 1");
            }
            if !(alpha.is_finite() && alpha > 0.0) {
                return fail("alpha", alpha.to_string(), "a number above 0");
            }
            if !(0.0..1.0).contains(&dropout) {
                return fail("dropout", dropout.to_string(), "in [0, 1)");
            }
        }
        Method::Adapter { bottleneck, scale, .. } => {
            if bottleneck == 0 {
                return fail("bottleneck", bottleneck.to_string(), "at least 1");
            }
            if !(scale.is_finite() && scale > 0.0) {
                return fail("scale", scale.to_string(), "a number above 0");
            }
        }
    }
    match config.residual {
        Some(residual) if !(0.0..=1.0).contains(&residual.lambda) => {
            fail("sibo-lambda", residual.lambda.to_string(), "in [0, 1]")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::H0Kind;
    use crate::model::families::parse_config;
    use crate::peft::{Arm, ResidualConfig};
    use serde_json::json;

    fn llama_7b() -> Architecture {
        let config = json!({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000});
        parse_config("c", &config).unwrap()
    }

    fn config(method: Method, policy: Policy) -> PeftConfig {
        let residual = ResidualConfig { lambda: 0.1, policy, arm: Arm::H0, h0_kind: H0Kind::Token, seed: 0 };
        PeftConfig { targets: method.default_targets(&llama_7b()), method, residual: Some(residual) }
    }

    fn lora(rank: usize) -> Method {
        Method::Lora { rank, alpha: 16.0, dropout: 0.05, rank_stabilised: false }
    }

    fn adapter(placement: Placement) -> Method {
        Method::Adapter { bottleneck: 256, scale: 1.0, placement }
    }

    #[test]
    fn trainable_counts_are_those_of_the_released_runs() {
        let count = |method| Plan::new(&llama_7b(), &config(method, Policy::Official)).unwrap().trainable();
        assert_eq!(count(lora(8)), 14_024_704);
        assert_eq!(count(lora(32)), 56_098_816);
        assert_eq!(count(adapter(Placement::Series)), 134_217_728);
    }

    #[test]
    fn policies_mix_where_the_paper_and_the_code_say() {
        let mixed = |method: Method, policy, targets: &[&str]| {
            let mut config = config(method, policy);
            config.targets = targets.iter().map(|&t| t.to_owned()).collect();
            let plan = Plan::new(&llama_7b(), &config).unwrap();
            let first = plan.modules.iter().filter(|m| m.layer == 0 && m.residual == Mixing::Mixed);
            first.map(|m| m.path.rsplit('.').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        assert_eq!(mixed(lora(8), Policy::Official, &all), ["up_proj"]);
        assert_eq!(mixed(lora(8), Policy::All, &all), ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]);
        let series = adapter(Placement::Series);
        assert_eq!(mixed(series, Policy::Official, &all), ["gate_proj", "up_proj"]);
        assert_eq!(mixed(series, Policy::All, &["down_proj", "o_proj"]), ["o_proj", "down_proj"]);
        assert_eq!(mixed(adapter(Placement::Parallel), Policy::All, &["up_proj", "down_proj"]), ["up_proj"]);
    }

    #[test]
    fn what_matches_nothing_is_refused() {
        let with = |targets: &[&str]| {
            let mut config = config(lora(8), Policy::All);
            config.targets = targets.iter().map(|&t| t.to_owned()).collect();
            Plan::new(&llama_7b(), &config).unwrap_err().to_string()
        };
        assert!(with(&["q_proj", "query"]).starts_with("target \"query\" matches no linear"));
        // PEFT matches from a dot on: "proj" is no end of "self_attn.q_proj".
        assert!(with(&["proj"]).contains("matches no linear"));
        assert!(with(&[]).starts_with("no targets"));
        let rank_zero = Plan::new(&llama_7b(), &config(lora(0), Policy::All)).unwrap_err();
        assert_eq!(rank_zero.to_string(), "rank is 0; it must be at least 1");
        let mut nan = config(lora(8), Policy::All);
        nan.residual = nan.residual.map(|r| ResidualConfig { lambda: f64::NAN, ..r });
        assert!(Plan::new(&llama_7b(), &nan).unwrap_err().to_string().starts_with("sibo-lambda is NaN"));
    }
}
