//! What measuring costs beside the bare forward pass (no head), and the memory that it adds at growing depth.
//!
//! `cargo run --release --example probe_cost -- [MODEL_FOLDER]`; without a folder a model of stories15M's shape with
//! random weights. Medians of interleaved rounds; both sides run on the same batches.

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use smooth_probe::analysis::layers::Layers;
use smooth_probe::analysis::plan::{MeasurePlan, Sites};
use smooth_probe::analysis::similarity::{
    EncodedText, RunInput, RunModel, RunState, StateSource, Unwatched, measure_run,
};
use smooth_probe::data::Packed;
use smooth_probe::measures::{Measure, parse_measures};
use smooth_probe::model::families::parse_config;
use smooth_probe::model::{Initialisation, LoadedModel, Pass, RandomWeights, Transformer};
use smooth_probe::probe::Silent;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 9;
const TEXTS: u64 = 64;
const TOKENS: u32 = 128;
const BATCH: usize = 8;

type Failure = Box<dyn std::error::Error>;

/// A model of stories15M's widths with random weights.
fn random_model(layers: usize) -> Result<Transformer, Failure> {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 8192, "hidden_size": 288, "intermediate_size": 768,
        "num_hidden_layers": layers, "num_attention_heads": 6, "num_key_value_heads": 6, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let architecture = parse_config("random", &config)?;
    let weights = RandomWeights::new(&architecture, Initialisation::Transformers, 1);
    Ok(Transformer::load("random", architecture.clone(), &weights, DType::F32, &Device::Cpu)?)
}

fn texts(vocab: u32) -> Vec<EncodedText> {
    let one = |index: u64| {
        let ids: Vec<u32> = (0..TOKENS).map(|i| (i * i * 31 + i * 7 + index as u32 * 97) % vocab).collect();
        let special = (0..TOKENS).map(|i| i == 0).collect();
        EncodedText { index, group: None, span: 0..ids.len(), types: Vec::new(), ids, special }
    };
    (0..TEXTS).map(one).collect()
}

fn bare(model: &Transformer, texts: &[EncodedText]) -> Result<(), Failure> {
    for batch in texts.chunks(BATCH) {
        let sequences: Vec<&[u32]> = batch.iter().map(|text| text.ids.as_slice()).collect();
        model.hidden_states(&Packed::from_sequences(&sequences), &Pass::default(), &mut Silent)?;
    }
    Ok(())
}

/// One pass over the texts: measures that need corpus means are left to their second pass.
fn measured(model: &Transformer, texts: &Vec<EncodedText>, measures: &[Measure]) -> Result<(), Failure> {
    let plan = MeasurePlan::new(measures.to_vec(), &Sites::Usual, &Layers::All, model.architecture(), 0);
    let lookup = BTreeSet::new();
    let input = RunInput {
        name: "cost",
        source: StateSource::Model(RunModel { transformer: model, peft: None }),
        reference: None,
        reference_means: None,
        texts,
        lookup: &lookup,
        means: None,
        other_texts: false,
        batch_size: BATCH,
    };
    measure_run(&input, &plan, RunState::default(), &mut Unwatched)?;
    Ok(())
}

/// Resident memory now or at its peak, in MiB; `None` where the system does not say.
fn memory(key: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// The peak of `work` over what was resident before it.
fn peak(work: impl FnOnce() -> Result<(), Failure>) -> Result<Option<f64>, Failure> {
    // Sets the peak back to what is resident.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = memory("VmRSS");
    work()?;
    Ok(memory("VmHWM").zip(before).map(|(peak, before)| peak - before))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Failure> {
    let model = match std::env::args().nth(1) {
        Some(folder) => LoadedModel::from_folder(Path::new(&folder), &folder, DType::F32, &Device::Cpu)?.transformer,
        None => random_model(6)?,
    };
    let first_pass = |list: &str| -> Result<Vec<Measure>, Failure> {
        Ok(parse_measures(list)?.into_iter().filter(|m| !m.second_pass()).collect())
    };
    let texts = texts(model.architecture().vocab_size as u32);
    let kinds = [
        ("bare", Vec::new()),
        ("cosine", first_pass("cosine")?),
        ("streaming", first_pass("streaming")?),
        ("streaming and matrix", first_pass("streaming,matrix")?),
    ];
    let mut seconds = vec![Vec::new(); kinds.len()];
    for round in 0..=ROUNDS {
        for ((_, measures), times) in kinds.iter().zip(&mut seconds) {
            let started = Instant::now();
            match measures.as_slice() {
                [] => bare(&model, &texts)?,
                measures => measured(&model, &texts, measures)?,
            }
            // The first round warms up.
            if round > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let tokens = (TEXTS * u64::from(TOKENS)) as f64;
    println!("{TEXTS} texts of {TOKENS} tokens, {} layers, {ROUNDS} rounds", model.architecture().layers);
    let base = seconds.first().cloned().unwrap_or_default();
    for ((name, measures), times) in kinds.iter().zip(&seconds) {
        let ratio = median(times.iter().zip(&base).map(|(time, base)| time / base).collect());
        let micros = 1e6 * median(times.clone()) / tokens;
        println!(
            "{name:24} {:2} measures {micros:8.2} us a token {:+7.1} % over bare",
            measures.len(),
            100.0 * (ratio - 1.0)
        );
    }
    println!("\npeak memory over what is resident before, MiB (bare; cosine; streaming)");
    for layers in [6, 12, 24, 48] {
        let model = random_model(layers)?;
        let few = texts.iter().take(16).cloned().collect();
        measured(&model, &few, &first_pass("streaming")?)?;
        let show = |peak: Option<f64>| peak.map_or_else(|| "?".to_owned(), |peak| format!("{peak:.1}"));
        let plain = peak(|| bare(&model, &few))?;
        let cosine = peak(|| measured(&model, &few, &first_pass("cosine")?))?;
        let streaming = peak(|| measured(&model, &few, &first_pass("streaming")?))?;
        println!("{layers:3} layers: {}; {}; {}", show(plain), show(cosine), show(streaming));
    }
    Ok(())
}
