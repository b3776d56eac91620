//! Every kernel checked on the device where it will run: values against plain formulas, gradients against finite
//! differences.
//!
//! A case holds small inputs that every float type represents exactly, so that all types compute the same function of
//! the same point. Three comparisons are made:
//!
//! 1. the **value** with the formula, written out in `f64`;
//! 2. the **gradient**, which the tape makes, with differences of the kernel itself on the device;
//! 3. the gradient with differences of the formula, which is far sharper in single precision.
//!
//! The tolerances are bounds and not experience. With `u` the unit roundoff of the type, a kernel's value may be off by
//! `V = roundings · u · max(1, |y|)`; each case states its `roundings`. The five-point difference
//! `(8(f(x+h) − f(x−h)) − (f(x+2h) − f(x−2h))) / 12h` passes on at most `1.5/h` of that and leaves out
//! `h⁴/30 · |f⁽⁵⁾|`, and the gradient, a sum over the outputs `A` that an element reaches, carries roundings of its own:
//!
//! - against the device's differences: `Σ_A |w| · max(1, |y|) · (1.5·V/h + h⁴/30·M + 4·V)`,
//! - against the formula's: `Σ_A |w| · max(1, |y|) · (4·V + 1.5·V₆₄/h₆₄ + h₆₄⁴/30·M)`,
//!
//! where `w` are the weights with which outputs are summed to a scalar and [`FIFTH`](case::FIFTH) is `M`, a bound of the fifth
//! derivatives that a test verifies at these points.

mod case;
mod cases;
mod formulas;
mod remedy_cases;

use candle_core::{DType, Device};
use case::Case;
use std::cmp::Ordering;
use std::time::Instant;

/// A largest deviation, at the element where it is largest in proportion to what is tolerated there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Deviation {
    /// |found − wanted|; NaN where either is.
    pub largest: f64,
    /// What is tolerated at that element.
    pub tolerance: f64,
}

impl Deviation {
    /// Whether the deviation is tolerated; a NaN is not.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.largest <= self.tolerance
    }

    /// No deviation, and nothing known of what is tolerated.
    fn none() -> Self {
        Self { largest: 0.0, tolerance: f64::INFINITY }
    }

    /// The worse of this deviation and that of another element; of two that are none, the less tolerant.
    fn or(self, largest: f64, tolerance: f64) -> Self {
        let other = Self { largest, tolerance };
        let share = |d: &Self| match d.largest {
            0.0 => 0.0,
            largest if largest.is_nan() => f64::INFINITY,
            largest => largest / d.tolerance,
        };
        match share(&other).total_cmp(&share(&self)) {
            Ordering::Greater => other,
            Ordering::Equal if tolerance < self.tolerance => other,
            _ => self,
        }
    }
}

/// How a kernel did on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelCheck {
    /// The function in [`crate::kernels`].
    pub kernel: &'static str,
    /// In which form, where there are several.
    pub form: &'static str,
    /// The element type.
    pub dtype: DType,
    /// The value against the formula.
    pub value: Deviation,
    /// The gradient against differences on the device; none for a function without gradients.
    pub gradient: Option<Deviation>,
    /// The gradient against differences of the formula.
    pub formula: Option<Deviation>,
    /// What kept the kernel from running.
    pub error: Option<String>,
    /// Seconds that the check took, all evaluations together.
    pub seconds: f64,
}

impl KernelCheck {
    /// Whether the kernel ran and every deviation is tolerated.
    #[must_use]
    pub fn passed(&self) -> bool {
        let fits = |d: &Option<Deviation>| d.as_ref().is_none_or(Deviation::passed);
        self.error.is_none() && self.value.passed() && fits(&self.gradient) && fits(&self.formula)
    }
}

/// The element types that kernels are checked in on `device`: what the program computes in there.
#[must_use]
pub fn checked_types(device: &Device) -> &'static [DType] {
    match device {
        Device::Cpu => &[DType::F32, DType::F64],
        _ => &[DType::F32],
    }
}

/// Checks every kernel on `device`; one that cannot run there is a failed check and not an error. `done` receives each
/// check when it is made.
pub fn check_kernels(device: &Device, mut done: impl FnMut(&KernelCheck)) -> Vec<KernelCheck> {
    let cases = cases::all();
    let mut checks = Vec::new();
    for &dtype in checked_types(device) {
        for case in &cases {
            let check = check(case, dtype, device);
            done(&check);
            checks.push(check);
        }
    }
    checks
}

fn check(case: &Case, dtype: DType, device: &Device) -> KernelCheck {
    let started = Instant::now();
    let found = case.compare(dtype, device);
    let seconds = started.elapsed().as_secs_f64();
    let (deviations, error) = match found {
        Ok(deviations) => (deviations, None),
        // Tensor errors carry a backtrace after their first line.
        Err(error) => {
            (case::Deviations::default(), Some(error.to_string().lines().next().unwrap_or_default().to_owned()))
        }
    };
    let case::Deviations { value, gradient, formula } = deviations;
    KernelCheck { kernel: case.kernel, form: case.form, dtype, value, gradient, formula, error, seconds }
}

#[cfg(test)]
mod tests;
