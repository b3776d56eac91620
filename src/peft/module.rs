//! The trainable branches themselves: LoRA and bottleneck adapters.

use super::config::Method;
use super::plan::{Mixing, PlannedModule, Position};
use super::{BranchPass, PassState};
use crate::kernels;
use crate::model::Linear;
use crate::random::stream;
use candle_core::{DType, Device, Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

/// A branch on one linear: two matrices, what stands between them, and where it joins.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) planned: PlannedModule,
    method: Method,
    /// LoRA's A or the adapter's D, `[width, input]`.
    pub(crate) down: Tensor,
    /// LoRA's B or the adapter's U, `[output, width]`.
    pub(crate) up: Tensor,
}

impl Module {
    pub(crate) fn new(planned: PlannedModule, method: Method, down: Tensor, up: Tensor) -> Self {
        Self { planned, method, down, up }
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    /// Seeded start values: LoRA's A Kaiming-uniform(√5) and B zero, an adapter's both N(0, 0.02²).
    ///
    /// Every matrix is a function of (seed, path) alone, so that arms with the same seed start alike.
    pub(crate) fn initial(
        planned: PlannedModule,
        method: Method,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let width = method.width();
        let tensor = |rows: usize, columns: usize, values: Vec<f64>| {
            Tensor::from_vec(values, (rows, columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
        };
        let (input, output) = (planned.input, planned.output);
        let (down_count, up_count) = (width * input, output * width);
        let (down, up) = match method {
            Method::Lora { .. } => {
                // Kaiming-uniform with a = √5: the bound is √(6 / ((1 + 5)·fan_in)).
                let bound = 1.0 / (input as f64).sqrt();
                let mut rng = stream(seed, &["init", &planned.path, "lora_A"]);
                ((0..down_count).map(|_| rng.random_range(-bound..bound)).collect(), vec![0.0; up_count])
            }
            Method::Adapter { .. } => {
                let draw = |part: &str, count: usize| -> Vec<f64> {
                    let mut rng = stream(seed, &["init", &planned.path, part]);
                    match Normal::new(0.0, 0.02) {
                        Ok(normal) => (0..count).map(|_| normal.sample(&mut rng)).collect(),
                        Err(_) => vec![0.0; count],
                    }
                };
                (draw("adapter_down", down_count), draw("adapter_up", up_count))
            }
        };
        let (down, up) = (tensor(width, input, down)?, tensor(output, width, up)?);
        Ok(Self::new(planned, method, down, up))
    }

    /// The branch's output for its own input `x`, unscaled.
    fn branch(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let residual = state.residual.as_ref().filter(|_| self.planned.residual == Mixing::Mixed);
        let residual = residual.map(|residual| residual.in_block(self.planned.layer));
        let mixed = match residual {
            Some(residual) => residual.mix(x)?,
            None => x.clone(),
        };
        if let Some((observer, h0)) = &state.observed {
            observer.observe(&BranchPass { module: self, residual, h0, input: x, mixed: &mixed })?;
        }
        let inner = match self.method {
            Method::Lora { dropout, .. } => {
                let input = match state.dropout {
                    Some(key) if dropout > 0.0 => kernels::dropout(&mixed, dropout, key.mask(&self.planned.path))?,
                    _ => mixed,
                };
                kernels::linear(&input, &self.down, None)?
            }
            Method::Adapter { .. } => return self.output(&mixed),
        };
        kernels::linear(&inner, &self.up, None)
    }

    /// The branch's output for what it reads after the mix, unscaled and without dropout.
    pub(super) fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        let inner = kernels::linear(mixed, &self.down, None)?;
        let inner = match self.method {
            Method::Lora { .. } => inner,
            Method::Adapter { .. } => kernels::tanh(&inner)?,
        };
        kernels::linear(&inner, &self.up, None)
    }

    /// The linear together with the branch.
    pub(crate) fn forward(&self, linear: &Linear, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let scale = self.method.scale();
        match self.planned.position {
            Position::Beside => kernels::scaled_add(&linear.base(x)?, &self.branch(x, state)?, scale),
            Position::Before => linear.base(&kernels::scaled_add(x, &self.branch(x, state)?, scale)?),
            Position::After => {
                let y = linear.base(x)?;
                kernels::scaled_add(&y, &self.branch(&y, state)?, scale)
            }
        }
    }
}
