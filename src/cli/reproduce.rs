//! `smooth-probe reproduce`: the headline study, cell by cell.

use super::progress;
use crate::analysis::headline::{Arm, CellResult, StudyConfig, run_cell, write_base_figure, write_report};
use crate::analysis::manifest::Manifest;
use crate::persist;
use anyhow::{Result, anyhow, ensure};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Args)]
pub(super) struct ReproduceArgs {
    /// Folder of the report; finished cells are kept in its cells/ and not run again.
    #[arg(long, default_value = "reports/headline")]
    out: PathBuf,
    /// Paired seeds; fewer than 5 allow no conclusion.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Optimizer steps of a cell.
    #[arg(long)]
    steps: Option<u64>,
}

pub(super) fn run(args: &ReproduceArgs, quiet: bool) -> Result<()> {
    ensure!((1..=100).contains(&args.seeds), "--seeds is {}; it must be from 1 to 100", args.seeds);
    let mut study = StudyConfig::headline()?;
    if let Some(steps) = args.steps {
        ensure!(steps > 0, "--steps is 0; it must be at least 1");
        study.steps = steps;
        study.eval_every = study.eval_every.min(steps);
    }
    let folder = args.out.join("cells");
    persist::create_folder(&folder)?;
    let mut manifest = Manifest::new("reproduce");
    write_base_figure(&args.out)?;
    if !quiet {
        eprintln!("first figure: {}", args.out.join("phenomenon.png").display());
    }
    // Seed by seed, so that an interrupted study has whole pairs.
    let arms = || std::iter::once(Arm::Base).chain(Arm::TUNED);
    let plan: Vec<(Arm, u64)> = (1..=args.seeds).flat_map(|seed| arms().map(move |arm| (arm, seed))).collect();
    let bar = progress::bar(plan.len() as u64, "cells", quiet);
    let cells = run_cells(&plan, &study, &folder, |cell| {
        let CellResult { arm, seed, accuracy, seconds, .. } = cell;
        let line = format!("{} seed {seed}: accuracy {accuracy:.3}, {seconds:.0} s", arm.name());
        if bar.is_hidden() && !quiet {
            eprintln!("{line}");
        }
        bar.println(line);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    write_report(&args.out, &study, &cells)?;
    manifest.set("study", json!(study)).set("seeds", args.seeds).set("scale", "tiny");
    manifest.write(&args.out)?;
    say!("{}", args.out.join("README.md").display());
    Ok(())
}

/// Runs the cells, as many at a time as there are threads and each on one of its own: a cell is too small to
/// share. Results do not depend on it. The first failure stops what has not begun.
fn run_cells(
    plan: &[(Arm, u64)],
    study: &StudyConfig,
    folder: &Path,
    finished: impl Fn(&CellResult) + Sync,
) -> Result<Vec<CellResult>> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<CellResult>> {
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let mut cells = Vec::new();
        while let Some(&(arm, seed)) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
            match alone.install(|| run_cell(arm, seed, study, folder)) {
                Ok(cell) => {
                    finished(&cell);
                    cells.push(cell);
                }
                Err(error) => {
                    next.store(plan.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(cells)
    };
    let mut cells = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..rayon::current_num_threads()).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            cells.extend(worker.join().map_err(|_| anyhow!("a cell stopped"))??);
        }
        Ok(())
    })?;
    cells.sort_by_key(|cell| (cell.seed, cell.arm));
    Ok(cells)
}
