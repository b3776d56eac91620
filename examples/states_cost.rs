//! Passes over one case that benches/peer/table.py laid out, with the cosine of every layer: times, values and peak
//! memory, as JSON.
//!
//! `cargo run --release --example states_cost -- CASE_FOLDER PASSES`

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use serde::Deserialize;
use smooth_probe::analysis::layers::Layers;
use smooth_probe::analysis::plan::{MeasurePlan, Sites};
use smooth_probe::analysis::similarity::{
    EncodedText, RunInput, RunModel, RunState, StateSource, Unwatched, measure_run,
};
use smooth_probe::measures::{TokenSet, parse_measures, points};
use smooth_probe::model::weights::Weights;
use smooth_probe::model::{Transformer, families};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Deserialize)]
struct Case {
    /// Batches of sequences of token ids.
    batches: Vec<Vec<Vec<u32>>>,
}

/// Resident memory now or at its peak, in MiB; `None` where the system does not say.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn main() -> Result<(), Failure> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // As the program does: candle's own pool spins while it waits.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    smooth_probe::allocator::keep_pages();
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("name a case's folder")?;
    let passes: usize = arguments.next().ok_or("say how many passes")?.parse()?;
    let folder = Path::new(&folder);
    let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let architecture = families::read_config(folder)?;
    let model = Transformer::load("case", architecture, &Weights::open(folder)?, DType::F32, &Device::Cpu)?;
    let batch_size = case.batches.first().map_or(1, Vec::len);
    let text = |(index, ids): (u64, Vec<u32>)| EncodedText {
        index,
        span: 0..ids.len(),
        special: vec![false; ids.len()],
        ids,
        ..EncodedText::default()
    };
    let texts: Vec<EncodedText> = (0..).zip(case.batches.into_iter().flatten()).map(text).collect();
    let measures = parse_measures("cosine")?;
    let plan = MeasurePlan::new(measures, &Sites::Usual, &Layers::All, model.architecture(), 0);
    let lookup = BTreeSet::new();
    let input = RunInput {
        name: "case",
        source: StateSource::Model(RunModel { transformer: &model, peft: None }),
        reference: None,
        reference_means: None,
        texts: &texts,
        lookup: &lookup,
        means: None,
        other_texts: false,
        batch_size,
        scratch: None,
    };
    let loaded = memory("VmRSS");
    // The peak from here on, as on the other side; where the system does not have this, loading counts too.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (mut seconds, mut values) = (Vec::new(), Vec::new());
    for _ in 0..passes {
        let started = Instant::now();
        let (found, _) = measure_run(&input, &plan, RunState::default(), &mut Unwatched)?;
        seconds.push(started.elapsed().as_secs_f64());
        values = points(model.architecture().layers)
            .into_iter()
            .map(|point| {
                let place = found.place(point)?;
                let series = found.series(&None, place, 0, TokenSet::All);
                let known: Vec<f64> = series.into_iter().flatten().collect();
                Some(known.iter().sum::<f64>() / known.len() as f64)
            })
            .collect();
    }
    let peak = memory("VmHWM").zip(loaded).map(|(peak, loaded)| peak - loaded);
    println!("{}", serde_json::json!({"seconds": seconds, "values": values, "peak_mib": peak}));
    Ok(())
}
