//! The command line: one file per verb; arguments and calls, no logic.

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($part:tt)*) => { $crate::cli::print_line(&format!($($part)*)) };
}

/// `eprintln!` that survives a closed pipe.
macro_rules! note {
    ($($part:tt)*) => { $crate::cli::print_note(&format!($($part)*)) };
}

mod compare;
mod device;
mod doctor;
mod dose;
mod export;
mod inspect;
mod interrupt;
mod merge;
mod objective;
mod open;
mod pace;
mod pretrain;
mod profile_report;
mod progress;
mod remedies;
mod reproduce;
mod similarity;
mod states;
mod sweep;
mod texts;
mod token_pairs;
mod train;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Does my transformer over-smooth, and what does my fine-tuning do about it?
#[derive(Debug, Parser)]
#[command(name = "smooth-probe", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Worker threads; by default one a core. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// No progress on stderr; results still go to stdout.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a model's modules and what a PEFT run would train, before anyone trains.
    Inspect(inspect::InspectArgs),
    /// Fine-tune a model: LoRA, adapters or all weights, vanilla or with SIBO's initial residual.
    Train(Box<train::TrainArgs>),
    /// Measure token similarity layer by layer, and compare models, adapters and checkpoints.
    Similarity(Box<similarity::SimilarityArgs>),
    /// Turn the lambda of a trained, frozen adapter up and down: what the initial residual causes.
    Dose(Box<dose::DoseArgs>),
    /// Merge an adapter into the weights of its base model, wholly or as far as that is exact.
    Merge(merge::MergeArgs),
    /// Write an adapter for Python, or convert a checkpoint of SIBO's released code.
    Export(export::ExportArgs),
    /// Make the embedded model anew from its recipe.
    Pretrain(pretrain::PretrainArgs),
    /// Asks whether the initial residual helps on your own data, within a budget.
    Compare(compare::CompareArgs),
    /// Run studies: arms tuned and measured on the embedded model in paired seeds, with computed verdicts.
    Reproduce(reproduce::ReproduceArgs),
    /// Run a study cell by cell, on a cluster: plan, run one, status, job files.
    Sweep(sweep::SweepArgs),
    /// Look at this machine, check every kernel and its gradient on it, and name the remedy for what is wrong.
    Doctor(doctor::DoctorArgs),
}

impl Cli {
    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stops it, as one line.
    pub fn run(self) -> anyhow::Result<()> {
        let quiet = self.common.quiet;
        if let Some(threads) = self.common.threads {
            anyhow::ensure!((1..=1024).contains(&threads), "--threads is {threads}; it must be from 1 to 1024");
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        match self.verb {
            Verb::Inspect(args) => inspect::run(&args),
            Verb::Train(args) => train::run(&args, quiet),
            Verb::Similarity(args) => similarity::run(&args, quiet),
            Verb::Dose(args) => dose::run(&args, quiet),
            Verb::Merge(args) => merge::run(&args, quiet),
            Verb::Export(args) => export::run(&args, quiet),
            Verb::Pretrain(args) => pretrain::run(&args, quiet),
            Verb::Compare(args) => compare::run(&args, quiet),
            Verb::Reproduce(args) => reproduce::run(&args, quiet),
            Verb::Sweep(args) => sweep::run(&args, quiet),
            Verb::Doctor(args) => doctor::run(&args),
        }
    }
}

/// Writes a chart as PNG and SVG.
fn write_chart(folder: &std::path::Path, stem: &str, chart: &crate::report::Chart) -> anyhow::Result<()> {
    crate::persist::write_file(&folder.join(format!("{stem}.png")), &chart.png()?)?;
    crate::persist::write_file(&folder.join(format!("{stem}.svg")), chart.svg()?.as_bytes())?;
    Ok(())
}

/// Prints a line of results on stdout. A reader that has seen enough (`| head`) is no failure.
fn print_line(line: &str) {
    use std::io::{ErrorKind, Write};
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            note!("smooth-probe: stdout: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// Prints a line about the work on stderr. Whether anyone reads it is nothing to the work.
fn print_note(line: &str) {
    use std::io::Write;
    // In one piece, so that lines of several threads stay apart.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Prints the one line that says why the program failed, and answers its exit code.
#[must_use]
pub fn report_failure(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A cause that the line above already quotes is not said twice.
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    // Tensor errors carry a backtrace after their first line.
    note!("smooth-probe: {}", text.lines().next().unwrap_or_default());
    match error.is::<interrupt::Interrupted>() {
        true => ExitCode::from(interrupt::EXIT_CODE),
        false => ExitCode::FAILURE,
    }
}
