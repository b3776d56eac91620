//! The check is a check: it holds for our kernels, and it fails for a kernel that is wrong.

use super::super::composed::Composed;
use super::super::element::{Locked, by_dtype, tensor, values};
use super::super::tape::{self, Reads};
use super::case::{Backward, FIFTH, Input, difference, draws, precision};
use super::*;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

#[test]
fn every_kernel_passes_on_the_cpu_in_both_types() {
    let mut told = 0;
    let checks = check_kernels(&Device::Cpu, |_| told += 1);
    for check in &checks {
        assert!(check.passed(), "{check:?}");
    }
    assert_eq!((checks.len(), told), (2 * cases::all().len(), checks.len()));
}

/// The functions that the module exports, by the text of its `use` lines.
fn exported() -> Vec<String> {
    let text = include_str!("../mod.rs");
    let lines = text.lines().filter_map(|line| line.strip_prefix("pub(crate) use ").or(line.strip_prefix("pub use ")));
    let names = lines.flat_map(|line| {
        let (_, names) = line.trim_end_matches(';').split_once("::").unwrap();
        names.trim_matches(['{', '}']).split(", ").map(str::to_owned).collect::<Vec<_>>()
    });
    names.filter(|name| name.chars().next().unwrap().is_lowercase()).collect()
}

#[test]
fn no_kernel_is_forgotten() {
    // What is exported and has no gradient.
    let others = [
        "peak_rate",
        "record",
        "forget",
        "check_kernels",
        "checked_types",
        "instead_of_fused",
        "wide",
        "adamw",
        "sum_of_squares",
        "log_sum_exp",
        "remembered_attention",
    ];
    let checked: Vec<&str> = cases::all().iter().map(|case| case.kernel).collect();
    let exported = exported();
    assert!(exported.iter().any(|name| name == "attention") && exported.iter().any(|name| name == "rope"));
    for name in &exported {
        assert!(checked.contains(&name.as_str()) != others.contains(&name.as_str()), "{name} has no case");
    }
    for name in checked {
        assert!(exported.iter().any(|exported| exported == name), "{name} is no kernel");
    }
}

#[test]
fn the_fifth_derivatives_are_below_their_bound() {
    let (_, step) = precision(DType::F32).unwrap();
    for case in cases::all() {
        let mut at = case.values();
        let wanted = case.plain(&at);
        let weights = Case::weights(wanted.len());
        for (index, input) in case.inputs.iter().enumerate().filter(|(_, input)| input.learned) {
            for element in 0..input.values.len() {
                let mut of =
                    |step| difference(&mut at, (index, element), step, &weights, |v| Ok(case.plain(v))).unwrap();
                let (coarse, around) = of(step);
                let (fine, _) = of(step / 4.0);
                let bound = Case::reach(&wanted, &around, &weights) * FIFTH * step.powi(4) / 30.0;
                let found = (coarse - fine).abs();
                assert!(found <= bound + 1e-12, "{} {}: {found} where {bound} is allowed", case.kernel, case.form);
            }
        }
    }
}

/// `factor · x`, whose gradient is `claimed`.
struct Scaled {
    factor: f64,
    claimed: f64,
}

impl CustomOp1 for Scaled {
    fn name(&self) -> &'static str {
        "scaled"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), "scaled", T => {
            let factor = T::from_f64(self.factor);
            let out = values::<T>(x, layout)?.iter().map(|&x| factor * x).collect();
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let locked = Locked::new(gradient);
        by_dtype!(x.dtype(), "scaled", T => {
            let factor = T::from_f64(self.claimed);
            tensor(locked.values::<T>()?.iter().map(|&g| factor * g).collect(), x).map(Some)
        })
    }
}

impl Composed<1> for Scaled {
    fn forward(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        x * self.factor
    }

    fn backward(&self, _: [&Tensor; 1], _: [bool; 1], _: &Tensor, gradient: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some((gradient * self.claimed)?)])
    }
}

/// `2x` by a kernel that computes `factor · x` and says that its derivative is `claimed`.
fn twice(factor: f64, claimed: f64) -> Case {
    Case {
        kernel: "twice",
        form: "",
        inputs: vec![Input { shape: vec![2, 5], values: draws(10, 1), learned: true }],
        run: Box::new(move |tensors| {
            let x = tensors.first().unwrap();
            tape::apply1(Scaled { factor, claimed }, x, Reads::arguments([false]))
        }),
        backward: Backward::Tape,
        formula: |all| all.first().unwrap().iter().map(|x| 2.0 * x).collect(),
        roundings: 1.0,
    }
}

#[test]
fn a_wrong_gradient_or_value_fails() {
    for &dtype in checked_types(&Device::Cpu) {
        let of = |factor, claimed| check(&twice(factor, claimed), dtype, &Device::Cpu);
        assert!(of(2.0, 2.0).passed());
        // One part in a thousand of the gradient, both comparisons of it, and nothing else.
        let wrong = of(2.0, 2.002);
        assert!(!wrong.passed() && wrong.value.passed(), "{wrong:?}");
        assert!(!wrong.gradient.unwrap().passed() && !wrong.formula.unwrap().passed(), "{wrong:?}");
        // A forward and a backward pass that agree with each other and not with the formula.
        let wrong = of(2.002, 2.002);
        assert!(wrong.gradient.unwrap().passed(), "{wrong:?}");
        assert!(!wrong.value.passed() && !wrong.formula.unwrap().passed(), "{wrong:?}");
        assert!(!of(f64::NAN, 2.0).passed() && !of(2.0, f64::NAN).passed());
    }
}

#[test]
fn factors_of_eleven_bits_as_in_tf32_fail() {
    let coarse = |tensor: &Tensor| {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let round = |x: f32| f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1));
        Tensor::from_vec(values.into_iter().map(round).collect::<Vec<_>>(), tensor.shape(), &Device::Cpu)
    };
    for mut case in cases::all().into_iter().filter(|case| case.kernel == "linear" && case.form.is_empty()) {
        assert!(check(&case, DType::F32, &Device::Cpu).passed());
        case.backward = Backward::None;
        case.run = Box::new(move |t| super::super::linear(&coarse(&t[0])?, &coarse(&t[1])?, None));
        let found = check(&case, DType::F32, &Device::Cpu);
        assert!(found.error.is_none() && !found.passed(), "{found:?}");
    }
}

#[test]
fn a_missing_gradient_and_a_kernel_that_does_not_run_fail_with_their_reason() {
    let none = Case { backward: Backward::Own(Box::new(|_, _| Ok(vec![None]))), ..twice(2.0, 2.0) };
    let found = check(&none, DType::F64, &Device::Cpu);
    assert_eq!(found.error.as_deref(), Some("argument 0 has no gradient"));
    assert!(!found.passed());
    let broken = Case { run: Box::new(|_| candle_core::bail!("no kernel for this device")), ..twice(2.0, 2.0) };
    let found = check(&broken, DType::F64, &Device::Cpu);
    assert_eq!(found.error.as_deref(), Some("no kernel for this device"));
    assert!(!found.passed());
}
