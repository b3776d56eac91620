//! Partial sums of several inner products at once, held in registers.

use super::element::Element;

/// Partial sums of an inner product.
pub(super) const LANES: usize = 8;

/// For each pair of a row of `w` and a row of `x`, which are all equally long and a whole number of lanes, the sums over
/// every [`LANES`]th product.
pub(super) type Sums<T, const W: usize, const X: usize> = [[[T; LANES]; X]; W];

/// In the order of the elements, as the versions for a processor's vectors do too: the same bits.
pub(super) fn portable<T: Element, const W: usize, const X: usize>(w: [&[T]; W], x: [&[T]; X]) -> Sums<T, W, X> {
    let mut sums = [[[T::zero(); LANES]; X]; W];
    for (sums, w) in sums.iter_mut().zip(w) {
        for (sums, x) in sums.iter_mut().zip(x) {
            for (w, x) in w.as_chunks::<LANES>().0.iter().zip(x.as_chunks::<LANES>().0) {
                for ((sum, &w), &x) in sums.iter_mut().zip(w).zip(x) {
                    *sum += w * x;
                }
            }
        }
    }
    sums
}

/// Products and sums in 256 bits. Multiplied and added one after the other, not fused, as the portable version does.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use super::{LANES, Sums};
    use std::arch::x86_64::{
        _mm256_add_pd, _mm256_add_ps, _mm256_loadu_pd, _mm256_loadu_ps, _mm256_mul_pd, _mm256_mul_ps,
        _mm256_setzero_pd, _mm256_setzero_ps, _mm256_storeu_pd, _mm256_storeu_ps,
    };

    /// The length that all rows have.
    fn length<T, const W: usize, const X: usize>(w: &[&[T]; W], x: &[&[T]; X]) -> usize {
        w.iter().chain(x).map(|row| row.len()).min().unwrap_or(0)
    }

    /// [`super::portable`] of f32.
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels) fn single<const W: usize, const X: usize>(
        w: [&[f32]; W],
        x: [&[f32]; X],
    ) -> Sums<f32, W, X> {
        let length = length(&w, &x);
        let mut sums = [[_mm256_setzero_ps(); X]; W];
        let mut at = 0;
        while at + LANES <= length {
            // SAFETY: eight elements from `at` on are inside every row, none of which is shorter than `length`.
            let xs = x.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr().add(at)) });
            for (sums, row) in sums.iter_mut().zip(&w) {
                // SAFETY: as above.
                let w = unsafe { _mm256_loadu_ps(row.as_ptr().add(at)) };
                for (sum, &x) in sums.iter_mut().zip(&xs) {
                    *sum = _mm256_add_ps(*sum, _mm256_mul_ps(w, x));
                }
            }
            at += LANES;
        }
        sums.map(|sums| {
            sums.map(|sum| {
                let mut lanes = [0.0; LANES];
                // SAFETY: there is room for eight elements.
                unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
                lanes
            })
        })
    }

    /// [`super::portable`] of f64.
    #[target_feature(enable = "avx2")]
    pub(in crate::kernels) fn double<const W: usize, const X: usize>(
        w: [&[f64]; W],
        x: [&[f64]; X],
    ) -> Sums<f64, W, X> {
        const HALF: usize = LANES / 2;
        let length = length(&w, &x);
        let mut sums = [[[_mm256_setzero_pd(); 2]; X]; W];
        let mut at = 0;
        while at + LANES <= length {
            // SAFETY: eight elements from `at` on are inside every row, none of which is shorter than `length`.
            let xs = x.map(|row| [0, HALF].map(|half| unsafe { _mm256_loadu_pd(row.as_ptr().add(at + half)) }));
            for (sums, row) in sums.iter_mut().zip(&w) {
                // SAFETY: as above.
                let w = [0, HALF].map(|half| unsafe { _mm256_loadu_pd(row.as_ptr().add(at + half)) });
                for (sums, x) in sums.iter_mut().zip(&xs) {
                    for ((sum, &w), &x) in sums.iter_mut().zip(&w).zip(x) {
                        *sum = _mm256_add_pd(*sum, _mm256_mul_pd(w, x));
                    }
                }
            }
            at += LANES;
        }
        sums.map(|sums| {
            sums.map(|[low, high]| {
                let mut lanes = [0.0; LANES];
                // SAFETY: there is room for four elements from each place on.
                unsafe {
                    _mm256_storeu_pd(lanes.as_mut_ptr(), low);
                    _mm256_storeu_pd(lanes.as_mut_ptr().add(HALF), high);
                }
                lanes
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_versions_return_the_same_bits() {
        use super::*;
        use rand::Rng;
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        let mut rng = crate::random::stream(1, &["lanes"]);
        let rows: Vec<Vec<f32>> = (0..6).map(|_| (0..88).map(|_| rng.random_range(-9.0..9.0)).collect()).collect();
        let wide: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().map(|&x| f64::from(x) / 3.0).collect()).collect();
        let row = |index: usize| rows[index].as_slice();
        let (w, x) = ([row(0), row(1), row(2), row(3)], [row(4), row(5)]);
        let row = |index: usize| wide[index].as_slice();
        let (wide_w, wide_x) = ([row(0), row(1), row(2), row(3)], [row(4), row(5)]);
        // SAFETY: the processor has AVX2.
        unsafe {
            assert_eq!(avx2::single(w, x), portable(w, x));
            assert_eq!(avx2::double(wide_w, wide_x), portable(wide_w, wide_x));
        }
    }
}
