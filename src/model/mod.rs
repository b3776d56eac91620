//! The one instrumented transformer, and the readers that fill it.

pub mod architecture;
mod attention_maps;
mod block;
pub mod families;
pub mod gguf;
mod gguf_header;
mod initialise;
mod linear;
mod loaded;
mod rotary;
pub mod tokenizer;
mod tokenizer_build;
mod transformer;
pub mod weights;
mod weights_header;
mod weights_pickle;
mod weights_values;

pub use architecture::{Architecture, H0Kind, Role};
pub use families::ConfigError;
pub use initialise::{Initialisation, RandomWeights};
pub use linear::Linear;
#[cfg(feature = "cli")]
pub(crate) use loaded::COMPANIONS;
pub use loaded::{EMBEDDED, LoadError, LoadedModel};
pub use transformer::{ModelError, Pass, Transformer};
