//! `smooth-probe fetch`: a model from the hub into the cache, so that later runs need no network.

use super::open;
use crate::hub::{self, ModelFiles};
use crate::model::EMBEDDED;
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use std::path::Path;

#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// The model's name on the hub, org/name.
    model: String,
    /// A branch, tag or commit [default: main].
    #[arg(long)]
    revision: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &FetchArgs, quiet: bool) -> Result<()> {
    let name = &args.model;
    ensure!(name != EMBEDDED, "{EMBEDDED} is compiled in: there is nothing to fetch");
    ensure!(!Path::new(name).exists(), "{name} is here already: give it to --model as it is");
    let found = hub::resolve(name, args.revision.as_deref(), &open::hub_settings())?;
    let files = files(&found)?;
    let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    if args.json {
        let files: Vec<_> = files.iter().map(|(file, bytes)| json!({"file": file, "bytes": bytes})).collect();
        let value = json!({
            "model": name,
            "revision": found.revision,
            "folder": found.folder.display().to_string(),
            "bytes": bytes,
            "files": files,
        });
        say!("{value:#}");
        return Ok(());
    }
    say!("{}", found.folder.display());
    if !quiet {
        let commit = found.revision.as_deref().unwrap_or_default();
        note!("{name} at {commit}: {} files, {:.1} MB; --model {name} finds them, offline too", files.len(), mb(bytes));
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The model's files with their sizes, by name.
fn files(found: &ModelFiles) -> Result<Vec<(String, u64)>> {
    let unreadable = || open::unreadable(&found.folder);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&found.folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        // The cache links to its blobs; the size is the blob's.
        let size = std::fs::metadata(&path).with_context(|| open::unreadable(&path))?.len();
        files.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), size));
    }
    files.sort();
    Ok(files)
}
