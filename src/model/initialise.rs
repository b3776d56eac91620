//! Random weights: where pre-training starts, and the untrained control.

use super::architecture::{Architecture, Role};
use super::weights::{TensorSource, WeightsError};
use crate::random::stream;
use candle_core::{DType, Device, Tensor};
use rand_distr::{Distribution, Normal};

/// How random weights are scaled. Norms start at one, biases at zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initialisation {
    /// Every matrix N(0, 0.02²), as transformers makes an untrained LLaMA.
    Transformers,
    /// Linears N(0, 1/fan_in), those that write to the residual stream also over √(2L); embedding N(0, 0.5²): with a
    /// small one the blocks' first random outputs drown the tokens, and attention does not learn to look one up.
    FanIn,
}

/// A [`TensorSource`] of seeded random weights; each tensor is a function of (seed, name) alone.
#[derive(Debug)]
pub struct RandomWeights<'a> {
    architecture: &'a Architecture,
    scheme: Initialisation,
    seed: u64,
}

impl<'a> RandomWeights<'a> {
    /// Random weights for `architecture`.
    #[must_use]
    pub fn new(architecture: &'a Architecture, scheme: Initialisation, seed: u64) -> Self {
        Self { architecture, scheme, seed }
    }

    /// Whether a tensor is one of the tables that are summed to layer 0.
    fn is_table(&self, name: &str) -> bool {
        let names = &self.architecture.names;
        [names.embedding, names.positions, names.token_types].iter().any(|&t| name == names.whole(t, "weight"))
    }

    fn deviation(&self, name: &str, fan_in: usize) -> f64 {
        let names = &self.architecture.names;
        match self.scheme {
            Initialisation::Transformers => 0.02,
            Initialisation::FanIn if self.is_table(name) => 0.5,
            Initialisation::FanIn => {
                let plain = 1.0 / (fan_in as f64).sqrt();
                let writes = [Role::AttentionOutput, Role::Down]
                    .iter()
                    .any(|&r| !names.linear(r).is_empty() && name.contains(names.linear(r)));
                if writes { plain / (2.0 * self.architecture.layers as f64).sqrt() } else { plain }
            }
        }
    }
}

impl TensorSource for RandomWeights<'_> {
    fn contains(&self, _name: &str) -> bool {
        true
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn load(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, WeightsError> {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = match shape {
            [_] if name.ends_with(".bias") => vec![0.0; count],
            [_] => vec![1.0; count],
            _ => {
                let deviation = self.deviation(name, shape.last().copied().unwrap_or(1));
                let mut rng = stream(self.seed, &["weights", name]);
                match Normal::new(0.0, deviation) {
                    Ok(normal) => (0..count).map(|_| normal.sample(&mut rng)).collect(),
                    Err(_) => vec![0.0; count],
                }
            }
        };
        let made = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|t| t.to_dtype(dtype)?.to_device(device));
        made.map_err(|error| WeightsError::Tensor {
            file: "random weights".to_owned(),
            tensor: name.to_owned(),
            problem: error.to_string(),
            remedy: "check the sizes in config.json",
        })
    }
}
