//! What the tests of the kernels compare with: finite differences, the other element type, other thread counts, and the
//! composed kernels.

use super::composed::{instead_of_fused, wide};
use super::{Gradients, record};
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;

/// The index of the argument that is no variable.
pub(super) struct Untracked(pub(super) usize);

/// Draws of about unit size, `f64`.
pub(super) fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = crate::random::stream(seed, &["kernels"]);
    let count = shape.iter().product();
    let draw = |_| (0..4).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>();
    Tensor::from_vec((0..count).map(draw).collect::<Vec<f64>>(), shape, &Device::Cpu).unwrap()
}

/// All values as `f64`, in row-major order.
pub(super) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The same matrix, stored column by column.
pub(super) fn strided(matrix: &Tensor) -> Tensor {
    let result = matrix.t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(!result.is_contiguous() || matrix.dims().contains(&1));
    result
}

/// The same tensor, stored behind and before other values.
pub(super) fn offset(tensor: &Tensor) -> Tensor {
    let other = (tensor.narrow(0, 0, 1).unwrap() * 7.0).unwrap();
    let result = Tensor::cat(&[&other, tensor, &other], 0).unwrap().narrow(0, 1, tensor.dims()[0]).unwrap();
    assert_ne!(result.layout().start_offset(), 0);
    result
}

/// Asserts that the values lie within `tolerance`, relative to values above 1 and absolute below.
pub(super) fn close(tensor: &Tensor, want: &[f64], tolerance: f64) {
    let got = flat(tensor);
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "element {index}: {got} where {want} is due");
    }
}

/// A scalar of `out` in which every element has another weight.
fn weighed(out: &Tensor) -> Result<Tensor> {
    let weights = normal(&[out.elem_count()], 99).to_dtype(out.dtype())?.reshape(out.shape())?;
    (out * weights)?.sum_all()
}

fn variables(inputs: &[&Tensor], dtype: DType) -> (Vec<Var>, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
    let tensors = vars.iter().map(|v| v.as_tensor().clone()).collect();
    (vars, tensors)
}

/// The output and the gradients of all inputs, computed in `dtype`.
fn run(inputs: &[&Tensor], dtype: DType, f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let (vars, tensors) = variables(inputs, dtype);
    let out = f(&tensors).unwrap();
    let grads = weighed(&out).unwrap().backward().unwrap();
    let mut all = vec![out.detach()];
    all.extend(vars.iter().map(|v| grads.get(v).expect("every variable has a gradient").clone()));
    all
}

/// The output and the gradients of all inputs by the composed kernels on a tape, computed in `dtype`.
fn composed(inputs: &[&Tensor], dtype: DType, f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Option<Tensor>> {
    let (_, tensors) = variables(inputs, dtype);
    by_tape(&tensors, f)
}

/// The output and the gradients of the tracked tensors by the composed kernels on a tape.
fn by_tape(tensors: &[Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Option<Tensor>> {
    instead_of_fused(|| {
        let (out, tape) = record(|| f(tensors));
        let out = out.unwrap();
        let mut gradients = Gradients::default();
        let weights = normal(&[out.elem_count()], 99).to_dtype(out.dtype()).unwrap().reshape(out.shape()).unwrap();
        tape.backward(&out, weights, &mut gradients).unwrap();
        let found = tensors.iter().map(|tensor| gradients.take(tensor));
        std::iter::once(Some(out.detach())).chain(found).collect()
    })
}

/// Asserts that the composed kernels have the values and gradients of the fused ones, in `f64`.
fn composed_agrees(inputs: &[&Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) {
    let fused = run(inputs, DType::F64, f);
    for (composed, fused) in composed(inputs, DType::F64, f).iter().zip(&fused) {
        let composed = composed.as_ref().expect("every variable has a gradient");
        assert_eq!(composed.dims(), fused.dims());
        close(composed, &flat(fused), 1e-10);
    }
    // Without a tape nothing may be tracked.
    let (_, tensors) = variables(inputs, DType::F64);
    let detached: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
    instead_of_fused(|| {
        close(&f(&detached).unwrap(), &flat(&fused[0]), 1e-10);
        assert!(f(&tensors).unwrap_err().to_string().contains("by a recorded pass alone"));
    });
}

/// Asserts that the composed kernels in bf16 and f16 stay within a few of their roundings of `f32`, relative to the
/// largest value: 2⁻⁹ and 2⁻¹² are half a unit in the last place.
fn sixteen_bits_agree(inputs: &[&Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) {
    for (dtype, unit) in [(DType::BF16, 2f64.powi(-9)), (DType::F16, 2f64.powi(-12))] {
        let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
        let rounded: Vec<&Tensor> = rounded.iter().collect();
        let exact = composed(&rounded, DType::F32, f);
        for (index, (found, exact)) in composed(&rounded, dtype, f).iter().zip(&exact).enumerate() {
            let (found, exact) = (found.as_ref().unwrap(), exact.as_ref().unwrap());
            assert!(found.dtype() == dtype || (index == 0 && found.dtype() == wide(dtype)), "{:?}", found.dtype());
            let (found, exact) = (flat(found), flat(exact));
            let largest = exact.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
            for (found, exact) in found.iter().zip(&exact) {
                let error = (found - exact).abs() / largest;
                assert!(error <= 8.0 * unit, "{dtype:?} {index}: {found} where {exact} is due, {} units", error / unit);
            }
        }
    }
}

/// Asserts that weights of every type are read in the type of `x`, by fused and composed kernels: the same bits as
/// weights that were converted before, and gradients of the weights' own types. Where that type has fewer digits than
/// the weights, kernels that compute wide may use them, within the roundings of that type.
pub(super) fn mixed(x: &Tensor, weights: &[&Tensor], f: impl Fn(&Tensor, &[Tensor]) -> Result<Tensor>) {
    for (compute, stored) in [
        (DType::F32, DType::BF16),
        (DType::F32, DType::F16),
        (DType::F64, DType::BF16),
        (DType::F64, DType::F32),
        (DType::BF16, DType::F32),
    ] {
        let stored: Vec<Var> =
            weights.iter().map(|w| Var::from_tensor(&w.to_dtype(stored).unwrap()).unwrap()).collect();
        let read: Vec<Var> =
            stored.iter().map(|w| Var::from_tensor(&w.to_dtype(compute).unwrap().detach()).unwrap()).collect();
        let x = Var::from_tensor(&x.to_dtype(compute).unwrap()).unwrap();
        let pass = |weights: &[Var]| {
            let weights: Vec<Tensor> = weights.iter().map(|w| w.as_tensor().clone()).collect();
            let (out, tape) = record(|| f(&x, &weights));
            let out = out.unwrap();
            let mut gradients = Gradients::default();
            tape.backward(&out, normal(out.dims(), 99).to_dtype(out.dtype()).unwrap(), &mut gradients).unwrap();
            let of_weights: Vec<Tensor> = weights.iter().map(|w| gradients.take(w).unwrap()).collect();
            (out, gradients.take(&x), of_weights)
        };
        let (both, dx, dw) = pass(&stored);
        let (one, dx_of_one, dw_of_one) = pass(&read);
        // Two roundings, 2⁻⁸, of terms up to four times their sum.
        let tolerance = if compute == DType::BF16 { 2f64.powi(-6) } else { 0.0 };
        assert_eq!(both.dtype(), compute);
        close(&both, &flat(&one), tolerance);
        assert_eq!(dx.is_some(), dx_of_one.is_some());
        if let (Some(dx), Some(want)) = (&dx, &dx_of_one) {
            close(dx, &flat(want), tolerance);
        }
        for ((found, want), weight) in dw.iter().zip(&dw_of_one).zip(&stored) {
            assert_eq!(found.dtype(), weight.dtype());
            close(found, &flat(&want.to_dtype(weight.dtype()).unwrap()), tolerance);
        }
        instead_of_fused(|| {
            let (composed, _, composed_dw) = pass(&stored);
            let tolerance = if compute == DType::BF16 { 0.0 } else { 1e-5 };
            close(&composed, &flat(&both), tolerance);
            for (found, want) in composed_dw.iter().zip(&dw) {
                assert_eq!(found.dtype(), want.dtype());
                // Where sums differ in their last digits, 16-bit gradients may round to the other side.
                let unit = match want.dtype() {
                    DType::BF16 => 2f64.powi(-8),
                    DType::F16 => 2f64.powi(-11),
                    _ => 1e-5,
                };
                close(found, &flat(want), unit);
            }
        });
    }
}

/// Asserts that the gradient of every input equals the central difference, in `f64`, and that the composed kernels
/// agree with the fused ones.
pub(super) fn gradients(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    fused_gradients(inputs, &f);
    composed_agrees(inputs, &f);
    sixteen_bits_agree(inputs, &f);
}

/// Asserts that the gradient of every input equals the central difference, in `f64`; `f` may do to its arguments what
/// no tape records.
pub(super) fn fused_gradients(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let analytic = run(inputs, DType::F64, &f);
    for (index, input) in inputs.iter().enumerate() {
        let values = flat(input);
        assert_eq!(analytic[index + 1].dims(), input.dims());
        for (element, got) in flat(&analytic[index + 1]).into_iter().enumerate() {
            let at = |shift: f64| {
                let mut values = values.clone();
                values[element] += shift;
                let mut all: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
                all[index] = Tensor::from_vec(values, input.shape(), &Device::Cpu).unwrap();
                weighed(&f(&all).unwrap()).unwrap().to_scalar::<f64>().unwrap()
            };
            let want = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let error = (got - want).abs() / want.abs().max(1.0);
            assert!(error < 1e-7, "input {index}, element {element}: {got} where {want} is due");
        }
    }
}

/// Asserts that output and gradients in `f32` agree with those in `f64`.
pub(super) fn f32_agrees(inputs: &[&Tensor], tolerance: f64, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    let inputs: Vec<&Tensor> = rounded.iter().collect();
    let double = run(&inputs, DType::F64, &f);
    for (single, double) in run(&inputs, DType::F32, &f).iter().zip(&double) {
        assert_eq!(single.dtype(), DType::F32);
        close(single, &flat(double), tolerance);
    }
    for (single, double) in composed(&inputs, DType::F32, &f).iter().zip(&double) {
        close(single.as_ref().expect("every variable has a gradient"), &flat(double), tolerance);
    }
    composed_agrees(&inputs, &f);
}

/// Asserts that the argument which is no variable has no gradient and that the others' are what they were.
pub(super) fn untracked(inputs: &[&Tensor], which: Untracked, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let all = run(inputs, DType::F64, &f);
    let (vars, mut tensors) = variables(inputs, DType::F64);
    tensors[which.0] = tensors[which.0].detach();
    let frozen = tensors[which.0].clone();
    let out = f(&tensors).unwrap();
    let grads = weighed(&out).unwrap().backward().unwrap();
    assert!(grads.get(&frozen).is_none() && grads.get(&vars[which.0]).is_none());
    for (index, var) in vars.iter().enumerate().filter(|(index, _)| *index != which.0) {
        assert_eq!(flat(grads.get(var).unwrap()), flat(&all[index + 1]));
    }
    for (index, gradient) in by_tape(&tensors, &f).iter().skip(1).enumerate() {
        match gradient {
            Some(gradient) => close(gradient, &flat(&all[index + 1]), 1e-10),
            None => assert_eq!(index, which.0),
        }
    }
}

/// Asserts that one, two and three threads return the same bits, output and gradients, in `f32`.
pub(super) fn threads_agree(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let all = pool.install(|| run(inputs, DType::F32, &f));
        all.iter().flat_map(flat).map(f64::to_bits).collect::<Vec<_>>()
    };
    let one = bits(1);
    assert!(one == bits(2) && one == bits(3), "the bits depend on the number of threads");
}
