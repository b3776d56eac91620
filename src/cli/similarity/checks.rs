//! What a command line asks for that cannot be, refused before any work.

use super::SimilarityArgs;
use crate::analysis::convention::Convention;
use crate::measures::{Class, Measure};
use crate::report::BASELINE_SUFFIXES;
use anyhow::{Result, bail, ensure};

/// Refuses numbers out of range, and a choice that says nothing.
pub(super) fn check_options(args: &SimilarityArgs, measures: &[Measure]) -> Result<()> {
    let least_one = [
        ("--batch-size", Some(args.batch_size)),
        ("--tokens", args.tokens),
        ("--max-tokens", args.max_tokens),
        ("--limit", args.limit),
    ];
    for (option, value) in least_one {
        ensure!(value != Some(0), "{option} is 0; it must be at least 1");
    }
    ensure!(args.audit != Some(0), "--audit is 0; it must be at least 1, or leave it out for no audit");
    ensure!(
        args.convention == Convention::Ours || measures.contains(&Measure::Cosine),
        "--convention {} counts the cosine, which --measures leaves out; add cosine",
        args.convention.name()
    );
    let lookup = measures.iter().find(|measure| measure.class() == Class::Lookup);
    if let Some(measure) = lookup.filter(|_| args.lookup_texts == 0) {
        bail!("--lookup-texts is 0, but {measure} is taken of them alone; it must be at least 1");
    }
    let scratch = args.scratch_gib;
    ensure!(scratch >= 0.0 && scratch.is_finite(), "--scratch-gib is {scratch}; it must be 0 or more");
    for (place, baseline) in args.baselines.iter().enumerate() {
        let before = args.baselines.iter().take(place);
        ensure!(
            !before.into_iter().any(|b| b == baseline),
            "--baselines names {} twice; once is enough",
            baseline.name()
        );
    }
    Ok(())
}

/// Refuses names that two runs share, or that a baseline of another run may have.
pub(super) fn check_names(names: &[&str]) -> Result<()> {
    for (i, name) in names.iter().enumerate() {
        ensure!(!names.iter().take(i).any(|other| other == name), "two runs are called {name}; give each its own name");
        if let Some(suffix) = BASELINE_SUFFIXES.iter().find(|suffix| name.ends_with(**suffix)) {
            bail!("the run name \"{name}\" ends in \"{suffix}\", as the names of baselines do; choose another");
        }
    }
    Ok(())
}
