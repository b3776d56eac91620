//! The device that computes, and how fast it multiplies.

use crate::kernels;
use candle_core::{DType, Device, DeviceLocation, Result, Tensor};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Accelerator {
    /// `cpu`, `cuda:0`, `metal:0`: as `--device` names it.
    pub device: String,
    /// As its maker names it.
    pub name: Option<String>,
    /// The newest CUDA version that its driver knows.
    pub driver: Option<(u32, u32)>,
    /// Major and minor number of the CUDA compute capability.
    pub compute_capability: Option<(u32, u32)>,
    /// Its memory in bytes.
    pub memory: Option<u64>,
    /// Bytes of it that are free.
    pub free: Option<u64>,
}

impl Accelerator {
    /// What `device` says of itself.
    ///
    /// # Errors
    /// A driver does not answer.
    pub fn of(device: &Device) -> Result<Self> {
        let named = Self { device: option(device), ..Self::default() };
        match device {
            Device::Cuda(device) => cuda(device, named),
            _ => Ok(named),
        }
    }
}

/// The device as `--device` names it.
fn option(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(feature = "cuda")]
fn cuda(device: &candle_core::CudaDevice, named: Accelerator) -> Result<Accelerator> {
    use candle_core::cuda_backend::cudarc::driver::{result::DriverError, sys};
    let said = |error: DriverError| candle_core::Error::Msg(format!("the CUDA driver does not answer: {error}"));
    let stream = device.cuda_stream();
    let context = stream.context();
    let mut version = 0;
    // SAFETY: the driver writes one integer to the address of a local one.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(said)?;
    let (free, total) = context.mem_get_info().map_err(said)?;
    let (major, minor) = context.compute_capability().map_err(said)?;
    Ok(Accelerator {
        name: Some(context.name().map_err(said)?),
        // 1000 · major + 10 · minor.
        driver: u32::try_from(version).ok().map(|version| (version / 1000, version % 1000 / 10)),
        compute_capability: u32::try_from(major).ok().zip(u32::try_from(minor).ok()),
        memory: u64::try_from(total).ok(),
        free: u64::try_from(free).ok(),
        ..named
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &candle_core::CudaDevice, _: Accelerator) -> Result<Accelerator> {
    candle_core::bail!("this program is built without the feature cuda")
}

/// How fast a large square matrix product is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// The element type.
    pub dtype: &'static str,
    /// 10⁹ operations a second, the best of three.
    pub gflops: f64,
}

/// The rates of the types that matter on `device`: f32 on the CPU, on others bf16 too.
///
/// # Errors
/// The device cannot multiply, for instance for want of memory.
pub fn rates(device: &Device) -> Result<Vec<Rate>> {
    if device.is_cpu() {
        return Ok(vec![Rate { dtype: DType::F32.as_str(), gflops: kernels::peak_rate()? }]);
    }
    [DType::F32, DType::BF16].into_iter().map(|dtype| rate(device, dtype)).collect()
}

fn rate(device: &Device, dtype: DType) -> Result<Rate> {
    const SIDE: usize = 4096;
    let matrix = Tensor::ones((SIDE, SIDE), dtype, device)?;
    let mut best = f64::INFINITY;
    // The first prepares the library.
    for _ in 0..4 {
        device.synchronize()?;
        let started = Instant::now();
        let product = matrix.matmul(&matrix)?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
        drop(product);
    }
    Ok(Rate { dtype: dtype.as_str(), gflops: 2.0 * (SIDE as f64).powi(3) / best / 1e9 })
}

/// Whether the system shows an NVIDIA card, whatever this program was built for: its driver's files on Linux, its
/// command elsewhere.
#[must_use]
pub fn nvidia_card() -> bool {
    let command = if cfg!(windows) { "nvidia-smi.exe" } else { "nvidia-smi" };
    let found = |folder: std::path::PathBuf| folder.join(command).is_file();
    ["/proc/driver/nvidia/version", "/dev/nvidiactl"].iter().any(|path| Path::new(path).exists())
        || std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_and_multiplies() {
        assert_eq!(Accelerator::of(&Device::Cpu).unwrap(), Accelerator { device: "cpu".into(), ..Default::default() });
        let rates = rates(&Device::Cpu).unwrap();
        // Slower than any processor of this century, and faster than none yet.
        assert!(rates.len() == 1 && rates.iter().all(|rate| (0.1..1e6).contains(&rate.gflops)), "{rates:?}");
    }
}
