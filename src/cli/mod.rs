//! The command line: one file per verb; arguments and calls, no logic.

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($part:tt)*) => { $crate::cli::print_line(&format!($($part)*)) };
}

/// `eprintln!` that survives a closed pipe.
macro_rules! note {
    ($($part:tt)*) => { $crate::cli::print_note(&format!($($part)*)) };
}

/// `note!` for those who asked for more with `--verbose`.
macro_rules! detail {
    ($($part:tt)*) => {
        if $crate::cli::terminal::verbosity() == $crate::cli::terminal::Verbosity::Verbose {
            note!($($part)*);
        }
    };
}

mod compare;
mod completions;
mod device;
mod doctor;
mod dose;
mod evaluate;
mod export;
mod fetch;
mod generate;
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
mod report;
mod reproduce;
mod similarity;
mod sparkline;
mod states;
mod sweep;
mod terminal;
mod texts;
mod token_pairs;
mod train;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::time::Instant;
use terminal::Verbosity;

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
    /// Also say where models come from, what they are computed on, how long it takes, and every cause of an error.
    #[arg(long, short, global = true, conflicts_with = "quiet")]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a model's modules and what a PEFT run would train, before anyone trains.
    Inspect(inspect::InspectArgs),
    /// Fine-tune a model: LoRA, adapters or all weights, vanilla or with SIBO's initial residual.
    Train(Box<train::TrainArgs>),
    /// Measure token similarity layer by layer, and compare models, adapters and checkpoints.
    Similarity(Box<similarity::SimilarityArgs>),
    /// Put tasks to a model and its adapters, and score the answers: the paper's sets, GLUE, or a task of your own.
    Evaluate(Box<evaluate::EvaluateArgs>),
    /// Turn the lambda of a trained, frozen adapter up and down: what the initial residual causes.
    Dose(Box<dose::DoseArgs>),
    /// Continue prompts: greedily, by draws or by beam search, with or without an adapter.
    Generate(Box<generate::GenerateArgs>),
    /// Merge an adapter into the weights of its base model, wholly or as far as that is exact.
    Merge(merge::MergeArgs),
    /// Write an adapter for Python, or convert a checkpoint of SIBO's released code.
    Export(export::ExportArgs),
    /// Make the embedded model anew from its recipe.
    Pretrain(pretrain::PretrainArgs),
    /// Ask whether the initial residual helps on your own data, within a budget.
    Compare(compare::CompareArgs),
    /// Run studies: arms tuned and measured on the embedded model in paired seeds, with computed verdicts.
    Reproduce(reproduce::ReproduceArgs),
    /// Draw the figures and pages of a run again from its tables alone, or verify every number that they show.
    Report(report::ReportArgs),
    /// Run a study cell by cell, on a cluster: plan, run one, status, job files.
    Sweep(sweep::SweepArgs),
    /// Look at this machine, check every kernel and its gradient on it, and name the remedy for what is wrong.
    Doctor(doctor::DoctorArgs),
    /// Fetch a model from the hub into the cache: the only verb that must reach the network.
    Fetch(fetch::FetchArgs),
    /// Print what a shell needs to complete this program's options, or write its manual pages.
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever stops it, as one line.
    pub fn run(self) -> anyhow::Result<()> {
        let quiet = self.common.quiet;
        terminal::set_verbosity(quiet, self.common.verbose);
        let started = Instant::now();
        if let Some(threads) = self.common.threads {
            anyhow::ensure!((1..=1024).contains(&threads), "--threads is {threads}; it must be from 1 to 1024");
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        }
        let ended = match self.verb {
            Verb::Inspect(args) => inspect::run(&args),
            Verb::Train(args) => train::run(&args, quiet),
            Verb::Similarity(args) => similarity::run(&args, quiet),
            Verb::Evaluate(args) => evaluate::run(&args, quiet),
            Verb::Dose(args) => dose::run(&args, quiet),
            Verb::Generate(args) => generate::run(&args, quiet),
            Verb::Merge(args) => merge::run(&args, quiet),
            Verb::Export(args) => export::run(&args, quiet),
            Verb::Pretrain(args) => pretrain::run(&args, quiet),
            Verb::Compare(args) => compare::run(&args, quiet),
            Verb::Reproduce(args) => reproduce::run(&args, quiet),
            Verb::Report(args) => report::run(&args, quiet),
            Verb::Sweep(args) => sweep::run(&args, quiet),
            Verb::Doctor(args) => doctor::run(&args),
            Verb::Fetch(args) => fetch::run(&args, quiet),
            Verb::Completions(args) => completions::run(&args, quiet),
        };
        detail!("{:.2} s on {} threads", started.elapsed().as_secs_f64(), rayon::current_num_threads());
        ended
    }
}

/// Writes a chart as PNG and SVG.
fn write_chart(folder: &std::path::Path, stem: &str, chart: &crate::report::Chart) -> anyhow::Result<()> {
    write_drawing(folder, stem, &chart.draw(), true)
}

/// Writes a drawing as SVG, and as PNG if that is wanted.
fn write_drawing(
    folder: &std::path::Path,
    stem: &str,
    drawing: &crate::report::Drawing,
    png: bool,
) -> anyhow::Result<()> {
    if png {
        crate::persist::write_file(&folder.join(format!("{stem}.png")), &drawing.png()?)?;
    }
    Ok(crate::persist::write_file(&folder.join(format!("{stem}.svg")), drawing.svg()?.as_bytes())?)
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
    if terminal::verbosity() == Verbosity::Verbose {
        for (depth, cause) in error.chain().enumerate() {
            cause.to_string().lines().for_each(|line| note!("  {depth}  {line}"));
        }
    }
    match error.is::<interrupt::Interrupted>() {
        true => ExitCode::from(interrupt::EXIT_CODE),
        false => ExitCode::FAILURE,
    }
}
