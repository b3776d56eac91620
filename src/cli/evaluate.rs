//! `smooth-probe evaluate`: tasks put to a model and its adapters, and what their answers come to.

mod cases;
mod output;
mod runs;

use super::progress::Progress;
use super::{device, open};
use crate::analysis::manifest::Manifest;
use crate::hash;
use crate::model::Precision;
use crate::persist;
use crate::tasks::{
    Asked, Done, Generation, ItemRecord, Journal, Mode, Scores, Task, TaskError, ask, evaluate, find_tasks, read_items,
    task_file,
};
use crate::train::{BaseDtypeName, DtypeName};
use anyhow::{Context, Result, ensure};
use clap::Args;
use runs::{Opened, Run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Args)]
pub(super) struct EvaluateArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`; by default the model that the adapters name.
    #[arg(long, required_unless_present = "adapter")]
    model: Option<String>,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// An adapter of --model, as NAME=DIR or DIR; any number of times. They are compared item by item.
    #[arg(long, value_name = "NAME=DIR")]
    adapter: Vec<String>,
    /// Score the model without an adapter too; without --adapter it is all that is scored.
    #[arg(long)]
    base: bool,
    /// Tasks: arithmetic, commonsense, glue, a set such as aqua or glue/cola, or the .toml of your own.
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    task: Vec<String>,
    /// The folder that holds the tasks' files (docs/tasks.md has their names), or the file of one task.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How a task is put to the model; by default as the task says first: alpaca for the reasoning sets, classify for GLUE.
    #[arg(long)]
    mode: Option<Mode>,
    /// Only the first N items of each task; a later call with more goes on.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Beams of the search, in the place of the task's; 1 is greedy and several times as fast.
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// The most tokens of an answer, in the place of the task's.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Longest text that a head for classes reads, in tokens: what it was trained with, or the model's context if that is
    /// less.
    #[arg(long, value_name = "N", default_value_t = 256)]
    cutoff: usize,
    /// Items that run through the model together; bounds memory, and moves no more than last digits.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Show up to N items of each task that the runs answer differently, side by side, with the token similarity of their
    /// prompts over the layers: cases.md, cases.csv and case_curves.csv.
    #[arg(long, value_name = "N")]
    cases: Option<usize>,
    /// Seed of resamples and of the drawn cases.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// What is computed in; bf16 is for GPUs.
    #[arg(long, default_value = "f32")]
    dtype: DtypeName,
    /// What the weights are stored in: 16 bits halve their memory, q8_0 and q4_0 take less. auto: as --dtype.
    #[arg(long, default_value = "auto")]
    base_dtype: BaseDtypeName,
    /// auto (a GPU if this build knows one and it answers), cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder of the items (a line each, written as they come), results.json, results.csv and .parquet and more; the same
    /// command goes on where it was interrupted.
    #[arg(long, default_value = "evaluation")]
    out: PathBuf,
    /// Print results.json in the place of the table.
    #[arg(long)]
    json: bool,
    /// Seconds between two lines of progress where stderr is no terminal.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, hide = true)]
    progress_every: u64,
}

impl EvaluateArgs {
    fn precision(&self) -> Precision {
        self.base_dtype.beside(self.dtype)
    }
}

/// A task with its items, ready to be put to models.
struct Prepared {
    task: Task,
    mode: Mode,
    asked: Vec<Asked>,
    data_sha256: String,
}

/// What a run gave on a task.
struct Scored {
    /// The run's place among the runs, the task's among the tasks.
    run: usize,
    task: usize,
    records: Vec<ItemRecord>,
    scores: Scores,
}

pub(super) fn run(args: &EvaluateArgs, quiet: bool) -> Result<()> {
    let runs = runs::runs(args)?;
    check(args, &runs)?;
    let mut manifest = Manifest::new("evaluate");
    let (tasks, missing) = prepare(args)?;
    let (place, precision) = (device::open(&args.device)?, args.precision());
    device::check(precision, &place)?;
    persist::create_folder(&args.out)?;
    let mut progress = Progress::new("items", quiet, Duration::from_secs(args.progress_every));
    missing.iter().for_each(|line| progress.say(line));
    let items: usize = tasks.iter().map(|prepared| prepared.asked.len()).sum();
    progress.expect((items * runs.len()) as u64);
    let mut all = Vec::new();
    let mut described = Vec::new();
    let mut opener = Opened::new(args, &place);
    for (index, run) in runs.iter().enumerate() {
        for (number, prepared) in tasks.iter().enumerate() {
            let subject = opener.subject(run, prepared)?;
            let settings = settings(args, prepared, &subject.identity, &device::computed(precision, &place));
            let path = items_file(args, run, &prepared.task)?;
            let (mut journal, known) = Journal::open(&path, &settings)?;
            progress.begin(&format!("{}, {}", run.name, prepared.task.name), prepared.asked.len() as u64);
            let mut done = |what| match what {
                Done::Known(items) => progress.skip(items as u64),
                Done::Now(items) => progress.advance(items as u64),
            };
            let answerer = subject.answerer(&prepared.task, prepared.mode, generation(args, &prepared.task))?;
            let followed = (&mut journal, known);
            let records = evaluate(&prepared.task, &prepared.asked, &*answerer, followed, args.batch_size, &mut done)?;
            journal.finish()?;
            progress.finish_stage();
            let scores = Scores::of(&prepared.task, prepared.mode, &records, args.seed)?;
            if number == 0 {
                described.push(subject.identity.clone());
            }
            all.push(Scored { run: index, task: number, records, scores });
        }
    }
    progress.finish();
    let results = output::Results::of(args, &runs, &tasks, &all, missing)?;
    results.write(&args.out, &tasks)?;
    if let Some(count) = args.cases {
        cases::write(args, count, &runs, &tasks, &all, &mut opener)?;
    }
    let files: BTreeMap<&str, &str> =
        tasks.iter().map(|prepared| (prepared.task.name.as_str(), prepared.data_sha256.as_str())).collect();
    manifest
        .set("runs", described)
        .set("tasks", json!(tasks.iter().map(|prepared| &prepared.task).collect::<Vec<_>>()))
        .set("data_sha256", json!(files))
        .set("limit", json!(args.limit))
        .set("device", device::name(&place))
        .set("dtype", precision.compute.as_str())
        .set("base_dtype", precision.base_name());
    manifest.write(&args.out)?;
    if args.json {
        say!("{:#}", results.json());
    } else {
        results.print();
    }
    if !quiet {
        note!("wrote {}", args.out.display());
    }
    Ok(())
}

/// Refuses options that say nothing together.
fn check(args: &EvaluateArgs, runs: &[Run]) -> Result<()> {
    for (option, value) in [
        ("--limit", args.limit),
        ("--beams", args.beams),
        ("--max-new-tokens", args.max_new_tokens),
        ("--cases", args.cases),
    ] {
        ensure!(value != Some(0), "{option} is 0; it must be at least 1");
    }
    ensure!(args.batch_size > 0, "--batch-size is 0; it must be at least 1");
    ensure!(args.cutoff > 1, "--cutoff is {}; it must be at least 2", args.cutoff);
    ensure!(args.cases.is_none() || runs.len() > 1, "--cases compares runs; give two adapters, or one with --base");
    Ok(())
}

/// The tasks with their items, and what is not there of a group.
fn prepare(args: &EvaluateArgs) -> Result<(Vec<Prepared>, Vec<String>)> {
    let (mut prepared, mut missing): (Vec<Prepared>, Vec<String>) = (Vec::new(), Vec::new());
    for name in &args.task {
        let tasks = find_tasks(name)?;
        let alone = tasks.len() == 1;
        ensure!(
            alone || !args.data.is_file(),
            "--data {}: is one file, and --task {name} has {} sets; give the folder that holds theirs",
            args.data.display(),
            tasks.len()
        );
        for task in tasks {
            if prepared.iter().any(|known| known.task.name == task.name) {
                continue;
            }
            let path = match task_file(&task, &args.data, false) {
                Ok(path) => path,
                Err(error @ TaskError::NoFile { .. }) if !alone => {
                    missing.push(format!("left out: {error}"));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mode = match task.mode(args.mode) {
                Ok(mode) => mode,
                Err(error) if !alone => {
                    missing.push(format!("left out: {error}"));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for (option, value) in [("--beams", args.beams), ("--max-new-tokens", args.max_new_tokens)] {
                let unread = value.is_some() && !mode.generates();
                ensure!(!unread, "{option}: --mode {mode} of {} writes no text; leave it out", task.name);
            }
            let items = read_items(&task, &path, args.limit)?;
            let asked = ask(&task, mode, items)?;
            let data_sha256 = hash::sha256_file(&path).with_context(|| open::unreadable(&path))?;
            prepared.push(Prepared { task, mode, asked, data_sha256 });
        }
    }
    ensure!(!prepared.is_empty(), "nothing to score: {}", missing.join("; "));
    Ok((prepared, missing))
}

/// How answers of a task are written.
fn generation(args: &EvaluateArgs, task: &Task) -> Generation {
    Generation {
        max_new_tokens: args.max_new_tokens.unwrap_or(task.decoding.max_new_tokens),
        beams: args.beams.unwrap_or(task.decoding.beams),
    }
}

/// What the records of a run on a task depend on.
fn settings(args: &EvaluateArgs, prepared: &Prepared, identity: &Value, computed: &str) -> Value {
    let Prepared { task, mode, data_sha256, .. } = prepared;
    let mut settings = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "task": task,
        "mode": mode.name(),
        "data_sha256": data_sha256,
        "made_from": super::similarity::identity::made_from(identity, computed),
    });
    if let Some(entries) = settings.as_object_mut() {
        match mode {
            Mode::Classify => entries.insert("cutoff".to_owned(), json!(args.cutoff)),
            mode if mode.generates() => entries.insert("decoding".to_owned(), json!(generation(args, task))),
            _ => None,
        };
    }
    settings
}

/// Where the items of a run on a task lie.
fn items_file(args: &EvaluateArgs, run: &Run, task: &Task) -> Result<PathBuf> {
    let plain = |name: &str| -> String {
        name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
    };
    let folder = args.out.join("items").join(plain(&run.name));
    persist::create_folder(&folder)?;
    Ok(folder.join(format!("{}.jsonl", plain(&task.name))))
}
