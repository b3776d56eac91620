//! Row kernels that the compiler vectorises: exp, reductions, softmax, SiLU, tanh, RMS norm, rotation.
//!
//! Every kernel has one body. On x86-64 it is compiled twice, once for the baseline and once for AVX2 with FMA, and
//! the second is taken when the processor has both. Sums are kept in [`LANES`] partial sums folded in a fixed order,
//! and what is fused is fused in both versions, so both return the same bits.

use super::adamw::Factors;
use super::element::Element;

/// Partial sums of a reduction, a multiple of the widest vector.
const LANES: usize = 16;

/// Whether the processor has the instructions of the second version.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx2_and_fma() -> bool {
    #[cfg(test)]
    if tests::PORTABLE.get() {
        return false;
    }
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// Compiles the body for the baseline and for AVX2 with FMA and picks at run time.
macro_rules! vectorised {
    ($($(#[$doc:meta])* fn $name:ident<$T:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<$T: Element>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$T: Element>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2<$T: Element>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if has_avx2_and_fma() {
                    // SAFETY: the processor was asked and has every feature that `with_avx2` enables.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

/// exp of an `f32`, without branches.
///
/// Cody and Waite's reduction to `|r| <= ln 2 / 2` with the polynomial of Cephes' `expf`. The relative error is below
/// 1.5e-7 wherever the result is a normal number, and below half a step of the subnormal grid plus that elsewhere;
/// it is exact for 0, infinities and NaN.
#[inline(always)]
pub(super) fn exp_f32(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Written so that a NaN fails both comparisons and stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_2e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // Two steps, since 2^n itself is not a normal number for results near either end.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// tanh of an `f32`, without branches: Cephes' `tanhf`. The relative error is below 4e-7.
#[inline(always)]
pub(super) fn tanh_f32(x: f32) -> f32 {
    let z = x * x;
    let p = (-5.704_988_7e-3_f32)
        .mul_add(z, 2.063_909e-2)
        .mul_add(z, -5.373_971_6e-2)
        .mul_add(z, 1.333_144_2e-1)
        .mul_add(z, -3.333_328e-1);
    let small = (p * z).mul_add(x, x);
    let magnitude = 1.0 - 2.0 / (exp_f32(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { small } else { magnitude.copysign(x) }
}

/// The normal distribution function of an `f32`, without branches: 1 minus half of Abramowitz and Stegun's 7.1.26
/// for erfc, mirrored. The absolute error is below 2e-7.
#[inline(always)]
pub(super) fn normal_f32(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let p = 1.061_405_4_f32
        .mul_add(t, -1.453_152_1)
        .mul_add(t, 1.421_413_8)
        .mul_add(t, -0.284_496_72)
        .mul_add(t, 0.254_829_6);
    let tail = 0.5 * p * t * exp_f32(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// The inner function of GELU's approximation and its derivative's factor: `u = √(2/π)·(x + 0.044715·x³)` and
/// `du/dx`.
#[inline(always)]
fn gelu_inner<T: Element>(x: T) -> (T, T) {
    let (root, cubic) = (T::from_f64(0.797_884_560_802_865_4), T::from_f64(0.044_715));
    let square = x * x;
    (root * x * (T::one() + cubic * square), root * (T::one() + T::from_f64(3.0) * cubic * square))
}

/// The logistic function.
#[inline(always)]
fn sigmoid<T: Element>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

/// Adds up the lanes, halving them, in an order that no machine changes.
#[inline(always)]
fn fold<T: Element>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        for (low, &high) in low.iter_mut().zip(high.iter()) {
            *low += high;
        }
        width /= 2;
    }
    lanes[0]
}

/// Output `index` of SplitMix64 (Steele, Lea, Flood, 2014) seeded with `key`.
#[inline(always)]
pub(super) fn split_mix(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

vectorised! {
    /// The inner product of two rows of equal length.
    fn dot<T>(a: &[T], b: &[T]) -> T {
        let mut lanes = [T::zero(); LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        let mut sum = fold(lanes);
        for (&a, &b) in a_rest.iter().zip(b_rest) {
            sum += a * b;
        }
        sum
    }

    /// The largest value, minus infinity for an empty row; NaN is passed over.
    fn max<T>(row: &[T]) -> T {
        let mut lanes = [T::NEG_INFINITY; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let mut largest = T::NEG_INFINITY;
        for &x in lanes.iter().chain(rest) {
            largest = if x > largest { x } else { largest };
        }
        largest
    }

    /// `row = exp(row - shift)`; returns the sum. With the row's maximum as `shift` this is a softmax short of its
    /// division, and cannot overflow.
    fn exp_shifted<T>(row: &mut [T], shift: T) -> T {
        let mut lanes = [T::zero(); LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = (*x - shift).exp();
                *lane += *x;
            }
        }
        let mut sum = fold(lanes);
        for x in rest {
            *x = (*x - shift).exp();
            sum += *x;
        }
        sum
    }

    /// `row = row · factor`.
    fn scale<T>(row: &mut [T], factor: T) {
        for x in row {
            *x *= factor;
        }
    }

    /// `out = a · fa + b · fb`.
    fn combine<T>(a: &[T], fa: T, b: &[T], fb: T, out: &mut [T]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a * fa + b * fb;
        }
    }

    /// `out = a · factor`.
    fn scaled<T>(a: &[T], factor: T, out: &mut [T]) {
        for (out, &a) in out.iter_mut().zip(a) {
            *out = a * factor;
        }
    }

    /// `sums += a`.
    fn add<T>(sums: &mut [T], a: &[T]) {
        for (sum, &a) in sums.iter_mut().zip(a) {
            *sum += a;
        }
    }

    /// `sums += a · factor`.
    fn add_scaled<T>(sums: &mut [T], a: &[T], factor: T) {
        for (sum, &a) in sums.iter_mut().zip(a) {
            *sum += a * factor;
        }
    }

    /// The sum of the squares, in f64.
    fn sum_of_squares<T>(x: &[T]) -> f64 {
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                let x = x.to_f64();
                *lane += x * x;
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            let x = x.to_f64();
            *lane += x * x;
        }
        lanes.iter().sum()
    }

    /// A piece of [`super::adamw::adamw`].
    fn adamw<T>(w: &mut [T], g: &[T], m: &mut [T], v: &mut [T], by: &Factors<T>) {
        for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * by.clip;
            *m = by.beta1 * *m + by.rest1 * g;
            *v = by.beta2 * *v + by.rest2 * g * g;
            *w = by.keep * *w - by.step * *m / (v.sqrt() / by.root + by.epsilon);
        }
    }

    /// `sums += a · b · factor`.
    fn add_products<T>(sums: &mut [T], a: &[T], b: &[T], factor: T) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b * factor;
        }
    }

    /// One row of RMS norm: `out = x · inverse · weight`.
    fn rms_norm<T>(x: &[T], weight: &[T], inverse: T, out: &mut [T]) {
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * weight;
        }
    }

    /// One row of RMS norm backwards: with `h = gradient · weight`,
    /// `out = inverse · (h - x · inverse² · mean(h · x))`.
    fn rms_norm_backward<T>(x: &[T], weight: &[T], gradient: &[T], inverse: T, out: &mut [T]) {
        let mut lanes = [T::zero(); LANES];
        for ((out, &gradient), &weight) in out.iter_mut().zip(gradient).zip(weight) {
            *out = gradient * weight;
        }
        let (chunks, rest) = out.as_chunks::<LANES>();
        let (x_chunks, x_rest) = x.as_chunks::<LANES>();
        for (h, x) in chunks.iter().zip(x_chunks) {
            for ((lane, &h), &x) in lanes.iter_mut().zip(h).zip(x) {
                *lane += h * x;
            }
        }
        let mut sum = fold(lanes);
        for (&h, &x) in rest.iter().zip(x_rest) {
            sum += h * x;
        }
        let pull = sum / T::from_f64(x.len() as f64) * inverse * inverse;
        for (out, &x) in out.iter_mut().zip(x) {
            *out = inverse * (*out - x * pull);
        }
    }

    /// The sum of a row.
    fn sum<T>(row: &[T]) -> T {
        let mut lanes = [T::zero(); LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += x;
            }
        }
        let mut sum = fold(lanes);
        for &x in rest {
            sum += x;
        }
        sum
    }

    /// The sum of `(x - mean)²` over a row.
    fn squared_deviations<T>(row: &[T], mean: T) -> T {
        let mut lanes = [T::zero(); LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += (x - mean) * (x - mean);
            }
        }
        let mut sum = fold(lanes);
        for &x in rest {
            sum += (x - mean) * (x - mean);
        }
        sum
    }

    /// One row of layer norm with the moments `(mean, inverse deviation)`:
    /// `out = (x - mean) · inverse · weight + bias`.
    fn layer_norm<T>(x: &[T], moments: (T, T), weight: &[T], bias: &[T], out: &mut [T]) {
        let (mean, inverse) = moments;
        for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * inverse * weight + bias;
        }
    }

    /// One row of layer norm backwards: with `h = gradient · weight` and `y = (x - mean) · inverse`,
    /// `out = inverse · (h - mean(h) - y · mean(h · y))`.
    fn layer_norm_backward<T>(x: &[T], moments: (T, T), weight: &[T], gradient: &[T], out: &mut [T]) {
        let (mean, inverse) = moments;
        let (mut sums, mut products) = ([T::zero(); LANES], [T::zero(); LANES]);
        for ((out, &gradient), &weight) in out.iter_mut().zip(gradient).zip(weight) {
            *out = gradient * weight;
        }
        let (chunks, rest) = out.as_chunks::<LANES>();
        let (x_chunks, x_rest) = x.as_chunks::<LANES>();
        for (h, x) in chunks.iter().zip(x_chunks) {
            for (((sum, product), &h), &x) in sums.iter_mut().zip(products.iter_mut()).zip(h).zip(x) {
                *sum += h;
                *product += h * (x - mean);
            }
        }
        let (mut sum, mut product) = (fold(sums), fold(products));
        for (&h, &x) in rest.iter().zip(x_rest) {
            sum += h;
            product += h * (x - mean);
        }
        let count = T::from_f64(x.len() as f64);
        let (shift, pull) = (sum / count, product / count * inverse * inverse);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = inverse * (*out - shift - (x - mean) * pull);
        }
    }

    /// `sums += gradient · (x - mean) · inverse` with the moments `(mean, inverse)`.
    fn add_normed_products<T>(sums: &mut [T], x: &[T], moments: (T, T), gradient: &[T]) {
        let (mean, inverse) = moments;
        for ((sum, &x), &gradient) in sums.iter_mut().zip(x).zip(gradient) {
            *sum += gradient * (x - mean) * inverse;
        }
    }

    /// `out = x · Φ(x)` with the normal distribution function Φ.
    fn gelu<T>(x: &[T], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * x.normal();
        }
    }

    /// `out = gradient · (Φ(x) + x · φ(x))` with the normal density φ.
    fn gelu_backward<T>(x: &[T], gradient: &[T], out: &mut [T]) {
        let height = T::from_f64(0.398_942_280_401_432_7);
        for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
            let density = height * (x * x * T::from_f64(-0.5)).exp();
            *out = gradient * (x.normal() + x * density);
        }
    }

    /// `out = x/2 · (1 + tanh(u))`, see `gelu_inner`.
    fn gelu_tanh<T>(x: &[T], out: &mut [T]) {
        let half = T::from_f64(0.5);
        for (out, &x) in out.iter_mut().zip(x) {
            *out = half * x * (T::one() + gelu_inner(x).0.tanh());
        }
    }

    /// `out = gradient · (1 + y + x · (1 - y²) · du/dx) / 2` with `y = tanh(u)`.
    fn gelu_tanh_backward<T>(x: &[T], gradient: &[T], out: &mut [T]) {
        let half = T::from_f64(0.5);
        for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
            let (inner, slope) = gelu_inner(x);
            let y = inner.tanh();
            *out = gradient * half * (T::one() + y + x * (T::one() - y * y) * slope);
        }
    }

    /// `out = max(x, 0)`.
    fn relu<T>(x: &[T], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = if x > T::zero() { x } else { T::zero() };
        }
    }

    /// `out = gradient` where `x > 0`, else zero.
    fn relu_backward<T>(x: &[T], gradient: &[T], out: &mut [T]) {
        for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
            *out = if x > T::zero() { gradient } else { T::zero() };
        }
    }

    /// `out = x · σ(x)` with the logistic function σ.
    fn silu<T>(x: &[T], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(x);
        }
    }

    /// `out = gradient · (σ(x) + x · σ(x) · (1 - σ(x)))`.
    fn silu_backward<T>(x: &[T], gradient: &[T], out: &mut [T]) {
        for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
            let sigmoid = sigmoid(x);
            *out = gradient * sigmoid * (T::one() + x * (T::one() - sigmoid));
        }
    }

    /// `row = row · a`.
    fn multiply<T>(row: &mut [T], a: &[T]) {
        for (x, &a) in row.iter_mut().zip(a) {
            *x *= a;
        }
    }

    /// `out = a · b`.
    fn products<T>(a: &[T], b: &[T], out: &mut [T]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a * b;
        }
    }

    /// `row = cap · tanh(row / cap)`.
    fn soft_cap<T>(row: &mut [T], cap: T) {
        let inverse = T::one() / cap;
        for x in row {
            *x = cap * (*x * inverse).tanh();
        }
    }

    /// What a soft cap leaves of a gradient, `gradient = gradient · (1 - (capped / cap)²)`.
    fn soft_cap_backward<T>(capped: &[T], cap: T, gradient: &mut [T]) {
        let inverse = T::one() / cap;
        for (gradient, &capped) in gradient.iter_mut().zip(capped) {
            let tanh = capped * inverse;
            *gradient *= T::one() - tanh * tanh;
        }
    }

    /// One row of softmax backwards, in place of the probabilities' gradient:
    /// `gradient = probability · (gradient - shift) · factor`.
    fn softmax_backward<T>(probabilities: &[T], gradient: &mut [T], shift: T, factor: T) {
        for (gradient, &p) in gradient.iter_mut().zip(probabilities) {
            *gradient = p * (*gradient - shift) * factor;
        }
    }

    /// Rotates the pairs `(i, i + half)` of one head by the angles whose cosines and sines are given;
    /// `sign` -1 rotates back.
    fn rotate<T>(x: &[T], cos: &[T], sin: &[T], sign: T, out: &mut [T]) {
        let half = cos.len();
        if x.len() != 2 * half || out.len() != 2 * half {
            return;
        }
        let (x1, x2) = x.split_at(half);
        let (out1, out2) = out.split_at_mut(half);
        for (((((out1, out2), &x1), &x2), &cos), &sin) in
            out1.iter_mut().zip(out2).zip(x1).zip(x2).zip(cos).zip(sin)
        {
            let sin = sin * sign;
            *out1 = x1 * cos - x2 * sin;
            *out2 = x2 * cos + x1 * sin;
        }
    }

    /// Rotates the pairs `(2i, 2i + 1)` of one head, else as `rotate`.
    fn rotate_neighbours<T>(x: &[T], cos: &[T], sin: &[T], sign: T, out: &mut [T]) {
        let (pairs, _) = x.as_chunks::<2>();
        let (out, _) = out.as_chunks_mut::<2>();
        for (((out, &[x1, x2]), &cos), &sin) in out.iter_mut().zip(pairs).zip(cos).zip(sin) {
            let sin = sin * sign;
            *out = [x1 * cos - x2 * sin, x2 * cos + x1 * sin];
        }
    }

    /// `out = silu(gate) · up`.
    fn swiglu<T>(gate: &[T], up: &[T], out: &mut [T]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }

    /// Both gradients: with `s = sigmoid(gate)`, `d_gate = gradient · up · s · (1 + gate · (1 - s))` and
    /// `d_up = gate · s · gradient`.
    fn swiglu_backward<T>(gate: &[T], up: &[T], gradient: &[T], d_gate: &mut [T], d_up: &mut [T]) {
        let outs = d_gate.iter_mut().zip(d_up);
        for ((((d_gate, d_up), &gate), &up), &gradient) in outs.zip(gate).zip(up).zip(gradient) {
            let s = sigmoid(gate);
            *d_gate = gradient * up * s * (T::one() + gate * (T::one() - s));
            *d_up = gate * s * gradient;
        }
    }

    /// `out = x · factor` where the upper 53 bits of the element's random number reach `threshold`, else zero; the
    /// first element has the index `first`.
    fn dropout<T>(x: &[T], key: u64, first: u64, threshold: u64, factor: T, out: &mut [T]) {
        let mut index = first;
        for (out, &x) in out.iter_mut().zip(x) {
            let kept = split_mix(key, index) >> 11 >= threshold;
            *out = if kept { x * factor } else { T::zero() };
            index = index.wrapping_add(1);
        }
    }

    /// `out = tanh(x)`.
    fn tanh<T>(x: &[T], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x.tanh();
        }
    }

    /// `out = gradient · (1 - tanh²(x))`.
    fn tanh_backward_from<T>(x: &[T], gradient: &[T], out: &mut [T]) {
        for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
            let y = x.tanh();
            *out = gradient * (T::one() - y * y);
        }
    }

    /// `out = gradient · (1 - y²)` where `y` is a tanh.
    fn tanh_backward<T>(y: &[T], gradient: &[T], out: &mut [T]) {
        for ((out, &y), &gradient) in out.iter_mut().zip(y).zip(gradient) {
            *out = gradient * (T::one() - y * y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::cell::Cell;

    thread_local! {
        /// Set by a test to take the portable version on this thread.
        pub(super) static PORTABLE: Cell<bool> = const { Cell::new(false) };
    }

    fn portable<R>(f: impl FnOnce() -> R) -> R {
        PORTABLE.set(true);
        let result = f();
        PORTABLE.set(false);
        result
    }

    /// exp through the dispatched kernel, one value at a time being what `exp_shifted` never does.
    fn exp_all(xs: &[f32]) -> Vec<f32> {
        let mut row = xs.to_vec();
        exp_shifted(&mut row, 0.0);
        row
    }

    #[test]
    fn exp_is_within_its_stated_error_over_the_whole_range() {
        let xs: Vec<f32> = (0..2_000_000).map(|i| -110.0 + i as f32 * 1e-4).collect();
        let mut worst = 0.0_f64;
        for (&x, &y) in xs.iter().zip(&exp_all(&xs)) {
            let want = f64::from(x).exp();
            if want > f64::from(f32::MAX) * (1.0 + 1e-7) {
                assert_eq!(y, f32::INFINITY, "exp({x})");
            } else if want >= f64::from(f32::MIN_POSITIVE) {
                worst = worst.max((f64::from(y) / want - 1.0).abs());
            } else {
                // Half a step of the subnormal grid, and the error of the value before it is put on the grid.
                let bound = 0.5 * f64::from(f32::from_bits(1)) * (1.0 + 1e-9) + want * 1.5e-7;
                assert!((f64::from(y) - want).abs() <= bound, "exp({x}) = {y:e}, not {want:e}");
            }
        }
        assert!(worst < 1.5e-7, "worst relative error {worst:e}");
    }

    #[test]
    fn exp_at_its_special_values() {
        let ys = exp_all(&[0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::MAX, f32::MIN, -104.5, 89.5, f32::NAN]);
        assert_eq!(ys[..8], [1.0, 1.0, 0.0, f32::INFINITY, f32::INFINITY, 0.0, 0.0, f32::INFINITY]);
        assert!(ys[8].is_nan());
        let long = exp_all(&[f32::NAN; 40]);
        assert!(long.iter().all(|y| y.is_nan()));
    }

    #[test]
    fn tanh_is_within_its_stated_error() {
        let xs: Vec<f32> = (-100_000..100_000).map(|i| i as f32 * 2e-4).chain([1e-30, -1e-8, 200.0, -200.0]).collect();
        let mut ys = vec![0.0; xs.len()];
        tanh(&xs, &mut ys);
        for (&x, &y) in xs.iter().zip(&ys) {
            let want = f64::from(x).tanh();
            assert!((f64::from(y) - want).abs() <= 4e-7 * want.abs(), "tanh({x}) = {y}, not {want}");
        }
        tanh(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &mut ys[..3]);
        assert!(ys[0].is_nan());
        assert_eq!(ys[1..3], [1.0, -1.0]);
    }

    #[test]
    fn both_versions_return_the_same_bits() {
        let mut rng = crate::random::stream(1, &["vector"]);
        for length in [1, 7, 16, 33, 1000] {
            let a: Vec<f32> = (0..length).map(|_| rng.random_range(-9.0..9.0)).collect();
            let b: Vec<f32> = (0..length).map(|_| rng.random_range(-9.0..9.0)).collect();
            let run = || {
                let mut all = vec![dot(&a, &b), max(&a)];
                let mut row = a.clone();
                all.push(exp_shifted(&mut row, 1.5));
                all.append(&mut row);
                let mut out = vec![0.0; length];
                swiglu(&a, &b, &mut out);
                all.extend(&out);
                let mut other = vec![0.0; length];
                swiglu_backward(&a, &b, &a, &mut out, &mut other);
                all.extend(out.iter().chain(&other));
                tanh(&a, &mut out);
                all.extend(&out);
                rms_norm_backward(&a, &b, &a, 0.3, &mut out);
                all.extend(&out);
                all.extend([sum(&a), squared_deviations(&a, 0.5)]);
                layer_norm(&a, (0.2, 0.3), &b, &b, &mut out);
                all.extend(&out);
                layer_norm_backward(&a, (0.2, 0.3), &b, &a, &mut out);
                all.extend(&out);
                gelu(&a, &mut out);
                all.extend(&out);
                gelu_backward(&a, &b, &mut out);
                all.extend(&out);
                gelu_tanh(&a, &mut out);
                all.extend(&out);
                gelu_tanh_backward(&a, &b, &mut out);
                all.extend(&out);
                all.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(run(), portable(run), "length {length}");
        }
    }

    #[test]
    fn reductions_agree_with_plain_sums() {
        for length in [0, 1, 15, 16, 17, 100] {
            let a: Vec<f64> = (0..length).map(|i| f64::from(i) - 3.0).collect();
            assert_eq!(dot(&a, &a), a.iter().map(|x| x * x).sum::<f64>());
            assert_eq!(max(&a), a.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
