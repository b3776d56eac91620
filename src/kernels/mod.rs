//! Differentiable operations on packed token sequences, with hand-written backward passes.
//!
//! A batch is a matrix `[tokens, width]` of all sequences one after another. Every operation computes gradients for
//! tracked arguments only; backward passes recompute what is cheaper to compute than to keep. `f32` and `f64` tensors
//! on the CPU go through fused loops, which return the same bits whatever the number of threads; other types and
//! devices through tensor operations (`composed`), whose gradients come from a recorded pass alone
//! ([`Transformer::loss_gradients`](crate::model::Transformer::loss_gradients)). Weights may be of another float type
//! than what they are applied to: they are read in its type, and their gradients have their own.

mod activation;
mod adamw;
mod attention;
mod attention_task;
mod branch;
mod columns;
mod composed;
mod cross_entropy;
mod deviation;
mod disentangled;
mod disentangled_task;
mod dropout;
mod element;
mod embedding;
mod few_rows;
mod frozen;
mod gated;
mod gemm;
mod lanes;
mod layer_norm;
mod leading_rows;
mod linear;
mod log_sum_exp;
mod maximum;
mod mixed;
mod mixing;
mod parallel;
mod remembered;
mod rescale;
mod rms_norm;
mod rope;
mod row_gate;
mod self_check;
mod squared_error;
mod stack;
mod tanh;
mod tape;
mod vector;
mod visible_mean;

#[cfg(test)]
mod check;

pub use activation::{Activation, activation};
pub use adamw::{AdamWStep, adamw, sum_of_squares};
pub use attention::{AttentionShape, RelativeBias, attention};
pub use branch::{Residual, add_branch, linear_with_branch, mixed_linear};
pub use columns::{Columns, columns};
#[cfg(test)]
pub(crate) use composed::instead_of_fused;
pub use composed::wide;
pub(crate) use cross_entropy::cross_entropy_gradients;
pub use cross_entropy::{HeadWeights, linear_cross_entropy, token_losses, token_losses_and_hits};
pub use deviation::scaled_deviation;
pub use disentangled::{DisentangledShape, disentangled_attention};
pub use dropout::dropout;
pub use embedding::embedding;
pub(crate) use few_rows::FEW_ROWS;
pub use frozen::{FrozenWeight, frozen_linear, frozen_with_branch};
pub use gated::gated;
pub use gemm::peak_rate;
pub use layer_norm::layer_norm;
pub use leading_rows::{replace_leading, skip_leading};
pub use linear::linear;
pub use log_sum_exp::log_sum_exp;
pub use maximum::maximum;
pub use mixing::{residual_mix, scale, scaled_add};
pub use remembered::{KeyValues, remembered_attention};
pub use rescale::{add_row, learned_mix, mixed_rescale, rescale};
pub use rms_norm::{rms_norm, shifted_rms_norm};
pub use rope::{Pairing, rope};
pub use row_gate::row_gate;
pub use self_check::{Deviation, KernelCheck, check_kernels, checked_types};
pub(crate) use squared_error::squared_error_gradients;
pub use tanh::tanh;
pub(crate) use tape::forget;
pub use tape::{Gradients, Tape, record};
pub use visible_mean::visible_mean;
