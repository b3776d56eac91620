//! The settings of a training run: one TOML, one seed.

use super::dtype::{BaseDtypeName, DtypeName};
use crate::data::LossOn;
use crate::model::{Architecture, Precision, Role};
use crate::peft::{Arm, Biases, Details, LearnedBy, Method, PeftConfig, Placement, Policy, ResidualConfig, targets_of};
use crate::remedies::{ContraNorm, Fusion, Neutreno, Remedies};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Every setting of a run. The defaults are those of the released SIBO code (see `docs/training.md`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainConfig {
    /// Hub name, folder, or `embedded`.
    pub model: String,
    /// A hub revision.
    pub revision: Option<String>,
    /// Training data.
    pub data: PathBuf,
    /// The run folder.
    pub out: PathBuf,
    /// What is trained.
    pub method: MethodName,
    /// Linears that get a module; empty: the method's default.
    pub targets: Vec<String>,
    /// LoRA's rank.
    pub rank: usize,
    /// LoRA's α; by default twice the rank.
    pub alpha: Option<f64>,
    /// Whether LoRA's scale is α/√r in place of α/r.
    pub rslora: bool,
    /// Ranks of single modules, as `NAME=RANK`.
    pub rank_pattern: Vec<String>,
    /// α of single modules, as `NAME=ALPHA`.
    pub alpha_pattern: Vec<String>,
    /// Targets of (IA)³ whose input is rescaled; empty: those that read a token state or the feed-forward's inner activation.
    pub feed_forward: Vec<String>,
    /// Virtual tokens of prefix and prompt tuning.
    pub virtual_tokens: usize,
    /// Which biases are trained beside LoRA.
    pub bias: Biases,
    /// Modules of the base model that are trained whole.
    pub modules_to_save: Vec<String>,
    /// Dropout on LoRA's input.
    pub dropout: f64,
    /// The adapter's inner width.
    pub bottleneck: usize,
    /// The adapter's scale.
    pub adapter_scale: f64,
    /// λ of the initial residual; 0 is vanilla.
    pub sibo_lambda: f64,
    /// λ of every block, in the place of `sibo_lambda`; empty: that one everywhere.
    pub sibo_lambdas: Vec<f64>,
    /// Whether λ is learned from `sibo_lambda` on, one for each block or module.
    pub learn_lambda: Option<LearnedBy>,
    /// The course of λ over the run; unset: it stays.
    pub lambda_schedule: Option<LambdaSchedule>,
    /// Which modules receive it.
    pub sibo_policy: Policy,
    /// What the λ term reads.
    pub residual: Arm,
    /// An adapter to start from.
    pub init_adapter: Option<PathBuf>,
    /// Stochastic depth: the probability with which the last block is left out in a step; earlier ones in proportion.
    pub stochastic_depth: f64,
    /// ContraNorm's strength; unset: none.
    pub contranorm: Option<f64>,
    /// ContraNorm's temperature.
    pub contranorm_temperature: f64,
    /// NeuTRENO's μ; unset: none.
    pub neutreno: Option<f64>,
    /// Whether heads learn a gain on how far their attention is from uniform.
    pub attn_scale: bool,
    /// Whether gains are learned on the mean of attention's output and on what deviates from it.
    pub feat_scale: bool,
    /// What an encoder's head reads in the place of the last block's states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fusion: Option<Fusion>,
    /// The cosine regulariser's γ; 0: none.
    pub cosine_regulariser: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Its course after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradient norm to clip at; 0 is off.
    pub max_grad_norm: f64,
    /// Sequences of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub accumulate: usize,
    /// A step holds examples up to so many tokens, in place of `batch_size` times `accumulate` examples.
    pub batch_tokens: Option<usize>,
    /// Examples that run together; unset: `batch_size`, or with `batch_tokens` all of a step.
    pub micro_batch: Option<usize>,
    /// Compute each block again in the backward pass instead of keeping it.
    pub checkpointing: bool,
    /// Optimizer steps; unset: by epochs.
    pub steps: Option<u64>,
    /// Passes over the data where no steps are given.
    pub epochs: u64,
    /// Longest sequence in tokens; longer ones are cut.
    pub cutoff: usize,
    /// Examples held out; unset: 120, or a tenth of the data if that is less.
    pub val_size: Option<usize>,
    /// Steps between validations.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// The folder of event files for TensorBoard; unset: none. Changes nothing of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorboard: Option<PathBuf>,
    /// Steps between similarity measurements of the held-out texts; 0 is never.
    pub probe_every: u64,
    /// Texts of the probe set, a text a line; unset: the first 32 validation examples.
    pub probe_texts: Option<PathBuf>,
    /// Validations without improvement after which training stops; 0 is never.
    pub patience: u64,
    /// Which tokens are targets.
    pub loss_on: LossOn,
    /// Share of the tokens that an encoder is to predict; unset: 0.15.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_share: Option<f64>,
    /// The task, or group of tasks, whose training data `data` holds; unset: `data` is a file of records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Leave training records out that are test items of a task in `data`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drop_overlap: bool,
    /// The field that names each text's class; unset: tokens are learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_field: Option<String>,
    /// The field of the text beside it; unset: `text`, or `sentence1` and `sentence2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// How records become text.
    pub template: String,
    /// Keep the file's order.
    pub no_shuffle: bool,
    /// The seed of everything random.
    pub seed: u64,
    /// What is computed in.
    pub dtype: DtypeName,
    /// What frozen weights are stored in.
    #[serde(skip_serializing_if = "BaseDtypeName::is_auto")]
    pub base_dtype: BaseDtypeName,
    /// Where.
    pub device: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            model: "embedded".to_owned(),
            revision: None,
            data: PathBuf::new(),
            out: PathBuf::new(),
            method: MethodName::Lora,
            targets: Vec::new(),
            rank: 32,
            alpha: None,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            feed_forward: Vec::new(),
            virtual_tokens: 20,
            bias: Biases::None,
            modules_to_save: Vec::new(),
            dropout: 0.05,
            bottleneck: 256,
            adapter_scale: 1.0,
            sibo_lambda: 0.0,
            sibo_lambdas: Vec::new(),
            learn_lambda: None,
            lambda_schedule: None,
            sibo_policy: Policy::Official,
            residual: Arm::H0,
            init_adapter: None,
            stochastic_depth: 0.0,
            contranorm: None,
            contranorm_temperature: 1.0,
            neutreno: None,
            attn_scale: false,
            feat_scale: false,
            fusion: None,
            cosine_regulariser: 0.0,
            lr: 3e-4,
            schedule: Schedule::Linear,
            warmup_steps: 100,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            batch_size: 4,
            accumulate: 4,
            batch_tokens: None,
            micro_batch: None,
            checkpointing: false,
            steps: None,
            epochs: 3,
            cutoff: 256,
            val_size: None,
            eval_every: 80,
            save_every: 80,
            tensorboard: None,
            probe_every: 80,
            probe_texts: None,
            patience: 0,
            loss_on: LossOn::All,
            mask_share: None,
            task: None,
            drop_overlap: false,
            label_field: None,
            field: None,
            template: "alpaca".to_owned(),
            no_shuffle: false,
            seed: 42,
            dtype: DtypeName::F32,
            base_dtype: BaseDtypeName::Auto,
            device: "auto".to_owned(),
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum MethodName {
    /// Low-rank updates beside linears.
    Lora,
    /// Low-rank updates of directions, and the lengths of the weights' rows.
    Dora,
    /// Factors of linears' outputs and inputs.
    Ia3,
    /// Bottleneck adapters in front of or after linears.
    Adapter,
    /// Bottleneck adapters beside linears.
    AdapterParallel,
    /// Bottleneck adapters after attention and after the feed-forward (Houlsby et al. 2019).
    Houlsby,
    /// Bottleneck adapters after the feed-forward (Pfeiffer et al. 2020).
    Pfeiffer,
    /// Learned keys and values in front of every block's own.
    Prefix,
    /// Learned embeddings in front of the text's.
    Prompt,
    /// Every bias.
    Bitfit,
    /// The weights and biases of norms.
    Norms,
    /// Every weight.
    Full,
}

/// The course of λ over a run, in a straight line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LambdaSchedule {
    /// From 0 to what is given.
    Rise,
    /// From what is given to 0, so that the result is vanilla.
    Fall,
}

/// The learning rate's course after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Schedule {
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Stays.
    Constant,
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key} is {value}; it must be {range}")]
pub struct SettingError {
    /// The setting.
    pub key: &'static str,
    /// What it was.
    pub value: String,
    /// What it may be.
    pub range: &'static str,
}

impl TrainConfig {
    /// What the model is stored and computed in: full fine-tuning stores what it trains.
    #[must_use]
    pub fn precision(&self) -> Precision {
        let precision = self.base_dtype.beside(self.dtype);
        match self.method {
            MethodName::Full => Precision { base: precision.trained(), ..precision },
            _ => precision,
        }
    }

    /// The PEFT configuration for a model; `None` for full fine-tuning.
    #[must_use]
    pub fn peft(&self, architecture: &Architecture) -> Option<PeftConfig> {
        let (rank, alpha) = (self.rank, self.alpha.unwrap_or(2.0 * self.rank as f64));
        let (dropout, rank_stabilised) = (self.dropout, self.rslora);
        let method = match self.method {
            MethodName::Full => return None,
            MethodName::Lora => Method::Lora { rank, alpha, dropout, rank_stabilised },
            MethodName::Dora => Method::Dora { rank, alpha, dropout, rank_stabilised },
            MethodName::Ia3 => Method::Ia3,
            MethodName::Prefix => Method::Prefix { tokens: self.virtual_tokens },
            MethodName::Prompt => Method::Prompt { tokens: self.virtual_tokens },
            MethodName::Bitfit => Method::BitFit,
            MethodName::Norms => Method::Norms,
            MethodName::Adapter | MethodName::Houlsby | MethodName::Pfeiffer => self.adapter(Placement::Series),
            MethodName::AdapterParallel => self.adapter(Placement::Parallel),
        };
        let after = |roles: &[Role]| roles.iter().flat_map(|&role| targets_of(architecture, role)).collect::<Vec<_>>();
        let targets = match self.method {
            _ if !self.targets.is_empty() => self.targets.clone(),
            MethodName::Houlsby => after(&[Role::AttentionOutput, Role::Down]),
            MethodName::Pfeiffer => after(&[Role::Down]),
            _ => method.default_targets(architecture),
        };
        let feed_forward = match (self.method, self.feed_forward.is_empty()) {
            (MethodName::Ia3, true) => {
                let read = [Role::Gate, Role::Up, Role::GateUp, Role::Down];
                let names: Vec<String> = read.iter().flat_map(|&role| targets_of(architecture, role)).collect();
                targets.iter().filter(|target| names.iter().any(|name| is_same_target(name, target))).cloned().collect()
            }
            _ => self.feed_forward.clone(),
        };
        let details = Details {
            ranks: pairs(&self.rank_pattern).unwrap_or_default(),
            alphas: pairs(&self.alpha_pattern).unwrap_or_default(),
            feed_forward,
            lambdas: self.sibo_lambdas.clone(),
            biases: self.bias,
            whole_modules: self.modules_to_save.clone(),
            remedies: self.remedies(),
        };
        Some(PeftConfig { method, targets, residual: self.residual_config(architecture), details })
    }

    /// The remedies that change what the model computes.
    #[must_use]
    pub fn remedies(&self) -> Remedies {
        let temperature = self.contranorm_temperature;
        Remedies {
            contranorm: self.contranorm.map(|strength| ContraNorm { strength, temperature }),
            neutreno: self.neutreno.map(|mu| Neutreno { mu }),
            attn_scale: self.attn_scale,
            feat_scale: self.feat_scale,
            fusion: self.fusion,
        }
    }

    fn adapter(&self, placement: Placement) -> Method {
        Method::Adapter { bottleneck: self.bottleneck, scale: self.adapter_scale, placement }
    }

    /// The initial residual; `None` where λ is 0.
    #[must_use]
    pub fn residual_config(&self, architecture: &Architecture) -> Option<ResidualConfig> {
        let lambda = self.sibo_lambdas.iter().copied().fold(self.sibo_lambda, f64::max);
        // λ = NaN is kept so that the plan refuses it.
        (lambda != 0.0).then_some(ResidualConfig {
            lambda,
            policy: self.sibo_policy,
            arm: self.residual,
            h0_kind: architecture.h0_kind,
            seed: self.seed,
            learned: self.learn_lambda,
        })
    }

    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn check(&self) -> Result<(), SettingError> {
        let fail = |key, value: String, range| Err(SettingError { key, value, range });
        if !(self.lr.is_finite() && self.lr >= 0.0) {
            return fail("lr", self.lr.to_string(), "a number of at least 0");
        }
        if !(0.0..1.0).contains(&self.stochastic_depth) {
            return fail("stochastic-depth", self.stochastic_depth.to_string(), "in [0, 1)");
        }
        if !self.cosine_regulariser.is_finite() {
            return fail("cosine-regulariser", self.cosine_regulariser.to_string(), "a finite number");
        }
        if !self.remedies().is_none() && (self.method == MethodName::Full || self.init_adapter.is_some()) {
            let range = "left out with the method full, whose files could not carry it, and beside init-adapter, which has its own";
            let given = [
                ("contranorm", self.contranorm.is_some()),
                ("neutreno", self.neutreno.is_some()),
                ("attn-scale", self.attn_scale),
                ("feat-scale", self.feat_scale),
            ];
            let key = given.iter().find(|(_, given)| *given).map_or("fusion", |(key, _)| key);
            return fail(key, "set".to_owned(), range);
        }
        if self.contranorm.is_none() && self.contranorm_temperature != 1.0 {
            let range = "left out: it is for contranorm";
            return fail("contranorm-temperature", self.contranorm_temperature.to_string(), range);
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return fail("weight-decay", self.weight_decay.to_string(), "a number of at least 0");
        }
        if !(self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0) {
            return fail("max-grad-norm", self.max_grad_norm.to_string(), "a number of at least 0 (0 = off)");
        }
        if self.drop_overlap && self.task.is_none() {
            return fail("drop-overlap", "set".to_owned(), "left out: it is for task");
        }
        if let Some(field) = self.label_field.as_ref().filter(|_| self.task.is_some()) {
            return fail("label-field", field.clone(), "left out: the task says it");
        }
        if self.label_field.is_none() && self.field.is_some() {
            return fail("field", self.field.clone().unwrap_or_default(), "left out: it is for label-field");
        }
        if let Some(share) = self.mask_share.filter(|_| self.label_field.is_some()) {
            return fail("mask-share", share.to_string(), "left out: with label-field no token is hidden");
        }
        if let Some(start) = self.init_adapter.as_ref().filter(|_| self.label_field.is_some()) {
            let range = "left out: with label-field the head for classes would begin anew";
            return fail("init-adapter", start.display().to_string(), range);
        }
        let unread = |list: &[String]| list.join(",");
        if !self.rank_pattern.is_empty() && pairs::<usize>(&self.rank_pattern).is_none() {
            return fail("rank-pattern", unread(&self.rank_pattern), "NAME=RANK, such as q_proj=4,up_proj=16");
        }
        if !self.alpha_pattern.is_empty() && pairs::<f64>(&self.alpha_pattern).is_none() {
            return fail("alpha-pattern", unread(&self.alpha_pattern), "NAME=ALPHA, such as q_proj=8");
        }
        let low_rank = matches!(self.method, MethodName::Lora | MethodName::Dora);
        for (key, given) in [
            ("rank-pattern", !self.rank_pattern.is_empty()),
            ("alpha-pattern", !self.alpha_pattern.is_empty()),
            ("rslora", self.rslora),
            ("bias", self.bias != Biases::None),
        ] {
            if given && !low_rank {
                return fail(key, "set".to_owned(), "left out: it is for lora and dora");
            }
        }
        if !self.feed_forward.is_empty() && self.method != MethodName::Ia3 {
            return fail("feed-forward", unread(&self.feed_forward), "left out: it is for ia3");
        }
        if self.dtype == DtypeName::F16 {
            let range = "f32, bf16 or f64 in training: f16 loses small gradients";
            return fail("dtype", "f16".to_owned(), range);
        }
        if self.method == MethodName::Full && !self.base_dtype.is_auto() {
            let range = "left out with the method full, which freezes no weight";
            return fail("base-dtype", format!("{:?}", self.base_dtype).to_lowercase(), range);
        }
        if let Some(lambda) = self.sibo_lambdas.iter().chain([&self.sibo_lambda]).find(|l| !(0.0..=1.0).contains(*l)) {
            return fail("sibo-lambda", lambda.to_string(), "in [0, 1]");
        }
        if !self.sibo_lambdas.is_empty() && (self.sibo_lambda != 0.0 || self.learn_lambda.is_some()) {
            let range = "left out beside sibo-lambdas, which says it for every block";
            return fail(if self.sibo_lambda != 0.0 { "sibo-lambda" } else { "learn-lambda" }, "set".to_owned(), range);
        }
        if self.lambda_schedule.is_some() && (self.learn_lambda.is_some() || self.init_adapter.is_some()) {
            let range = "left out beside learn-lambda and init-adapter";
            return fail("lambda-schedule", "set".to_owned(), range);
        }
        if self.lambda_schedule.is_some() && self.sibo_lambda == 0.0 && self.sibo_lambdas.is_empty() {
            return fail("sibo-lambda", "0".to_owned(), "above 0: lambda-schedule is its course");
        }
        if self.learn_lambda.is_some() && !(self.sibo_lambda > 0.0 && self.sibo_lambda < 1.0) {
            let range = "above 0 and below 1: with learn-lambda it is where λ begins";
            return fail("sibo-lambda", self.sibo_lambda.to_string(), range);
        }
        for (key, value) in [("batch-size", self.batch_size), ("accumulate", self.accumulate)] {
            if value == 0 {
                return fail(key, "0".to_owned(), "at least 1");
            }
            // Their product is counted in; no data set comes near.
            if value > 1 << 24 {
                return fail(key, value.to_string(), "at most 16777216");
            }
        }
        for (key, value) in [("batch-tokens", self.batch_tokens), ("micro-batch", self.micro_batch)] {
            if value == Some(0) {
                return fail(key, "0".to_owned(), "at least 1");
            }
        }
        if self.cutoff < 2 {
            return fail("cutoff", self.cutoff.to_string(), "at least 2 tokens");
        }
        for (key, value) in [("eval-every", self.eval_every), ("save-every", self.save_every)] {
            if value == 0 {
                return fail(key, "0".to_owned(), "at least 1");
            }
        }
        if self.steps == Some(0) || (self.steps.is_none() && self.epochs == 0) {
            return fail("steps", "0".to_owned(), "at least 1");
        }
        if self.method == MethodName::Full && !self.modules_to_save.is_empty() {
            return fail("modules-to-save", unread(&self.modules_to_save), "left out: full trains every module");
        }
        if matches!(self.method, MethodName::Prefix | MethodName::Prompt)
            && (self.sibo_lambda > 0.0 || !self.sibo_lambdas.is_empty())
        {
            let range = "0 for prefix and prompt: their parameters read no token that h0 could be mixed into";
            return fail("sibo-lambda", self.sibo_lambda.to_string(), range);
        }
        if matches!(self.method, MethodName::Bitfit | MethodName::Norms)
            && (self.sibo_lambda > 0.0 || !self.sibo_lambdas.is_empty())
        {
            let range =
                "0 for bitfit and norms: a bias or a norm's weight has no linear input that h0 could be mixed into";
            return fail("sibo-lambda", self.sibo_lambda.to_string(), range);
        }
        if self.method == MethodName::Full && (self.sibo_lambda > 0.0 || !self.sibo_lambdas.is_empty()) {
            let range = "0 for full fine-tuning, which has no module that could read the initial residual";
            return fail("sibo-lambda", self.sibo_lambda.to_string(), range);
        }
        if self.method == MethodName::Full && self.init_adapter.is_some() {
            return fail("init-adapter", "set".to_owned(), "unset for full fine-tuning");
        }
        Ok(())
    }
}

/// Pairs of a name and a number, as `NAME=NUMBER`; `None` where one is no such pair.
fn pairs<T: FromStr>(list: &[String]) -> Option<Vec<(String, T)>> {
    let one = |text: &String| {
        let (name, number) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty())?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    list.iter().map(one).collect()
}

/// Whether two targets name the same linear, one of them perhaps by more of its path.
fn is_same_target(a: &str, b: &str) -> bool {
    let ends = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|f| f.is_empty() || f.ends_with('.'));
    ends(a, b) || ends(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toml_overrides_defaults_and_unknown_keys_are_refused() {
        let config: TrainConfig =
            toml::from_str("sibo-lambda = 0.2\nmethod = \"adapter\"\nsibo-policy = \"all\"").unwrap();
        assert_eq!((config.sibo_lambda, config.method, config.sibo_policy), (0.2, MethodName::Adapter, Policy::All));
        assert_eq!(config.lr, 3e-4);
        let error = toml::from_str::<TrainConfig>("sibo_lamda = 0.2").unwrap_err().to_string();
        assert!(error.contains("sibo_lamda"), "{error}");
    }

    #[test]
    fn nonsense_is_named() {
        let with = |change: fn(&mut TrainConfig)| {
            let mut config = TrainConfig::default();
            change(&mut config);
            config.check().unwrap_err().key
        };
        assert_eq!(with(|c| c.sibo_lambda = f64::NAN), "sibo-lambda");
        assert_eq!(with(|c| c.sibo_lambda = 1.5), "sibo-lambda");
        assert_eq!(with(|c| c.lr = f64::INFINITY), "lr");
        assert_eq!(with(|c| c.batch_size = 0), "batch-size");
        assert_eq!(with(|c| c.dtype = DtypeName::F16), "dtype");
        assert_eq!(with(|c| (c.method, c.base_dtype) = (MethodName::Full, BaseDtypeName::Bf16)), "base-dtype");
        assert_eq!(with(|c| c.steps = Some(0)), "steps");
        assert_eq!(TrainConfig::default().check(), Ok(()));
    }
}
