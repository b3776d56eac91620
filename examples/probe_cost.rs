//! What measuring costs beside the bare forward pass (no head), and the memory that it adds at growing depth.
//!
//! `cargo run --release --example probe_cost -- [MODEL_FOLDER]`; without a folder a model of stories15M's shape with
//! random weights. Times are medians of interleaved rounds; all sides run on the same batches, and the bare forward
//! pass is shared out among the threads as the measured one is. Memory is the peak of a process of its own.

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
/// Layers of the models whose memory is shown.
const DEPTHS: [usize; 4] = [6, 12, 24, 48];
/// The first argument of a process whose memory is measured; then come the layers and the measures.
const PEAK: &str = "--peak";

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
        EncodedText { index, span: 0..ids.len(), ids, special, ..EncodedText::default() }
    };
    (0..TEXTS).map(one).collect()
}

/// The forward pass alone, one batch after another, all threads on each.
fn batch_after_batch(model: &Transformer, texts: &[EncodedText]) -> Result<(), Failure> {
    for batch in texts.chunks(BATCH) {
        let sequences: Vec<&[u32]> = batch.iter().map(|text| text.ids.as_slice()).collect();
        model.hidden_states(&Packed::from_sequences(&sequences), &Pass::default(), &mut Silent)?;
    }
    Ok(())
}

/// One pass over the texts: measures that need corpus means are left to their second pass. Without measures nothing
/// is recorded.
fn measured(model: &Transformer, texts: &Vec<EncodedText>, measures: &[Measure]) -> Result<(), Failure> {
    let sites = if measures.is_empty() { Sites::Some { sites: Vec::new(), heads: false } } else { Sites::Usual };
    let plan = MeasurePlan::new(measures.to_vec(), &sites, &Layers::All, model.architecture(), 0);
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
        scratch: None,
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

/// The work of a process whose memory is measured: its peak in MiB over what was resident before.
fn peak(layers: usize, list: &str) -> Result<(), Failure> {
    let model = random_model(layers)?;
    let texts = texts(model.architecture().vocab_size as u32);
    let before = memory("VmRSS");
    measured(&model, &texts, &first_pass(list)?)?;
    match memory("VmHWM").zip(before) {
        Some((peak, before)) => println!("{:.1}", peak - before),
        None => println!("?"),
    }
    Ok(())
}

/// The measures of a list that a first pass takes.
fn first_pass(list: &str) -> Result<Vec<Measure>, Failure> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    Ok(parse_measures(list)?.into_iter().filter(|m| !m.second_pass()).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [PEAK, layers, list] = arguments[..] {
        return peak(layers.parse()?, list);
    }
    let model = match arguments.first() {
        Some(folder) => LoadedModel::from_folder(Path::new(folder), folder, DType::F32, &Device::Cpu)?.transformer,
        None => random_model(6)?,
    };
    let texts = texts(model.architecture().vocab_size.min(8192) as u32);
    let lists = ["", "cosine", "streaming", "streaming,matrix"];
    let kinds = lists.map(first_pass).into_iter().collect::<Result<Vec<_>, _>>()?;
    let (mut plain, mut seconds) = (Vec::new(), vec![Vec::new(); kinds.len()]);
    for round in 0..=ROUNDS {
        // The first round warms up.
        let keep = |times: &mut Vec<f64>, started: Instant| {
            if round > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        };
        let started = Instant::now();
        batch_after_batch(&model, &texts)?;
        keep(&mut plain, started);
        for (measures, times) in kinds.iter().zip(&mut seconds) {
            let started = Instant::now();
            measured(&model, &texts, measures)?;
            keep(times, started);
        }
    }
    let tokens = (TEXTS * u64::from(TOKENS)) as f64;
    println!("{TEXTS} texts of {TOKENS} tokens, {} layers, {ROUNDS} rounds", model.architecture().layers);
    let base = seconds.first().cloned().unwrap_or_default();
    let names = ["bare", "cosine", "streaming", "streaming and matrix"];
    let micros = |times: &[f64]| 1e6 * median(times.to_vec()) / tokens;
    println!("{:32} {:8.2} us a token", "bare, batch after batch", micros(&plain));
    for ((name, measures), times) in names.iter().zip(&kinds).zip(&seconds) {
        let ratio = median(times.iter().zip(&base).map(|(time, base)| time / base).collect());
        println!(
            "{name:20} {:2} measures {:8.2} us a token {:+7.1} % over bare",
            measures.len(),
            micros(times),
            100.0 * (ratio - 1.0)
        );
    }
    println!("\npeak memory over what is resident before, MiB: bare; cosine; streaming");
    let own = std::env::current_exe()?;
    for layers in DEPTHS {
        let shown = ["", "cosine", "streaming"].map(|list| -> Result<String, Failure> {
            let child = std::process::Command::new(&own).args([PEAK, &layers.to_string(), list]).output()?;
            Ok(String::from_utf8(child.stdout)?.trim().to_owned())
        });
        let shown = shown.into_iter().collect::<Result<Vec<_>, _>>()?;
        println!("{layers:3} layers: {}", shown.join("; "));
    }
    Ok(())
}
