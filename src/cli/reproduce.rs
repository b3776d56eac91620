//! `smooth-probe reproduce`: studies, cell by cell.

use super::interrupt::{self, Interrupted};
use super::{inspect, progress};
use crate::analysis::manifest::Manifest;
use crate::analysis::study::{
    self, Cell, CellResult, Digests, Event, Figure, Job, Pause, SearchResult, Store, Study, StudyError, StudyScale,
    run_cell, run_search, write_base_figure, write_report, write_search,
};
use crate::persist;
use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

#[derive(Debug, Args)]
pub(super) struct ReproduceArgs {
    /// Studies by name, or study files of your own.
    #[arg(default_value = "headline", value_name = "NAME|FILE")]
    studies: Vec<String>,
    /// All studies that are compiled in.
    #[arg(long, conflicts_with = "studies")]
    all: bool,
    /// With --all: only those of this scale and the smaller ones.
    #[arg(long, requires = "all", value_name = "SCALE")]
    scale: Option<StudyScale>,
    /// Show the studies that are compiled in.
    #[arg(long)]
    list: bool,
    /// Show the cells, what each trains and how long they take, as far as finished ones tell; run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Folder of the report [default: reports/NAME].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Stop after so many minutes, with a checkpoint of what was begun and exit code 3; the same command goes on.
    #[arg(long, value_name = "MINUTES")]
    stop_after: Option<f64>,
    #[command(flatten)]
    common: StudyArgs,
}

/// Options of every verb that runs studies.
#[derive(Debug, Args)]
pub(super) struct StudyArgs {
    /// Folder of the finished cells, which all studies share; what is there is not run again. Several processes may work
    /// on one folder.
    #[arg(long, default_value = "reports/cells")]
    pub(super) cells: PathBuf,
    /// Paired seeds, by default as many as the study file says; fewer than 5 allow no conclusion.
    #[arg(long)]
    pub(super) seeds: Option<u64>,
    /// Optimizer steps of every cell, to try a study out.
    #[arg(long)]
    pub(super) steps: Option<u64>,
    /// Instead of the study: train every arm with each learning rate that the study file allows, on validation
    /// items alone, and write search.csv; what it finds best goes into the study file.
    #[arg(long)]
    pub(super) search: bool,
}

impl StudyArgs {
    /// A study with what the options change.
    pub(super) fn open(&self, name: &str) -> Result<Study> {
        let mut study = Study::open(name)?;
        if let Some(seeds) = self.seeds {
            ensure!((1..=100).contains(&seeds), "--seeds is {seeds}; it must be from 1 to 100");
            study = study.with_seeds(seeds);
        }
        if let Some(steps) = self.steps {
            ensure!(steps > 0, "--steps is 0; it must be at least 1");
            study = study.with_steps(steps);
        }
        Ok(study)
    }
}

pub(super) fn run(args: &ReproduceArgs, quiet: bool) -> Result<()> {
    if args.list {
        return list();
    }
    let names: Vec<&str> = match args.all {
        true => Study::names(),
        false => args.studies.iter().map(String::as_str).collect(),
    };
    // A mistake in the last file is found before the first study runs.
    let mut studies = names.into_iter().map(|name| args.common.open(name)).collect::<Result<Vec<_>>>()?;
    studies.retain(|study| args.scale.is_none_or(|scale| study.scale <= scale));
    ensure!(
        args.out.is_none() || studies.len() == 1,
        "--out is one folder, and {} studies are named; leave it out or name one",
        studies.len()
    );
    let stop = interrupt::flag()?;
    if let Some(minutes) = args.stop_after {
        interrupt::after_minutes(minutes, &stop)?;
    }
    for study in &studies {
        let out = args.out.clone().unwrap_or_else(|| Path::new("reports").join(&study.name));
        let done = reproduce(args, study, &out, &stop, quiet);
        match done.as_ref().err().and_then(|error| error.downcast_ref::<StudyError>()) {
            Some(StudyError::Interrupted) => return Err(Interrupted(StudyError::Interrupted.to_string()).into()),
            _ => done?,
        }
    }
    Ok(())
}

fn list() -> Result<()> {
    for name in Study::names() {
        let study = Study::open(name)?;
        say!("{name:16} {:6} {:3} arms, {} seeds  {}", study.scale.name(), study.arms.len(), study.seeds, study.title);
    }
    Ok(())
}

fn reproduce(args: &ReproduceArgs, study: &Study, out: &Path, stop: &AtomicBool, quiet: bool) -> Result<()> {
    let store = Store::open(&args.common.cells)?;
    let mut digests = Digests::new()?;
    let jobs = match args.common.search {
        true => study::search_plan(study, &mut digests)?,
        false => study::plan(study, &mut digests)?,
    };
    if args.dry_run {
        return dry_run(study, &jobs, &store);
    }
    persist::create_folder(out)?;
    let mut manifest = Manifest::new("reproduce");
    let pause = Pause { stop, folder: store.folder() };
    if args.common.search {
        return search(study, &jobs, &store, &pause, out, quiet);
    }
    for figure in &study.figures {
        if let Figure::Phenomenon { file, .. } = figure {
            write_base_figure(out, file)?;
            if !quiet {
                note!("first figure: {}", out.join(format!("{file}.png")).display());
            }
        }
    }
    let bar = progress::bar(jobs.len() as u64, "cells", quiet);
    let run = |job: &Job| run_cell(study, job, &pause);
    let results = drain(&store, &jobs, &pause, &run, &bar, quiet, |job, result: &CellResult| {
        format!("{} seed {}: accuracy {:.3}, {:.0} s", job.arm, job.seed, result.accuracy, result.seconds)
    })?;
    let mut cells: Vec<Cell> = jobs.iter().zip(results).map(|(job, result)| job.finished(result)).collect();
    let place = |cell: &Cell| study.arms.iter().position(|arm| arm.name == cell.arm);
    cells.sort_by_key(|cell| (cell.seed, place(cell)));
    write_report(out, study, &cells)?;
    manifest
        .set("study", json!(study.text))
        .set("seeds", study.seeds)
        .set("steps", json!(args.common.steps))
        .set("scale", study.scale.name())
        .set("cells", jobs.iter().map(|job| job.identity.digest.clone()).collect::<Vec<_>>());
    manifest.write(out)?;
    say!("{}", out.join("README.md").display());
    Ok(())
}

/// Runs cells with a line for each that was run.
fn drain<R: serde::Serialize + serde::de::DeserializeOwned + Send>(
    store: &Store,
    jobs: &[Job],
    pause: &Pause,
    run: &(impl Fn(&Job) -> Result<R, StudyError> + Sync),
    bar: &ProgressBar,
    quiet: bool,
    line: impl Fn(&Job, &R) -> String + Sync,
) -> Result<Vec<R>> {
    let tell = |line: String| {
        if bar.is_hidden() && !quiet {
            note!("{line}");
        }
        bar.println(line);
    };
    let results = study::drain(store, jobs, pause.stop, run, |event| match event {
        Event::Finished { job, result, ran } => {
            if ran {
                tell(line(job, result));
            }
            bar.inc(1);
        }
        Event::Waiting { cells, holder } => {
            let whom =
                holder.map_or_else(String::new, |holder| format!(" (process {} on {})", holder.pid, holder.host));
            tell(format!("waiting for {cells} cells that others run{whom}"));
        }
    })?;
    bar.finish_and_clear();
    Ok(results)
}

/// The learning-rate search: every arm with every candidate, on validation items alone.
fn search(study: &Study, jobs: &[Job], store: &Store, pause: &Pause, out: &Path, quiet: bool) -> Result<()> {
    let bar = progress::bar(jobs.len() as u64, "cells", quiet);
    let run = |job: &Job| run_search(study, job, pause);
    let results = drain(store, jobs, pause, &run, &bar, quiet, |job, result: &SearchResult| {
        format!("{} lr {}: validation loss {:.4}, {:.0} s", job.arm, job.lr, result.validation_loss, result.seconds)
    })?;
    let found: Vec<Cell<SearchResult>> = jobs.iter().zip(results).map(|(job, result)| job.finished(result)).collect();
    write_search(out, &found)?;
    for Cell { arm, lr, result, .. } in &found {
        let losses = found.iter().filter(|other| other.arm == *arm).map(|other| other.result.validation_loss);
        let best = if losses.reduce(f64::min) == Some(result.validation_loss) { "  best" } else { "" };
        let chosen = study.arm(arm).and_then(|arm| arm.lr) == Some(*lr);
        let chosen = if chosen { "  in the study file" } else { "" };
        say!("{arm:24} {lr:<8} {:.4}{best}{chosen}", result.validation_loss);
    }
    Ok(())
}

/// Cells, trained numbers, time.
fn dry_run(study: &Study, jobs: &[Job], store: &Store) -> Result<()> {
    let estimate = study::estimate(study, jobs, store)?;
    say!("study {} ({} scale): {}", study.name, study.scale.name(), study.title);
    say!("{:24} {:>5} {:>8} {:>12} {:>14}", "arm", "cells", "finished", "trained", "seconds a cell");
    for arm in &estimate.arms {
        let seconds = arm.cell_seconds.map_or_else(|| "unknown".to_owned(), |seconds| format!("{seconds:.0}"));
        let trained = inspect::thousands(arm.trained as u64);
        say!("{:24} {:>5} {:>8} {trained:>12} {seconds:>14}", arm.arm, arm.cells, arm.finished);
    }
    let (cells, finished) =
        estimate.arms.iter().fold((0, 0), |(cells, done), arm| (cells + arm.cells, done + arm.finished));
    let threads = rayon::current_num_threads();
    let time = match estimate.thread_seconds() {
        Some(seconds) => format!("about {:.0} min on {threads} threads", seconds / threads as f64 / 60.0),
        None => "no finished cell tells how long they take".to_owned(),
    };
    say!("{cells} cells, {finished} of them finished in {}; the rest: {time}", store.folder().display());
    Ok(())
}
