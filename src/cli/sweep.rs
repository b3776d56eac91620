//! `smooth-probe sweep`: a study cell by cell, for clusters that schedule by themselves.

use super::interrupt;
use super::reproduce::StudyArgs;
use crate::analysis::study::{
    self, CellResult, ClusterJob, Digests, Job, Pause, SearchResult, Standing, Store, Study, StudyError, run_cell,
    run_search, standings,
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::Path;

/// The variables in which clusters give a job its number: Slurm, Kubernetes.
const NUMBERS: [&str; 2] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"];

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the study's cells as CSV: number, arm, seed, learning rate, how it stands, digest.
    Plan {
        #[command(flatten)]
        study: SweptStudy,
        /// Only the cells that are not finished and that no one runs.
        #[arg(long)]
        pending: bool,
    },
    /// Run one cell; one that is finished is left alone. Exit code 3: it was asked to stop, and goes on when run again.
    Run {
        #[command(flatten)]
        study: SweptStudy,
        /// The cell's number in `sweep plan`, by default SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX.
        #[arg(long)]
        index: Option<usize>,
    },
    /// Print how many cells are finished, running, paused and pending, and who runs.
    Status {
        #[command(flatten)]
        study: SweptStudy,
    },
    /// Print a job file that runs the cells on a cluster.
    Emit(EmitArgs),
}

#[derive(Debug, Args)]
struct SweptStudy {
    /// The study: its name, or a study file of your own.
    #[arg(default_value = "headline", value_name = "NAME|FILE")]
    name: String,
    #[command(flatten)]
    common: StudyArgs,
}

#[derive(Debug, Args)]
struct EmitArgs {
    /// The cluster's engine.
    engine: Engine,
    #[command(flatten)]
    study: SweptStudy,
    /// The longest that one cell may take, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Cells at a time.
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Kubernetes: the image that has the program on its path.
    #[arg(long)]
    image: Option<String>,
    /// Kubernetes: the volume claim that is mounted as the working folder.
    #[arg(long)]
    claim: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Slurm,
    K8s,
}

pub(super) fn run(args: &SweepArgs, quiet: bool) -> Result<()> {
    match &args.action {
        Action::Plan { study, pending } => plan(&Swept::open(study)?, *pending),
        Action::Run { study, index } => one(&Swept::open(study)?, number(*index)?, quiet),
        Action::Status { study } => status(&Swept::open(study)?),
        Action::Emit(args) => emit(&Swept::open(&args.study)?, args),
    }
}

/// A study, its cells and where they lie.
struct Swept {
    study: Study,
    jobs: Vec<Job>,
    store: Store,
    search: bool,
}

impl Swept {
    fn open(args: &SweptStudy) -> Result<Self> {
        let study = args.common.open(&args.name)?;
        let jobs = match args.common.search {
            true => study::search_plan(&study, &mut Digests::new()?)?,
            false => study::plan(&study, &mut Digests::new()?)?,
        };
        let store = Store::open(&args.common.cells)?;
        Ok(Self { study, jobs, store, search: args.common.search })
    }
}

fn plan(swept: &Swept, pending: bool) -> Result<()> {
    say!("index,arm,seed,lr,state,cell");
    for (index, (job, standing)) in swept.jobs.iter().zip(standings(&swept.jobs, &swept.store)).enumerate() {
        if !pending || standing.is_open() {
            let lr = if job.lr > 0.0 { job.lr.to_string() } else { String::new() };
            say!("{index},{},{},{lr},{},{}", job.arm, job.seed, standing.name(), job.identity.name());
        }
    }
    Ok(())
}

/// The cell's number: as given, or as the cluster says it.
fn number(given: Option<usize>) -> Result<usize> {
    if let Some(index) = given {
        return Ok(index);
    }
    for name in NUMBERS {
        if let Ok(text) = std::env::var(name) {
            return text.parse().with_context(|| format!("{name} is {text:?}; it must be a cell's number"));
        }
    }
    bail!("--index is missing, and neither {} is set; give the cell's number", NUMBERS.join(" nor "))
}

fn one(swept: &Swept, index: usize, quiet: bool) -> Result<()> {
    let Swept { study, jobs, store, search } = swept;
    let job = jobs.get(index).with_context(|| {
        format!("cell {index}: the study has {} cells, 0 to {}", jobs.len(), jobs.len().saturating_sub(1))
    })?;
    let stop = interrupt::flag()?;
    let pause = Pause { stop: &stop, folder: store.folder() };
    let alone = std::slice::from_ref(job);
    let place = store.folder().join(format!("{}.toml", job.identity.name()));
    let result = match search {
        true => study::drain(store, alone, &stop, &|job| run_search(study, job, &pause), |_| ()).map(|found| {
            let losses = found
                .iter()
                .map(|SearchResult { validation_loss, .. }| format!("validation loss {validation_loss:.4}"));
            losses.collect::<String>()
        }),
        false => study::drain(store, alone, &stop, &|job| run_cell(study, job, &pause), |_| ()).map(|found| {
            found.iter().map(|CellResult { accuracy, .. }| format!("accuracy {accuracy:.3}")).collect::<String>()
        }),
    };
    match result {
        Ok(text) => {
            if !quiet {
                note!("cell {index}, {} seed {}: {text}", job.arm, job.seed);
            }
            say!("{}", place.display());
            Ok(())
        }
        Err(StudyError::Interrupted) => Err(interrupt::Interrupted(StudyError::Interrupted.to_string()).into()),
        Err(error) => Err(error.into()),
    }
}

fn status(swept: &Swept) -> Result<()> {
    let standings = standings(&swept.jobs, &swept.store);
    let count = |name: &str| standings.iter().filter(|standing| standing.name() == name).count();
    let counts: Vec<String> =
        ["finished", "running", "paused", "pending"].map(|n| format!("{} {n}", count(n))).to_vec();
    say!("{} cells of {}: {}", swept.jobs.len(), swept.study.name, counts.join(", "));
    let mut arms: BTreeMap<usize, [usize; 2]> = BTreeMap::new();
    for (job, standing) in swept.jobs.iter().zip(&standings) {
        let place = swept.study.arms.iter().position(|arm| arm.name == job.arm).unwrap_or_default();
        let [finished, all] = arms.entry(place).or_default();
        *finished += usize::from(*standing == Standing::Finished);
        *all += 1;
    }
    for (place, [finished, all]) in arms {
        let name = swept.study.arms.get(place).map_or("", |arm| &arm.name);
        say!("{name:24} {finished} of {all}");
    }
    for (job, standing) in swept.jobs.iter().zip(&standings) {
        if let Standing::Running(holder) = standing {
            say!("running: {} seed {}, process {} on {}", job.arm, job.seed, holder.pid, holder.host);
        }
    }
    Ok(())
}

fn emit(swept: &Swept, args: &EmitArgs) -> Result<()> {
    ensure!((1..=60 * 24 * 30).contains(&args.minutes), "--minutes is {}; it must be from 1 to 43200", args.minutes);
    ensure!(args.at_once >= 1, "--at-once is 0; it must be at least 1");
    let standings = standings(&swept.jobs, &swept.store);
    let open: Vec<usize> = (0..).zip(&standings).filter(|(_, s)| **s != Standing::Finished).map(|(i, _)| i).collect();
    ensure!(
        !open.is_empty(),
        "every cell of {} is finished: `reproduce {}` writes the report",
        swept.study.name,
        args.study.name
    );
    let name: String = swept
        .study
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let job = ClusterJob { name, command: command(args), minutes: args.minutes, at_once: args.at_once };
    let text = match (args.engine, &args.image, &args.claim) {
        (Engine::Slurm, None, None) => job.slurm(&open),
        (Engine::Slurm, ..) => bail!("--image and --claim are for k8s; leave them out"),
        (Engine::K8s, Some(image), Some(claim)) => job.kubernetes(swept.jobs.len(), image, claim),
        (Engine::K8s, ..) => {
            bail!("k8s needs --image, which has the program, and --claim, the volume of the working folder")
        }
    };
    say!("{}", text.trim_end());
    Ok(())
}

/// The command that runs a cell of this sweep.
fn command(args: &EmitArgs) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let common = &args.study.common;
    let mut words: Vec<String> = ["smooth-probe", "sweep", "run"].map(str::to_owned).to_vec();
    words.extend([args.study.name.clone(), "--cells".to_owned(), path(&common.cells)]);
    for (option, value) in [("--seeds", common.seeds), ("--steps", common.steps)] {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value.to_string()]));
    }
    words.extend(common.search.then(|| "--search".to_owned()));
    words
}
