//! smooth-probe: does my transformer over-smooth, and what does my fine-tuning do about it?
//!
//! The library loads a pretrained transformer, runs it on packed token sequences with candle, lets a
//! [`probe`] read every layer's hidden states, and fine-tunes it with [`peft`] methods, vanilla or with
//! SIBO's initial residual (Wen, Zhang, Fang, Findings of ACL 2024).
#![deny(missing_docs)]

pub mod data;
pub mod generate;
#[cfg(test)]
mod golden_tests;
pub mod hash;
#[cfg(feature = "cli")]
pub mod hub;
pub mod kernels;
pub mod measures;
pub mod model;
pub mod peft;
pub mod persist;
pub mod pretrain;
pub mod probe;
pub mod profile;
pub mod random;
pub mod remedies;
pub mod statistics;
pub mod tasks;
pub mod train;

#[cfg(feature = "cli")]
pub mod allocator;
#[cfg(feature = "cli")]
pub mod analysis;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod compare;
#[cfg(feature = "cli")]
mod disk;
#[cfg(feature = "cli")]
pub mod doctor;
#[cfg(feature = "cli")]
pub mod report;
