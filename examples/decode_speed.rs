//! How fast a model writes, one prompt at a time, beside how fast this machine reads: as JSON.
//!
//! `cargo run --release --example decode_speed -- MODEL_FOLDER [NEW_TOKENS] [RUNS] [FIRST_TOKENS,COMMA,SEPARATED]`. Every
//! token reads every weight once, so that tokens a second times the weights' bytes is a read rate: its share of the
//! machine's is what decoding makes of it. Both are measured in turns, and the best of each counts.

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use candle_core::{DType, Device};
use rayon::prelude::*;
use serde_json::json;
use smooth_probe::generate::{Decoding, GenerateError, Generated, Generator, Listener, Prompt};
use smooth_probe::model::weights::Weights;
use smooth_probe::model::{Transformer, families};
use std::path::Path;
use std::time::Instant;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Words of the array that is read: 512 MiB, which no cache holds.
const WORDS: usize = 64 << 20;

/// 10⁹ bytes a second that all threads read together.
fn read_rate(words: &[u64]) -> f64 {
    let pieces = rayon::current_num_threads() * 16;
    let started = Instant::now();
    let sum = |piece: &[u64]| piece.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
    let total: u64 = words.par_chunks(words.len().div_ceil(pieces)).map(sum).reduce(|| 0, u64::wrapping_add);
    std::hint::black_box(total);
    8.0 * words.len() as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// When each token was chosen.
#[derive(Default)]
struct Clock(Vec<Instant>);

impl Listener for Clock {
    fn token(&mut self, _: usize, _: u32) -> Result<(), GenerateError> {
        self.0.push(Instant::now());
        Ok(())
    }

    fn done(&mut self, _: usize, _: &Generated) -> Result<(), GenerateError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    smooth_probe::allocator::keep_pages();
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("name a model's folder")?;
    let tokens: usize = arguments.next().map_or(Ok(128), |tokens| tokens.parse())?;
    let runs: usize = arguments.next().map_or(Ok(5), |runs| runs.parse())?;
    let ids = match arguments.next() {
        Some(list) => list.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?,
        None => vec![1],
    };
    let folder = Path::new(&folder);
    let architecture = families::read_config(folder)?;
    let weights = Weights::open(folder)?;
    let mut model = Transformer::load("decode", architecture, &weights, DType::F32, &Device::Cpu)?;
    // Of a table that is no head too, a token reads one row.
    let table = model
        .tensors()
        .iter()
        .filter(|(name, _)| name.contains("embed"))
        .map(|(_, t)| t.elem_count() * 4)
        .sum::<usize>();
    let own_head = model.head()?.weight.id() != model.embedding().ok_or("a model without a table")?.id();
    let bytes = model.bytes() as f64 - if own_head { table as f64 } else { 0.0 };
    let prompts = [Prompt { ids, number: 0 }];
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let generator = Generator::new(&model, None)?;
    let (mut rates, mut speeds, mut begins) = (Vec::new(), Vec::new(), Vec::new());
    let mut written = Vec::new();
    for _ in 0..runs {
        rates.push(read_rate(&words));
        let (mut clock, started) = (Clock::default(), Instant::now());
        written = generator.generate(&prompts, &Decoding::greedy(tokens), &mut clock)?;
        let (Some(first), Some(last)) = (clock.0.first(), clock.0.last()) else {
            return Err("nothing was written".into());
        };
        begins.push(first.duration_since(started).as_secs_f64());
        speeds.push((clock.0.len() - 1) as f64 / last.duration_since(*first).as_secs_f64());
    }
    let best = |all: &[f64]| all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let read = best(&rates);
    let decoded = best(&speeds) * bytes / 1e9;
    println!(
        "{}",
        json!({
            "threads": rayon::current_num_threads(),
            "weights_mb": bytes / 1e6,
            "read_gb_s": read,
            "read_gb_s_all": rates,
            "tokens_a_second": best(&speeds),
            "tokens_a_second_all": speeds,
            "weights_gb_s": decoded,
            "share_of_read": decoded / read,
            "first_token_ms": begins.iter().copied().fold(f64::INFINITY, f64::min) * 1e3,
            "ids": written.first().map(|text| text.ids.clone()),
        })
    );
    Ok(())
}
