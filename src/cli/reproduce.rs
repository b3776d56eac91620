//! `smooth-probe reproduce`: the headline study, cell by cell.

use super::progress;
use crate::analysis::headline::{
    Arm, CellResult, SearchResult, StudyConfig, run_cell, search_cell, write_base_figure, write_report, write_search,
};
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
    /// Instead of the study: train every arm with each learning rate that the study file allows, on validation
    /// items alone, and write search.csv; what it finds best goes into the study file.
    #[arg(long)]
    search: bool,
}

pub(super) fn run(args: &ReproduceArgs, quiet: bool) -> Result<()> {
    ensure!((1..=100).contains(&args.seeds), "--seeds is {}; it must be from 1 to 100", args.seeds);
    let mut study = StudyConfig::headline()?;
    if let Some(steps) = args.steps {
        ensure!(steps > 0, "--steps is 0; it must be at least 1");
        study.steps = steps;
        study.full_steps = steps;
        study.eval_every = study.eval_every.min(steps);
    }
    let folder = args.out.join("cells");
    persist::create_folder(&folder)?;
    if args.search {
        return search(&study, &args.out, &folder, quiet);
    }
    let mut manifest = Manifest::new("reproduce");
    write_base_figure(&args.out)?;
    if !quiet {
        note!("first figure: {}", args.out.join("phenomenon.png").display());
    }
    // The longest first, then seed by seed, so that an interrupted study has whole pairs.
    let arms = || std::iter::once(Arm::Base).chain(Arm::TUNED);
    let paired = (1..=args.seeds).flat_map(|seed| arms().map(move |arm| (arm, seed)));
    let plan: Vec<(Arm, u64)> = std::iter::once((Arm::Full, 1)).chain(paired).collect();
    let bar = progress::bar(plan.len() as u64, "cells", quiet);
    let run = |&(arm, seed): &(Arm, u64)| run_cell(arm, seed, &study, &folder);
    let mut cells = run_cells(&plan, &run, |cell: &CellResult| {
        let CellResult { arm, seed, accuracy, seconds, .. } = cell;
        let line = format!("{} seed {seed}: accuracy {accuracy:.3}, {seconds:.0} s", arm.name());
        if bar.is_hidden() && !quiet {
            note!("{line}");
        }
        bar.println(line);
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    cells.sort_by_key(|cell| (cell.seed, cell.arm));
    write_report(&args.out, &study, &cells)?;
    manifest.set("study", json!(study)).set("seeds", args.seeds).set("scale", "tiny");
    manifest.write(&args.out)?;
    say!("{}", args.out.join("README.md").display());
    Ok(())
}

/// The learning-rate search: every arm with every candidate, on validation items alone.
fn search(study: &StudyConfig, out: &Path, folder: &Path, quiet: bool) -> Result<()> {
    let candidates = |arm| study.lr_candidates.iter().map(move |&lr| (arm, lr));
    let plan: Vec<(Arm, f64)> = Arm::TUNED.into_iter().flat_map(candidates).collect();
    let bar = progress::bar(plan.len() as u64, "cells", quiet);
    let run = |&(arm, lr): &(Arm, f64)| search_cell(arm, lr, study, folder);
    let mut found = run_cells(&plan, &run, |_: &SearchResult| bar.inc(1))?;
    bar.finish_and_clear();
    found.sort_by(|a, b| a.arm.cmp(&b.arm).then(a.lr.total_cmp(&b.lr)));
    write_search(out, &found)?;
    for SearchResult { arm, lr, validation_loss } in &found {
        let chosen = if study.lr.get(arm) == Some(lr) { "  in the study file" } else { "" };
        say!("{:16} {lr:<8} {validation_loss:.4}{chosen}", arm.name());
    }
    Ok(())
}

/// Runs the cells, as many at a time as there are threads and each on one of its own: a cell is too small to
/// share. Results do not depend on it, but for their order. The first failure stops what has not begun.
fn run_cells<C: Sync, R: Send>(
    plan: &[C],
    run: &(impl Fn(&C) -> Result<R> + Sync),
    finished: impl Fn(&R) + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<R>> {
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let mut cells = Vec::new();
        while let Some(cell) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
            match alone.install(|| run(cell)) {
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
    std::thread::scope(|scope| -> Result<Vec<R>> {
        let workers: Vec<_> = (0..rayon::current_num_threads()).map(|_| scope.spawn(worker)).collect();
        let mut cells = Vec::new();
        for worker in workers {
            cells.extend(worker.join().map_err(|_| anyhow!("a cell stopped"))??);
        }
        Ok(cells)
    })
}
