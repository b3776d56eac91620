//! `smooth-probe report`: figures and pages of a run, drawn again from its tables or verified against them.

mod similarity;
mod training;

use crate::analysis::manifest::read_manifest;
use crate::analysis::results::file_names;
use crate::analysis::verify::Verification;
use crate::persist::{self, PersistError};
use anyhow::{Result, bail};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

/// Differences that are listed one by one.
const MOST_LISTED: usize = 50;
/// Where figures lie that are drawn for one column.
const ONE_COLUMN: &str = "one_column";

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The folder of a `similarity` or a `train` run. Nothing but its tables is read: neither model nor texts are needed.
    folder: PathBuf,
    /// Draw nothing. Hash the tables, and the inputs that are still there, compute every number again from every text's
    /// own values, draw the views again and compare; list what differs. Exit code 1 if anything does.
    #[arg(long)]
    verify: bool,
}

pub(super) fn run(args: &ReportArgs, quiet: bool) -> Result<()> {
    let (manifest, verb) = read_manifest(&args.folder)?;
    let folder = args.folder.as_path();
    match (verb.as_str(), args.verify) {
        ("similarity", false) => similarity::redraw(folder, manifest)?,
        ("train", false) => training::redraw(folder, &manifest)?,
        ("similarity", true) => return conclude(&similarity::verify(folder, &manifest)?, quiet),
        ("train", true) => return conclude(&training::verify(folder, &manifest)?, quiet),
        (other, _) => bail!(
            "{}: was written by `{other}`; report draws the runs of `similarity` and `train`",
            folder.join("manifest.json").display()
        ),
    }
    say!("{}", folder.join("report.html").display());
    Ok(())
}

/// Lists what was found; any difference is a failure.
fn conclude(found: &Verification, quiet: bool) -> Result<()> {
    for line in found.differences.iter().take(MOST_LISTED) {
        say!("{line}");
    }
    let more = found.differences.len().saturating_sub(MOST_LISTED);
    if more > 0 {
        say!("and {more} more");
    }
    for line in found.unchecked.iter().filter(|_| !quiet) {
        note!("not checked: {line}");
    }
    let (numbers, hashed, redrawn) = (found.numbers, found.hashed, found.redrawn);
    let what = format!("{numbers} numbers computed again, {hashed} files hashed, {redrawn} views drawn again");
    match found.differences.len() {
        0 => say!("verified: {what}; no difference"),
        count => bail!(
            "{count} differences ({what}); `report` without --verify draws the views anew, tables it never changes"
        ),
    }
    Ok(())
}

/// Moves every file of `drawn` into `folder`, and answers their names.
fn move_in(drawn: &Path, folder: &Path) -> Result<Vec<String>, PersistError> {
    let names = file_names(drawn)?;
    for name in &names {
        let target = folder.join(name);
        if let Some(parent) = target.parent() {
            persist::create_folder(parent)?;
        }
        fs::rename(drawn.join(name), &target).map_err(|e| PersistError::new(&target, "write", e))?;
    }
    Ok(names.into_iter().collect())
}

/// A folder beside the results that views are drawn into before they take the place of the old ones.
fn drawing_folder(folder: &Path) -> Result<tempfile::TempDir, PersistError> {
    let made = tempfile::Builder::new().prefix(".drawing-").tempdir_in(folder);
    made.map_err(|e| PersistError::new(folder, "write", e))
}
