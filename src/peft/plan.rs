//! Which linears get a module, and where the initial residual goes and why not elsewhere.

use super::base::{BaseTensor, base_tensors};
use super::config::{Arm, Details, LearnedBy, LowRank, Method, PeftConfig, Placement, Policy};
use crate::model::{Architecture, Role};
use crate::remedies::RemedyError;
use regex::Regex;
use std::collections::BTreeSet;
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
    /// What the branch is.
    pub form: Form,
    /// Width that the branch reads.
    pub input: usize,
    /// Width that the branch writes.
    pub output: usize,
    /// The name of the θ whose sigmoid is λ, where λ is learned.
    pub theta: Option<String>,
    /// Trainable numbers, θ not counted.
    pub trainable: u64,
    /// Whether the residual is mixed into the branch's input, or why not.
    pub residual: Mixing,
}

/// What a branch is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// Two matrices: `scale · B·A`.
    LowRank {
        /// Rank.
        rank: usize,
        /// The factor on the branch's output.
        scale: f64,
    },
    /// Two matrices that change the linear's weight, and the length of each of its rows.
    Decomposed {
        /// Rank.
        rank: usize,
        /// The factor on the branch's output.
        scale: f64,
    },
    /// Two matrices with tanh between them.
    Bottleneck {
        /// Width between them.
        width: usize,
        /// The factor on the branch's output.
        scale: f64,
    },
    /// A factor of every column, of the linear's input or output as the position says.
    Factors,
}

impl Form {
    /// The factor on the branch's output.
    #[must_use]
    pub fn scale(self) -> f64 {
        match self {
            Self::LowRank { scale, .. } | Self::Decomposed { scale, .. } | Self::Bottleneck { scale, .. } => scale,
            Self::Factors => 1.0,
        }
    }

    /// The names of the branch's tensors behind the module's path, in the order in which it holds them.
    #[must_use]
    pub fn tensor_names(self) -> &'static [&'static str] {
        match self {
            Self::LowRank { .. } => &["lora_A.weight", "lora_B.weight"],
            Self::Decomposed { .. } => &["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"],
            Self::Bottleneck { .. } => &["adapter_down.weight", "adapter_up.weight"],
            Self::Factors => &["ia3_l"],
        }
    }
}

impl PlannedModule {
    /// The branch's tensors by the last parts of their names in an adapter file, with their shapes there.
    #[must_use]
    pub fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (input, output) = (self.input, self.output);
        let shapes = match self.form {
            Form::LowRank { rank: width, .. } | Form::Bottleneck { width, .. } => {
                vec![vec![width, input], vec![output, width]]
            }
            Form::Decomposed { rank, .. } => vec![vec![rank, input], vec![output, rank], vec![output]],
            // As PEFT keeps them: a row in front of a linear, a column behind it.
            Form::Factors if self.position == Position::Before => vec![vec![1, input]],
            Form::Factors => vec![vec![output, 1]],
        };
        self.form.tensor_names().iter().copied().zip(shapes).collect()
    }
}

/// The last part of the name of a learned λ.
const THETA: &str = "sibo_lambda";

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

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Beside => "beside",
            Self::Before => "before",
            Self::After => "after",
        })
    }
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
    /// The branch rescales a linear's output, which is no token state.
    ReadsOutput,
}

impl fmt::Display for Mixing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mixed => "yes",
            Self::Vanilla => "no: vanilla (lambda 0)",
            Self::NotFirstFeedForward => "no: policy official mixes into the first feed-forward linear only",
            Self::ReadsAttention => "no: its input is attention's output, not a token state",
            Self::ReadsOutput => "no: it rescales the linear's output, which is no token state",
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
    /// A module to be trained whole that the model does not have, or has tied to another.
    #[error(
        "modules_to_save: \"{module}\" matches no module of the model that has a weight of its own; correct the name"
    )]
    NoSuchModule {
        /// The module.
        module: String,
    },
    /// The residual with a method that has no linear input.
    #[error("{method} has no module that could read the initial residual; leave lambda at 0")]
    NothingReads {
        /// The method.
        method: String,
    },
    /// Virtual tokens where none can stand in front.
    #[error("{method}: virtual tokens stand in front of what a decoder reads; a {family} model is not supported")]
    NotInFront {
        /// The method.
        method: String,
        /// The family.
        family: &'static str,
    },
    /// A method that finds nothing of its kind.
    #[error("{method}: the model has nothing of that kind to train; choose another method or other targets")]
    NothingToTrain {
        /// The method.
        method: String,
    },
    /// Remedies that cannot be applied.
    #[error(transparent)]
    Remedy(#[from] RemedyError),
    /// Doses without a residual that says where they go.
    #[error("the modules were made without an initial residual; name the policy that says which of them are dosed")]
    NoPolicy,
    /// Doses for another number of blocks.
    #[error("{found} values of lambda were given for {blocks} blocks; give one for each")]
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
    /// What of the base model is trained beside them.
    pub base: Vec<BaseTensor>,
    /// What other remedies learn, by its name in an adapter's files, with its shape.
    pub remedies: Vec<(String, Vec<usize>)>,
    /// Rows and columns of the table of virtual tokens, where the method has one.
    pub virtual_table: Option<[usize; 2]>,
    /// Key heads and their width.
    pub key_heads: [usize; 2],
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
        config.details.remedies.check(architecture)?;
        let random = config.residual.as_ref().is_some_and(|residual| residual.arm == Arm::Random);
        if random && architecture.patches.is_some() {
            return Err(PlanError::NoRows);
        }
        let lambdas = config.details.lambdas.len();
        if lambdas != 0 && lambdas != architecture.layers {
            return Err(PlanError::DoseCount { found: lambdas, blocks: architecture.layers });
        }
        let roles = architecture.roles();
        let names = || roles.iter().map(|&role| architecture.names.target(role)).collect::<Vec<_>>().join(", ");
        if !config.method.has_modules() {
            return Self::without_modules(architecture, config);
        }
        if config.targets.is_empty() {
            return Err(PlanError::NoTargets { names: names() });
        }
        let patterns = Patterns::new(config)?;
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
                    modules.push(planned(architecture, config, &patterns, (layer, role))?);
                }
            }
        }
        match config.targets.iter().zip(used).find(|(_, used)| !used) {
            Some((target, _)) => Err(PlanError::NoSuchTarget { target: target.clone(), names: names() }),
            None => Ok(Self {
                base: whole_modules_found(config, base_tensors(architecture, config, &modules))?,
                modules,
                remedies: config.details.remedies.tensors(architecture),
                virtual_table: None,
                key_heads: [architecture.kv_heads, architecture.head_dim],
                causal: architecture.causal,
                transposed: architecture.transposed,
            }),
        }
    }

    /// The plan of a method that trains tensors of the base model alone.
    fn without_modules(architecture: &Architecture, config: &PeftConfig) -> Result<Self, PlanError> {
        if config.residual.is_some() {
            return Err(PlanError::NothingReads { method: config.method.to_string() });
        }
        let virtual_table = match config.method {
            Method::Prefix { tokens } => {
                Some([tokens, 2 * architecture.layers * architecture.kv_heads * architecture.head_dim])
            }
            Method::Prompt { tokens } => Some([tokens, architecture.hidden_size]),
            _ => None,
        };
        if let Some([tokens, _]) = virtual_table {
            if !architecture.causal || architecture.names.shared > 1 {
                return Err(PlanError::NotInFront { method: config.method.to_string(), family: architecture.family });
            }
            if tokens == 0 || tokens > WIDEST {
                out_of_range("virtual-tokens", tokens.to_string(), "from 1 to 65536")?;
            }
        }
        let base = whole_modules_found(config, base_tensors(architecture, config, &[]))?;
        if base.is_empty() && virtual_table.is_none() {
            return Err(PlanError::NothingToTrain { method: config.method.to_string() });
        }
        Ok(Self {
            modules: Vec::new(),
            base,
            remedies: config.details.remedies.tensors(architecture),
            virtual_table,
            key_heads: [architecture.kv_heads, architecture.head_dim],
            causal: architecture.causal,
            transposed: architecture.transposed,
        })
    }

    /// Trainable numbers of the whole plan.
    #[must_use]
    pub fn trainable(&self) -> u64 {
        let thetas: BTreeSet<&String> = self.modules.iter().filter_map(|m| m.theta.as_ref()).collect();
        let shapes = self.base.iter().map(|tensor| &tensor.shape).chain(self.remedies.iter().map(|(_, shape)| shape));
        let others = shapes.map(|shape| shape.iter().product::<usize>() as u64).sum::<u64>();
        self.modules.iter().map(|m| m.trainable).sum::<u64>()
            + thetas.len() as u64
            + others
            + self.virtual_table.map_or(0, |[rows, columns]| (rows * columns) as u64)
    }

    /// How many modules receive the residual.
    #[must_use]
    pub fn mixed(&self) -> usize {
        self.modules.iter().filter(|m| m.residual == Mixing::Mixed).count()
    }
}

/// The tensors, if every module that is to be trained whole has some.
fn whole_modules_found(config: &PeftConfig, base: Vec<BaseTensor>) -> Result<Vec<BaseTensor>, PlanError> {
    let found = |module: &String| base.iter().any(|tensor| is_target(&tensor.file_path(), module));
    match config.details.whole_modules.iter().find(|module| !found(module)) {
        Some(module) => Err(PlanError::NoSuchModule { module: module.clone() }),
        None => Ok(base),
    }
}

/// PEFT's rule: the whole path, or its end from a dot on.
pub(super) fn is_target(path: &str, target: &str) -> bool {
    path.strip_suffix(target).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn planned(
    architecture: &Architecture,
    config: &PeftConfig,
    patterns: &Patterns,
    (layer, role): (usize, Role),
) -> Result<PlannedModule, PlanError> {
    let path = architecture.module_path(layer, role);
    let form = form(config, patterns, &path)?;
    let position = match (config.method, form) {
        (Method::Adapter { placement: Placement::Series, .. }, _) if role.reads_stream() => Position::Before,
        (Method::Adapter { placement: Placement::Series, .. }, _) => Position::After,
        // PEFT asks for the end of the path here, with a dot in front of it or not.
        (_, Form::Factors) if config.details.feed_forward.iter().any(|target| path.ends_with(target)) => {
            Position::Before
        }
        (_, Form::Factors) => Position::After,
        _ => Position::Beside,
    };
    let (linear_input, linear_output) = (architecture.input_width(role), architecture.output_width(role));
    let (input, output) = match position {
        Position::Beside => (linear_input, linear_output),
        Position::Before => (linear_input, linear_input),
        Position::After => (linear_output, linear_output),
    };
    let residual = mixing(architecture, config, role, position);
    let other_paths = architecture.adapter_paths(layer, role);
    let learned = config.residual.and_then(|r| r.learned).filter(|_| residual == Mixing::Mixed);
    let theta = learned.map(|by| match by {
        LearnedBy::Module => format!("{path}.{THETA}"),
        LearnedBy::Layer => format!("{}.{THETA}", architecture.block_path(layer)),
    });
    let mut module =
        PlannedModule { layer, role, path, other_paths, position, form, input, output, theta, trainable: 0, residual };
    module.trainable = module.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
    Ok(module)
}

/// The patterns of a configuration, ready to be matched.
struct Patterns {
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Patterns {
    fn new(config: &PeftConfig) -> Result<Self, PlanError> {
        fn ready<T: Copy>(key: &'static str, patterns: &[(String, T)]) -> Result<Vec<(Regex, T)>, PlanError> {
            let one = |(pattern, value): &(String, T)| match Regex::new(&format!(r"^(.*\.)?({pattern})$")) {
                Ok(regex) => Ok((regex, *value)),
                Err(_) => Err(PlanError::OutOfRange {
                    key,
                    value: pattern.clone(),
                    range: "a path's end, or a regular expression",
                }),
            };
            patterns.iter().map(one).collect()
        }
        let Details { ranks, alphas, .. } = &config.details;
        Ok(Self { ranks: ready("rank-pattern", ranks)?, alphas: ready("alpha-pattern", alphas)? })
    }
}

fn first<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

fn form(config: &PeftConfig, patterns: &Patterns, path: &str) -> Result<Form, PlanError> {
    Ok(match config.method {
        Method::Ia3 | Method::BitFit | Method::Norms | Method::Prefix { .. } | Method::Prompt { .. } => Form::Factors,
        Method::Adapter { bottleneck, scale, .. } => Form::Bottleneck { width: bottleneck, scale },
        Method::Lora { rank, alpha, dropout, rank_stabilised }
        | Method::Dora { rank, alpha, dropout, rank_stabilised } => {
            let rank = first(&patterns.ranks, path).unwrap_or(rank);
            let alpha = first(&patterns.alphas, path).unwrap_or(alpha);
            let sizes = LowRank { rank, alpha, dropout, rank_stabilised };
            check_sizes(&sizes)?;
            match config.method {
                Method::Dora { .. } => Form::Decomposed { rank, scale: sizes.scale() },
                _ => Form::LowRank { rank, scale: sizes.scale() },
            }
        }
    })
}

fn mixing(architecture: &Architecture, config: &PeftConfig, role: Role, position: Position) -> Mixing {
    let Some(residual) = &config.residual else { return Mixing::Vanilla };
    if config.method == Method::Ia3 && position == Position::After {
        return Mixing::ReadsOutput;
    }
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
        _ => matches!(role, Role::Up | Role::GateUp) || (role == Role::Gate && architecture.official_gate),
    };
    match residual.policy {
        Policy::All => Mixing::Mixed,
        Policy::Official if official => Mixing::Mixed,
        Policy::Official => Mixing::NotFirstFeedForward,
    }
}

/// Beyond every model's widths: a larger rank or bottleneck is a slip, and would exhaust the memory.
const WIDEST: usize = 1 << 16;

fn out_of_range(key: &'static str, value: String, range: &'static str) -> Result<(), PlanError> {
    Err(PlanError::OutOfRange { key, value, range })
}

fn check_sizes(sizes: &LowRank) -> Result<(), PlanError> {
    let &LowRank { rank, alpha, dropout, .. } = sizes;
    if rank == 0 || rank > WIDEST {
        return out_of_range("rank", rank.to_string(), if rank == 0 { "at least 1" } else { "at most 65536" });
    }
    if !(alpha.is_finite() && alpha > 0.0) {
        return out_of_range("alpha", alpha.to_string(), "a number above 0");
    }
    if !(0.0..1.0).contains(&dropout) {
        return out_of_range("dropout", dropout.to_string(), "in [0, 1)");
    }
    Ok(())
}

fn check_ranges(config: &PeftConfig) -> Result<(), PlanError> {
    if let Some(sizes) = config.method.low_rank() {
        check_sizes(&sizes)?;
    }
    if let Method::Adapter { bottleneck, scale, .. } = config.method {
        if bottleneck == 0 || bottleneck > WIDEST {
            let range = if bottleneck == 0 { "at least 1" } else { "at most 65536" };
            return out_of_range("bottleneck", bottleneck.to_string(), range);
        }
        if !(scale.is_finite() && scale > 0.0) {
            return out_of_range("scale", scale.to_string(), "a number above 0");
        }
    }
    let Some(residual) = config.residual else { return Ok(()) };
    let all = config.details.lambdas.iter().chain([&residual.lambda]);
    if let Some(lambda) = all.into_iter().find(|lambda| !(0.0..=1.0).contains(*lambda)) {
        return out_of_range("sibo-lambda", lambda.to_string(), "in [0, 1]");
    }
    if residual.learned.is_some() && !(residual.lambda > 0.0 && residual.lambda < 1.0) {
        return out_of_range(
            "sibo-lambda",
            residual.lambda.to_string(),
            "above 0 and below 1, where a learned one begins",
        );
    }
    Ok(())
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
        let residual =
            ResidualConfig { lambda: 0.1, policy, arm: Arm::H0, h0_kind: H0Kind::Token, seed: 0, learned: None };
        PeftConfig::new(method, method.default_targets(&llama_7b()), Some(residual))
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
