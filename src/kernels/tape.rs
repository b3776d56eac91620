//! The record of a forward pass over kernels, and its backward pass.
//!
//! candle's own graph adds every gradient to a tensor of zeros, keeps every argument of every operation, and frees
//! nothing until its end. While [`record`] runs, kernels are recorded here instead: a gradient with one source is moved,
//! further ones are added in place, what no backward pass reads is not kept, and [`Tape::backward`] frees each
//! operation once it is behind it. Without a recording, fused kernels are ordinary candle operations; composed ones
//! (see [`composed`](super::composed)) then take no tracked argument.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp2, Layout, Result, Shape, Storage, Tensor, TensorId,
    WithDType, bail,
};
use half::{bf16, f16};

use super::composed::{Composed, Composing, is_fused};
use super::element::{by_dtype, values, values_mut};
use super::{parallel, vector};

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// The kernels of a forward pass that have a trainable tensor above them, in their order.
#[derive(Default)]
pub struct Tape {
    nodes: Vec<Node>,
    /// Whether to keep what is recorded; without, results are only marked as tracked.
    keeps: bool,
}

struct Node {
    operation: Box<dyn Operation>,
    arguments: Vec<(TensorId, Tensor)>,
    id: TensorId,
    out: Tensor,
}

/// Runs `forward` and records its kernels; on this thread alone, and not those of a recording inside it.
///
/// Only kernels may come between the trainable tensors and what [`Tape::backward`] begins with: a recorded pass refuses a
/// tracked tensor that another operation made.
pub fn record<R>(forward: impl FnOnce() -> R) -> (R, Tape) {
    run(true, forward)
}

/// Runs `forward` as [`record`] does and keeps nothing; its results know whether they depend on trainable tensors.
pub(crate) fn forget<R>(forward: impl FnOnce() -> R) -> R {
    run(false, forward).0
}

fn run<R>(keeps: bool, forward: impl FnOnce() -> R) -> (R, Tape) {
    let outer = TAPE.replace(Some(Tape { nodes: Vec::new(), keeps }));
    let result = forward();
    let tape = TAPE.replace(outer).unwrap_or_default();
    (result, tape)
}

/// Gradients by the tensor that they belong to; outside of a backward pass none shares its memory with another.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<TensorId, Arc<Tensor>>);

impl Gradients {
    /// Takes the gradient of `tensor` out, if there is one.
    pub fn take(&mut self, tensor: &Tensor) -> Option<Tensor> {
        self.0.remove(&tensor.id()).map(Arc::unwrap_or_clone)
    }

    /// Adds `gradient`, which shares its memory with no other, to what is there.
    pub(crate) fn add(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        self.add_shared(id, Arc::new(gradient))
    }

    /// As [`Self::add`], of a gradient that others may have too, as its count of references says.
    fn add_shared(&mut self, id: TensorId, gradient: Arc<Tensor>) -> Result<()> {
        match self.0.get_mut(&id) {
            Some(sum) if is_fused(sum) && Arc::strong_count(sum) == 1 => return sum.inplace_op2(&gradient, &Add),
            Some(sum) => *sum = Arc::new((&**sum + &*gradient)?.detach()),
            None => {
                self.0.insert(id, gradient);
            }
        };
        Ok(())
    }

    /// The sum that is there for `id`, if it may be added to in place.
    fn own(&self, id: TensorId) -> Option<Tensor> {
        self.0.get(&id).filter(|sum| is_fused(sum) && Arc::strong_count(sum) == 1).map(|sum| Tensor::clone(sum))
    }

    /// Gives those that share their memory a copy of their own.
    fn separate(&mut self) -> Result<()> {
        for sum in self.0.values_mut().filter(|sum| Arc::strong_count(sum) > 1) {
            *sum = Arc::new(sum.copy()?);
        }
        Ok(())
    }
}

impl Tape {
    /// How many operations are recorded.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds the gradients of every trainable tensor, and of every tracked tensor that the recording began with, to
    /// `gradients`, where `seed`, which shares its memory with no other tensor, is that of `root`.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn backward(mut self, root: &Tensor, seed: Tensor, gradients: &mut Gradients) -> Result<()> {
        gradients.add(root.id(), seed)?;
        while let Some(Node { operation, arguments, id, out }) = self.nodes.pop() {
            let Some(gradient) = gradients.0.remove(&id) else { continue };
            let tensors: Vec<&Tensor> = arguments.iter().map(|(_, tensor)| tensor).collect();
            let sum = arguments.first().and_then(|(id, _)| gradients.own(*id));
            let found = operation.backward(&tensors, &out, &gradient, sum.as_ref())?;
            for (found, (id, _)) in found.into_iter().zip(&arguments) {
                let Some(found) = found else { continue };
                // An operation may hand its own gradient on, even to several; most are read and dropped before anyone
                // adds to them.
                let handed_on = found.id() == gradient.id();
                gradients.add_shared(*id, if handed_on { Arc::clone(&gradient) } else { Arc::new(found) })?;
            }
        }
        gradients.separate()
    }
}

/// What an operation's backward pass reads beside shapes: each argument, and its result.
pub(super) struct Reads<const N: usize> {
    pub(super) arguments: [bool; N],
    pub(super) out: bool,
}

impl<const N: usize> Reads<N> {
    /// The arguments alone.
    pub(super) fn arguments(arguments: [bool; N]) -> Self {
        Self { arguments, out: false }
    }
}

/// An operation of any number of arguments.
pub(super) trait Operation {
    /// The storage and shape of the result.
    fn forward(&self, arguments: &[&Tensor]) -> Result<(Storage, Shape)>;
    /// The gradients of the tracked arguments; that of the first may be added to `sum`, where there is one, instead.
    fn backward(
        &self,
        arguments: &[&Tensor],
        out: &Tensor,
        gradient: &Tensor,
        sum: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>>;
}

struct Unary<C>(C);
struct Binary<C>(C);
struct Ternary<C>(C);

/// Runs `forward` over the arguments' storages, which must be on the CPU.
fn on_cpu<const N: usize>(
    name: &str,
    arguments: &[&Tensor],
    forward: impl FnOnce([(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>,
) -> Result<(Storage, Shape)> {
    let &arguments: &[&Tensor; N] = match arguments.try_into() {
        Ok(arguments) => arguments,
        Err(_) => bail!("{name}: takes {N} arguments"),
    };
    let locks = arguments.map(Tensor::storage_and_layout);
    let mut inputs = Vec::with_capacity(N);
    for (storage, layout) in &locks {
        match &**storage {
            Storage::Cpu(storage) => inputs.push((storage, *layout)),
            _ => bail!("{name}: its arguments are on different devices"),
        }
    }
    match inputs.try_into() {
        Ok(inputs) => forward(inputs).map(|(storage, shape)| (Storage::Cpu(storage), shape)),
        Err(_) => bail!("{name}: takes {N} arguments"),
    }
}

impl<C: CustomOp1> Operation for Unary<C> {
    fn forward(&self, arguments: &[&Tensor]) -> Result<(Storage, Shape)> {
        on_cpu(self.0.name(), arguments, |[(a, al)]| self.0.cpu_fwd(a, al))
    }

    fn backward(
        &self,
        arguments: &[&Tensor],
        out: &Tensor,
        gradient: &Tensor,
        _: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let &[a] = arguments else { bail!("{}: takes one argument", self.0.name()) };
        Ok(vec![self.0.bwd(a, out, gradient)?])
    }
}

impl<C: CustomOp2 + Composed<2>> Operation for Binary<C> {
    fn forward(&self, arguments: &[&Tensor]) -> Result<(Storage, Shape)> {
        on_cpu(self.0.name(), arguments, |[(a, al), (b, bl)]| self.0.cpu_fwd(a, al, b, bl))
    }

    fn backward(
        &self,
        arguments: &[&Tensor],
        out: &Tensor,
        gradient: &Tensor,
        sum: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let &[a, b] = arguments else { bail!("{}: takes two arguments", self.0.name()) };
        let a = &without_added(&self.0, [a, b], gradient, sum)?;
        let (a, b) = self.0.bwd(a, b, out, gradient)?;
        Ok(vec![a, b])
    }
}

impl<C: CustomOp3 + Composed<3>> Operation for Ternary<C> {
    fn forward(&self, arguments: &[&Tensor]) -> Result<(Storage, Shape)> {
        on_cpu(self.0.name(), arguments, |[(a, al), (b, bl), (c, cl)]| self.0.cpu_fwd(a, al, b, bl, c, cl))
    }

    fn backward(
        &self,
        arguments: &[&Tensor],
        out: &Tensor,
        gradient: &Tensor,
        sum: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let &[a, b, c] = arguments else { bail!("{}: takes three arguments", self.0.name()) };
        let a = &without_added(&self.0, [a, b, c], gradient, sum)?;
        let (a, b, c) = self.0.bwd(a, b, c, out, gradient)?;
        Ok(vec![a, b, c])
    }
}

/// The first argument; one that asks for no gradient if that was added to `sum`.
fn without_added<const N: usize>(
    operation: &impl Composed<N>,
    arguments: [&Tensor; N],
    gradient: &Tensor,
    sum: Option<&Tensor>,
) -> Result<Tensor> {
    let Some(&first) = arguments.first() else { bail!("an operation without arguments") };
    match sum {
        Some(sum) if first.track_op() && operation.add_first(arguments, gradient, sum)? => Ok(first.detach()),
        _ => Ok(first.clone()),
    }
}

/// `operation` of one argument, recorded if a tape runs.
pub(super) fn apply1<C>(operation: C, a: &Tensor, reads: Reads<1>) -> Result<Tensor>
where
    C: CustomOp1 + Composed<1> + Send + Sync + 'static,
{
    let name = operation.name();
    match (TAPE.take(), operation.is_fused(a)) {
        (None, true) => a.apply_op1(operation),
        (None, false) => composed(name, &operation, [a]),
        (Some(tape), true) => recorded(tape, Box::new(Unary(operation)), [a], reads),
        (Some(tape), false) => recorded(tape, Box::new(Composing { name, operation }), [a], reads),
    }
}

/// `operation` of two arguments, recorded if a tape runs.
pub(super) fn apply2<C>(operation: C, [a, b]: [&Tensor; 2], reads: Reads<2>) -> Result<Tensor>
where
    C: CustomOp2 + Composed<2> + Send + Sync + 'static,
{
    let name = operation.name();
    match (TAPE.take(), operation.is_fused(a)) {
        (None, true) => a.apply_op2(b, operation),
        (None, false) => composed(name, &operation, [a, b]),
        (Some(tape), true) => recorded(tape, Box::new(Binary(operation)), [a, b], reads),
        (Some(tape), false) => recorded(tape, Box::new(Composing { name, operation }), [a, b], reads),
    }
}

/// `operation` of three arguments, recorded if a tape runs.
pub(super) fn apply3<C>(operation: C, [a, b, c]: [&Tensor; 3], reads: Reads<3>) -> Result<Tensor>
where
    C: CustomOp3 + Composed<3> + Send + Sync + 'static,
{
    let name = operation.name();
    match (TAPE.take(), operation.is_fused(a)) {
        (None, true) => a.apply_op3(b, c, operation),
        (None, false) => composed(name, &operation, [a, b, c]),
        (Some(tape), true) => recorded(tape, Box::new(Ternary(operation)), [a, b, c], reads),
        (Some(tape), false) => recorded(tape, Box::new(Composing { name, operation }), [a, b, c], reads),
    }
}

/// A composed operation outside a recording.
fn composed<const N: usize>(name: &str, operation: &impl Composed<N>, arguments: [&Tensor; N]) -> Result<Tensor> {
    if let Some(tensor) = arguments.iter().find(|argument| argument.track_op()) {
        bail!(
            "{name}: {:?} on {:?} has gradients by a recorded pass alone; detach the arguments, or take the gradients \
             with Transformer::loss_gradients",
            tensor.dtype(),
            tensor.device().location()
        )
    }
    operation.forward(arguments)
}

/// Computes and records. The tape is not in its place meanwhile: a thread that waits for others inside a kernel may be
/// given another pass to run.
fn recorded<const N: usize>(
    mut tape: Tape,
    operation: Box<dyn Operation>,
    arguments: [&Tensor; N],
    reads: Reads<N>,
) -> Result<Tensor> {
    let result = node(&mut tape, operation, arguments, reads);
    TAPE.set(Some(tape));
    result
}

fn node<const N: usize>(
    tape: &mut Tape,
    operation: Box<dyn Operation>,
    arguments: [&Tensor; N],
    reads: Reads<N>,
) -> Result<Tensor> {
    if arguments.iter().any(|argument| argument.track_op() && !argument.is_variable()) {
        bail!("a tensor that was made by no kernel enters a recorded pass; its gradient would be lost")
    }
    let tracked = arguments.iter().any(|argument| argument.track_op());
    let (storage, shape) = operation.forward(&arguments)?;
    let out = Tensor::from_storage(storage, shape, BackpropOp::none(), tracked);
    if tracked && tape.keeps {
        let pairs = arguments.into_iter().zip(reads.arguments);
        let kept = pairs.map(|(tensor, read)| Ok((tensor.id(), if read { tensor.clone() } else { outline(tensor)? })));
        let arguments = kept.collect::<Result<Vec<_>>>()?;
        let kept = if reads.out { out.clone() } else { outline(&out)? };
        tape.nodes.push(Node { operation, arguments, id: out.id(), out: kept });
    }
    Ok(out)
}

/// A tensor of the same shape, type and tracking that holds one value, not a number; on the CPU wherever `tensor` is,
/// since nothing reads it.
fn outline(tensor: &Tensor) -> Result<Tensor> {
    let storage = match tensor.dtype() {
        DType::F64 => f64::to_cpu_storage_owned(vec![f64::NAN]),
        DType::BF16 => bf16::to_cpu_storage_owned(vec![bf16::NAN]),
        DType::F16 => f16::to_cpu_storage_owned(vec![f16::NAN]),
        _ => f32::to_cpu_storage_owned(vec![f32::NAN]),
    };
    let value = Tensor::from_storage(Storage::Cpu(storage), (), BackpropOp::none(), tensor.track_op());
    value.broadcast_as(tensor.shape())
}

/// `a += b`.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        by_dtype!(b.dtype(), "add", T => {
            let b = values::<T>(b, bl)?;
            parallel::for_each_piece(values_mut::<T>(a, al)?, |at, a| vector::add(a, parallel::from(b, at)));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::kernels;
    use candle_core::Var;

    /// `f` of variables, and its gradients for `sum(weights · f)`, by the tape and by candle's graph.
    fn both(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let variables: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let (out, tape) = record(|| f(&tensors));
        let out = out.unwrap();
        let seed = check::normal(out.dims(), 99);
        let mut gradients = Gradients::default();
        tape.backward(&out, seed.copy().unwrap(), &mut gradients).unwrap();
        let plain = f(&tensors).unwrap();
        assert_eq!(check::flat(&out), check::flat(&plain));
        let store = (plain * seed).unwrap().sum_all().unwrap().backward().unwrap();
        for variable in &tensors {
            assert_eq!(check::flat(&gradients.take(variable).unwrap()), check::flat(store.get(variable).unwrap()));
        }
        assert!(gradients.0.is_empty());
    }

    #[test]
    fn a_gradient_that_goes_several_ways_is_not_shared() {
        let x = [check::normal(&[4, 6], 1), check::normal(&[4, 6], 2)];
        // A sum hands its gradient to both sides; the first then gets another.
        both(&x, |t| kernels::scaled_add(&kernels::scaled_add(&t[0], &t[1], 1.0)?, &t[0], 1.0));
        both(&x[..1], |t| kernels::scaled_add(&t[0], &t[0], 1.0));
        both(&x, |t| {
            let sum = kernels::scaled_add(&t[0], &t[1], 1.0)?;
            kernels::scaled_add(&kernels::tanh(&sum)?, &kernels::gated(&sum, &t[1], kernels::Activation::Silu)?, -0.5)
        });
    }

    #[test]
    fn a_recording_inside_a_recording_is_its_own() {
        let x = Var::from_tensor(&check::normal(&[2, 3], 1)).unwrap();
        let (inner, outer) = record(|| {
            kernels::tanh(&x).unwrap();
            let ((), inner) = record(|| drop((kernels::tanh(&x), kernels::tanh(&x))));
            assert!(forget(|| kernels::tanh(&x).unwrap()).track_op());
            inner
        });
        assert_eq!((outer.len(), inner.len()), (1, 2));
        // Outside, kernels are candle's again.
        assert!(kernels::tanh(&x).unwrap().sum_all().unwrap().backward().unwrap().get(&x).is_some());
    }

    #[test]
    fn what_no_kernel_made_is_refused_rather_than_left_without_a_gradient() {
        let x = Var::from_tensor(&check::normal(&[2, 3], 1)).unwrap();
        let (result, _) = record(|| kernels::tanh(&(x.as_tensor() * 2.0)?));
        assert!(result.unwrap_err().to_string().contains("made by no kernel"));
    }

    #[test]
    fn what_no_backward_pass_reads_is_not_kept() {
        let x = Var::from_tensor(&check::normal(&[2, 3], 1)).unwrap();
        let (_, tape) = record(|| kernels::scale(&x, 2.0));
        let node = &tape.nodes[0];
        assert!(!node.arguments[0].1.is_contiguous() && node.arguments[0].1.track_op());
        assert!(!node.out.is_contiguous());
    }
}
