//! `--split`: who changes a measure in each layer.

use super::SimilarityArgs;
use crate::analysis::run_values::RunValues;
use crate::analysis::split::{SplitRow, part_name, split_frame, split_rows, summed};
use crate::report::{self, baseline};
use anyhow::Result;

/// `split.csv` and `split.parquet`, of the runs that are no baselines.
pub(super) fn write(args: &SimilarityArgs, runs: &[RunValues]) -> Result<Vec<SplitRow>> {
    let plain = runs.iter().filter(|run| baseline(&run.run).is_none());
    let plain: Vec<RunValues> = plain.cloned().collect();
    let rows = split_rows(&plain, args.seed)?;
    report::write_table(&args.out, "split", &mut split_frame(&rows)?)?;
    Ok(rows)
}

/// For each run the parts of the first measure's change, summed over the layers.
pub(super) fn print(rows: &[SplitRow]) {
    let Some(measure) = rows.first().map(|row| row.measure) else { return };
    let mut runs: Vec<&str> = rows.iter().map(|row| row.run.as_str()).collect();
    runs.dedup();
    say!("change of {measure} over all layers, all tokens");
    for run in runs {
        let parts = summed(rows, run, measure);
        let parts = parts.iter().map(|(part, change)| format!("{} {change:+.4}", part_name(part)));
        say!("{run:>12}  {}", parts.collect::<Vec<_>>().join("; "));
    }
}
