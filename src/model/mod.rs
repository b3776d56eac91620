//! The one instrumented transformer, and the readers that fill it.

pub mod architecture;
mod attention_maps;
mod backward;
mod block;
mod disentangled;
mod distance;
mod embeddings;
pub mod families;
pub mod gguf;
pub(crate) mod gguf_header;
mod initialise;
mod linear;
mod load;
mod loaded;
mod memory;
mod names;
mod norm;
mod patches;
mod precision;
mod processor;
mod role;
mod rope;
mod rotary;
pub mod tokenizer;
mod tokenizer_build;
mod tokenizer_encoders;
mod transformer;
pub mod weights;
pub(crate) mod weights_header;
mod weights_pickle;
mod weights_values;

pub use architecture::{Architecture, H0Kind, Head, Positions, Role};
pub use backward::{Backward, Losses, Wanted};
pub(crate) use embeddings::Embedded;
pub use families::{ConfigError, PARTIAL};
pub use initialise::{Initialisation, RandomWeights};
pub use linear::Linear;
#[cfg(feature = "cli")]
pub(crate) use loaded::COMPANIONS;
pub use loaded::{EMBEDDED, LoadError, LoadedModel};
pub use memory::Memory;
pub use precision::Precision;
pub use processor::Processor;
pub use transformer::{ModelError, Pass, Transformer};
