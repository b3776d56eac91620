//! Following a run: progress for the user, and unfinished work on disk.

use crate::analysis::saved::{Found, Saver};
use crate::analysis::similarity::{RunState, SimilarityError, Watch};
use crate::cli::progress::Progress;
use anyhow::{Context, Result};
use std::path::Path;

/// Where unfinished work lies in the output folder.
pub(super) const PROGRESS: &str = "progress";

/// Shows progress and saves unfinished work.
pub(super) struct Follow<'a> {
    pub(super) progress: &'a mut Progress,
    pub(super) saver: Saver,
}

impl Watch for Follow<'_> {
    fn texts(&mut self, count: usize) {
        self.progress.advance(count as u64);
    }

    fn folded(&mut self, state: &RunState) -> Result<(), SimilarityError> {
        Ok(self.saver.save(state)?)
    }
}

/// Where the run goes on from, and says so; what passed before counts as done.
pub(super) fn resume(saver: &Saver, name: &str, folder: &Path, progress: &mut Progress) -> RunState {
    match saver.find() {
        Found::Own(state) => {
            progress.say(&format!("{name}: goes on after {} texts", state.texts.len()));
            progress.skip(state.passed());
            *state
        }
        Found::Other(why) => {
            progress.say(&format!("{name}: unfinished work in {} {why}; it starts anew", folder.display()));
            RunState::default()
        }
        Found::Nothing => RunState::default(),
    }
}

/// Removes unfinished work that is finished now.
pub(super) fn remove_progress(out: &Path) -> Result<()> {
    let folder = out.join(PROGRESS);
    match std::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{}: cannot be removed; remove it by hand", folder.display()))
        }
        _ => Ok(()),
    }
}
