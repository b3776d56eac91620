//! A head of one output and its squared error, for scores of texts.

use super::HeadWeights;
use candle_core::{DType, Device, Result, Tensor, bail};

/// `Σ weights[i] · (output[i] − scores[i])²` with the one output that `head` makes of each row of `hidden` `[n, d]`, and the
/// gradients of `factor` times it with respect to `hidden`, the head's weight and its bias, where those are tracked. Rows
/// of weight 0 are not computed; there are few others, one a text, so that plain tensor operations serve.
///
/// # Errors
/// If the head has more than one output or bends it, or the lengths do not fit.
pub(crate) fn squared_error_gradients(
    hidden: &Tensor,
    head: HeadWeights<'_>,
    scores: &[f32],
    weights: &[f32],
    factor: f64,
) -> Result<(f64, [Option<Tensor>; 3])> {
    let (rows, errors) = errors(hidden, head, scores, weights)?;
    let counted: Vec<f64> = weights.iter().filter(|&&w| w > 0.0).map(|&w| f64::from(w)).collect();
    let values = errors.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let loss = values.iter().zip(&counted).map(|(error, weight)| weight * error * error).sum();
    let weight_of = Tensor::from_vec(counted, (values.len(), 1), hidden.device())?.to_dtype(errors.dtype())?;
    // [rows, 1]
    let d_output = ((errors * weight_of)? * (2.0 * factor))?;
    let chosen = hidden.detach().index_select(&rows, 0)?.to_dtype(d_output.dtype())?;
    let d_hidden = match hidden.track_op() {
        false => None,
        true => {
            let d_rows = d_output.matmul(&head.weight.detach().to_dtype(d_output.dtype())?)?;
            Some(hidden.detach().zeros_like()?.index_add(&rows, &d_rows.to_dtype(hidden.dtype())?, 0)?)
        }
    };
    let d_weight = match head.weight.track_op() {
        false => None,
        true => Some(d_output.t()?.contiguous()?.matmul(&chosen.contiguous()?)?.to_dtype(head.weight.dtype())?),
    };
    let d_bias = match head.bias.filter(|bias| bias.track_op()) {
        None => None,
        Some(bias) => Some(d_output.sum(0)?.to_dtype(bias.dtype())?),
    };
    Ok((loss, [d_hidden, d_weight, d_bias]))
}

/// The rows of a weight above 0, and output − score of each, `[rows, 1]`.
fn errors(hidden: &Tensor, head: HeadWeights<'_>, scores: &[f32], weights: &[f32]) -> Result<(Tensor, Tensor)> {
    let n = hidden.dim(0)?;
    if head.weight.dim(0)? != 1 || head.soft_cap.is_some() || scores.len() != n || weights.len() != n {
        bail!("squared_error: a head of one plain output, and a score and a weight for each of {n} rows are wanted")
    }
    let rows: Vec<u32> = (0u32..).zip(weights).filter(|(_, weight)| **weight > 0.0).map(|(row, _)| row).collect();
    let wanted: Vec<f32> = scores.iter().zip(weights).filter(|(_, w)| **w > 0.0).map(|(score, _)| *score).collect();
    let count = rows.len();
    let rows = Tensor::from_vec(rows, count, hidden.device())?;
    let weight = head.weight.detach();
    let chosen = hidden.detach().index_select(&rows, 0)?.to_dtype(weight.dtype())?;
    let mut outputs = chosen.matmul(&weight.t()?)?;
    if let Some(bias) = head.bias {
        outputs = outputs.broadcast_add(&bias.detach().to_dtype(weight.dtype())?)?;
    }
    let wanted = Tensor::from_vec(wanted, (count, 1), hidden.device())?.to_dtype(weight.dtype())?;
    Ok((rows, (outputs - wanted)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn gradients_are_finite_differences() {
        let device = Device::Cpu;
        let values = |shape: &[usize], step: f64| {
            let n: usize = shape.iter().product();
            let values: Vec<f64> = (0..n).map(|i| (i as f64 * step).sin()).collect();
            Tensor::from_vec(values, shape, &device).unwrap()
        };
        let [hidden, weight, bias] = [(vec![5, 3], 0.7), (vec![1, 3], 1.3), (vec![1], 2.1)]
            .map(|(shape, step)| Var::from_tensor(&values(&shape, step)).unwrap());
        let (scores, weights) = ([9.0, 1.5, -0.5, 9.0, 2.0], [0.0, 1.0, 1.0, 0.0, 0.5]);
        let run = |factor: f64| {
            let head = HeadWeights { weight: &weight, bias: Some(&bias), soft_cap: None };
            squared_error_gradients(&hidden, head, &scores, &weights, factor).unwrap()
        };
        let (loss, found) = run(0.25);
        // By hand from the outputs.
        let outputs = hidden.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let outputs = outputs.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let by_hand = (outputs[1] - 1.5).powi(2) + (outputs[2] + 0.5).powi(2) + 0.5 * (outputs[4] - 2.0).powi(2);
        assert!((loss - by_hand).abs() < 1e-12);
        for (variable, gradient) in [&hidden, &weight, &bias].into_iter().zip(found) {
            let gradient = gradient.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let start = variable.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for (index, gradient) in gradient.iter().enumerate() {
                let at = |change: f64| {
                    let mut moved = start.clone();
                    moved[index] += change;
                    variable.set(&Tensor::from_vec(moved, variable.dims(), &device).unwrap()).unwrap();
                    0.25 * run(1.0).0
                };
                let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
                at(0.0);
                assert!((difference - gradient).abs() < 1e-8, "{difference} {gradient}");
            }
        }
        let frozen = HeadWeights { weight: &weight.detach(), bias: None, soft_cap: None };
        let (_, found) = squared_error_gradients(&hidden.detach(), frozen, &scores, &weights, 1.0).unwrap();
        assert!(found.iter().all(Option::is_none));
        assert!(squared_error_gradients(&hidden, frozen, &scores[..2], &weights, 1.0).is_err());
    }
}
