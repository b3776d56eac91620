//! Places for labels at line ends, so that none covers another.

/// Places as near as possible (least squares) to the `wanted` ones, `apart` from one another and within
/// `top..=bottom` if there is room; the answer keeps the order of `wanted`.
///
/// With the i-th smallest place written as z_i + i·apart, keeping distance means that z never falls:
/// isotonic regression, solved by pooling adjacent violators.
pub(super) fn spread(wanted: &[f64], apart: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = wanted.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (rank, (_, place)) in order.iter().enumerate() {
        let mut pool = (place - rank as f64 * apart, 1);
        while let Some(&(mean, size)) = pools.last() {
            if mean <= pool.0 {
                break;
            }
            let total = (size + pool.1) as f64;
            pool = ((mean * size as f64 + pool.0 * pool.1 as f64) / total, size + pool.1);
            pools.pop();
        }
        pools.push(pool);
    }
    let lowest = (bottom - apart * (wanted.len().saturating_sub(1)) as f64).max(top);
    let offsets = pools.into_iter().flat_map(|(mean, size)| std::iter::repeat_n(mean.clamp(top, lowest), size));
    let mut placed: Vec<(usize, f64)> = order
        .iter()
        .zip(offsets)
        .enumerate()
        .map(|(rank, ((index, _), offset))| (*index, offset + rank as f64 * apart))
        .collect();
    placed.sort_by_key(|(index, _)| *index);
    placed.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_with_room_stay_where_they_are() {
        assert_eq!(spread(&[50.0, 10.0, 30.0], 8.0, 0.0, 100.0), [50.0, 10.0, 30.0]);
    }

    #[test]
    fn crowded_labels_move_apart_around_their_mean() {
        assert_eq!(spread(&[50.0, 50.0, 50.0], 8.0, 0.0, 100.0), [42.0, 50.0, 58.0]);
        assert_eq!(spread(&[99.0, 98.0], 8.0, 0.0, 100.0), [100.0, 92.0]);
        let many = spread(&[3.0, 2.0, 90.0, 88.0, 91.0, 1.0], 9.0, 5.0, 95.0);
        let mut sorted = many.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] > 9.0 - 1e-9), "{many:?}");
        assert!(sorted[0] >= 5.0 && sorted[5] <= 95.0, "{many:?}");
    }
}
