//! The points at which kernels are checked: widths that are no multiple of a vector, sequences of several lengths,
//! grouped heads, ids and targets that repeat.

use super::super::{
    self as kernels, Activation, AttentionShape, DisentangledShape, FrozenWeight, HeadWeights, Pairing, RelativeBias,
    Residual,
};
use super::case::{Backward, Case, Input, draws};
use super::formulas::{self, both, each};
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// Elements of a row: one vector of the widest kind, and a rest.
pub(super) const WIDTH: usize = 19;
const EPS: f64 = 1e-3;
const FACTOR: f64 = -0.75;
const LAMBDA: f64 = 0.25;

const HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const SCALE: f64 = 0.375;
pub(super) const REACH: usize = 2;
const CAP: f64 = 2.0;
pub(super) const PLAIN: AttentionShape =
    AttentionShape { heads: 1, kv_heads: 1, head_dim: 1, causal: true, scale: 1.0, reach: None, soft_cap: None };
/// Sequences of 4, 1 and 4 tokens.
pub(super) const OFFSETS: [usize; 4] = [0, 4, 5, 9];

const POSITIONS: [u32; 4] = [0, 3, 1, 3];
const IDS: [u32; 5] = [5, 0, 5, 5, 2];

/// The head's inner width.
const HIDDEN: usize = 7;
const TARGETS: [u32; 4] = [3, 0, 3, 4];
/// One token counts for nothing.
const TOKEN_WEIGHTS: [f32; 4] = [0.5, 0.0, 1.0, 0.25];

const DROPPED: f64 = 0.25;
const KEY: u64 = 0x5eed;

/// A case for each function of [`crate::kernels`], and for each form of those that have several.
pub(super) fn all() -> Vec<Case> {
    let mut all = vec![linear(true), linear(false)];
    all.extend(branches());
    all.extend(quantised());
    all.extend(element_wise());
    all.extend(norms());
    all.extend(learned_factors());
    all.extend(leading_rows());
    all.extend(super::remedy_cases::all());
    all.extend(tables());
    all.extend([attention(true), attention(false), bent_attention(), disentangled_attention()]);
    all.extend(losses());
    all.push(squared_error());
    all
}

pub(super) fn input(shape: &[usize], seed: u64) -> Input {
    Input { shape: shape.to_vec(), values: draws(shape.iter().product(), seed), learned: true }
}

fn fixed(shape: &[usize], values: Vec<f64>) -> Input {
    Input { shape: shape.to_vec(), values, learned: false }
}

/// As many tensors as a kernel takes.
fn arguments<const N: usize>(tensors: &[Tensor]) -> Result<[&Tensor; N]> {
    match tensors.iter().collect::<Vec<_>>().try_into() {
        Ok(tensors) => Ok(tensors),
        Err(_) => bail!("{} arguments where {N} are due", tensors.len()),
    }
}

/// As many values as a formula takes.
pub(super) fn values<'a, const N: usize>(all: &[&'a [f64]]) -> [&'a [f64]; N] {
    std::array::from_fn(|index| all.get(index).copied().unwrap_or_default())
}

pub(super) fn case<const N: usize>(
    name: (&'static str, &'static str),
    inputs: [Input; N],
    roundings: f64,
    run: impl Fn([&Tensor; N]) -> Result<Tensor> + 'static,
    formula: fn(&[&[f64]]) -> Vec<f64>,
) -> Case {
    Case {
        kernel: name.0,
        form: name.1,
        inputs: inputs.into(),
        run: Box::new(move |tensors| run(arguments(tensors)?)),
        backward: Backward::Tape,
        formula,
        roundings,
    }
}

fn linear(with_bias: bool) -> Case {
    const IN: usize = 11;
    let (x, weight, bias) = (input(&[3, IN], 1), input(&[5, IN], 2), input(&[5], 3));
    // 11 products and their sum, each at most as large as all together: about 11 units.
    let roundings = 12.0 * 11.0;
    if with_bias {
        let run = |[x, weight, bias]: [&Tensor; 3]| kernels::linear(x, weight, Some(bias));
        return case(("linear", "with bias"), [x, weight, bias], roundings, run, |all| {
            let [x, weight, bias] = values(all);
            formulas::linear(x, weight, Some(bias), IN)
        });
    }
    let run = |[x, weight]: [&Tensor; 2]| kernels::linear(x, weight, None);
    case(("linear", ""), [x, weight], roundings, run, |all| {
        let [x, weight] = values(all);
        formulas::linear(x, weight, None, IN)
    })
}

/// Linears of 8 bits a number, whose numbers are chosen so that the blocks hold them exactly.
fn quantised() -> Vec<Case> {
    const IN: usize = 32;
    const RANK: usize = 2;
    let eighths: Vec<f64> =
        (0..5 * IN).map(|i| if i % IN == 0 { 127.0 } else { ((i * 37) % 255) as f64 - 127.0 }).collect();
    let weight = || fixed(&[5, IN], eighths.iter().map(|x| x / 128.0).collect());
    let blocks = |weight: &Tensor| {
        let single = weight.to_dtype(candle_core::DType::F32)?;
        FrozenWeight::quantised(single, candle_core::quantized::GgmlDType::Q8_0)
    };
    let plain = move |[x, weight]: [&Tensor; 2]| kernels::frozen_linear(x, &blocks(weight)?, None);
    let around = move |[x, weight, inner, up]: [&Tensor; 4]| {
        kernels::frozen_with_branch(x, &blocks(weight)?, None, (inner, up), FACTOR)
    };
    let inputs = [input(&[3, IN], 1), weight(), input(&[3, RANK], 3), input(&[5, RANK], 4)];
    vec![
        case(("frozen_linear", "q8_0"), [input(&[3, IN], 1), weight()], 12.0 * 32.0, plain, |all| {
            let [x, weight] = values(all);
            formulas::linear(x, weight, None, IN)
        }),
        case(("frozen_with_branch", "q8_0"), inputs, 12.0 * 40.0, around, |all| {
            let [x, weight, inner, up] = values(all);
            let added = formulas::linear(inner, up, None, RANK);
            formulas::linear(x, weight, None, IN).iter().zip(added).map(|(base, added)| base + FACTOR * added).collect()
        }),
    ]
}

/// Branches around a linear; a wide one mixes its inputs first, a narrow one multiplies both.
fn branches() -> Vec<Case> {
    const IN: usize = 11;
    const RANK: usize = 2;
    let mixed = |form, width: usize| {
        let inputs = [input(&[3, IN], 1), input(&[width, IN], 2), fixed(&[3, IN], draws(3 * IN, 3))];
        let run = |[x, weight, r]: [&Tensor; 3]| {
            let residual = Residual { lambda: LAMBDA, source: Some(r.clone()) };
            kernels::mixed_linear(x, weight, &residual)
        };
        case(("mixed_linear", form), inputs, 12.0 * 24.0, run, |all| {
            let [x, weight, r] = values(all);
            let mixed: Vec<f64> = x.iter().zip(r).map(|(x, r)| (1.0 - LAMBDA) * x + LAMBDA * r).collect();
            formulas::linear(&mixed, weight, None, IN)
        })
    };
    fn joined(base: &[f64], inner: &[f64], up: &[f64]) -> Vec<f64> {
        base.iter().zip(formulas::linear(inner, up, None, RANK)).map(|(base, added)| base + FACTOR * added).collect()
    }
    let added = [input(&[3, 5], 1), input(&[3, RANK], 2), input(&[5, RANK], 3)];
    let run_added = |[base, inner, up]: [&Tensor; 3]| kernels::add_branch(base, inner, up, FACTOR);
    let around = [input(&[3, IN], 1), fixed(&[5, IN], draws(5 * IN, 2)), input(&[3, RANK], 3), input(&[5, RANK], 4)];
    let run_around =
        |[x, weight, inner, up]: [&Tensor; 4]| kernels::linear_with_branch(x, weight, None, (inner, up), FACTOR);
    vec![
        mixed("narrow", 5),
        mixed("wide", 33),
        case(("add_branch", ""), added, 12.0 * 4.0, run_added, |all| {
            let [base, inner, up] = values(all);
            joined(base, inner, up)
        }),
        case(("linear_with_branch", ""), around, 12.0 * 15.0, run_around, |all| {
            let [x, weight, inner, up] = values(all);
            joined(&formulas::linear(x, weight, None, IN), inner, up)
        }),
    ]
}

fn element_wise() -> Vec<Case> {
    let shape = [3, WIDTH];
    let x = || input(&shape, 1);
    let mut away_from_zero = x();
    // ReLU has no derivative at 0: further than two steps.
    away_from_zero.values.iter_mut().filter(|x| x.abs() < 0.125).for_each(|x| *x = 0.125_f64.copysign(*x));
    let activation = |kind| move |[x]: [&Tensor; 1]| kernels::activation(x, kind);
    vec![
        // The kernel's own bound is 4e-7 · |x|, 7 units, and |x| is at most 4.
        case(("activation", "gelu"), [x()], 28.0, activation(Activation::Gelu), |all| {
            each(values::<1>(all)[0], formulas::gelu)
        }),
        case(("activation", "gelu_tanh"), [x()], 28.0, activation(Activation::GeluTanh), |all| {
            each(values::<1>(all)[0], formulas::gelu_tanh)
        }),
        case(("activation", "relu"), [away_from_zero], 0.0, activation(Activation::Relu), |all| {
            each(values::<1>(all)[0], |x| x.max(0.0))
        }),
        case(("activation", "silu"), [x()], 10.0, activation(Activation::Silu), |all| {
            each(values::<1>(all)[0], formulas::silu)
        }),
        // The kernel's own bound is 4e-7, 7 units.
        case(("tanh", ""), [x()], 8.0, |[x]| kernels::tanh(x), |all| each(values::<1>(all)[0], f64::tanh)),
        // exp is 2.5 units off, and the four operations around it one each.
        case(
            ("gated", "silu"),
            [x(), input(&shape, 2)],
            10.0,
            |[gate, up]| kernels::gated(gate, up, Activation::Silu),
            |all| {
                let [gate, up] = values(all);
                both(gate, up, |gate, up| formulas::silu(gate) * up)
            },
        ),
        // As the activation's own bound, times an `up` of at most 4.
        case(
            ("gated", "gelu_tanh"),
            [x(), input(&shape, 2)],
            120.0,
            |[gate, up]| kernels::gated(gate, up, Activation::GeluTanh),
            |all| {
                let [gate, up] = values(all);
                both(gate, up, |gate, up| formulas::gelu_tanh(gate) * up)
            },
        ),
        case(
            ("scale", ""),
            [x()],
            2.0,
            |[x]| kernels::scale(x, FACTOR),
            |all| each(values::<1>(all)[0], |x| FACTOR * x),
        ),
        // Two products of at most 4 and a sum.
        case(
            ("scaled_add", ""),
            [x(), input(&shape, 2)],
            16.0,
            |[a, b]| kernels::scaled_add(a, b, FACTOR),
            |all| {
                let [a, b] = values(all);
                both(a, b, |a, b| a + FACTOR * b)
            },
        ),
        case(
            ("residual_mix", ""),
            [x(), fixed(&shape, draws(3 * WIDTH, 2))],
            16.0,
            |[x, r]| kernels::residual_mix(x, r, LAMBDA),
            |all| {
                let [x, r] = values(all);
                both(x, r, |x, r| (1.0 - LAMBDA) * x + LAMBDA * r)
            },
        ),
        // A factor that is rounded, and a product.
        case(
            ("dropout", ""),
            [x()],
            2.0,
            |[x]| kernels::dropout(x, DROPPED, KEY),
            |all| {
                let x = values::<1>(all)[0].iter().zip(0..);
                x.map(|(x, i)| if formulas::uniform(KEY, i) < DROPPED { 0.0 } else { x / (1.0 - DROPPED) }).collect()
            },
        ),
    ]
}

/// Virtual tokens in front of sequences of 4 and 1 tokens and theirs.
fn leading_rows() -> Vec<Case> {
    const SEQUENCES: [usize; 3] = [0, 4, 6];
    const VIRTUAL: usize = 2;
    let offsets: Arc<[usize]> = SEQUENCES.into();
    let again = Arc::clone(&offsets);
    fn place(row: usize) -> Option<usize> {
        let start = if row < 4 { 0 } else { 4 };
        Some(row - start).filter(|place| *place < VIRTUAL)
    }
    vec![
        case(
            ("replace_leading", ""),
            [input(&[6, WIDTH], 1), input(&[VIRTUAL, WIDTH], 2)],
            0.0,
            move |[x, table]| kernels::replace_leading(x, table, &offsets),
            |all| {
                let [x, table] = values(all);
                let row = |row: usize| match place(row) {
                    Some(place) => table.get(place * WIDTH..(place + 1) * WIDTH),
                    None => x.get(row * WIDTH..(row + 1) * WIDTH),
                };
                (0..6).flat_map(|index| row(index).unwrap_or_default().to_vec()).collect()
            },
        ),
        case(
            ("skip_leading", ""),
            [input(&[6, WIDTH], 1)],
            0.0,
            move |[x]| kernels::skip_leading(x, VIRTUAL, &again),
            |all| {
                let [x] = values(all);
                let kept = (0..6).filter(|row| place(*row).is_none());
                kept.flat_map(|row| x.get(row * WIDTH..(row + 1) * WIDTH).unwrap_or_default().to_vec()).collect()
            },
        ),
    ]
}

/// A learned factor of each column, and a learned share of the residual.
fn learned_factors() -> Vec<Case> {
    let shape = [3, WIDTH];
    let (x, v, r) = (|| input(&shape, 1), || input(&[WIDTH], 2), || fixed(&shape, draws(3 * WIDTH, 3)));
    vec![
        case(
            ("rescale", ""),
            [x(), v()],
            4.0,
            |[x, v]| kernels::rescale(x, v, None),
            |all| {
                let [x, v] = values(all);
                x.iter().zip(v.iter().cycle()).map(|(x, v)| x * v).collect()
            },
        ),
        case(
            ("add_row", ""),
            [x(), v()],
            8.0,
            |[x, v]| kernels::add_row(x, v),
            |all| {
                let [x, v] = values(all);
                x.iter().zip(v.iter().cycle()).map(|(x, v)| x + v).collect()
            },
        ),
        case(
            ("mixed_rescale", ""),
            [x(), v(), r()],
            40.0,
            |[x, v, r]| kernels::mixed_rescale(x, v, &Residual { lambda: LAMBDA, source: Some(r.clone()) }),
            |all| {
                let [x, v, r] = values(all);
                let mixed = both(x, r, |x, r| (1.0 - LAMBDA) * x + LAMBDA * r);
                x.iter().zip(v.iter().cycle()).zip(mixed).map(|((x, v), mixed)| x + (v - 1.0) * mixed).collect()
            },
        ),
        case(
            ("learned_mix", ""),
            [x(), input(&[1], 2), r()],
            40.0,
            |[x, theta, r]| kernels::learned_mix(x, theta, Some(r)),
            |all| {
                let [x, theta, r] = values(all);
                let lambda = 1.0 / (1.0 + (-theta.first().copied().unwrap_or_default()).exp());
                both(x, r, |x, r| (1.0 - lambda) * x + lambda * r)
            },
        ),
    ]
}

fn norms() -> Vec<Case> {
    let (x, weight, bias) = (|| input(&[3, WIDTH], 1), || input(&[WIDTH], 2), input(&[WIDTH], 3));
    vec![
        // A sum of 19 squares, of which the root halves the error, and five operations.
        case(
            ("rms_norm", ""),
            [x(), weight()],
            20.0,
            |[x, w]| kernels::rms_norm(x, w, EPS),
            |all| {
                let [x, weight] = values(all);
                formulas::rms_norm(x, weight, EPS)
            },
        ),
        // Two rows of 19 in each, their weight counted from one.
        case(
            ("shifted_rms_norm", ""),
            [input(&[3, 2 * WIDTH], 1), weight()],
            28.0,
            |[x, w]| kernels::shifted_rms_norm(x, w, EPS),
            |all| {
                let [x, weight] = values(all);
                formulas::rms_norm(x, &each(weight, |w| 1.0 + w), EPS)
            },
        ),
        // The mean of 19 is 19 units off, which a weight of up to 4 multiplies.
        case(
            ("layer_norm", ""),
            [x(), weight(), bias],
            100.0,
            |[x, w, b]| kernels::layer_norm(x, w, b, EPS),
            |all| {
                let [x, weight, bias] = values(all);
                formulas::layer_norm(x, weight, bias, EPS)
            },
        ),
    ]
}

fn tables() -> Vec<Case> {
    let half = HEAD_DIM / 2;
    // Of 21 bits, so that every type holds the same table.
    let rounded = |x: f64| (x * 2_f64.powi(20)).round() / 2_f64.powi(20);
    let angles: Vec<f64> = (0..4 * half).map(|i| (i / half) as f64 * 0.1_f64.powi((i % half) as i32)).collect();
    let (cos, sin) = (each(&angles, |a| rounded(a.cos())), each(&angles, |a| rounded(a.sin())));
    let (positions, again): (Arc<[u32]>, Arc<[u32]>) = (POSITIONS.into(), POSITIONS.into());
    let ids: Arc<[u32]> = IDS.into();
    vec![
        // Two products of at most 4 and a sum.
        case(
            ("rope", ""),
            [input(&[4, HEADS * HEAD_DIM], 1), fixed(&[4, half], cos.clone()), fixed(&[4, half], sin.clone())],
            16.0,
            move |[x, cos, sin]| kernels::rope(x, HEADS, cos, sin, &positions, Pairing::Halves),
            |all| {
                let [x, cos, sin] = values(all);
                formulas::rope(x, cos, sin, &POSITIONS, HEADS)
            },
        ),
        // Heads of three elements more than the pairs, which stay as they are.
        case(
            ("rope", "neighbour"),
            [input(&[4, HEADS * (HEAD_DIM + 3)], 1), fixed(&[4, half], cos), fixed(&[4, half], sin)],
            16.0,
            move |[x, cos, sin]| kernels::rope(x, HEADS, cos, sin, &again, Pairing::Neighbours),
            |all| {
                let [x, cos, sin] = values(all);
                formulas::rope_of_neighbours(x, cos, sin, &POSITIONS, HEADS)
            },
        ),
        case(
            ("columns", ""),
            [input(&[4, WIDTH], 1)],
            0.0,
            |[x]| kernels::columns(x, &[(11, 3), (0, 5)].into()),
            |all| {
                let rows = values::<1>(all)[0].chunks(WIDTH);
                rows.flat_map(|row| row.iter().skip(11).take(3).chain(row.iter().take(5))).copied().collect()
            },
        ),
        case(
            ("embedding", ""),
            [input(&[6, 3], 1)],
            0.0,
            move |[weight]| kernels::embedding(weight, &ids, weight.dtype()),
            |all| {
                let weight = values::<1>(all)[0];
                IDS.iter().flat_map(|&id| weight.iter().skip(id as usize * 3).take(3)).copied().collect()
            },
        ),
    ]
}

fn attention(causal: bool) -> Case {
    let shape = AttentionShape { heads: HEADS, kv_heads: 1, head_dim: HEAD_DIM, causal, scale: SCALE, ..PLAIN };
    let (offsets, tokens): (Arc<[usize]>, _) = (OFFSETS.into(), 9);
    let inputs = [input(&[tokens, HEADS * HEAD_DIM], 1), input(&[tokens, HEAD_DIM], 2), input(&[tokens, HEAD_DIM], 3)];
    let formula: fn(&[&[f64]]) -> Vec<f64> = if causal {
        |all| formulas::attention(values(all), (HEADS, HEAD_DIM), true, SCALE, &OFFSETS)
    } else {
        |all| formulas::attention(values(all), (HEADS, HEAD_DIM), false, SCALE, &OFFSETS)
    };
    let form = if causal { "causal" } else { "both ways" };
    // A score of 8 products is up to 30 units off, the exponents of two of them twice that, and a value of up to 4
    // multiplies it.
    case(
        ("attention", form),
        inputs,
        256.0,
        move |[q, k, v]| kernels::attention(q, k, v, shape, None, &offsets),
        formula,
    )
}

/// With a soft cap, a window and a bias by distance.
fn bent_attention() -> Case {
    let shape = AttentionShape {
        heads: HEADS,
        kv_heads: 1,
        head_dim: HEAD_DIM,
        causal: true,
        scale: SCALE,
        reach: Some(REACH),
        soft_cap: Some(CAP),
    };
    let (offsets, tokens): (Arc<[usize]>, _) = (OFFSETS.into(), 9);
    let inputs = [
        input(&[tokens, HEADS * HEAD_DIM], 1),
        input(&[tokens, HEAD_DIM], 2),
        input(&[tokens, HEAD_DIM], 3),
        fixed(&[HEADS, 7], draws(HEADS * 7, 4)),
    ];
    let run = move |[q, k, v, bias]: [&Tensor; 4]| {
        let bias = RelativeBias::new(bias.to_dtype(kernels::wide(q.dtype()))?.detach())?;
        kernels::attention(q, k, v, shape, Some(&bias), &offsets)
    };
    // As above, and tanh.
    case(("attention", "windowed"), inputs, 320.0, run, |all| {
        let [q, k, v, bias] = values(all);
        formulas::bent_attention([q, k, v, bias], (HEADS, HEAD_DIM), SCALE, (REACH, CAP), &OFFSETS)
    })
}

/// Rows of the tables by distance, from the most negative on.
const PLACES: [u32; 7] = [0, 0, 1, 2, 3, 4, 4];

fn disentangled_attention() -> Case {
    let shape = DisentangledShape { heads: HEADS, head_dim: HEAD_DIM, scale: SCALE, places: PLACES.into() };
    let (offsets, width): (Arc<[usize]>, _) = (OFFSETS.into(), HEADS * HEAD_DIM);
    let inputs = [(9, 1), (9, 2), (9, 3), (5, 4), (5, 5)].map(|(rows, seed)| input(&[rows, width], seed));
    let run = move |[q, k, v, q_pos, k_pos]: [&Tensor; 5]| {
        kernels::disentangled_attention([q, k, v], [Some(q_pos), Some(k_pos)], &shape, &offsets)
    };
    // As attention, of three sums of 8 products.
    case(("disentangled_attention", ""), inputs, 768.0, run, |all| {
        formulas::disentangled_attention(values(all), (HEADS, HEAD_DIM), SCALE, &PLACES, &OFFSETS)
    })
}

fn squared_error() -> Case {
    const SCORES: [f32; 4] = [1.5, 0.0, -2.25, 0.5];
    let inputs = [input(&[4, HIDDEN], 1), input(&[1, HIDDEN], 2), input(&[1], 3)];
    let made = |[hidden, weight, bias]: [&Tensor; 3], factor: f64| {
        let head = HeadWeights { weight, bias: Some(bias), soft_cap: None };
        kernels::squared_error_gradients(hidden, head, &SCORES, &TOKEN_WEIGHTS, factor)
    };
    let weighed: fn(&[&[f64]]) -> Vec<f64> = |all| {
        let [hidden, weight, bias] = values(all);
        let output = |row: &[f64]| row.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>() + bias.iter().sum::<f64>();
        let error = |(row, score): (&[f64], f32)| (output(row) - f64::from(score)).powi(2);
        let errors = hidden.chunks(HIDDEN).zip(SCORES).map(error);
        vec![errors.zip(TOKEN_WEIGHTS).map(|(error, weight)| error * f64::from(weight)).sum()]
    };
    // An output of 7 products and a bias is up to 64 units off, its square twice that times the output.
    let whole = case(
        ("squared_error_gradients", ""),
        inputs,
        1024.0,
        move |all| Tensor::new(&[made(all, 1.0)?.0], &Device::Cpu),
        weighed,
    );
    let own = Backward::Own(Box::new(move |tensors, factor| Ok(made(arguments(tensors)?, factor)?.1.into())));
    Case { backward: own, ..whole }
}

fn losses() -> Vec<Case> {
    let inputs = || [input(&[4, HIDDEN], 1), input(&[5, HIDDEN], 2)];
    // A logit of 7 products is up to 56 units off, a loss twice that, and a few more for exp and ln.
    let roundings = 128.0;
    let weighed: fn(&[&[f64]]) -> Vec<f64> = |all| {
        let [hidden, weight] = values(all);
        let losses = formulas::losses(hidden, weight, &TARGETS, HIDDEN);
        vec![losses.iter().zip(TOKEN_WEIGHTS).map(|((loss, _), weight)| loss * f64::from(weight)).sum()]
    };
    let on_cpu = |values: Vec<f64>| Tensor::from_slice(&values, values.len(), &Device::Cpu);
    let whole = case(
        ("linear_cross_entropy", ""),
        inputs(),
        roundings,
        |[hidden, weight]| kernels::linear_cross_entropy(hidden, weight, &TARGETS, &TOKEN_WEIGHTS),
        weighed,
    );
    let at_once = Case {
        backward: Backward::Own(Box::new(|tensors, factor| {
            let [hidden, weight] = arguments(tensors)?;
            let (_, gradients) = kernels::cross_entropy_gradients(hidden, weight, &TARGETS, &TOKEN_WEIGHTS, factor)?;
            Ok(gradients.into_iter().take(2).collect())
        })),
        ..case(
            ("cross_entropy_gradients", ""),
            inputs(),
            roundings,
            move |[hidden, weight]| {
                on_cpu(vec![kernels::cross_entropy_gradients(hidden, weight, &TARGETS, &TOKEN_WEIGHTS, 1.0)?.0])
            },
            weighed,
        )
    };
    let token_losses = case(
        ("token_losses", ""),
        inputs(),
        roundings,
        move |[hidden, weight]| on_cpu(kernels::token_losses(hidden, weight, &TARGETS)?),
        |all| {
            let [hidden, weight] = values(all);
            formulas::losses(hidden, weight, &TARGETS, HIDDEN).into_iter().map(|(loss, _)| loss).collect()
        },
    );
    let with_hits = case(
        ("token_losses_and_hits", ""),
        inputs(),
        roundings,
        move |[hidden, weight]| {
            let (mut losses, hits) = kernels::token_losses_and_hits(hidden, weight, &TARGETS)?;
            losses.extend(hits.into_iter().map(|hit| f64::from(u8::from(hit))));
            on_cpu(losses)
        },
        |all| {
            let [hidden, weight] = values(all);
            let (losses, hits): (Vec<_>, Vec<_>) =
                formulas::losses(hidden, weight, &TARGETS, HIDDEN).into_iter().unzip();
            [losses, hits].concat()
        },
    );
    let without_gradient = [token_losses, with_hits].map(|case| Case { backward: Backward::None, ..case });
    [whole, at_once].into_iter().chain(without_gradient).collect()
}
