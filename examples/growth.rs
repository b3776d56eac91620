//! How a LoRA step's time grows with layers, tokens of a batch, and length of its sequences.
//!
//! `cargo run --release --example growth -- [--csv FILE] [--json] [--quick]`
//!
//! The model has width 256 and random weights. All points are timed in turns, and a point's time is the median over the
//! rounds. Three claims are checked, each to 5 %: a step is an affine function of the layers (embedding, head and loss are
//! the constant); time per token does not depend on the batch from 1,024 tokens on; and with the tokens of a batch held
//! fixed, time per token is a + b·n in the sequences' length n. Fits are least squares of relative deviations.

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use serde_json::json;
use smooth_probe::data::Example;
use smooth_probe::model::families::parse_config;
use smooth_probe::model::{Initialisation, RandomWeights, Transformer};
use smooth_probe::peft::{Method, Peft, PeftConfig};
use smooth_probe::train::{AdamW, Moments, Subject, train_step};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const ROUNDS: usize = 7;
const VOCABULARY: u32 = 1024;
/// What every claim may be off by.
const TARGET: f64 = 0.05;
/// Layers where they are not what grows.
const LAYERS: usize = 4;
/// Length of sequences where it is not what grows.
const LENGTH: usize = 256;
/// Batch tokens from which on time per token is claimed to be constant.
const CONSTANT_FROM: usize = 1024;

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Axis {
    Layers,
    BatchTokens,
    Length,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::BatchTokens => "batch_tokens",
            Self::Length => "length",
        }
    }
}

/// A step of `sequences` sequences of `length` tokens through `layers` layers.
#[derive(Debug, Clone, Copy)]
struct Point {
    axis: Axis,
    layers: usize,
    sequences: usize,
    length: usize,
}

impl Point {
    fn tokens(&self) -> usize {
        self.sequences * self.length
    }

    /// The value of what grows.
    fn value(&self) -> usize {
        match self.axis {
            Axis::Layers => self.layers,
            Axis::BatchTokens => self.tokens(),
            Axis::Length => self.length,
        }
    }
}

fn points() -> Vec<Point> {
    let layers = [2, 4, 8, 12, 16].map(|layers| Point { axis: Axis::Layers, layers, sequences: 4, length: LENGTH });
    let batches = [1, 2, 4, 8, 16, 32].map(|sequences| Point {
        axis: Axis::BatchTokens,
        layers: LAYERS,
        sequences,
        length: LENGTH,
    });
    let lengths = [128, 256, 512, 1024, 2048, 4096].map(|length| Point {
        axis: Axis::Length,
        layers: LAYERS,
        sequences: 4096 / length,
        length,
    });
    layers.into_iter().chain(batches).chain(lengths).collect()
}

/// A LLaMA of random weights with LoRA on its query and value.
fn subject(layers: usize) -> Result<Subject, Failure> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 688,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    let architecture = parse_config("random", &config)?;
    let weights = RandomWeights::new(&architecture, Initialisation::Transformers, 1);
    let model = Transformer::load("random", architecture.clone(), &weights, DType::F32, &Device::Cpu)?;
    let method = Method::Lora { rank: 8, alpha: 16.0, dropout: 0.0, rank_stabilised: false };
    let targets = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
    let peft = Peft::initial(&model, PeftConfig::new(method, targets, None), 0)?;
    Ok(Subject::adapter(model, peft)?)
}

fn batch(point: &Point) -> Vec<Example> {
    let example = |sequence: usize| Example {
        ids: (0..point.length).map(|i| ((7 * i * i + 3 * i + 31 * sequence) % VOCABULARY as usize) as u32).collect(),
        loss: (0..point.length).map(|i| i > 0).collect(),
        response: 0,
        special: vec![false; point.length],
        ..Example::default()
    };
    (0..point.sequences).map(example).collect()
}

/// The median seconds of a step at every point.
fn measure(points: &[Point], rounds: usize) -> Result<Vec<f64>, Failure> {
    let settings = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decay_vectors: false };
    let mut subjects: Vec<(usize, Subject, Moments)> = Vec::new();
    for point in points {
        if !subjects.iter().any(|(layers, ..)| *layers == point.layers) {
            subjects.push((point.layers, subject(point.layers)?, Moments::default()));
        }
    }
    let batches: Vec<Vec<Example>> = points.iter().map(batch).collect();
    let mut seconds = vec![Vec::with_capacity(rounds); points.len()];
    let mut step = 0;
    // The first round warms up.
    for round in 0..=rounds {
        for ((point, batch), times) in points.iter().zip(&batches).zip(&mut seconds) {
            let Some((_, subject, moments)) = subjects.iter_mut().find(|(layers, ..)| *layers == point.layers) else {
                continue;
            };
            let micro = [batch.iter().collect::<Vec<_>>()];
            let started = Instant::now();
            train_step(subject, moments, &settings, 1e-4, 1.0, &micro, None, step)?;
            if round > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
            step += 1;
        }
    }
    Ok(seconds.into_iter().map(median).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `a` and `b` that make Σ ((a + b·x)/y − 1)² smallest, and the largest |(a + b·x)/y − 1|.
fn fit(pairs: &[(f64, f64)]) -> (f64, f64, f64) {
    // With u = 1/y and v = x/y it is the regression of 1 on u and v.
    let sum = |term: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|&(x, y)| term(1.0 / y, x / y)).sum::<f64>();
    let (uu, uv, vv) = (sum(&|u, _| u * u), sum(&|u, v| u * v), sum(&|_, v| v * v));
    let (u, v) = (sum(&|u, _| u), sum(&|_, v| v));
    let determinant = uu * vv - uv * uv;
    let (a, b) = ((u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant);
    let worst = pairs.iter().map(|&(x, y)| ((a + b * x) / y - 1.0).abs()).fold(0.0, f64::max);
    (a, b, worst)
}

/// One claim and how it fared.
struct Verdict {
    what: &'static str,
    found: String,
    worst: f64,
}

fn verdicts(points: &[Point], seconds: &[f64]) -> Vec<Verdict> {
    let of = |axis: Axis| points.iter().zip(seconds).filter(move |(point, _)| point.axis == axis);
    let micros = |point: &Point, seconds: f64| 1e6 * seconds / point.tokens() as f64;
    let pairs = |axis| of(axis).map(|(p, &s)| (p.value() as f64, micros(p, s))).collect::<Vec<_>>();
    let (a, b, layers) = fit(&pairs(Axis::Layers));
    let by_layers = format!("{a:.1} + {b:.2}·L µs a token, within {:.1} %", 100.0 * layers);
    let large: Vec<f64> =
        of(Axis::BatchTokens).filter(|(p, _)| p.tokens() >= CONSTANT_FROM).map(|(p, &s)| micros(p, s)).collect();
    let mean = large.iter().sum::<f64>() / large.len() as f64;
    let batches = large.iter().map(|time| (time / mean - 1.0).abs()).fold(0.0, f64::max);
    let by_batches = format!("{mean:.1} µs a token, within {:.1} %", 100.0 * batches);
    let (a, b, lengths) = fit(&pairs(Axis::Length));
    let by_lengths = format!("{a:.1} + {b:.5}·n µs a token, within {:.1} %", 100.0 * lengths);
    vec![
        Verdict { what: "2 to 16 layers: affine", found: by_layers, worst: layers },
        Verdict { what: "1,024 to 8,192 tokens a batch: constant", found: by_batches, worst: batches },
        Verdict { what: "sequences of 128 to 4,096: linear + quadratic", found: by_lengths, worst: lengths },
    ]
}

fn main() -> Result<(), Failure> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // As the program does: candle's own pool spins while it waits.
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
    smooth_probe::allocator::keep_pages();
    let (mut csv, mut as_json, mut rounds) = (None, false, ROUNDS);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--csv" => csv = Some(PathBuf::from(words.next().ok_or("--csv names no file")?)),
            "--json" => as_json = true,
            "--quick" => rounds = 1,
            other => return Err(format!("{other}: not an option; there are --csv FILE, --json and --quick").into()),
        }
    }
    let points = points();
    let seconds = measure(&points, rounds)?;
    let mut table = "axis,value,layers,sequences,length,tokens,seconds,us_per_token\n".to_owned();
    for (point, seconds) in points.iter().zip(&seconds) {
        let Point { axis, layers, sequences, length } = *point;
        let (tokens, per_token) = (point.tokens(), 1e6 * seconds / point.tokens() as f64);
        writeln!(
            table,
            "{},{},{layers},{sequences},{length},{tokens},{seconds:.6},{per_token:.3}",
            axis.name(),
            point.value()
        )?;
    }
    let verdicts = verdicts(&points, &seconds);
    match &csv {
        Some(path) => std::fs::write(path, table)?,
        None if !as_json => println!("{table}"),
        None => {}
    }
    let target = format!("≤ {:.0} %", 100.0 * TARGET);
    if as_json {
        let one = |v: &Verdict| json!({"what": v.what, "found": v.found, "target": target, "met": v.worst <= TARGET});
        println!("{}", json!(verdicts.iter().map(one).collect::<Vec<_>>()));
    } else {
        for Verdict { what, found, worst } in &verdicts {
            println!("{what}: {found} (target {target}): {}", if *worst <= TARGET { "met" } else { "missed" });
        }
    }
    Ok(())
}
