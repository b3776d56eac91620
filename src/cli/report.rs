//! `smooth-probe report`: figures and pages of a run, drawn again from its tables or verified against them.

mod similarity;
mod training;

use crate::analysis::manifest::read_manifest;
use crate::analysis::results::file_names;
use crate::analysis::verify::Verification;
use crate::persist::{self, PersistError};
use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ReportArgs, quiet: bool) -> Result<()> {
    let (manifest, verb) = read_manifest(&args.folder)?;
    let folder = args.folder.as_path();
    let found = match (verb.as_str(), args.verify) {
        ("similarity", true) => Some(similarity::verify(folder, &manifest)?),
        ("train", true) => Some(training::verify(folder, &manifest)?),
        ("similarity", false) => {
            similarity::redraw(folder, manifest)?;
            None
        }
        ("train", false) => {
            training::redraw(folder, &manifest)?;
            None
        }
        (other, _) => bail!(
            "{}: was written by `{other}`; report draws the runs of `similarity` and `train`",
            folder.join("manifest.json").display()
        ),
    };
    let page = folder.join("report.html");
    if args.json {
        say!("{:#}", described(&page, &verb, found.as_ref()));
    }
    match &found {
        Some(found) => conclude(found, args.json, quiet),
        None => {
            if !args.json {
                say!("{}", page.display());
            }
            Ok(())
        }
    }
}

/// What was drawn or verified, for machines: `docs/json.md`.
fn described(page: &Path, verb: &str, found: Option<&Verification>) -> Value {
    let verification = found.map(|found| {
        json!({
            "numbers": found.numbers,
            "hashed": found.hashed,
            "redrawn": found.redrawn,
            "differences": found.differences,
            "unchecked": found.unchecked,
        })
    });
    json!({"page": page.display().to_string(), "verb": verb, "verification": verification})
}

/// Lists what was found, unless it was printed as JSON; any difference is a failure.
fn conclude(found: &Verification, json: bool, quiet: bool) -> Result<()> {
    if !json {
        list(found, quiet);
    }
    let (numbers, hashed, redrawn) = (found.numbers, found.hashed, found.redrawn);
    let what = format!("{numbers} numbers computed again, {hashed} files hashed, {redrawn} views drawn again");
    let count = found.differences.len();
    ensure!(
        count == 0,
        "{count} differences ({what}); `report` without --verify draws the views anew, tables it never changes"
    );
    if !json {
        say!("verified: {what}; no difference");
    }
    Ok(())
}

fn list(found: &Verification, quiet: bool) {
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
