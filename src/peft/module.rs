//! The trainable branches themselves: LoRA, DoRA, (IA)³ and bottleneck adapters.

use super::initial_residual::InitialResidual;
use super::once::Once;
use super::plan::{Form, Mixing, PlannedModule, Position};
use super::{BranchPass, Dose, PassState};
use crate::kernels;
use crate::model::Linear;
use crate::random::stream;
use candle_core::{D, DType, Device, Result, Tensor, bail};
use rand::Rng;
use rand_distr::{Distribution, Normal};

/// A branch on one linear: its tensors, and where it joins.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) planned: PlannedModule,
    /// As [`PlannedModule::tensors`] lists them, factors as vectors.
    pub(crate) tensors: Vec<Tensor>,
    /// Where λ is learned, the θ whose sigmoid it is, `[1]`.
    pub(crate) theta: Option<Tensor>,
    dropout: f64,
    /// Of DoRA: the squared length of every row of the frozen weight, `[output]`.
    squares: Option<Tensor>,
    /// Of DoRA: the lengths of the rows that the factors stretch.
    pub(super) lengths: Once,
}

impl Module {
    /// A branch of given tensors beside `linear`, each in the shape of the plan.
    pub(crate) fn new(planned: PlannedModule, dropout: f64, mut tensors: Vec<Tensor>, linear: &Linear) -> Result<Self> {
        if planned.form == Form::Factors {
            tensors = tensors.iter().map(Tensor::flatten_all).collect::<Result<_>>()?;
        }
        let squares = match planned.form {
            Form::Decomposed { .. } => Some(linear.row_squares(tensors.first().map_or(DType::F32, Tensor::dtype))?),
            _ => None,
        };
        Ok(Self { planned, tensors, theta: None, dropout, squares, lengths: Once::default() })
    }

    /// Seeded start values: LoRA's A Kaiming-uniform(√5) and B zero, DoRA's lengths those of the weight, (IA)³'s factors one,
    /// an adapter's matrices N(0, 0.02²).
    ///
    /// Every matrix is a function of (seed, path) alone, so that arms with the same seed start alike.
    pub(crate) fn initial(
        planned: PlannedModule,
        dropout: f64,
        seed: u64,
        (dtype, device): (DType, &Device),
        linear: &Linear,
    ) -> Result<Self> {
        let mut tensors = Vec::new();
        for (name, shape) in planned.tensors() {
            if name == "lora_magnitude_vector" {
                tensors.push(linear.row_squares(dtype)?.sqrt()?);
                continue;
            }
            let count = shape.iter().product();
            let part = name.trim_end_matches(".weight");
            let mut rng = stream(seed, &["init", &planned.path, part]);
            let values: Vec<f64> = match part {
                // Kaiming-uniform with a = √5: the bound is √(6 / ((1 + 5)·fan_in)).
                "lora_A" => {
                    let bound = 1.0 / (planned.input as f64).sqrt();
                    (0..count).map(|_| rng.random_range(-bound..bound)).collect()
                }
                "ia3_l" => vec![1.0; count],
                "adapter_down" | "adapter_up" => match Normal::new(0.0, 0.02) {
                    Ok(normal) => (0..count).map(|_| normal.sample(&mut rng)).collect(),
                    Err(_) => vec![0.0; count],
                },
                _ => vec![0.0; count],
            };
            tensors.push(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?);
        }
        Self::new(planned, dropout, tensors, linear)
    }

    fn tensor(&self, index: usize) -> Result<&Tensor> {
        match self.tensors.get(index) {
            Some(tensor) => Ok(tensor),
            None => bail!("{}: has no tensor {index}", self.planned.path),
        }
    }

    fn up(&self) -> Result<&Tensor> {
        self.tensor(1)
    }

    /// What the branch's last matrix reads, for its own input `x`: `[tokens, width]`.
    fn inner(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let residual = self.residual(state);
        let dropout = state.dropout.filter(|_| self.dropout > 0.0);
        self.show(x, state)?;
        let down = self.tensor(0)?;
        let inner = match (dropout, self.theta_of(residual)) {
            (None, None) => match residual.map(|residual| residual.for_input(x)).transpose()?.flatten() {
                Some(residual) => kernels::mixed_linear(x, down, &residual)?,
                None => kernels::linear(x, down, None)?,
            },
            (None, Some(_)) => kernels::linear(&self.mixed(x, residual)?, down, None)?,
            (Some(key), _) => {
                let mixed = self.mixed(x, residual)?;
                kernels::linear(&kernels::dropout(&mixed, self.dropout, key.mask(&self.planned.path))?, down, None)?
            }
        };
        self.activated(inner)
    }

    /// The initial residual of a pass, where it enters this branch.
    fn residual<'s>(&self, state: &'s PassState<'_>) -> Option<&'s InitialResidual> {
        let residual = state.residual.as_ref().filter(|_| self.planned.residual == Mixing::Mixed);
        residual.map(|residual| residual.in_block(self.planned.layer))
    }

    /// θ, where λ is learned and no dose stands in for it.
    fn theta_of(&self, residual: Option<&InitialResidual>) -> Option<&Tensor> {
        self.theta.as_ref().filter(|_| residual.is_some_and(|residual| !residual.is_dosed()))
    }

    /// λ and what r is, as they are in a pass with this residual.
    pub(super) fn dose(&self, residual: &InitialResidual) -> Result<Dose> {
        let dose = residual.dose();
        let Some(theta) = self.theta_of(Some(residual)) else { return Ok(dose) };
        Ok(Dose { lambda: sigmoid(theta)?, ..dose })
    }

    /// What the branch reads of its input `x`: x~.
    fn mixed(&self, x: &Tensor, residual: Option<&InitialResidual>) -> Result<Tensor> {
        match (residual, self.theta_of(residual)) {
            (None, _) => Ok(x.clone()),
            (Some(residual), None) => residual.mix(x),
            (Some(residual), Some(theta)) => kernels::learned_mix(x, theta, residual.source_for(x)?.as_ref()),
        }
    }

    /// Shows what the branch reads to whoever watches.
    fn show(&self, x: &Tensor, state: &PassState<'_>) -> Result<()> {
        let Some((observer, h0)) = &state.observed else { return Ok(()) };
        let residual = self.residual(state);
        let dose = residual.map(|residual| self.dose(residual)).transpose()?;
        observer.observe(&BranchPass { module: self, residual, dose, h0, input: x, mixed: &self.mixed(x, residual)? })
    }

    /// What stands between the two matrices.
    fn activated(&self, inner: Tensor) -> Result<Tensor> {
        match self.planned.form {
            Form::Bottleneck { .. } => kernels::tanh(&inner),
            _ => Ok(inner),
        }
    }

    /// The branch's output for what it reads after the mix, unscaled and without dropout; of DoRA what LoRA would add.
    pub(super) fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        match self.planned.form {
            Form::Factors => mixed.broadcast_mul(&(self.factors()? - 1.0)?.to_dtype(mixed.dtype())?),
            _ => {
                let inner = kernels::linear(mixed, self.tensor(0)?, None)?;
                kernels::linear(&self.activated(inner)?, self.up()?, None)
            }
        }
    }

    /// (IA)³'s factors, `[columns]`.
    fn factors(&self) -> Result<&Tensor> {
        self.tensor(0)
    }

    /// The linear together with the branch.
    pub(crate) fn forward(&self, linear: &Linear, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let scale = self.planned.form.scale();
        match (self.planned.form, self.planned.position) {
            (Form::Factors, Position::Before) => linear.base(&self.rescaled(x, state)?),
            (Form::Factors, _) => {
                let y = linear.base(x)?;
                self.show(&y, state)?;
                kernels::rescale(&y, self.factors()?, None)
            }
            (Form::Decomposed { .. }, _) => {
                let inner = self.inner(x, state)?;
                let y = linear.unbiased_with_branch(x, (&inner, self.up()?), scale)?;
                linear.with_bias(&kernels::rescale(
                    &y,
                    self.tensor(2)?,
                    Some(&self.lengths.get(linear.weight_id(), || self.row_lengths(linear))?),
                )?)
            }
            (_, Position::Beside) => linear.base_with_branch(x, (&self.inner(x, state)?, self.up()?), scale),
            (_, Position::Before) => linear.base(&kernels::add_branch(x, &self.inner(x, state)?, self.up()?, scale)?),
            (_, Position::After) => {
                let y = linear.base(x)?;
                kernels::add_branch(&y, &self.inner(&y, state)?, self.up()?, scale)
            }
        }
    }

    /// What a linear reads of `x` behind (IA)³'s factors.
    fn rescaled(&self, x: &Tensor, state: &PassState<'_>) -> Result<Tensor> {
        let residual = self.residual(state);
        self.show(x, state)?;
        if self.theta_of(residual).is_some() {
            // x + ℓ·x~ − x~.
            let mixed = self.mixed(x, residual)?;
            let added = kernels::rescale(&mixed, self.factors()?, None)?;
            return kernels::scaled_add(x, &kernels::scaled_add(&added, &mixed, -1.0)?, 1.0);
        }
        match residual.map(|residual| residual.for_input(x)).transpose()?.flatten() {
            Some(residual) => kernels::mixed_rescale(x, self.factors()?, &residual),
            None => kernels::rescale(x, self.factors()?, None),
        }
    }

    /// The lengths of the rows of `V = W + s·B·A`, without a gradient and without making V:
    /// `‖v‖² = ‖w‖² + 2s·b·(A·w) + s²·b·(A·Aᵀ)·b`.
    fn row_lengths(&self, linear: &Linear) -> Result<Tensor> {
        let Some(squares) = &self.squares else { bail!("{}: has no lengths of rows", self.planned.path) };
        let scale = self.planned.form.scale();
        let (a, b) = (self.tensor(0)?.detach(), self.up()?.detach());
        let wide = kernels::wide(squares.dtype());
        let cross = kernels::forget(|| linear.weight_times(&a))?.to_dtype(wide)?;
        let (a, b) = (a.to_dtype(wide)?, b.to_dtype(wide)?);
        let along = b.matmul(&a.matmul(&a.t()?)?)?;
        let sum = |x: &Tensor| (x * &b)?.sum(D::Minus1);
        let all = ((squares.to_dtype(wide)? + (sum(&cross)? * (2.0 * scale))?)? + (sum(&along)? * (scale * scale))?)?;
        // A row of zeros has no direction: nothing to divide by.
        all.clamp(f64::from(f32::MIN_POSITIVE), f64::MAX)?.sqrt()?.to_dtype(squares.dtype())
    }
}

/// `1 / (1 + exp(−θ))` of a tensor of one number.
pub(super) fn sigmoid(theta: &Tensor) -> Result<f64> {
    let theta = theta.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(1.0 / (1.0 + (-theta.first().copied().unwrap_or_default()).exp()))
}
