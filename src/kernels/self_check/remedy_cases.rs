//! The points at which the kernels of the remedies of over-smoothing are checked.

use super::super::{self as kernels, AttentionShape};
use super::case::Case;
use super::cases::{OFFSETS, PLAIN, REACH, WIDTH, case, input, values};
use super::formulas::{both, dot};
use std::sync::Arc;

pub(super) fn all() -> Vec<Case> {
    vec![visible_mean(true), visible_mean(false), scaled_deviation(), maximum(), row_gate()]
}

/// The mean of the rows of `x` that each sees, `seen(row, start, end)`.
fn means(x: &[f64], seen: fn(usize, usize, usize) -> std::ops::Range<usize>) -> Vec<f64> {
    let mut out = Vec::new();
    for pair in OFFSETS.windows(2) {
        let &[start, end] = pair else { continue };
        for row in start..end {
            let seen = seen(row, start, end);
            let rows = x.chunks(WIDTH).skip(seen.start).take(seen.len());
            let sum = rows.fold(vec![0.0; WIDTH], |sum, row| both(&sum, row, |a, b| a + b));
            out.extend(sum.iter().map(|x| x / seen.len() as f64));
        }
    }
    out
}

/// Under a causal mask, or within a reach on both sides.
fn visible_mean(causal: bool) -> Case {
    const ROWS: usize = 9;
    let shape = AttentionShape { causal, reach: if causal { None } else { Some(REACH) }, ..PLAIN };
    let offsets: Arc<[usize]> = OFFSETS.into();
    let run = move |[x]: [&candle_core::Tensor; 1]| kernels::visible_mean(x, shape, &offsets);
    let inputs = [input(&[ROWS, WIDTH], 1)];
    match causal {
        true => case(("visible_mean", "causal"), inputs, 20.0, run, |all| {
            means(values::<1>(all)[0], |row, start, _| start..row + 1)
        }),
        false => case(("visible_mean", "reach"), inputs, 20.0, run, |all| {
            means(values::<1>(all)[0], |row, start, end| start.max(row.saturating_sub(REACH))..end.min(row + REACH + 1))
        }),
    }
}

/// Of two groups of columns.
fn scaled_deviation() -> Case {
    let inputs = [input(&[3, 8], 1), input(&[3, 8], 2), input(&[2], 3)];
    case(
        ("scaled_deviation", ""),
        inputs,
        80.0,
        |[x, m, w]| kernels::scaled_deviation(x, m, w),
        |all| {
            let [x, m, w] = values(all);
            let of = |i: usize| w.get(i % 8 / 4).copied().unwrap_or(f64::NAN);
            x.iter().zip(m).enumerate().map(|(i, (x, m))| x + of(i) * (x - m)).collect()
        },
    )
}

fn maximum() -> Case {
    let (a, mut b) = (input(&[3, WIDTH], 1), input(&[3, WIDTH], 2));
    // Where both are equal there is no derivative: further than two steps apart.
    for (a, b) in a.values.iter().zip(&mut b.values) {
        if (*b - a).abs() < 0.25 {
            *b = a + 0.25;
        }
    }
    let formula = |all: &[&[f64]]| {
        let [a, b] = values(all);
        both(a, b, f64::max)
    };
    case(("maximum", ""), [a, b], 0.0, |[a, b]| kernels::maximum(a, b), formula)
}

fn row_gate() -> Case {
    const IN: usize = 5;
    let (x, mut u, b) = (input(&[3, IN], 1), input(&[IN], 2), input(&[1], 3));
    u.values.iter_mut().for_each(|u| *u /= 8.0);
    case(
        ("row_gate", ""),
        [x, u, b],
        120.0,
        |[x, u, b]| kernels::row_gate(x, u, b),
        |all| {
            let [x, u, b] = values(all);
            let gate = |row: &[f64]| 1.0 / (1.0 + (-dot(row, u) - b.first().copied().unwrap_or_default()).exp());
            x.chunks(IN).flat_map(|row| row.iter().map(|x| gate(row) * x).collect::<Vec<_>>()).collect()
        },
    )
}
