//! The rows of one matrix behind those of another.

use candle_core::{Result, Tensor};

use super::Composed;
use crate::kernels::stack::{Stack, parts};

impl Composed<2> for Stack {
    fn forward(&self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        Tensor::cat(&[a, b], 0)
    }

    fn backward(
        &self,
        arguments: [&Tensor; 2],
        wanted: [bool; 2],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        parts(arguments, wanted, gradient)
    }
}
