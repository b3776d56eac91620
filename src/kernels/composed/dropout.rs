//! Dropout with the mask of the fused kernel, made on the CPU and moved.

use candle_core::{Device, Result, Tensor};

use super::{Composed, wanted, widened};
use crate::kernels::dropout::Dropout;
use crate::kernels::{parallel, vector};

impl Dropout {
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let threshold = self.threshold();
        let mut kept = vec![0_u8; x.elem_count()];
        parallel::for_each_piece(&mut kept, |at, kept| {
            for (index, kept) in (at as u64..).zip(kept) {
                *kept = u8::from(vector::split_mix(self.key, index) >> 11 >= threshold);
            }
        });
        let kept = Tensor::from_vec(kept, x.shape(), &Device::Cpu)?.to_device(x.device())?;
        let wide = widened(x)?;
        ((&wide * kept.to_dtype(wide.dtype())?)? * (1.0 / (1.0 - self.p)))?.to_dtype(x.dtype())
    }
}

impl Composed<1> for Dropout {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        self.masked(x)
    }

    fn backward(
        &self,
        _: [&Tensor; 1],
        [needed]: [bool; 1],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        Ok([wanted(needed, || self.masked(gradient))?])
    }
}
