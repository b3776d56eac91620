//! The one instrumented transformer, and the readers that fill it.

pub mod gguf;
mod gguf_header;
pub mod tokenizer;
mod tokenizer_build;
pub mod weights;
mod weights_header;
mod weights_pickle;
mod weights_values;
