//! What it takes until a model's weights stand ready, without its tokenizer: time and peak memory, as JSON.
//!
//! `cargo run --release --example load_cost -- MODEL_FOLDER`; run it twice, the first time reads the file from the disk.

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use smooth_probe::model::weights::Weights;
use smooth_probe::model::{Transformer, families};
use std::path::Path;
use std::time::Instant;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Resident memory now or at its peak, in MiB; `None` where the system does not say.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    smooth_probe::allocator::keep_pages();
    let folder = std::env::args().nth(1).ok_or("name a model's folder")?;
    let folder = Path::new(&folder);
    let before = memory("VmRSS");
    let started = Instant::now();
    let architecture = families::read_config(folder)?;
    let weights = Weights::open(folder)?;
    let model = Transformer::load("cost", architecture, &weights, DType::F32, &Device::Cpu)?;
    let milliseconds = 1e3 * started.elapsed().as_secs_f64();
    let peak = memory("VmHWM").zip(before).map(|(peak, before)| peak - before);
    let weights_mib = model.architecture().parameter_count() as f64 * 4.0 / f64::from(1 << 20);
    println!("{}", serde_json::json!({"milliseconds": milliseconds, "weights_mib": weights_mib, "peak_mib": peak}));
    Ok(())
}
