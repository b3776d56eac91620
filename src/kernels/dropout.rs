//! Inverted dropout whose mask is a function of a key and the element's index, so that it is never stored.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

use super::element::{Element, Locked, by_dtype, tensor, values};
use super::tape::{self, Reads};
use super::{parallel, vector};

const NAME: &str = "dropout";

/// Sets each element to zero with probability `p` and multiplies the others by `1 / (1 - p)`.
///
/// Element `i`, in row-major order, is dropped where the number that SplitMix64 (Steele, Lea, Flood, 2014) makes of
/// `key + i · golden` is below `p`: the same key and shape give the same mask, forwards and backwards. `p` zero
/// returns `x` itself.
///
/// # Errors
/// If `p` is not in `[0, 1)`, or `x` is not of a float type.
pub fn dropout(x: &Tensor, p: f64, key: u64) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout: probability {p} must be at least 0 and below 1")
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    tape::apply1(Dropout { p, key }, &x.contiguous()?, Reads::arguments([false]))
}

pub(super) struct Dropout {
    pub(super) p: f64,
    pub(super) key: u64,
}

impl Dropout {
    /// What a draw is compared with: 53 random bits, as many as an f64 between 0 and 1 holds.
    pub(super) fn threshold(&self) -> u64 {
        (self.p * (1_u64 << 53) as f64) as u64
    }

    fn mask<T: Element>(&self, x: &[T]) -> Vec<T> {
        let threshold = self.threshold();
        let factor = T::from_f64(1.0 / (1.0 - self.p));
        parallel::pieces(x.len(), |at, out| {
            vector::dropout(parallel::from(x, at), self.key, at as u64, threshold, factor, out);
        })
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), NAME, T => {
            Ok((T::to_cpu_storage_owned(self.mask::<T>(values(x, layout)?)), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let locked = Locked::new(&gradient);
        by_dtype!(x.dtype(), NAME, T => tensor(self.mask::<T>(locked.values()?), x).map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_draws_are_splitmix64() {
        // The published generator adds the golden ratio before each output: with seed 0 its first is output 1 here.
        assert_eq!([vector::split_mix(0, 1), vector::split_mix(0, 2)], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn kept_elements_are_scaled_and_the_share_dropped_is_p() {
        let x = Tensor::ones((200, 500), DType::F64, &Device::Cpu).unwrap();
        for p in [0.1, 0.5, 0.9] {
            let out = check::flat(&dropout(&x, p, 42).unwrap());
            let dropped = out.iter().filter(|x| **x == 0.0).count() as f64 / out.len() as f64;
            assert!((dropped - p).abs() < 5.0 * (p * (1.0 - p) / out.len() as f64).sqrt(), "{dropped} for {p}");
            assert!(out.iter().all(|&x| x == 0.0 || (x - 1.0 / (1.0 - p)).abs() < 1e-12));
        }
        let draws = |key| check::flat(&dropout(&x, 0.5, key).unwrap());
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn the_backward_pass_has_the_same_mask() {
        let x = check::normal(&[9, 7], 1);
        check::gradients(&[&x], |t| dropout(&t[0], 0.4, 5));
        check::fused_gradients(&[&x], |t| dropout(&check::strided(&t[0]), 0.4, 5));
        check::f32_agrees(&[&x], 1e-6, |t| dropout(&t[0], 0.4, 5));
        check::threads_agree(&[&check::normal(&[300, 100], 1)], |t| dropout(&t[0], 0.4, 5));
    }

    #[test]
    fn zero_keeps_everything_and_other_probabilities_are_refused() {
        let x = check::normal(&[3, 4], 1);
        assert_eq!(dropout(&x, 0.0, 1).unwrap().id(), x.id());
        for p in [1.0, -0.1, f64::NAN] {
            assert!(dropout(&x, p, 1).is_err());
        }
    }
}
