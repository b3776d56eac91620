//! Optimizer steps of one case that benches/peer/train.py laid out: their times, losses and peak memory, as JSON.
//!
//! `cargo run --release --example train_cost -- CASE_FOLDER [LAMBDA] [--checkpointing]`; with LAMBDA the modules read the
//! initial residual (policy `all`), and `mixed` lists the layer and the width of every module that does.

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use serde::Deserialize;
use smooth_probe::data::Example;
use smooth_probe::model::weights::Weights;
use smooth_probe::model::{Transformer, families};
use smooth_probe::peft::{Arm, Method, Mixing, Peft, PeftConfig, Placement, Policy, ResidualConfig};
use smooth_probe::train::{AdamW, Moments, Subject, train_step};
use std::path::Path;
use std::time::Instant;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

/// What is trained.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tuning {
    /// LoRA; alpha is twice the rank.
    Lora { rank: usize },
    /// Series adapters with tanh.
    Adapter { bottleneck: usize },
    /// Every weight.
    Full,
}

#[derive(Debug, Deserialize)]
struct Case {
    tuning: Tuning,
    #[serde(default)]
    targets: Vec<String>,
    learning_rate: f64,
    /// Batches of sequences of token ids.
    batches: Vec<Vec<Vec<u32>>>,
}

fn subject(case: &Case, model: Transformer, lambda: Option<f64>) -> Result<Subject, Failure> {
    let method = match case.tuning {
        Tuning::Full => return Ok(Subject::full(model)?),
        Tuning::Lora { rank } => Method::Lora { rank, alpha: 2.0 * rank as f64, dropout: 0.0, rank_stabilised: false },
        Tuning::Adapter { bottleneck } => Method::Adapter { bottleneck, scale: 1.0, placement: Placement::Series },
    };
    let h0_kind = model.architecture().h0_kind;
    let residual = lambda.map(|lambda| ResidualConfig {
        lambda,
        policy: Policy::All,
        arm: Arm::H0,
        h0_kind,
        seed: 0,
        learned: None,
    });
    let config = PeftConfig::new(method, case.targets.clone(), residual);
    let peft = Peft::initial(&model, config, 0)?;
    Ok(Subject::adapter(model, peft)?)
}

/// Layer and input width of the modules that the initial residual enters.
fn mixed(subject: &Subject) -> Vec<(usize, usize)> {
    let modules = subject.peft().map(|peft| peft.plan().modules.as_slice()).unwrap_or_default();
    modules.iter().filter(|m| m.residual == Mixing::Mixed).map(|m| (m.layer, m.input)).collect()
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
    let (flags, arguments): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let mut arguments = arguments.into_iter();
    let folder = arguments.next().ok_or("name a case's folder")?;
    let lambda = arguments.next().map(|text| text.parse()).transpose()?;
    let folder = Path::new(&folder);
    let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let model = {
        let architecture = families::read_config(folder)?;
        let weights = Weights::open(folder)?;
        Transformer::load("case", architecture, &weights, DType::F32, &Device::Cpu)?
    };
    let subject = subject(&case, model, lambda)?.checkpointing(flags.iter().any(|flag| flag == "--checkpointing"));
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_vectors: false };
    let example = |ids: &Vec<u32>| Example {
        loss: (0..ids.len()).map(|i| i > 0).collect(),
        response: 0,
        special: vec![false; ids.len()],
        ids: ids.clone(),
        ..Example::default()
    };
    let batches: Vec<Vec<Example>> = case.batches.iter().map(|batch| batch.iter().map(example).collect()).collect();
    let loaded = memory("VmRSS");
    // The peak from here on, as on the other side; where the system does not have this, loading counts too.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let mut moments = Moments::default();
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for (batch, step) in batches.iter().zip(0..) {
        let started = Instant::now();
        let micro = [batch.iter().collect::<Vec<_>>()];
        let report = train_step(&subject, &mut moments, &settings, case.learning_rate, 1.0, &micro, None, step)?;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(report.loss);
    }
    let peak = memory("VmHWM").zip(loaded).map(|(peak, loaded)| peak - loaded);
    let (mixed, trained) = (mixed(&subject), subject.trainable());
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds, "losses": losses, "peak_mib": peak, "mixed": mixed, "trained": trained,
        })
    );
    Ok(())
}
