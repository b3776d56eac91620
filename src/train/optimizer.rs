//! AdamW with moments that can be saved (Loshchilov & Hutter 2019; PyTorch's order of operations).

use super::TrainError;
use crate::kernels::{self, AdamWStep};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, as a share of the learning rate.
    pub weight_decay: f64,
    /// Whether vectors (norms, biases) decay too, as PyTorch does by default.
    pub decay_vectors: bool,
}

/// First and second moments of every trainable tensor, and how many updates they have seen.
#[derive(Debug, Default)]
pub struct Moments {
    updates: u64,
    tensors: BTreeMap<String, (Tensor, Tensor)>,
}

impl Moments {
    /// How many updates were made.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The moments as named tensors `{name}.m` and `{name}.v`, for a checkpoint.
    #[must_use]
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        let pairs = self.tensors.iter();
        pairs.flat_map(|(name, (m, v))| [(format!("{name}.m"), m.clone()), (format!("{name}.v"), v.clone())]).collect()
    }

    /// The reverse of [`Self::to_tensors`]; every variable must have both moments in its own shape.
    ///
    /// # Errors
    /// A moment is missing or has another shape.
    pub fn from_tensors(
        mut tensors: BTreeMap<String, Tensor>,
        variables: &BTreeMap<String, Var>,
        updates: u64,
    ) -> Result<Self, TrainError> {
        let mut moments = BTreeMap::new();
        for (name, variable) in variables {
            let mut take = |suffix: &str| {
                let key = format!("{name}.{suffix}");
                match tensors.remove(&key) {
                    Some(t) if t.shape() == variable.shape() => {
                        Ok(t.to_dtype(variable.dtype())?.to_device(variable.device())?)
                    }
                    _ => Err(TrainError::Checkpoint {
                        problem: format!("optimizer moment {key} is missing or misshapen"),
                    }),
                }
            };
            moments.insert(name.clone(), (take("m")?, take("v")?));
        }
        Ok(Self { updates, tensors: moments })
    }

    /// One AdamW update of every variable by `clip` times its gradient; see [`clip_factor`].
    ///
    /// # Errors
    /// A gradient is missing or a tensor operation fails.
    pub fn update(
        &mut self,
        settings: &AdamW,
        rate: f64,
        clip: f64,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
    ) -> Result<(), TrainError> {
        self.updates += 1;
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let step = AdamWStep {
            clip,
            beta1: settings.beta1,
            beta2: settings.beta2,
            keep: 1.0,
            step: rate / correction(settings.beta1),
            root: correction(settings.beta2).sqrt(),
            epsilon: settings.epsilon,
        };
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(name) else {
                return Err(TrainError::NoGradient { tensor: name.clone() });
            };
            let decays = settings.decay_vectors || variable.rank() > 1;
            let keep = if decays { 1.0 - rate * settings.weight_decay } else { 1.0 };
            let step = AdamWStep { keep, ..step };
            let (m, v) = match self.tensors.remove(name) {
                Some(pair) => pair,
                None => (variable.zeros_like()?, variable.zeros_like()?),
            };
            let moments = if variable.device().is_cpu() && matches!(variable.dtype(), DType::F32 | DType::F64) {
                kernels::adamw(variable, &gradient.contiguous()?, &m, &v, &step)?;
                (m, v)
            } else {
                let [w, m, v] = update_composed(variable, gradient, &m, &v, &step)?;
                variable.set(&w)?;
                (m, v)
            };
            self.tensors.insert(name.clone(), moments);
        }
        Ok(())
    }
}

/// The same update from tensor operations, for devices other than the CPU.
fn update_composed(
    w: &Tensor,
    g: &Tensor,
    m: &Tensor,
    v: &Tensor,
    step: &AdamWStep,
) -> Result<[Tensor; 3], TrainError> {
    let w = w.detach();
    let clipped;
    let g = if step.clip == 1.0 {
        g
    } else {
        clipped = (g * step.clip)?;
        &clipped
    };
    let m = ((m * step.beta1)? + (g * (1.0 - step.beta1))?)?;
    let v = ((v * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    let root = ((v.sqrt()? / step.root)? + step.epsilon)?;
    let change = (m.div(&root)? * step.step)?;
    let w = ((w * step.keep)? - change)?;
    Ok([w, m, v])
}

/// The Euclidean norm over all gradients, folded in name order.
///
/// # Errors
/// A tensor operation fails.
pub fn gradient_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f64, TrainError> {
    let (mut square, mut squares) = (0.0, Vec::new());
    for gradient in gradients.values() {
        if let Some(sum) = kernels::sum_of_squares(gradient) {
            square += sum;
            continue;
        }
        // A device without f64 sums in f32; none is waited for before all sums are under way.
        let wide = if gradient.device().is_cpu() { DType::F64 } else { kernels::wide(gradient.dtype()) };
        squares.push(gradient.to_dtype(wide)?.sqr()?.sum_all()?);
    }
    for each in on_cpu(&squares)? {
        square += each;
    }
    Ok(square.sqrt())
}

/// Scalars of one device, brought to the CPU in one transfer for each type.
fn on_cpu(scalars: &[Tensor]) -> Result<Vec<f64>, TrainError> {
    let uniform = scalars.windows(2).all(|pair| matches!(pair, [a, b] if a.dtype() == b.dtype()));
    if scalars.is_empty() || !uniform {
        let each = scalars.iter().map(|s| s.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>());
        return Ok(each.collect::<candle_core::Result<_>>()?);
    }
    Ok(Tensor::stack(scalars, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
}

/// What all gradients of this norm are multiplied by so that it is at most `largest` (0 is off), as
/// `torch.nn.utils.clip_grad_norm_` does it.
#[must_use]
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    if largest > 0.0 { (largest / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, decay_vectors: true };

    #[test]
    fn the_first_step_by_hand() {
        let w = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
        let variables = BTreeMap::from([("w".to_owned(), w.clone())]);
        let gradients = BTreeMap::from([("w".to_owned(), Tensor::new(&[0.5f64, 0.0], &Device::Cpu).unwrap())]);
        let mut moments = Moments::default();
        moments.update(&SETTINGS, 0.01, 1.0, &variables, &gradients).unwrap();
        // The first step moves by the rate against the gradient's sign; decay takes 0.1 % off.
        let after = w.to_vec1::<f64>().unwrap();
        assert!((after[0] - (0.999 - 0.01 * 0.5 / (0.5 + 1e-8))).abs() < 1e-15);
        assert!((after[1] + 2.0 * 0.999).abs() < 1e-15);
    }

    #[test]
    fn composed_and_sliced_updates_agree() {
        let start = [0.3f64, -0.7, 1.1];
        let w = Var::new(&start, &Device::Cpu).unwrap();
        let variables = BTreeMap::from([("w".to_owned(), w.clone())]);
        let mut moments = Moments::default();
        let mut other = Tensor::new(&start, &Device::Cpu).unwrap();
        let (mut m, mut v) = (other.zeros_like().unwrap(), other.zeros_like().unwrap());
        for step in 1..=3 {
            let g = Tensor::new(&[0.1f64 * f64::from(step), -0.2, 0.05], &Device::Cpu).unwrap();
            moments.update(&SETTINGS, 0.02, 0.5, &variables, &BTreeMap::from([("w".to_owned(), g.clone())])).unwrap();
            let sizes = AdamWStep {
                clip: 0.5,
                beta1: 0.9,
                beta2: 0.999,
                keep: 1.0 - 0.02 * 0.1,
                step: 0.02 / (1.0 - 0.9f64.powi(step)),
                root: (1.0 - 0.999f64.powi(step)).sqrt(),
                epsilon: 1e-8,
            };
            [other, m, v] = update_composed(&other, &g, &m, &v, &sizes).unwrap();
        }
        let (a, b) = (w.to_vec1::<f64>().unwrap(), other.to_vec1::<f64>().unwrap());
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-15, "{a} {b}"));
    }

    #[test]
    fn clipping_is_torch_s() {
        let gradients = BTreeMap::from([("a".to_owned(), Tensor::new(&[3.0f64, 4.0], &Device::Cpu).unwrap())]);
        let norm = gradient_norm(&gradients).unwrap();
        assert_eq!(norm, 5.0);
        assert_eq!(clip_factor(norm, 10.0), 1.0);
        assert_eq!(clip_factor(norm, 0.0), 1.0);
        assert_eq!(clip_factor(norm, 1.0), 1.0 / (5.0 + 1e-6));
    }
}
