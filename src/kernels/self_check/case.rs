//! One kernel at one point, and how far it is from its formula and its differences.

use super::super::tape::{Gradients, record};
use super::Deviation;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rand::Rng;

/// A bound of the fifth derivatives of every case's outputs, in units of `max(1, |output|)`.
pub(super) const FIFTH: f64 = 64.0;

/// A kernel's argument.
pub(super) struct Input {
    pub(super) shape: Vec<usize>,
    /// Row-major; exact in every float type checked, after a shift by two steps too.
    pub(super) values: Vec<f64>,
    /// Whether the kernel gives it a gradient.
    pub(super) learned: bool,
}

type Run = dyn Fn(&[Tensor]) -> Result<Tensor>;
type OwnGradients = dyn Fn(&[Tensor], f64) -> Result<Vec<Option<Tensor>>>;

/// Where a kernel's gradients come from.
pub(super) enum Backward {
    /// The tape.
    Tape,
    /// The function returns them, of this many times its one output.
    Own(Box<OwnGradients>),
    /// It has none.
    None,
}

/// A kernel at a point.
pub(super) struct Case {
    pub(super) kernel: &'static str,
    pub(super) form: &'static str,
    pub(super) inputs: Vec<Input>,
    /// The kernel.
    pub(super) run: Box<Run>,
    pub(super) backward: Backward,
    /// The same function written out, of all inputs' values.
    pub(super) formula: fn(&[&[f64]]) -> Vec<f64>,
    /// How many units of roundoff, of `max(1, |output|)`, an output may be off.
    pub(super) roundings: f64,
}

/// The three comparisons.
#[derive(Default)]
pub(super) struct Deviations {
    pub(super) value: Deviation,
    pub(super) gradient: Option<Deviation>,
    pub(super) formula: Option<Deviation>,
}

/// Draws of about unit size, at most 4, that are multiples of 2⁻²⁰: products of them do not fit the type, so that a
/// device that multiplies with fewer digits (TF32) is found out.
pub(super) fn draws(count: usize, seed: u64) -> Vec<f64> {
    const UNIT: i32 = 1 << 20;
    let mut rng = crate::random::stream(seed, &["self-check"]);
    let mut draw = || (0..4).map(|_| rng.random_range(-UNIT..=UNIT)).sum::<i32>();
    (0..count).map(|_| f64::from(draw()) / f64::from(UNIT)).collect()
}

/// The unit roundoff and the step of the differences.
pub(super) fn precision(dtype: DType) -> Result<(f64, f64)> {
    match dtype {
        DType::F32 => Ok((2_f64.powi(-24), 2_f64.powi(-5))),
        DType::F64 => Ok((2_f64.powi(-53), 2_f64.powi(-10))),
        other => bail!("kernels are checked in F32 and F64, not in {other:?}"),
    }
}

/// The derivative of `Σ weights · f` in direction of one element, and `f` at its four neighbours.
///
/// An output that the element does not reach contributes exactly nothing.
pub(super) fn difference(
    values: &mut [Vec<f64>],
    (input, element): (usize, usize),
    step: f64,
    weights: &[f64],
    f: impl Fn(&[Vec<f64>]) -> Result<Vec<f64>>,
) -> Result<(f64, [Vec<f64>; 4])> {
    let Some(&middle) = values.get(input).and_then(|v| v.get(element)) else { bail!("no such element") };
    let mut around = [const { Vec::new() }; 4];
    for (slot, steps) in around.iter_mut().zip([-2.0, -1.0, 1.0, 2.0]) {
        put(values, (input, element), middle + steps * step);
        *slot = f(values)?;
    }
    put(values, (input, element), middle);
    let [below2, below, above, above2] = &around;
    let pairs = below.iter().zip(above).zip(below2.iter().zip(above2)).zip(weights);
    let sum: f64 = pairs.map(|(((b, a), (b2, a2)), w)| w * (8.0 * (a - b) - (a2 - b2))).sum();
    Ok((sum / (12.0 * step), around))
}

fn put(values: &mut [Vec<f64>], (input, element): (usize, usize), value: f64) {
    if let Some(slot) = values.get_mut(input).and_then(|v| v.get_mut(element)) {
        *slot = value;
    }
}

impl Case {
    /// All inputs' values.
    pub(super) fn values(&self) -> Vec<Vec<f64>> {
        self.inputs.iter().map(|input| input.values.clone()).collect()
    }

    /// The formula of the given values.
    pub(super) fn plain(&self, values: &[Vec<f64>]) -> Vec<f64> {
        let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
        (self.formula)(&values)
    }

    /// Another weight for each of `count` outputs.
    pub(super) fn weights(count: usize) -> Vec<f64> {
        draws(count, 99)
    }

    /// The outputs that an element reaches: `Σ |w| · max(1, |y|)` over those that its neighbours change.
    pub(super) fn reach(middle: &[f64], around: &[Vec<f64>; 4], weights: &[f64]) -> f64 {
        let changes = |j: usize, y: &f64| around.iter().any(|outputs| outputs.get(j) != Some(y));
        let outputs = middle.iter().zip(weights).enumerate();
        outputs.filter(|(j, (y, _))| changes(*j, y)).map(|(_, (y, w))| w.abs() * y.abs().max(1.0)).sum()
    }

    /// The tensors of the given values.
    fn tensors(&self, values: &[Vec<f64>], dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
        let pairs = self.inputs.iter().zip(values);
        // Converted on the CPU: a device need not know f64.
        let tensor = |(input, values): (&Input, &Vec<f64>)| {
            Tensor::from_slice(values, input.shape.as_slice(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
        };
        pairs.map(tensor).collect()
    }

    /// The kernel's outputs.
    fn outputs(&self, values: &[Vec<f64>], dtype: DType, device: &Device) -> Result<Vec<f64>> {
        numbers(&(self.run)(&self.tensors(values, dtype, device)?)?)
    }

    /// The gradients of `Σ weights · outputs` with respect to each learned input.
    fn gradients(&self, weights: &[f64], dtype: DType, device: &Device) -> Result<Option<Vec<Vec<f64>>>> {
        let mut arguments = self.tensors(&self.values(), dtype, device)?;
        for (tensor, _) in arguments.iter_mut().zip(&self.inputs).filter(|(_, input)| input.learned) {
            *tensor = Var::from_tensor(tensor)?.into_inner();
        }
        let found = match &self.backward {
            Backward::None => return Ok(None),
            Backward::Own(gradients) => gradients(&arguments, weights.first().copied().unwrap_or_default())?,
            Backward::Tape => {
                let (out, tape) = record(|| (self.run)(&arguments));
                let out = out?;
                let seed = Tensor::from_slice(weights, out.shape(), &Device::Cpu)?.to_dtype(out.dtype())?;
                let mut gradients = Gradients::default();
                tape.backward(&out, seed.to_device(device)?, &mut gradients)?;
                arguments.iter().map(|argument| gradients.take(argument)).collect()
            }
        };
        let pairs = found.into_iter().zip(&self.inputs).enumerate();
        let learned = pairs.filter(|(_, (_, input))| input.learned);
        let all = learned.map(|(index, (gradient, input))| match gradient {
            Some(gradient) if gradient.dims() == input.shape => numbers(&gradient),
            Some(gradient) => bail!("the gradient of argument {index} has the shape {:?}", gradient.dims()),
            None => bail!("argument {index} has no gradient"),
        });
        all.collect::<Result<Vec<_>>>().map(Some)
    }

    /// Compares the kernel in `dtype` on `device` with its formula and its differences.
    pub(super) fn compare(&self, dtype: DType, device: &Device) -> Result<Deviations> {
        let (unit, step) = precision(dtype)?;
        let (fine_unit, fine_step) = precision(DType::F64)?;
        let mut values = self.values();
        let wanted = self.plain(&values);
        let found = self.outputs(&values, dtype, device)?;
        if found.len() != wanted.len() {
            bail!("{} outputs where {} are due", found.len(), wanted.len())
        }
        let rounding = self.roundings * unit;
        let mut value = Deviation::none();
        for (found, wanted) in found.iter().zip(&wanted) {
            value = value.or((found - wanted).abs(), rounding * wanted.abs().max(1.0));
        }
        let weights = Self::weights(wanted.len());
        let Some(gradients) = self.gradients(&weights, dtype, device)? else {
            return Ok(Deviations { value, gradient: None, formula: None });
        };
        let truncation = |step: f64| step.powi(4) / 30.0 * FIFTH;
        let on_device = 1.5 * rounding / step + truncation(step) + 4.0 * rounding;
        // A formula rounds as often as its kernel.
        let of_formula = 4.0 * rounding + 1.5 * self.roundings.max(1.0) * fine_unit / fine_step + truncation(fine_step);
        let (mut gradient, mut formula) = (Deviation::none(), Deviation::none());
        let learned = self.inputs.iter().enumerate().filter(|(_, input)| input.learned);
        for ((index, _), own) in learned.zip(&gradients) {
            for (element, &own) in own.iter().enumerate() {
                let at = (index, element);
                let (exact, around) = difference(&mut values, at, fine_step, &weights, |v| Ok(self.plain(v)))?;
                let (measured, _) = difference(&mut values, at, step, &weights, |v| self.outputs(v, dtype, device))?;
                let reach = Self::reach(&wanted, &around, &weights);
                gradient = gradient.or((own - measured).abs(), reach * on_device);
                formula = formula.or((own - exact).abs(), reach * of_formula);
            }
        }
        Ok(Deviations { value, gradient: Some(gradient), formula: Some(formula) })
    }
}

/// All values of a tensor, wherever it is.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
