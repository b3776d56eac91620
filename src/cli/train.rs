//! `smooth-probe train`: fine-tuning, from the options to the run folder.

mod dashboard;
mod dry_run;
mod task;
mod watch;

use super::remedies::RemedyArgs;
use super::{device, interrupt, objective, open, profile_report, texts};
use crate::analysis::chunks::TextSupply;
use crate::analysis::manifest::Manifest;
use crate::analysis::similarity::EncodedText;
use crate::analysis::texts::FileTexts;
use crate::data::{
    EncodingOptions, EncodingReport, Example, Labelled, LossOn, Template, encode_records, read_labelled,
    read_labelled_images, read_records, split_validation,
};
use crate::hash;
use crate::model::{LoadedModel, ModelError, Positions, Processor};
use crate::peft::{Arm, Biases, LearnedBy, Peft, Policy, load_adapter};
use crate::persist;
use crate::profile;
use crate::tasks::CLASSES_FILE;
use crate::train::{
    BaseDtypeName, DtypeName, LambdaSchedule, MethodName, Objective, Outcome, ProbeSet, RunFiles, Schedule, Subject,
    TensorBoard, TrainConfig, TrainData, Trainer, preset,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Device;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use watch::Watchers;

/// The options; each may also stand in the TOML of --config under the same name, and wins over it.
#[derive(Debug, Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct TrainArgs {
    /// A TOML with any of these options; options on the command line win over it.
    #[arg(long, value_name = "TOML")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// A hub name, a folder, a GGUF file, or `embedded`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    /// The settings of one of SIBO's released scripts, such as sibo/llama-7b/lora-math; --config and other options win over
    /// them.
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    /// Train on a task's own training data, which --data holds: arithmetic, commonsense, a set such as boolq or glue/cola,
    /// or your own .toml (docs/tasks.md). Test items that they hold too are counted.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["label_field", "field"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Leave records of --task out that are test items of a set in --data; without it they are counted and told.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    drop_overlap: bool,
    /// Training data: JSON, JSON lines (instruction/input/output, question/answer, messages, text) or plain text; for a
    /// model that reads images a folder that holds a folder of .jpg and .png for each class; with --task the folder that holds the task's file, or that file.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// The run folder: events.jsonl, adapter/, best/, last/, manifest.json.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
    /// What is trained [default: lora].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<MethodName>,
    /// Linears that get a module, by name [default: those of the released code].
    #[arg(long, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<String>,
    /// LoRA's rank [default: 32].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// LoRA's alpha; the scale is alpha/rank [default: twice the rank].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    /// Scale LoRA by alpha/sqrt(rank) in place of alpha/rank.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    rslora: bool,
    /// Ranks of single modules: ends of their paths, or regular expressions [default: none].
    #[arg(long, value_name = "NAME=RANK", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rank_pattern: Vec<String>,
    /// Alphas of single modules, in the same way [default: none].
    #[arg(long, value_name = "NAME=ALPHA", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alpha_pattern: Vec<String>,
    /// The targets of ia3 whose input is rescaled, and not their output [default: those of the feed-forward].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    feed_forward: Vec<String>,
    /// Virtual tokens of prefix and prompt [default: 20].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_tokens: Option<usize>,
    /// Biases that are trained beside lora and dora: none, all, targets (those of the targets; PEFT's lora_only) [default:
    /// none].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    bias: Option<Biases>,
    /// Modules of the model that are trained whole and saved with the adapter, such as lm_head [default: none].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules_to_save: Vec<String>,
    /// Dropout on LoRA's input, after the mix [default: 0.05].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dropout: Option<f64>,
    /// The adapter's inner width [default: 256].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    bottleneck: Option<usize>,
    /// The adapter's scale [default: 1].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter_scale: Option<f64>,
    /// Lambda of the initial residual, (1-lambda)*x + lambda*h0; 0 is vanilla [default: 0].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    sibo_lambda: Option<f64>,
    /// Lambda of every block in the place of --sibo-lambda, as many as the model has blocks [default: none].
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "sibo_lambda")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sibo_lambdas: Vec<f64>,
    /// Learn lambda, sigmoid(theta), from --sibo-lambda on: one for each layer or for each module that it is mixed into.
    #[arg(long, value_name = "BY", requires = "sibo_lambda")]
    #[serde(skip_serializing_if = "Option::is_none")]
    learn_lambda: Option<LearnedBy>,
    /// Let lambda rise from 0 to what is given over the run, or fall from it to 0, in a straight line; what is saved has the
    /// lambda of its step.
    #[arg(long, value_name = "COURSE", conflicts_with = "learn_lambda")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lambda_schedule: Option<LambdaSchedule>,
    /// Which modules receive it: official (as released: the first feed-forward linear) or all (the paper's
    /// formula) [default: official].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    sibo_policy: Option<Policy>,
    /// What the lambda term reads: h0 (SIBO), none (the scale control: nothing is added), h0-normed, shuffled,
    /// random [default: h0].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    residual: Option<Arm>,
    /// Start from this adapter (PEFT's own too); with --sibo-lambda the residual is added to it.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    init_adapter: Option<PathBuf>,
    /// Peak learning rate [default: 3e-4].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// Its course after the warm-up [default: linear].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
    /// Steps of linear warm-up; the first step then has rate 0 [default: 100].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_steps: Option<u64>,
    /// Decoupled weight decay [default: 0].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    /// Clip the norm of all gradients at this; 0 = off [default: 1].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_grad_norm: Option<f64>,
    /// Sequences of a micro-batch; a step reads batch-size * accumulate sequences [default: 4].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// Micro-batches of a step, weighted by their target tokens [default: 4].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    accumulate: Option<usize>,
    /// A step holds examples of up to N tokens together, in place of batch-size * accumulate sequences.
    #[arg(long, value_name = "N", conflicts_with_all = ["batch_size", "accumulate"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_tokens: Option<usize>,
    /// Examples that run together; a step's gradients are those of one mean loss whatever N [default: batch-size, or
    /// with --batch-tokens all of a step].
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    micro_batch: Option<usize>,
    /// Keep only each block's input and compute the block again in the backward pass: the same result, less memory,
    /// about a third more time.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    checkpointing: bool,
    /// Optimizer steps [default: by --epochs].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u64>,
    /// Passes over the data [default: 3].
    #[arg(long, conflicts_with = "steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    /// Longest example in tokens; longer ones lose their end [default: 256].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cutoff: Option<usize>,
    /// Examples held out for validation; 0 = none [default: 120, or a tenth of the data if that is less].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    val_size: Option<usize>,
    /// Steps between validations [default: 80].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_every: Option<u64>,
    /// Steps between checkpoints [default: 80].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_every: Option<u64>,
    /// Steps between similarity measurements of the held-out texts; 0 = never [default: 80].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_every: Option<u64>,
    /// Those texts (.txt, .csv, .tsv, .json, .jsonl) [default: the first 32 validation examples].
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_texts: Option<PathBuf>,
    /// Also write the run for TensorBoard, into this folder: a run a folder.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tensorboard: Option<PathBuf>,
    /// Stop after this many validations without improvement; 0 = never [default: 0].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    patience: Option<u64>,
    /// Which tokens are targets [default: all].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_on: Option<LossOn>,
    /// Share of the tokens that are hidden from an encoder, which learns to predict them: 80 % become the mask, 10 %
    /// another token, 10 % stay [default: 0.15].
    #[arg(long, value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_share: Option<f64>,
    /// Learn the class of each text, which this field of --data names (.csv, .tsv, .json, .jsonl; pairs of texts as
    /// `similarity` reads them). The model's head for classes is trained too, and begins at random where there is none.
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["mask_share", "loss_on", "template", "init_adapter"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    label_field: Option<String>,
    /// The field of the text beside it [default: text, or sentence1 and sentence2].
    #[arg(long, requires = "label_field")]
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// How records become text: alpaca, released, short, or a file [default: alpaca].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<String>,
    /// Keep the file's order.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_shuffle: bool,
    /// Seed of start values, order, dropout and split [default: 42].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// What is computed in; bf16 is for GPUs, a CPU is faster in f32. What is trained stays in f32, or f64 with f64
    /// [default: f32].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<DtypeName>,
    /// What frozen weights are stored in: 16 bits halve their memory and are widened where they are read. auto: as
    /// --dtype [default: auto].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    base_dtype: Option<BaseDtypeName>,
    /// auto (a GPU if this build knows one and it answers), cpu, cuda, cuda:N or metal [default: auto].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Go on from the last checkpoint in --out; the result equals that of a run never stopped, bit for bit.
    #[arg(long)]
    #[serde(skip)]
    resume: bool,
    /// Show at the end where the time went; also in manifest.json.
    #[arg(long)]
    #[serde(skip)]
    profile: bool,
    /// Show modules, memory and time of the run, and train nothing.
    #[arg(long)]
    #[serde(skip)]
    dry_run: bool,
    /// Show loss, learning rate and similarity by layer as curves while training; in a log the usual lines.
    #[arg(long)]
    #[serde(skip)]
    dashboard: bool,
    /// Print JSON.
    #[arg(long)]
    #[serde(skip)]
    json: bool,
    // Last, since its heading would stand over what follows.
    #[command(flatten)]
    #[serde(flatten)]
    remedies: RemedyArgs,
}

impl TrainArgs {
    fn settings(&self) -> Result<TrainConfig> {
        let mut table = match &self.config {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| open::unreadable(path))?;
                text.parse()
                    .map_err(|e: toml::de::Error| anyhow!("{}: {}; correct the TOML", path.display(), e.message()))?
            }
        };
        check_whole_numbers(&serde_json::to_value(self)?)?;
        let given = toml::Table::try_from(self)?;
        if given.contains_key("epochs") {
            table.remove("steps");
        }
        table.extend(given.clone());
        if let Some(name) = table.remove("preset") {
            let mut filled = preset(name.as_str().context("preset: must be a name")?)?;
            if table.contains_key("epochs") || table.contains_key("steps") {
                filled.remove("epochs");
            }
            for (key, value) in filled {
                table.entry(key).or_insert(value);
            }
        }
        refuse_unread(&given, &table)?;
        for key in ["model", "data", "out"] {
            ensure!(table.contains_key(key), "--{key} is missing; give it on the command line or in --config");
        }
        let place = self.config.as_ref().map_or_else(|| "options".to_owned(), |p| p.display().to_string());
        table.clone().try_into().map_err(|e: toml::de::Error| {
            let key = table.iter().find(|(key, value)| !is_setting(key, value)).map(|(key, _)| key.as_str());
            let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
            anyhow!("{place}: {key}{}; correct it, or leave it out for its default", e.message())
        })
    }
}

/// The options that some methods have, with those methods.
const OF_METHODS: [(&str, &[&str]); 7] = [
    ("rank", &["lora", "dora"]),
    ("alpha", &["lora", "dora"]),
    ("dropout", &["lora", "dora"]),
    ("bottleneck", &["adapter", "adapter-parallel", "houlsby", "pfeiffer"]),
    ("adapter-scale", &["adapter", "adapter-parallel", "houlsby", "pfeiffer"]),
    ("virtual-tokens", &["prefix", "prompt"]),
    ("targets", &["lora", "dora", "ia3", "adapter", "adapter-parallel", "houlsby", "pfeiffer", "norms"]),
];

/// Refuses an option of another method on the command line: it would be read by nobody. A file of options may hold all of
/// them; with an adapter to start from, its method counts.
fn refuse_unread(given: &toml::Table, all: &toml::Table) -> Result<()> {
    let method = all.get("method").and_then(toml::Value::as_str).unwrap_or("lora");
    for (option, methods) in OF_METHODS.iter().filter(|_| !all.contains_key("init-adapter")) {
        let unread = given.contains_key(*option) && !methods.contains(&method);
        ensure!(!unread, "--{option} is for the methods {}; leave it out with {method}", methods.join(", "));
    }
    Ok(())
}

/// Whether a key and its value are a setting on their own: finds the one that a whole table is refused for.
fn is_setting(key: &str, value: &toml::Value) -> bool {
    toml::Table::from_iter([(key.to_owned(), value.clone())]).try_into::<TrainConfig>().is_ok()
}

/// Refuses options that TOML's 64-bit integers, through which they go, cannot hold.
fn check_whole_numbers(options: &serde_json::Value) -> Result<()> {
    for (key, value) in options.as_object().into_iter().flatten() {
        let fits = value.as_u64().is_none_or(|number| i64::try_from(number).is_ok());
        ensure!(fits, "{key} is {value}; it must be below 2^63");
    }
    Ok(())
}

pub(super) fn run(args: &TrainArgs, quiet: bool) -> Result<()> {
    let config = args.settings()?;
    config.check()?;
    let mut manifest = Manifest::new("train");
    if !args.dry_run {
        refuse_used(&config.out, args.resume)?;
        if let Some(folder) = config.tensorboard.as_deref().filter(|_| !args.resume) {
            TensorBoard::refuse_used(folder)?;
        }
    }
    let (place, precision) = (device::open(&config.device)?, config.precision());
    device::check(precision, &place)?;
    let mut model = open::model(&config.model, config.revision.as_deref(), precision, &place)?;
    model.refuse_partial()?;
    let given = task::read(&config)?;
    let labelled = match &given {
        Some(given) => given.labelled(&config, &mut model, &place)?,
        None => labelled(&config, &mut model, &place)?,
    };
    let positions = &model.transformer.architecture().positions;
    ensure!(
        config.method != MethodName::Full || !matches!(positions, Positions::Buckets { .. }),
        "--method full: the biases by distance of a {} model are not trained here; choose another method",
        model.transformer.architecture().family
    );
    ensure!(
        precision.quantised.is_none() || config.modules_to_save.is_empty(),
        "--base-dtype {}: a quantised module cannot be trained whole; leave --modules-to-save out",
        precision.base_name()
    );
    // A model that cannot be trained leaves no folder.
    model.transformer.head().with_context(|| format!("--model {}", config.model))?;
    let objective = match &labelled {
        None => objective::of(&model, config.mask_share, config.seed)?,
        Some(labelled) => {
            let last = model.transformer.architecture().causal;
            match labelled.examples.iter().any(|example| example.score.is_some()) {
                true => Objective::Scores { last },
                false => Objective::Classes { last },
            }
        }
    };
    let classes = labelled.as_ref().map(|labelled| labelled.classes.clone());
    if !args.dry_run {
        prepare_folder(&config.out)?;
    }
    let hashes = model.hashes()?;
    let data_hash = match &given {
        Some(given) => given.sha256()?,
        None => texts::sha256(&config.data)?,
    };
    let (data, mut notes) = prepare_data(&config, &model, labelled, given.as_ref())?;
    let fresh: Vec<&str> = model.transformer.fresh_head().iter().map(String::as_str).collect();
    if !fresh.is_empty() {
        notes.push(format!(
            "the head begins at random, since the model's files have none for these classes: {}",
            fresh.join(", ")
        ));
    }
    let companions = if config.method == MethodName::Full { model.companions.clone() } else { BTreeMap::new() };
    let subject = subject(&config, model)?.learning(objective).configured(&config);
    if args.dry_run {
        let found = dry_run::measure(&config, &subject, &data)?;
        found.print(&subject, &notes, args.json);
        return Ok(());
    }
    for note in notes.iter().filter(|_| !quiet) {
        note!("{note}");
    }
    // What changes no bit of the result may differ when a run is resumed.
    let identity = TrainConfig {
        out: PathBuf::new(),
        device: device::kind(&place).to_owned(),
        checkpointing: false,
        tensorboard: None,
        base_dtype: if precision.base == precision.compute && precision.quantised.is_none() {
            BaseDtypeName::Auto
        } else {
            config.base_dtype
        },
        ..config.clone()
    };
    let fingerprint = hash::sha256_bytes(json!([identity, hashes, data_hash]).to_string().as_bytes());
    let files = RunFiles::new(&config.out, &config.model);
    let stop = interrupt::flag()?;
    let trainer = Trainer::new(&config, &subject, &data, Some(&files))?.stop_when(&stop);
    manifest
        .set("config", json!(config))
        .set("model_sha256", json!(hashes))
        .set("data_sha256", data_hash)
        .set("examples", json!({"train": data.train.len(), "validation": data.validation.len()}))
        .set("trainable", subject.trainable())
        .set("steps", trainer.total_steps())
        .set("device", device::name(&place))
        .set("dtype", precision.compute.as_str())
        .set("base_dtype", precision.base_name())
        .set("trained_dtype", precision.trained().as_str())
        .set("status", "running");
    if let Some(classes) = &classes {
        manifest.set("classes", json!(classes));
    }
    if let Some(given) = &given {
        manifest.set("task", given.described());
    }
    if let Some(peft) = subject.peft() {
        let modules: Vec<_> = peft.plan().modules.iter().map(|m| json!([m.path, m.residual.to_string()])).collect();
        manifest.set("modules", modules);
    }
    manifest.write(&config.out)?;
    let mut watchers = Watchers::new(args.dashboard, quiet, config.tensorboard.as_deref(), args.resume)?;
    if args.profile {
        profile::start();
    }
    let outcome = trainer.run(args.resume, &fingerprint, &mut watchers)?;
    if outcome.interrupted {
        manifest.set("status", "interrupted").set("outcome", describe(&outcome));
        manifest.write(&config.out)?;
        watchers.finish().with_context(|| format!("the checkpoint in {} is whole", files.last().display()))?;
        let (out, step) = (config.out.display(), outcome.steps);
        let text = format!("{out}: asked to stop, after step {step}; the same command with --resume goes on");
        return Err(interrupt::Interrupted(text).into());
    }
    for (name, bytes) in &companions {
        persist::write_file(&files.result(&subject).join(name), bytes)?;
    }
    if let Some(classes) = &classes {
        // Whoever uses the head elsewhere must know what its outputs stand for.
        let text = format!("{:#}\n", json!(classes));
        persist::write_file(&files.result(&subject).join(CLASSES_FILE), text.as_bytes())?;
    }
    if args.profile {
        manifest.set("profile", profile_report::report()?);
    }
    manifest.set("status", "finished").set("outcome", describe(&outcome));
    manifest.write(&config.out)?;
    let result = files.result(&subject);
    match args.json {
        true => say!("{:#}", described(&config, &subject, &result, &outcome, &watchers)),
        false => say!("{}", result.display()),
    }
    watchers.finish().with_context(|| format!("the run is finished and whole in {}", result.display()))
}

/// The run for machines: `docs/json.md`.
fn described(
    config: &TrainConfig,
    subject: &Subject,
    result: &Path,
    outcome: &Outcome,
    watchers: &Watchers,
) -> serde_json::Value {
    json!({
        "out": config.out.display().to_string(),
        "result": result.display().to_string(),
        "method": config.method,
        "trainable": subject.trainable(),
        "outcome": describe(outcome),
        "last": watchers.last(),
    })
}

fn describe(outcome: &Outcome) -> serde_json::Value {
    json!({
        "steps": outcome.steps,
        "best_val_loss": outcome.best.map(|(loss, _)| loss),
        "best_step": outcome.best.map(|(_, step)| step),
        "stopped_early": outcome.stopped_early,
        "resumed_from": outcome.resumed_from,
    })
}

/// Refuses to write over an earlier run.
fn refuse_used(out: &Path, resume: bool) -> Result<()> {
    let used = out.join("events.jsonl").exists() || out.join("last").exists();
    if used && !resume {
        bail!("{}: holds a run already; add --resume to go on, or choose another --out", out.display());
    }
    Ok(())
}

/// Makes the folder, and finds out early whether it can be written.
fn prepare_folder(out: &Path) -> Result<()> {
    persist::create_folder(out)?;
    let probe = out.join(".writable");
    persist::write_file(&probe, b"")?;
    std::fs::remove_file(&probe).with_context(|| probe.display().to_string())
}

/// Encodes and splits the data; answers also what the user should know of it.
fn prepare_data(
    config: &TrainConfig,
    model: &LoadedModel,
    labelled: Option<Labelled>,
    given: Option<&task::TaskData>,
) -> Result<(TrainData, Vec<String>)> {
    let context = model.transformer.architecture().max_positions;
    let options = EncodingOptions { cutoff: config.cutoff.min(context), loss_on: config.loss_on };
    let (examples, report) = match labelled {
        Some(labelled) => (labelled.examples, EncodingReport::default()),
        None => {
            let (records, template) = match given {
                Some(given) => given.records(config)?,
                None => (read_records(&config.data)?, Template::parse(&config.template)?),
            };
            encode_records(&records, &template, model.tokenizer()?, options, &config.data)?
        }
    };
    let mut notes = given.map(task::TaskData::notes).unwrap_or_default();
    if config.cutoff > context && model.transformer.architecture().patches.is_none() {
        notes.push(format!("--cutoff {} is longer than the model's context: cut at {context}", config.cutoff));
    }
    if report.dropped > 0 {
        notes.push(format!("{} records left out: no target token is left of them", report.dropped));
    }
    if report.truncated > 0 {
        notes.push(format!("{} of {} examples cut at {} tokens", report.truncated, examples.len(), options.cutoff));
    }
    let count = examples.len();
    let val_size = config.val_size.unwrap_or(120.min(count / 10));
    let (train, held_out) = split_validation(count, val_size, config.seed)?;
    let pick = |indices: &[usize]| indices.iter().filter_map(|&i| examples.get(i).cloned()).collect::<Vec<_>>();
    let validation = pick(&held_out);
    let texts = match &config.probe_texts {
        None => validation.iter().take(32).cloned().collect(),
        Some(path) => probe_texts(path, model, options.cutoff)?,
    };
    // A tokenizer of another model is found out before the first step, not when its token comes by.
    let ids = examples.iter().chain(&texts).flat_map(|e| &e.ids);
    let vocab = model.transformer.architecture().vocab_size;
    if let Some(&id) = ids.copied().collect::<BTreeSet<u32>>().last().filter(|&&id| id as usize >= vocab) {
        return Err(ModelError::Token { id, vocab }.into());
    }
    Ok((TrainData { train: pick(&train), validation, probe: ProbeSet { texts } }, notes))
}

/// The texts of --data with their classes, if it is classes that are learned, or its images; gives the model its head for
/// them.
fn labelled(config: &TrainConfig, model: &mut LoadedModel, place: &Device) -> Result<Option<Labelled>> {
    let architecture = model.transformer.architecture();
    let labelled = match (&*model.processor, &config.label_field) {
        (Processor::Texts(_), None) => return Ok(None),
        (Processor::Texts(tokenizer), Some(label)) => {
            let cutoff = config.cutoff.min(architecture.max_positions);
            read_labelled(&config.data, label, config.field.as_deref(), tokenizer.as_ref(), cutoff)?
        }
        (Processor::Images(processor), label) => {
            let given = [
                ("label-field", label.is_some()),
                ("mask-share", config.mask_share.is_some()),
                ("init-adapter", config.init_adapter.is_some()),
            ];
            texts::refuse_for_images(architecture.family, &given)?;
            let (data, family) = (config.data.display(), architecture.family);
            ensure!(config.data.is_dir(), "{data}: is no folder, and a {family} model learns from a folder of images");
            read_labelled_images(&config.data, processor)?
        }
    };
    let files = open::files(&config.model, config.revision.as_deref())?;
    model.transformer = model.classifying(labelled.classes.len(), files.as_deref(), config.precision(), place)?;
    Ok(Some(labelled))
}

fn probe_texts(path: &Path, model: &LoadedModel, cutoff: usize) -> Result<Vec<Example>> {
    let texts = FileTexts { longest: cutoff, ..texts::file_texts(model, path, None, None, None)? };
    let example = |text: EncodedText| Example {
        ids: text.ids,
        special: text.special,
        types: text.types,
        image: text.image,
        ..Example::default()
    };
    let texts = texts.open()?.map(|text| Ok(example(text?))).collect::<Result<Vec<_>>>()?;
    ensure!(!texts.is_empty(), "{}: holds no text", path.display());
    Ok(texts)
}

/// What is trained.
fn subject(config: &TrainConfig, model: LoadedModel) -> Result<Subject> {
    let transformer = model.transformer;
    let architecture = transformer.architecture().clone();
    let Some(peft_config) = config.peft(&architecture) else {
        return Ok(Subject::full(transformer)?);
    };
    let peft = match &config.init_adapter {
        None => Peft::initial(&transformer, peft_config, config.seed)?,
        Some(start) => {
            let loaded = load_adapter(start, &transformer)?;
            match config.residual_config(&architecture) {
                None => loaded,
                Some(residual) => loaded.with_residual(&transformer, Some(residual))?,
            }
        }
    };
    Ok(Subject::adapter(transformer, peft)?)
}
