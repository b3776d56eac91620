//! What an unmerged adapter costs per token at inference: the base model (which is what a merged vanilla LoRA
//! is), vanilla LoRA beside it, and LoRA with SIBO, which cannot be merged whole; interleaved, medians.
//!
//! `cargo run --release --example deployment_cost -- MODEL_FOLDER`

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use smooth_probe::data::Packed;
use smooth_probe::model::{LoadedModel, Pass};
use smooth_probe::peft::{Arm, Method, Peft, PeftConfig, Policy, ResidualConfig};
use smooth_probe::probe::Silent;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 21;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1);
    let loaded = match &folder {
        Some(folder) => LoadedModel::from_folder(Path::new(folder), folder, DType::F32, &Device::Cpu)?,
        None => LoadedModel::embedded(DType::F32, &Device::Cpu)?,
    };
    let model = &loaded.transformer;
    let vocab = model.architecture().vocab_size as u32;
    let length = model.architecture().max_positions.min(256) as u32;
    let sequences: Vec<Vec<u32>> =
        (0..4u32).map(|s| (0..length).map(|i| (7 * i * i + 3 * i + s) % vocab).collect()).collect();
    let batch = Packed::from_sequences(&sequences);

    let method = Method::Lora { rank: 32, alpha: 64.0, dropout: 0.0, rank_stabilised: false };
    let peft = |policy: Option<Policy>| {
        let h0_kind = model.architecture().h0_kind;
        let residual =
            policy.map(|policy| ResidualConfig { lambda: 0.2, policy, arm: Arm::H0, h0_kind, seed: 0, learned: None });
        Peft::initial(model, PeftConfig::new(method, method.default_targets(model.architecture()), residual), 0)
    };
    let arms = [
        ("base (merged vanilla LoRA)", None),
        ("vanilla LoRA r=32, unmerged", Some(peft(None)?)),
        ("LoRA-SIBO, policy official", Some(peft(Some(Policy::Official))?)),
        ("LoRA-SIBO, policy all", Some(peft(Some(Policy::All))?)),
    ];
    let mut seconds = vec![Vec::new(); arms.len()];
    for round in 0..=ROUNDS {
        for ((_, peft), times) in arms.iter().zip(&mut seconds) {
            let started = Instant::now();
            model.hidden_states(&batch, &Pass::inference(peft.as_ref()), &mut Silent)?;
            // The first round warms up.
            if round > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let median = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    println!("{}, {} tokens, {} rounds", loaded.name, batch.ids.len(), ROUNDS);
    for ((name, _), times) in arms.iter().zip(&seconds) {
        let ratios: Vec<f64> = times.iter().zip(&seconds[0]).map(|(t, base)| t / base).collect();
        let per_token = 1e6 * median(times) / batch.ids.len() as f64;
        println!("{name:30} {per_token:8.2} us a token  {:+6.1} % over base", 100.0 * (median(&ratios) - 1.0));
    }
    Ok(())
}
