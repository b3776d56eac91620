//! Parameter-efficient fine-tuning methods, vanilla or with the initial residual.
