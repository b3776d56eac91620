//! The one instrumented transformer, and the readers that fill it.

pub mod architecture;
pub mod families;
mod initialise;
mod linear;
mod rotary;
mod transformer;

pub use architecture::{Architecture, H0Kind, Role};
pub use families::ConfigError;
pub use initialise::{Initialisation, RandomWeights};
pub use linear::Linear;
pub use transformer::{ModelError, Pass, Transformer};
