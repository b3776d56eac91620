//! Differentiable operations on packed token sequences, with hand-written backward passes.
