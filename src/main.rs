//! The `smooth-probe` program: parse, dispatch, report the error, exit code.

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // candle's own pool spins while it waits; beside rayon's, which the kernels use, that took half of the
        // machine's time (perf: 56 % in its barrier while two cells of a study ran).
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    smooth_probe::allocator::keep_pages();
    let cli = smooth_probe::cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => smooth_probe::cli::report_failure(&error),
    }
}
