//! What a model writes behind a prompt: greedy, sampled or by beam search.
//!
//! Every method keeps keys and values of what was read, so that a step computes the
//! newest tokens alone; the initial residual reads h0 of these. What a prompt becomes is a function of the prompt, the
//! model and the [`Decoding`]: neither the prompts beside it, their order nor how many run at once change a bit of it on
//! the CPU.

mod beams;
mod chances;
mod decoding;
mod ending;
mod error;
mod generator;
mod single;
mod text;

pub use decoding::{Beams, Decoding, EarlyStopping, Finish, Generated, Prompt, Sampling, Strategy};
pub use error::GenerateError;
pub use generator::{Generator, Listener, Silent};
