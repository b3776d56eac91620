//! The cosine regulariser (Gong et al. 2021): a loss of how alike a text's tokens are.

use crate::kernels::wide;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Rows shorter than this have no direction that a gradient could turn.
const SHORTEST: f64 = 1e-12;

/// `Σ_texts mean_{i≠j} |cos(h_i, h_j)|` over the rows of every sequence but its first `skipped`, and the gradient of `weight`
/// times that, `[tokens, d]`, in the type of `states`. A text of fewer than two such rows counts 0.
pub(crate) fn cosine_penalty(
    states: &Tensor,
    offsets: &Arc<[usize]>,
    skipped: usize,
    weight: f64,
) -> Result<(f64, Tensor)> {
    let states = states.detach();
    let (_, width) = states.dims2()?;
    let (mut sum, mut parts) = (0.0, Vec::new());
    let zeros = |rows: usize| Tensor::zeros((rows, width), states.dtype(), states.device());
    for [start, end] in offsets.array_windows::<2>().filter(|[start, end]| start < end) {
        let skipped = skipped.min(end - start);
        let rows = end - start - skipped;
        if rows < 2 {
            parts.push(zeros(end - start)?);
            continue;
        }
        if skipped > 0 {
            parts.push(zeros(skipped)?);
        }
        let x = states.narrow(0, start + skipped, rows)?.to_dtype(wide(states.dtype()))?;
        let norms = x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(SHORTEST)?;
        let units = x.broadcast_div(&norms)?;
        let others = Tensor::eye(rows, x.dtype(), x.device())?.affine(-1.0, 1.0)?;
        let cosines = (units.matmul(&units.t()?)? * others)?;
        let pairs = (rows * (rows - 1)) as f64;
        sum += cosines.abs()?.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()? / pairs;
        // Each pair stands twice in the sum.
        let turned = cosines.sign()?.matmul(&units)?.affine(2.0 * weight / pairs, 0.0)?;
        let along = (&turned * &units)?.sum_keepdim(1)?;
        let gradient = (turned - units.broadcast_mul(&along)?)?.broadcast_div(&norms)?;
        parts.push(gradient.to_dtype(states.dtype())?);
    }
    match parts.as_slice() {
        [] => Ok((sum, states.zeros_like()?)),
        // The gradient is added to in place.
        [part] => Ok((sum, part.copy()?)),
        parts => Ok((sum, Tensor::cat(parts, 0)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_gradient_is_that_of_differences() {
        let values: Vec<f64> = (0..33).map(|i| ((i * 37 % 19) as f64 - 9.0) / 7.0 + 0.01 * i as f64).collect();
        let offsets: Arc<[usize]> = [0, 1, 6, 11].into();
        let at = |values: &[f64]| Tensor::from_vec(values.to_vec(), (11, 3), &Device::Cpu).unwrap();
        let (value, gradient) = cosine_penalty(&at(&values), &offsets, 1, 0.7).unwrap();
        // By hand: two texts of four rows each behind the skipped one.
        let cosine = |i: usize, j: usize| {
            let row = |i: usize| &values[3 * i..3 * i + 3];
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            dot(row(i), row(j)) / (dot(row(i), row(i)) * dot(row(j), row(j))).sqrt()
        };
        let mean = |rows: std::ops::Range<usize>| {
            let pairs = rows.clone().flat_map(|i| rows.clone().filter(move |j| i != *j).map(move |j| (i, j)));
            pairs.map(|(i, j)| cosine(i, j).abs()).sum::<f64>() / 12.0
        };
        assert!((value - mean(2..6) - mean(7..11)).abs() < 1e-14);
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (index, found) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[index] += by;
                0.7 * cosine_penalty(&at(&values), &offsets, 1, 0.7).unwrap().0
            };
            let want = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((found - want).abs() < 1e-8, "{index}: {found} for {want}");
        }
        let single = cosine_penalty(&at(&values).to_dtype(DType::F32).unwrap(), &offsets, 1, 0.7).unwrap();
        assert!((single.0 - value).abs() < 1e-6);
    }
}
