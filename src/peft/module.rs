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

    /// What the branch's last matrix reads, for its own input `x`: `[tokens, width]`.
    fn inner(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let residual = state.residual.as_ref().filter(|_| self.planned.residual == Mixing::Mixed);
        let residual = residual.map(|residual| residual.in_block(self.planned.layer));
        let dropout = match (self.method, state.dropout) {
            (Method::Lora { dropout, .. }, Some(key)) if dropout > 0.0 => Some((dropout, key)),
            _ => None,
        };
        let mix = || residual.map_or_else(|| Ok(x.clone()), |residual| residual.mix(x));
        if let Some((observer, h0)) = &state.observed {
            observer.observe(&BranchPass { module: self, residual, h0, input: x, mixed: &mix()? })?;
        }
        let inner = if let Some((dropout, key)) = dropout {
            kernels::linear(&kernels::dropout(&mix()?, dropout, key.mask(&self.planned.path))?, &self.down, None)?
        } else {
            match residual.map(|residual| residual.for_input(x)).transpose()?.flatten() {
                Some(residual) => kernels::mixed_linear(x, &self.down, &residual)?,
                None => kernels::linear(x, &self.down, None)?,
            }
        };
        self.activated(inner)
    }

    /// What stands between the two matrices.
    fn activated(&self, inner: Tensor) -> Result<Tensor> {
        match self.method {
            Method::Lora { .. } => Ok(inner),
            Method::Adapter { .. } => kernels::tanh(&inner),
        }
    }

    /// The branch's output for what it reads after the mix, unscaled and without dropout.
    pub(super) fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        kernels::linear(&self.activated(kernels::linear(mixed, &self.down, None)?)?, &self.up, None)
    }

    /// The linear together with the branch.
    pub(crate) fn forward(&self, linear: &Linear, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let scale = self.method.scale();
        match self.planned.position {
            Position::Beside => linear.base_with_branch(x, (&self.inner(x, state)?, &self.up), scale),
            Position::Before => linear.base(&kernels::add_branch(x, &self.inner(x, state)?, &self.up, scale)?),
            Position::After => {
                let y = linear.base(x)?;
                kernels::add_branch(&y, &self.inner(&y, state)?, &self.up, scale)
            }
        }
    }
}
