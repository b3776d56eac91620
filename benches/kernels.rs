//! Every kernel, forward and backward, at the shape of the training bench.
//!
//! `cargo bench --bench kernels [-- FILTER]`
//!
//! Products and attention are counted in operations, so that criterion's `Gelem/s` is GFLOP/s; everything else in the
//! elements that it reads or makes. A backward pass is that of a recording alone, with gradients to what training wants
//! there: frozen weights get none.

#![expect(clippy::unwrap_used, reason = "a bench that fails stops")]

use candle_core::{Device, Result, Tensor, Var};
use criterion::{BatchSize, Criterion, Throughput};
use smooth_probe::kernels::{self, Activation, AttentionShape, Gradients};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// The program's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEQUENCES: usize = 4;
const LENGTH: usize = 256;
const TOKENS: usize = SEQUENCES * LENGTH;
const WIDTH: usize = 512;
const HEADS: usize = 8;
const HEAD_DIM: usize = WIDTH / HEADS;
const INNER: usize = 1376;
const VOCABULARY: usize = 4096;
const RANK: usize = 8;

/// A kernel's argument: its shape, and whether it is trained or hangs on something that is.
struct Argument {
    shape: Vec<usize>,
    tracked: bool,
}

fn tracked(shape: &[usize]) -> Argument {
    Argument { shape: shape.to_vec(), tracked: true }
}

fn frozen(shape: &[usize]) -> Argument {
    Argument { shape: shape.to_vec(), tracked: false }
}

/// Values between -1 and 1 that repeat after a prime number.
fn values(shape: &[usize], salt: usize) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i + salt) * 7919 % 8191) as f32 / 4095.5 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Times `kernel` on its arguments, counting `forward` and `backward` elements or operations.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    (forward, backward): (usize, usize),
    arguments: &[Argument],
    kernel: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let plain: Vec<Tensor> = arguments.iter().enumerate().map(|(salt, a)| values(&a.shape, salt)).collect();
    let variables: Vec<Tensor> = plain
        .iter()
        .zip(arguments)
        .map(|(tensor, a)| if a.tracked { Var::from_tensor(tensor).unwrap().into_inner() } else { tensor.clone() })
        .collect();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(forward as u64));
    group.bench_function("forward", |bencher| bencher.iter(|| kernel(black_box(&plain)).unwrap()));
    if backward > 0 {
        group.throughput(Throughput::Elements(backward as u64));
        group.bench_function("backward", |bencher| {
            let record = || {
                let (out, tape) = kernels::record(|| kernel(&variables));
                let out = out.unwrap();
                let seed = values(out.dims(), 1);
                (out, tape, seed)
            };
            bencher.iter_batched(
                record,
                |(out, tape, seed)| {
                    let mut gradients = Gradients::default();
                    tape.backward(&out, seed, &mut gradients).unwrap();
                    gradients
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// `x · Wᵀ` for `inputs` and `outputs` features.
fn product(inputs: usize, outputs: usize) -> usize {
    2 * TOKENS * inputs * outputs
}

fn linears(criterion: &mut Criterion) {
    let shapes = [("query", WIDTH, WIDTH), ("up", WIDTH, INNER), ("down", INNER, WIDTH)];
    for (name, inputs, outputs) in shapes {
        let (flop, x, w) = (product(inputs, outputs), [TOKENS, inputs], [outputs, inputs]);
        let one = |t: &[Tensor]| match t {
            [x, w] => kernels::linear(x, w, None),
            _ => candle_core::bail!("two arguments"),
        };
        bench(criterion, &format!("linear {name} frozen"), (flop, flop), &[tracked(&x), frozen(&w)], one);
        bench(criterion, &format!("linear {name} trained"), (flop, 2 * flop), &[tracked(&x), tracked(&w)], one);
    }
    let (flop, biased) =
        (product(WIDTH, WIDTH), [tracked(&[TOKENS, WIDTH]), tracked(&[WIDTH, WIDTH]), tracked(&[WIDTH])]);
    bench(criterion, "linear with bias trained", (flop, 2 * flop), &biased, |t| match t {
        [x, w, b] => kernels::linear(x, w, Some(b)),
        _ => candle_core::bail!("three arguments"),
    });
    let (down, flop) = ([tracked(&[TOKENS, WIDTH]), tracked(&[RANK, WIDTH])], product(WIDTH, RANK));
    bench(criterion, "linear LoRA down", (flop, 2 * flop), &down, |t| match t {
        [x, w] => kernels::linear(x, w, None),
        _ => candle_core::bail!("two arguments"),
    });
}

fn attention(criterion: &mut Criterion) {
    let offsets: Arc<[usize]> = (0..=SEQUENCES).map(|s| s * LENGTH).collect();
    let arguments = || [(); 3].map(|()| tracked(&[TOKENS, WIDTH]));
    for (name, causal, pairs) in [("causal", true, LENGTH * (LENGTH + 1) / 2), ("full", false, LENGTH * LENGTH)] {
        let scale = 1.0 / (HEAD_DIM as f64).sqrt();
        let shape = AttentionShape {
            heads: HEADS,
            kv_heads: HEADS,
            head_dim: HEAD_DIM,
            causal,
            scale,
            reach: None,
            soft_cap: None,
        };
        // Two products forward, five backward; what half-hidden blocks compute in vain is not counted.
        let flop = 2 * SEQUENCES * pairs * WIDTH;
        bench(criterion, &format!("attention {name}"), (2 * flop, 5 * flop), &arguments(), |t| match t {
            [q, k, v] => kernels::attention(q, k, v, shape, None, &offsets),
            _ => candle_core::bail!("three arguments"),
        });
    }
}

fn loss(criterion: &mut Criterion) {
    let targets: Vec<u32> = (0..TOKENS).map(|i| (i * 31 % VOCABULARY) as u32).collect();
    let weights = vec![1.0_f32; TOKENS];
    let flop = product(WIDTH, VOCABULARY);
    let run = |t: &[Tensor]| match t {
        [hidden, head] => kernels::linear_cross_entropy(hidden, head, &targets, &weights),
        _ => candle_core::bail!("two arguments"),
    };
    let (states, head) = ([TOKENS, WIDTH], [VOCABULARY, WIDTH]);
    // The logits are made again in the backward pass.
    bench(criterion, "cross entropy frozen head", (flop, 2 * flop), &[tracked(&states), frozen(&head)], run);
    bench(criterion, "cross entropy trained head", (flop, 3 * flop), &[tracked(&states), tracked(&head)], run);
    let (hidden, head) = (values(&states, 1), values(&head, 2));
    let mut group = criterion.benchmark_group("token losses");
    group.throughput(Throughput::Elements(flop as u64));
    group.bench_function("forward", |b| b.iter(|| kernels::token_losses(&hidden, &head, &targets).unwrap()));
    group.bench_function("forward with hits", |b| {
        b.iter(|| kernels::token_losses_and_hits(&hidden, &head, &targets).unwrap());
    });
    group.finish();
}

/// Kernels of one `[tokens, width]` matrix.
fn of_one(criterion: &mut Criterion) {
    let mut one = |name: &str, width: usize, kernel: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let elements = TOKENS * width;
        bench(criterion, name, (elements, elements), &[tracked(&[TOKENS, width])], |t| match t {
            [x] => kernel(x),
            _ => candle_core::bail!("one argument"),
        });
    };
    one("gelu", INNER, &|x| kernels::activation(x, Activation::Gelu));
    one("gelu_tanh", INNER, &|x| kernels::activation(x, Activation::GeluTanh));
    one("relu", INNER, &|x| kernels::activation(x, Activation::Relu));
    one("tanh", INNER, &kernels::tanh);
    one("scale", WIDTH, &|x| kernels::scale(x, 0.5));
    one("dropout", WIDTH, &|x| kernels::dropout(x, 0.1, 7));
    let h0 = values(&[TOKENS, WIDTH], 3);
    one("residual_mix", WIDTH, &|x| kernels::residual_mix(x, &h0, 0.2));
    let positions: Arc<[u32]> = (0..TOKENS).map(|i| (i % LENGTH) as u32).collect();
    let (cos, sin) = (values(&[LENGTH, HEAD_DIM / 2], 1), values(&[LENGTH, HEAD_DIM / 2], 2));
    one("rope", WIDTH, &|x| kernels::rope(x, HEADS, &cos, &sin, &positions, kernels::Pairing::Halves));
    let (weight, bias) = (values(&[WIDTH], 5), values(&[WIDTH], 6));
    one("rms_norm frozen", WIDTH, &|x| kernels::rms_norm(x, &weight, 1e-5));
    one("layer_norm frozen", WIDTH, &|x| kernels::layer_norm(x, &weight, &bias, 1e-5));
}

/// Kernels of several trained arguments, and of a table.
fn of_several(criterion: &mut Criterion) {
    let states = || tracked(&[TOKENS, WIDTH]);
    let elements = TOKENS * WIDTH;
    bench(criterion, "scaled_add", (elements, elements), &[states(), states()], |t| match t {
        [a, b] => kernels::scaled_add(a, b, 0.5),
        _ => candle_core::bail!("two arguments"),
    });
    let inner = [tracked(&[TOKENS, INNER]), tracked(&[TOKENS, INNER])];
    bench(criterion, "gated silu", (TOKENS * INNER, TOKENS * INNER), &inner, |t| match t {
        [gate, up] => kernels::gated(gate, up, kernels::Activation::Silu),
        _ => candle_core::bail!("two arguments"),
    });
    bench(criterion, "rms_norm trained", (elements, elements), &[states(), tracked(&[WIDTH])], |t| match t {
        [x, weight] => kernels::rms_norm(x, weight, 1e-5),
        _ => candle_core::bail!("two arguments"),
    });
    let norm = [states(), tracked(&[WIDTH]), tracked(&[WIDTH])];
    bench(criterion, "layer_norm trained", (elements, elements), &norm, |t| match t {
        [x, weight, bias] => kernels::layer_norm(x, weight, bias, 1e-5),
        _ => candle_core::bail!("three arguments"),
    });
    let ids: Arc<[u32]> = (0..TOKENS).map(|i| (i * 31 % VOCABULARY) as u32).collect();
    // Backward it fills the whole table.
    let table = [tracked(&[VOCABULARY, WIDTH])];
    bench(criterion, "embedding", (elements, VOCABULARY * WIDTH), &table, |t| match t {
        [weight] => kernels::embedding(weight, &ids, weight.dtype()),
        _ => candle_core::bail!("one argument"),
    });
}

fn main() {
    smooth_probe::allocator::keep_pages();
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    linears(&mut criterion);
    attention(&mut criterion);
    loss(&mut criterion);
    of_one(&mut criterion);
    of_several(&mut criterion);
    criterion.final_summary();
}
