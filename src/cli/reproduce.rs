//! `smooth-probe reproduce`: the headline study.

use anyhow::{Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct ReproduceArgs {}

pub(super) fn run(_args: &ReproduceArgs, _quiet: bool) -> Result<()> {
    bail!("reproduce is not supported yet")
}
