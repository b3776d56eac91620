//! What `smooth-probe doctor` finds out about a machine, and the remedy for what is wrong with it.
//!
//! Facts and judgement are apart: each file gathers one kind of fact, and [`finding`] turns facts into findings that
//! tests can make up.

pub mod accelerator;
pub mod cache;
pub mod finding;
pub mod memory;
pub mod processor;

use crate::hub::HubSettings;
use crate::kernels::{self, KernelCheck};
use accelerator::{Accelerator, Rate};
use cache::Cache;
use candle_core::Device;
use finding::Finding;
use memory::Memory;
use processor::Processor;
use serde::Serialize;

/// Everything that the program can say about the machine that it runs on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The program's version.
    pub version: &'static str,
    /// The cargo features that decide where it can compute.
    pub features: Vec<&'static str>,
    /// The processor.
    pub processor: Processor,
    /// The working memory.
    pub memory: Memory,
    /// The device that was asked for.
    pub device: Accelerator,
    /// Rates of a large matrix product there.
    pub products: Vec<Rate>,
    /// Where models are kept.
    pub hub: Cache,
}

/// The features of this build that decide where it can compute.
#[must_use]
pub fn features() -> Vec<&'static str> {
    let all = [
        ("cli", cfg!(feature = "cli")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    all.into_iter().filter_map(|(name, on)| on.then_some(name)).collect()
}

impl Machine {
    /// Looks at the machine and times matrix products on `device`: a second or less.
    ///
    /// # Errors
    /// The device cannot multiply.
    pub fn examine(device: &Device) -> candle_core::Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            features: features(),
            processor: Processor::of_this_machine(),
            memory: Memory::of_this_machine(),
            device: Accelerator::of(device)?,
            products: accelerator::rates(device)?,
            hub: Cache::of(&HubSettings::from_env()),
        })
    }

    /// What is wrong with it, or may be.
    #[must_use]
    pub fn findings(&self, checks: &[KernelCheck]) -> Vec<Finding> {
        let variable = std::env::var("CANDLE_NUM_THREADS").ok();
        let mut all: Vec<Finding> = checks.iter().filter_map(Finding::of_kernel).collect();
        all.extend(Finding::of_processor(&self.processor, variable.as_deref()));
        all.extend(Finding::of_memory(&self.memory));
        let tf32 = std::env::var("NVIDIA_TF32_OVERRIDE").is_ok_and(|value| value == "1");
        all.extend(Finding::of_device(&self.device, accelerator::nvidia_card(), tf32));
        all.extend(Finding::of_cache(&self.hub));
        all
    }
}

/// Checks every kernel on `device`; see [`kernels::check_kernels`].
pub fn check_kernels(device: &Device, done: impl FnMut(&KernelCheck)) -> Vec<KernelCheck> {
    kernels::check_kernels(device, done)
}
