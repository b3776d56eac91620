//! Similarity against the distance |i − j| between two tokens of a text.

use super::unit_rows::UnitRows;

/// Distances that are averaged together: 1, 2, 3 and 4 alone, then 5–8, 9–16 and so on, each twice as wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DistanceBand {
    /// The smallest distance, in tokens.
    pub from: u64,
    /// The largest.
    pub to: u64,
}

impl DistanceBand {
    /// The band that a distance of at least 1 belongs to.
    #[must_use]
    pub fn of(distance: u64) -> Self {
        if distance <= 4 {
            return Self { from: distance, to: distance };
        }
        // 2^k + 1 to 2^(k+1); a distance is a difference of positions, far below the largest power.
        let power = 1_u64 << (distance - 1).ilog2();
        Self { from: power + 1, to: power.saturating_mul(2) }
    }
}

/// The mean cosine of one text over the pairs of a band.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistanceCosine {
    /// The band.
    pub band: DistanceBand,
    /// The mean over its pairs.
    pub cosine: f64,
    /// How many pairs of tokens it has, at least 1.
    pub pairs: u64,
}

/// The mean cosine of one text by the distance of the two tokens, in ascending order; a band without a pair has
/// no entry. Distances are those of the positions in the text: a zero row does not count, and moves no other.
///
/// O(n²·d): every pair is formed, once.
#[must_use]
pub fn distance_cosines(rows: &UnitRows) -> Vec<DistanceCosine> {
    let positions = rows.positions();
    let reach = positions.last().zip(positions.first()).map_or(0, |(last, first)| last - first);
    let mut sums = vec![(0.0_f64, 0_u64); reach + 1];
    rows.for_each_pair(|i, j, cosine| {
        let apart = positions.get(i).zip(positions.get(j)).map(|(a, b)| a - b);
        if let Some((sum, pairs)) = apart.and_then(|apart| sums.get_mut(apart)) {
            *sum += cosine;
            *pairs += 1;
        }
    });
    let mut found: Vec<DistanceCosine> = Vec::new();
    for (distance, (sum, pairs)) in sums.into_iter().enumerate().skip(1).filter(|(_, (_, pairs))| *pairs > 0) {
        let band = DistanceBand::of(distance as u64);
        match found.last_mut().filter(|last| last.band == band) {
            Some(last) => (last.cosine, last.pairs) = (last.cosine + sum, last.pairs + pairs),
            None => found.push(DistanceCosine { band, cosine: sum, pairs }),
        }
    }
    found.iter_mut().for_each(|entry| entry.cosine /= entry.pairs as f64);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_double_and_leave_no_gap() {
        let bands: Vec<(u64, u64)> = [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129]
            .map(|d| (DistanceBand::of(d).from, DistanceBand::of(d).to))
            .to_vec();
        let wanted =
            [(1, 1), (2, 2), (3, 3), (4, 4), (5, 8), (5, 8), (9, 16), (9, 16), (17, 32), (17, 32), (33, 64), (33, 64)];
        assert_eq!(bands[..12], wanted);
        assert_eq!(bands[12..], [(65, 128), (65, 128), (129, 256)]);
        for distance in 1..5000 {
            let band = DistanceBand::of(distance);
            assert!(band.from <= distance && distance <= band.to);
            assert_eq!(band, DistanceBand::of(band.from));
            assert_eq!(DistanceBand::of(band.to + 1).from, band.to + 1);
        }
        assert_eq!(DistanceBand::of(u64::MAX).to, u64::MAX);
    }

    #[test]
    fn known_means() {
        // Directions at 0, 60, 120, 180, … degrees: the cosine at distance k is cos(60° · k).
        let rows: Vec<f64> = (0..8)
            .flat_map(|i| {
                let angle = f64::from(i) * std::f64::consts::FRAC_PI_3;
                [angle.cos() * 5.0, angle.sin() * 5.0]
            })
            .collect();
        let found = distance_cosines(&UnitRows::new(&rows, 2, 0..8).unwrap());
        let at = |k: u32| (f64::from(k) * std::f64::consts::FRAC_PI_3).cos();
        let far = (3.0 * at(5) + 2.0 * at(6) + at(7)) / 6.0;
        let wanted = [(1, at(1), 7), (2, at(2), 6), (3, at(3), 5), (4, at(4), 4), (5, far, 6)];
        assert_eq!(found.len(), 5);
        for (found, (from, cosine, pairs)) in found.iter().zip(wanted) {
            assert_eq!((found.band.from, found.pairs), (from, pairs));
            assert!((found.cosine - cosine).abs() < 1e-14, "{found:?} {cosine}");
        }
    }

    #[test]
    fn a_zero_row_moves_no_other() {
        let rows = UnitRows::new(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0], 2, 0..3).unwrap();
        let found = distance_cosines(&rows);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].band.from, found[0].pairs), (2, 1));
        assert!((found[0].cosine - 0.5_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn the_bands_together_are_all_pairs() {
        let n = 150;
        let rows: Vec<f64> = (0..n * 5).map(|i| ((i * i * 31 % 97) as f64 - 40.0) / 9.0).collect();
        let unit = UnitRows::new(&rows, 5, 0..n).unwrap();
        let (mut sum, mut pairs) = (0.0, 0_u64);
        unit.for_each_pair(|_, _, cosine| {
            sum += cosine;
            pairs += 1;
        });
        let found = distance_cosines(&unit);
        assert_eq!(found.iter().map(|f| f.pairs).sum::<u64>(), pairs);
        let together: f64 = found.iter().map(|f| f.cosine * f.pairs as f64).sum();
        assert!((together - sum).abs() < 1e-10, "{together} {sum}");
        assert!(distance_cosines(&UnitRows::new(&[1.0], 1, 0..1).unwrap()).is_empty());
    }
}
