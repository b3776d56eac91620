//! AdamW with moments that can be saved (Loshchilov & Hutter 2019; PyTorch's order of operations).

use super::TrainError;
use crate::kernels;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, Var};
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

    /// One AdamW update of every variable by its gradient.
    ///
    /// # Errors
    /// A gradient is missing or a tensor operation fails.
    pub fn update(
        &mut self,
        settings: &AdamW,
        rate: f64,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
    ) -> Result<(), TrainError> {
        self.updates += 1;
        let correction = |beta: f64| 1.0 - beta.powf(self.updates as f64);
        let step = StepSizes {
            rate,
            correction1: correction(settings.beta1),
            correction2_root: correction(settings.beta2).sqrt(),
        };
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(name) else {
                return Err(TrainError::NoGradient { tensor: name.clone() });
            };
            let decays = settings.decay_vectors || variable.rank() > 1;
            let decay = if decays { settings.weight_decay } else { 0.0 };
            let settings = AdamW { weight_decay: decay, ..*settings };
            let (m, v) = match self.tensors.remove(name) {
                Some(pair) => pair,
                None => (variable.zeros_like()?, variable.zeros_like()?),
            };
            let [w, m, v] = match (variable.device(), variable.dtype()) {
                (Device::Cpu, DType::F32) => {
                    let slices =
                        update_slices(read::<f32>(variable)?, &read(gradient)?, read(&m)?, read(&v)?, &settings, &step);
                    slices.map(|x| Tensor::from_vec(x, variable.shape(), &Device::Cpu))
                }
                (Device::Cpu, DType::F64) => {
                    let slices =
                        update_slices(read::<f64>(variable)?, &read(gradient)?, read(&m)?, read(&v)?, &settings, &step);
                    slices.map(|x| Tensor::from_vec(x, variable.shape(), &Device::Cpu))
                }
                _ => update_composed(variable, gradient, &m, &v, &settings, &step)?.map(Ok),
            };
            variable.set(&w?)?;
            self.tensors.insert(name.clone(), (m?, v?));
        }
        Ok(())
    }
}

struct StepSizes {
    rate: f64,
    correction1: f64,
    correction2_root: f64,
}

/// A number type that AdamW computes in.
trait Real: Copy {
    fn from_f64(x: f64) -> Self;
    fn update(w: Self, g: Self, m: Self, v: Self, c: &Constants<Self>) -> (Self, Self, Self);
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
}

struct Constants<T> {
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
    keep: T,
    step: T,
    root: T,
    epsilon: T,
}

macro_rules! real {
    ($type:ident, $variant:ident) => {
        impl Real for $type {
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            fn update(w: Self, g: Self, m: Self, v: Self, c: &Constants<Self>) -> (Self, Self, Self) {
                let m = c.beta1 * m + c.rest1 * g;
                let v = c.beta2 * v + c.rest2 * g * g;
                (c.keep * w - c.step * m / (v.sqrt() / c.root + c.epsilon), m, v)
            }
            fn slice(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$variant(data) => Some(data),
                    _ => None,
                }
            }
        }
    };
}

real!(f32, F32);
real!(f64, F64);

fn read<T: Real>(tensor: &Tensor) -> Result<Vec<T>, TrainError> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.contiguous_offsets().map(|(start, end)| start..end);
    match (&*storage, range) {
        (Storage::Cpu(cpu), Some(range)) => match T::slice(cpu).and_then(|data| data.get(range)) {
            Some(data) => Ok(data.to_vec()),
            None => Err(candle_core::Error::Msg("a gradient has another type than its tensor".to_owned()).into()),
        },
        _ => Err(candle_core::Error::Msg("a gradient lies on another device than its tensor".to_owned()).into()),
    }
}

fn update_slices<T: Real>(
    mut w: Vec<T>,
    g: &[T],
    mut m: Vec<T>,
    mut v: Vec<T>,
    settings: &AdamW,
    step: &StepSizes,
) -> [Vec<T>; 3] {
    let constants = Constants {
        beta1: T::from_f64(settings.beta1),
        rest1: T::from_f64(1.0 - settings.beta1),
        beta2: T::from_f64(settings.beta2),
        rest2: T::from_f64(1.0 - settings.beta2),
        keep: T::from_f64(1.0 - step.rate * settings.weight_decay),
        step: T::from_f64(step.rate / step.correction1),
        root: T::from_f64(step.correction2_root),
        epsilon: T::from_f64(settings.epsilon),
    };
    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(&mut m).zip(&mut v) {
        (*w, *m, *v) = T::update(*w, g, *m, *v, &constants);
    }
    [w, m, v]
}

/// The same update from tensor operations, for devices other than the CPU.
fn update_composed(
    w: &Tensor,
    g: &Tensor,
    m: &Tensor,
    v: &Tensor,
    settings: &AdamW,
    step: &StepSizes,
) -> Result<[Tensor; 3], TrainError> {
    let w = w.detach();
    let m = ((m * settings.beta1)? + (g * (1.0 - settings.beta1))?)?;
    let v = ((v * settings.beta2)? + (g.sqr()? * (1.0 - settings.beta2))?)?;
    let root = ((v.sqrt()? / step.correction2_root)? + settings.epsilon)?;
    let change = (m.div(&root)? * (step.rate / step.correction1))?;
    let w = ((w * (1.0 - step.rate * settings.weight_decay))? - change)?;
    Ok([w, m, v])
}

/// The Euclidean norm over all gradients, folded in name order.
///
/// # Errors
/// A tensor operation fails.
pub fn gradient_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f64, TrainError> {
    let mut squares = Vec::with_capacity(gradients.len());
    for gradient in gradients.values() {
        // A device without f64 sums in f32; none is waited for before all sums are under way.
        let wide = if gradient.device().is_cpu() { DType::F64 } else { kernels::wide(gradient.dtype()) };
        squares.push(gradient.to_dtype(wide)?.sqr()?.sum_all()?);
    }
    let mut square = 0.0;
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

/// Scales all gradients so that their norm is at most `largest`, as `torch.nn.utils.clip_grad_norm_`.
///
/// # Errors
/// A tensor operation fails.
pub fn clip(gradients: &mut BTreeMap<String, Tensor>, norm: f64, largest: f64) -> Result<(), TrainError> {
    let factor = largest / (norm + 1e-6);
    if factor < 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
    }
    Ok(())
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
        moments.update(&SETTINGS, 0.01, &variables, &gradients).unwrap();
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
            moments.update(&SETTINGS, 0.02, &variables, &BTreeMap::from([("w".to_owned(), g.clone())])).unwrap();
            let sizes = StepSizes {
                rate: 0.02,
                correction1: 1.0 - 0.9f64.powi(step),
                correction2_root: (1.0 - 0.999f64.powi(step)).sqrt(),
            };
            [other, m, v] = update_composed(&other, &g, &m, &v, &SETTINGS, &sizes).unwrap();
        }
        let (a, b) = (w.to_vec1::<f64>().unwrap(), other.to_vec1::<f64>().unwrap());
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-15, "{a} {b}"));
    }

    #[test]
    fn clipping_is_torch_s() {
        let mut gradients = BTreeMap::from([("a".to_owned(), Tensor::new(&[3.0f64, 4.0], &Device::Cpu).unwrap())]);
        let norm = gradient_norm(&gradients).unwrap();
        assert_eq!(norm, 5.0);
        clip(&mut gradients, norm, 10.0).unwrap();
        assert_eq!(gradients["a"].to_vec1::<f64>().unwrap(), [3.0, 4.0]);
        clip(&mut gradients, norm, 1.0).unwrap();
        let clipped = gradients["a"].to_vec1::<f64>().unwrap();
        assert!((clipped[0] - 3.0 / (5.0 + 1e-6)).abs() < 1e-15);
    }
}
