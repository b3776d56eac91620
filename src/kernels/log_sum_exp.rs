//! What turns logits into log-probabilities.

use super::vector;

/// Values whose exponentials are summed at a time, in memory that stays in the first cache.
const BLOCK: usize = 1024;

/// `ln Σ exp(x)`, stable whatever the size of the values; minus infinity of none. The differences to the largest are
/// rounded to f32, and the error is below 1e-6.
#[must_use]
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = vector::max(values);
    if !largest.is_finite() {
        return if values.iter().any(|x| x.is_nan()) { f64::NAN } else { largest };
    }
    let mut sum = 0.0;
    let mut single = [0.0_f32; BLOCK];
    for values in values.chunks(BLOCK) {
        let Some(single) = single.get_mut(..values.len()) else { continue };
        for (single, &value) in single.iter_mut().zip(values) {
            *single = (value - largest) as f32;
        }
        sum += f64::from(vector::exp_shifted(single, 0.0));
    }
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plain_sum_where_that_has_a_value() {
        for length in [1, 5, 1024, 3000] {
            let values: Vec<f64> = (0..length).map(|i| f64::from(i * 37 % 101) / 7.0 - 8.0).collect();
            let plain = values.iter().map(|x| x.exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&values) - plain).abs() < 1e-6);
            let shifted: Vec<f64> = values.iter().map(|x| x + 5000.0).collect();
            assert!((log_sum_exp(&shifted) - plain - 5000.0).abs() < 1e-6);
        }
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert!(log_sum_exp(&[0.0, f64::NAN]).is_nan() && log_sum_exp(&[0.0, f64::INFINITY]).is_infinite());
    }
}
