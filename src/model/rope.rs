//! The rotary embedding's frequencies.

use crate::kernels::Pairing;

/// Rotary position embedding of the first elements of every head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Elements of a head that are rotated, an even number.
    pub dims: usize,
    /// Which of them are a pair.
    pub pairing: Pairing,
    /// The stretching of wavelengths for long contexts.
    pub scaling: Option<RopeScaling>,
}

/// How wavelengths are stretched for contexts longer than those a model was first trained with.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// All by this factor (`rope_type: linear`).
    Linear(f64),
    /// LLaMA 3.1's (`rope_type: llama3`).
    Llama3(Llama3Scaling),
}

/// LLaMA 3.1's rope scaling: long wavelengths alone are stretched.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3Scaling {
    /// Long wavelengths are stretched by this.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// The context that the model was first trained with.
    pub original_max_positions: f64,
}

impl Rope {
    /// The `dims / 2` inverse frequencies, in radians a position.
    #[must_use]
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        (0..self.dims / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / self.dims as f64);
                match &self.scaling {
                    None => frequency,
                    Some(RopeScaling::Linear(factor)) => frequency / factor,
                    Some(RopeScaling::Llama3(scaling)) => scaling.apply(frequency),
                }
            })
            .collect()
    }
}

impl Llama3Scaling {
    /// Source: transformers, `_compute_llama3_parameters`.
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_max_positions / wavelength;
        if turns < self.low_freq_factor {
            frequency / self.factor
        } else if turns > self.high_freq_factor {
            frequency
        } else {
            let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}
