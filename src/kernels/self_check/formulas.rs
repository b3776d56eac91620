//! The kernels written out in `f64`, element by element, with nothing shared with the kernels themselves.

use std::f64::consts::{PI, SQRT_2};

/// `x · weightᵀ + bias`; the bias may be absent.
pub(super) fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let rows = x.chunks_exact(inputs);
    rows.flat_map(|row| {
        weight
            .chunks_exact(inputs)
            .enumerate()
            .map(|(out, weight)| dot(row, weight) + bias.and_then(|bias| bias.get(out)).copied().unwrap_or_default())
    })
    .collect()
}

/// The inner product.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `f` of every element.
pub(super) fn each(x: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|&x| f(x)).collect()
}

/// `f` of every pair of elements.
pub(super) fn both(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * libm::erfc(-x / SQRT_2)
}

pub(super) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(super) fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let normed = |row: &[f64]| {
        let scale = (dot(row, row) / row.len() as f64 + eps).sqrt();
        both(row, weight, |x, w| x / scale * w)
    };
    x.chunks_exact(weight.len()).flat_map(normed).collect()
}

pub(super) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let normed = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let moved = each(row, |x| x - mean);
        let deviation = (dot(&moved, &moved) / row.len() as f64 + eps).sqrt();
        both(&both(&moved, weight, |x, w| x / deviation * w), bias, |x, b| x + b)
    };
    x.chunks_exact(weight.len()).flat_map(normed).collect()
}

/// Every head of every row, turned by the angles of its position.
pub(super) fn rope(x: &[f64], cos: &[f64], sin: &[f64], positions: &[u32], heads: usize) -> Vec<f64> {
    let half = x.len() / positions.len() / heads / 2;
    let mut out = Vec::with_capacity(x.len());
    for (row, &position) in x.chunks_exact(2 * half * heads).zip(positions) {
        let at = |table: &[f64], i: usize| table.get(position as usize * half + i).copied().unwrap_or(f64::NAN);
        for (first, second) in row.chunks_exact(2 * half).map(|head| head.split_at(half)) {
            let pairs = || first.iter().zip(second).enumerate();
            out.extend(pairs().map(|(i, (a, b))| a * at(cos, i) - b * at(sin, i)));
            out.extend(pairs().map(|(i, (a, b))| b * at(cos, i) + a * at(sin, i)));
        }
    }
    out
}

/// `heads` query heads of `dim` elements over one key and value head.
pub(super) fn attention(
    [q, k, v]: [&[f64]; 3],
    (heads, dim): (usize, usize),
    causal: bool,
    scale: f64,
    offsets: &[usize],
) -> Vec<f64> {
    let head = |x: &[f64], row: usize, count: usize, head: usize| -> Vec<f64> {
        x.iter().skip((row * count + head) * dim).take(dim).copied().collect()
    };
    let mut out = Vec::with_capacity(q.len());
    for sequence in offsets.windows(2) {
        let &[start, end] = sequence else { continue };
        for row in start..end {
            for index in 0..heads {
                let query = head(q, row, heads, index);
                let keys = start..if causal { row + 1 } else { end };
                let scores: Vec<f64> =
                    keys.clone().map(|key| (scale * dot(&query, &head(k, key, 1, 0))).exp()).collect();
                let total: f64 = scores.iter().sum();
                let mut sum = vec![0.0; dim];
                for (score, key) in scores.iter().zip(keys) {
                    sum = both(&sum, &head(v, key, 1, 0), |s, v| s + score / total * v);
                }
                out.extend(sum);
            }
        }
    }
    out
}

/// [`rope`] of the pairs of neighbours, with whatever a head has behind them.
pub(super) fn rope_of_neighbours(x: &[f64], cos: &[f64], sin: &[f64], positions: &[u32], heads: usize) -> Vec<f64> {
    let head_dim = x.len() / positions.len() / heads;
    let pairs = (head_dim - 3) / 2;
    let mut out = x.to_vec();
    for (row, &position) in out.chunks_exact_mut(head_dim * heads).zip(positions) {
        let at = |table: &[f64], i: usize| table.get(position as usize * pairs + i).copied().unwrap_or(f64::NAN);
        for head in row.chunks_exact_mut(head_dim) {
            for (i, pair) in head.chunks_exact_mut(2).take(pairs).enumerate() {
                if let [a, b] = pair {
                    (*a, *b) = (*a * at(cos, i) - *b * at(sin, i), *b * at(cos, i) + *a * at(sin, i));
                }
            }
        }
    }
    out
}

/// As [`attention`] of the last `reach + 1` tokens, with scores bent by a soft cap and a bias by distance.
pub(super) fn bent_attention(
    [q, k, v, bias]: [&[f64]; 4],
    (heads, dim): (usize, usize),
    scale: f64,
    (reach, cap): (usize, f64),
    offsets: &[usize],
) -> Vec<f64> {
    let head = |x: &[f64], row: usize, count: usize, head: usize| -> Vec<f64> {
        x.iter().skip((row * count + head) * dim).take(dim).copied().collect()
    };
    let columns = bias.len() / heads;
    let mut out = Vec::with_capacity(q.len());
    for sequence in offsets.windows(2) {
        let &[start, end] = sequence else { continue };
        for row in start..end {
            for index in 0..heads {
                let query = head(q, row, heads, index);
                let keys = start.max(row.saturating_sub(reach))..row + 1;
                let score = |key: usize| {
                    let added = bias.get(index * columns + columns / 2 + key - row).copied().unwrap_or(f64::NAN);
                    (cap * (scale * dot(&query, &head(k, key, 1, 0)) / cap).tanh() + added).exp()
                };
                let scores: Vec<f64> = keys.clone().map(score).collect();
                let total: f64 = scores.iter().sum();
                let mut sum = vec![0.0; dim];
                for (score, key) in scores.iter().zip(keys) {
                    sum = both(&sum, &head(v, key, 1, 0), |s, v| s + score / total * v);
                }
                out.extend(sum);
            }
        }
    }
    out
}

/// Attention both ways whose scores gain by the rows of two tables that the distance chooses.
pub(super) fn disentangled_attention(
    [q, k, v, q_pos, k_pos]: [&[f64]; 5],
    (heads, dim): (usize, usize),
    scale: f64,
    places: &[u32],
    offsets: &[usize],
) -> Vec<f64> {
    let head = |x: &[f64], row: usize, head: usize| -> Vec<f64> {
        x.iter().skip((row * heads + head) * dim).take(dim).copied().collect()
    };
    let mut out = Vec::with_capacity(q.len());
    for sequence in offsets.windows(2) {
        let &[start, end] = sequence else { continue };
        for row in start..end {
            for index in 0..heads {
                let query = head(q, row, index);
                let score = |key: usize| {
                    let place = places.get(places.len() / 2 + row - key).map_or(usize::MAX, |&place| place as usize);
                    let own = head(k, key, index);
                    let sum = dot(&query, &own)
                        + dot(&query, &head(k_pos, place, index))
                        + dot(&own, &head(q_pos, place, index));
                    (scale * sum).exp()
                };
                let scores: Vec<f64> = (start..end).map(score).collect();
                let total: f64 = scores.iter().sum();
                let mut sum = vec![0.0; dim];
                for (score, key) in scores.iter().zip(start..end) {
                    sum = both(&sum, &head(v, key, index), |s, v| s + score / total * v);
                }
                out.extend(sum);
            }
        }
    }
    out
}

/// Each target's negative log-likelihood, and 1 where it has the first largest logit, else 0.
pub(super) fn losses(hidden: &[f64], weight: &[f64], targets: &[u32], width: usize) -> Vec<(f64, f64)> {
    let rows = hidden.chunks_exact(width).zip(targets);
    rows.map(|(row, &target)| {
        let logits: Vec<f64> = weight.chunks_exact(width).map(|column| dot(row, column)).collect();
        let own = logits.get(target as usize).copied().unwrap_or(f64::NAN);
        let beaten = logits.iter().enumerate().any(|(i, &l)| l > own || (l == own && i < target as usize));
        (logits.iter().map(|l| l.exp()).sum::<f64>().ln() - own, if beaten { 0.0 } else { 1.0 })
    })
    .collect()
}

/// SplitMix64's output for the state `key + index · golden`, as a number from 0 to 1.
pub(super) fn uniform(key: u64, index: u64) -> f64 {
    let z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
