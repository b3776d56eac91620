//! `smooth-probe compare`: does the initial residual help on my data?

use super::{device, open, progress, texts};
use crate::analysis::manifest::Manifest;
use crate::compare::{self, Arm, Chosen, CompareError, Data, Design, Event, Kind, Metric, answer, pairs, write_report};
use crate::data::{EncodingOptions, Example, LossOn, Template, encode_records, read_records, split_validation};
use crate::hash;
use crate::model::{LoadedModel, Transformer};
use crate::peft::{Peft, Policy};
use crate::persist;
use crate::train::{MethodName, Objective, Subject, TrainConfig, evaluate_examples, gradients};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`.
    #[arg(long)]
    model: String,
    /// Revision of a hub model [default: main].
    #[arg(long)]
    revision: Option<String>,
    /// Training data, as `train --data` reads it.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Test data of the same kind; nothing is chosen by it.
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Folder of the report. The same command goes on where it was stopped.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The method [default: lora].
    #[arg(long)]
    method: Option<MethodName>,
    /// λ that SIBO and its scale control choose from.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [0.1, 0.2, 0.3])]
    lambdas: Vec<f64>,
    /// Learning rates that every arm chooses from.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1e-4, 3e-4, 1e-3])]
    lrs: Vec<f64>,
    /// Paired seeds; fewer than 5 allow no conclusion.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Time for all of it, such as 30m or 2h: decides how many steps each run gets, unless --steps does.
    #[arg(long, default_value = "2h", value_name = "TIME")]
    budget: String,
    /// Optimizer steps of each run [default: what the budget holds, at most three passes over the data].
    #[arg(long)]
    steps: Option<u64>,
    /// What the verdict is made of.
    #[arg(long, value_enum, default_value_t = Metric::Loss)]
    metric: Metric,
    /// The least difference that matters [default: 0.02 nats, or 2 points].
    #[arg(long)]
    margin: Option<f64>,
    /// A TOML with any other settings of `train`, such as rank, batch-size, template, loss-on, sibo-policy.
    #[arg(long, value_name = "TOML")]
    config: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Settings that the comparison itself decides.
const DECIDED: [(&str, &str); 11] = [
    ("model", "--model"),
    ("revision", "--revision"),
    ("data", "--train"),
    ("out", "--out"),
    ("lr", "--lrs"),
    ("sibo-lambda", "--lambdas"),
    ("sibo-lambdas", "--lambdas"),
    ("residual", "the arms"),
    ("seed", "--seeds"),
    ("steps", "--steps"),
    ("device", "--device"),
];

impl CompareArgs {
    /// What every run shares: answers alone are learned and the residual goes where the paper has it, unless a file says
    /// otherwise.
    fn training(&self) -> Result<TrainConfig> {
        let mut table = toml::Table::new();
        table.insert("loss-on".to_owned(), "answer".into());
        table.insert("sibo-policy".to_owned(), toml::Value::try_from(Policy::All)?);
        let place = self.config.as_ref().map_or_else(|| "options".to_owned(), |path| path.display().to_string());
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).with_context(|| open::unreadable(path))?;
            let given: toml::Table = text.parse().map_err(|e: toml::de::Error| anyhow!("{place}: {}", e.message()))?;
            for (key, decided) in DECIDED {
                ensure!(!given.contains_key(key), "{place}: {key} is decided by {decided} here; leave it out");
            }
            table.extend(given);
        }
        let mut config: TrainConfig =
            table.try_into().map_err(|e: toml::de::Error| anyhow!("{place}: {}; see `train --help`", e.message()))?;
        config.method = self.method.unwrap_or(config.method);
        config.model.clone_from(&self.model);
        config.check()?;
        ensure!(
            !matches!(config.method, MethodName::Full) && config.init_adapter.is_none() && config.label_field.is_none(),
            "compare trains new modules on records; --method full, init-adapter and label-field are not supported"
        );
        Ok(config)
    }
}

/// A time such as 90s, 30m, 2h or 1.5h, in seconds.
fn seconds(text: &str) -> Result<f64> {
    let unit = |ending: char| match ending {
        's' => Some(1.0),
        'm' => Some(60.0),
        'h' => Some(3600.0),
        'd' => Some(86400.0),
        _ => None,
    };
    let split = text.char_indices().next_back().and_then(|(at, ending)| Some((text.get(..at)?, unit(ending)?)));
    let read = split.and_then(|(number, unit)| Some(number.trim().parse::<f64>().ok()? * unit));
    match read.filter(|seconds| seconds.is_finite() && *seconds > 0.0) {
        Some(seconds) => Ok(seconds),
        None => bail!("--budget is {text}; it must be a time such as 90s, 30m or 2h"),
    }
}

pub(super) fn run(args: &CompareArgs, quiet: bool) -> Result<()> {
    let budget = seconds(&args.budget)?;
    let training = args.training()?;
    let asked = Design { lambdas: args.lambdas.clone(), lrs: args.lrs.clone(), seeds: args.seeds, budget, training };
    asked.check()?;
    let margin = args.margin.unwrap_or_else(|| args.metric.margin());
    ensure!(margin.is_finite() && margin > 0.0, "--margin is {margin}; it must be a number above 0");
    let mut manifest = Manifest::new("compare");
    let place = device::open(&args.device)?;
    let model = open::model(&args.model, args.revision.as_deref(), asked.training.precision(), &place)?;
    ensure!(
        model.transformer.architecture().causal,
        "--model {}: compare reads records for decoders, and {} is an encoder",
        args.model,
        model.transformer.architecture().family
    );
    let data = data(args, &asked.training, &model)?;
    // A mistake in the settings is found before the folder is touched.
    let sibo = Arm { kind: Kind::Sibo, lambda: args.lambdas.first().copied().unwrap_or_default(), lr: 1e-4 };
    let planned = subject(&model.transformer, &asked, sibo)?;
    let modules = planned.peft().map_or(0, |peft| peft.plan().mixed());
    persist::create_folder(&args.out)?;
    let hashes = model.hashes()?;
    let inputs = BTreeMap::from([
        ("model".to_owned(), json!(hashes).to_string()),
        ("train".to_owned(), texts::sha256(&args.train)?),
        ("test".to_owned(), texts::sha256(&args.test)?),
        ("device".to_owned(), device::kind(&place).to_owned()),
    ]);
    let fingerprint = hash::sha256_bytes(json!([asked, args.steps, inputs]).to_string().as_bytes());
    let design = compare::settled(&args.out, &fingerprint, || settle(&asked, args.steps, &planned, &data))?;
    drop(planned);
    if !quiet {
        note!(
            "{} runs of {} steps, {} of them to choose learning rates and lambda",
            design.cells(),
            design.training.steps.unwrap_or_default(),
            design.candidates().len()
        );
    }
    let bar = progress::bar(design.cells() as u64 + 1, "runs", quiet);
    let tell = |line: String| {
        if bar.is_hidden() && !quiet {
            note!("{line}");
        }
        bar.println(line);
    };
    let finished = compare::compare(&model.transformer, &data, &design, &inputs, &args.out, |event| match event {
        Event::Cell { arm, seed, result } => {
            let at = seed.map_or_else(|| format!("lr {}", arm.lr), |seed| format!("seed {seed}"));
            let lambda = if arm.lambda > 0.0 { format!(" lambda {}", arm.lambda) } else { String::new() };
            let loss = result.test.map_or(result.validation.loss, |found| found.loss);
            let what = if seed.is_some() { "test" } else { "validation" };
            tell(format!("{}{lambda} {at}: {what} loss {loss:.4}, {:.0} s", arm.kind.name(), result.seconds));
            bar.inc(1);
        }
        Event::Chosen(chosen) => {
            for Chosen { arm, validation_loss } in chosen {
                tell(format!("{} takes lr {}, lambda {} ({validation_loss:.4})", arm.kind.name(), arm.lr, arm.lambda));
            }
        }
    })?;
    bar.finish_and_clear();
    let compared = pairs(&finished, args.metric, margin)?;
    let answer = answer(&finished, &compared, args.metric, modules);
    write_report(&args.out, &design, &finished, &compared, &answer, args.metric)?;
    manifest.set("design", json!(design)).set("inputs", json!(inputs)).set("answer", json!(answer));
    manifest.set("device_name", device::name(&place));
    manifest.write(&args.out)?;
    match args.json {
        true => say!("{:#}", json!(answer)),
        false => say!("{answer}"),
    }
    if !quiet {
        note!("{}", args.out.join("README.md").display());
    }
    Ok(())
}

/// The examples of both files; a part of the training data is held out to choose by.
fn data(args: &CompareArgs, config: &TrainConfig, model: &LoadedModel) -> Result<Data> {
    let cutoff = config.cutoff.min(model.transformer.architecture().max_positions);
    let read = |path: &Path, loss_on: LossOn| -> Result<Vec<Example>> {
        let records = read_records(path)?;
        let template = Template::parse(&config.template)?;
        Ok(encode_records(&records, &template, model.tokenizer()?, EncodingOptions { cutoff, loss_on }, path)?.0)
    };
    let (all, test) = (read(&args.train, config.loss_on)?, read(&args.test, config.loss_on)?);
    let val_size = config.val_size.unwrap_or_else(|| 200.min(all.len() / 5));
    ensure!(val_size > 0, "{}: too few records to hold some out to choose by; add some", args.train.display());
    let (train, validation) = split_validation(all.len(), val_size, 0)?;
    let pick = |indices: &[usize]| indices.iter().filter_map(|&index| all.get(index).cloned()).collect::<Vec<_>>();
    Ok(Data { train: pick(&train), validation: pick(&validation), test })
}

fn subject(model: &Transformer, design: &Design, arm: Arm) -> Result<Subject> {
    let config = design.settings(arm, None);
    let peft = config.peft(model.architecture()).ok_or_else(|| anyhow!("--method full is not supported here"))?;
    Ok(Subject::adapter(model.clone(), Peft::initial(model, peft, config.seed)?)?.configured(&config))
}

/// The design with its steps, by how long a step and a reading of the items take.
fn settle(asked: &Design, steps: Option<u64>, subject: &Subject, data: &Data) -> Result<Design, CompareError> {
    let config = &asked.training;
    let at_once = (config.batch_size * config.accumulate).max(1);
    let batch: Vec<Vec<&Example>> = data
        .train
        .iter()
        .take(at_once)
        .collect::<Vec<_>>()
        .chunks(config.batch_size.max(1))
        .map(<[_]>::to_vec)
        .collect();
    // The first step warms caches; the second is timed.
    gradients(subject, &batch, Some((0, 0)), 1)?;
    let started = Instant::now();
    gradients(subject, &batch, Some((0, 1)), 1)?;
    let step = started.elapsed().as_secs_f64();
    let some: Vec<&Example> = data.test.iter().take(64).collect();
    let started = Instant::now();
    evaluate_examples(subject.model(), subject.peft(), &Objective::NextToken, &some, config.batch_size)?;
    let each = started.elapsed().as_secs_f64() / some.len().max(1) as f64;
    let reading = each * (data.validation.len() + data.test.len()) as f64;
    let passes = (3 * data.train.len()).div_ceil(at_once) as u64;
    asked.clone().within_budget(steps, passes.max(1), step, reading)
}
