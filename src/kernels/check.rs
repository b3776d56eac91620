//! What the tests of the kernels compare with: finite differences, the other element type, other thread counts.

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

/// Asserts that the gradient of every input equals the central difference, in `f64`.
pub(super) fn gradients(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
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
    for (single, double) in run(&inputs, DType::F32, &f).iter().zip(run(&inputs, DType::F64, &f)) {
        assert_eq!(single.dtype(), DType::F32);
        close(single, &flat(&double), tolerance);
    }
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
