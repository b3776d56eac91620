//! `smooth-probe reproduce`: the headline study, cell by cell.

use super::progress;
use crate::analysis::headline::{Arm, CellResult, StudyConfig, run_cell, write_base_figure, write_report};
use crate::analysis::manifest::Manifest;
use crate::persist;
use anyhow::{Result, anyhow, ensure};
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Mutex;

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
    let done: Mutex<Vec<CellResult>> = Mutex::new(Vec::new());
    // A cell is small: one thread each, as many at a time as there are threads. Results do not depend on it.
    let alone = || rayon::ThreadPoolBuilder::new().num_threads(1).build();
    plan.par_iter().with_max_len(1).try_for_each(|&(arm, seed)| -> Result<()> {
        let cell = alone()?.install(|| run_cell(arm, seed, &study, &folder))?;
        let line = format!("{} seed {seed}: accuracy {:.3}, {:.0} s", arm.name(), cell.accuracy, cell.seconds);
        if bar.is_hidden() && !quiet {
            eprintln!("{line}");
        }
        bar.println(line);
        bar.inc(1);
        let mut cells = done.lock().map_err(|_| anyhow!("another cell failed"))?;
        cells.push(cell);
        Ok(())
    })?;
    bar.finish_and_clear();
    let mut cells = done.into_inner().map_err(|_| anyhow!("a cell failed"))?;
    cells.sort_by_key(|cell| (cell.seed, cell.arm));
    write_report(&args.out, &study, &cells)?;
    manifest.set("study", json!(study)).set("seeds", args.seeds).set("scale", "tiny");
    manifest.write(&args.out)?;
    say!("{}", args.out.join("README.md").display());
    Ok(())
}
