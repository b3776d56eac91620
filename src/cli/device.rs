//! Where is computed: what `--device` names, and how it and the types are recorded.

use crate::model::Precision;
use anyhow::{Result, anyhow, bail, ensure};
use candle_core::utils::{cuda_is_available, metal_is_available};
use candle_core::{DType, Device, DeviceLocation};

/// The device that `--device` names: auto, cpu, cuda, cuda:N or metal.
pub(super) fn open(name: &str) -> Result<Device> {
    let device = named(name)?;
    detail!("--device {name}: {}", self::name(&device));
    Ok(device)
}

fn named(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(first_that_answers()),
        "metal" => metal(),
        _ => match name.strip_prefix("cuda") {
            Some("") => cuda(name, 0),
            Some(rest) => match rest.strip_prefix(':').and_then(|ordinal| ordinal.parse().ok()) {
                Some(ordinal) => cuda(name, ordinal),
                None => bail!("--device {name}: write cuda, or cuda:N with the number of a GPU, counted from 0"),
            },
            None => bail!("--device {name}: no such device; use auto, cpu, cuda, cuda:N or metal"),
        },
    }
}

/// A GPU if this build knows one and it answers, else the CPU.
fn first_that_answers() -> Device {
    let cuda = || cuda_is_available().then(|| Device::new_cuda(0).ok()).flatten();
    let metal = || metal_is_available().then(|| Device::new_metal(0).ok()).flatten();
    cuda().or_else(metal).unwrap_or(Device::Cpu)
}

fn cuda(name: &str, ordinal: usize) -> Result<Device> {
    ensure!(
        cuda_is_available(),
        "--device {name}: this build has no CUDA; build it with `cargo build --release --features cuda`, or use cpu"
    );
    Device::new_cuda(ordinal).map_err(|error| {
        anyhow!(
            "--device {name}: does not answer: {}; check with nvidia-smi that there is such a GPU and its driver fits, \
             or use cpu",
            first_line(&error)
        )
    })
}

fn metal() -> Result<Device> {
    ensure!(
        metal_is_available(),
        "--device metal: this build has no Metal; build it on macOS with `cargo build --release --features metal`, or \
         use cpu"
    );
    Device::new_metal(0).map_err(|error| anyhow!("--device metal: does not answer: {}; use cpu", first_line(&error)))
}

/// A tensor library's error without its backtrace.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().trim().to_owned()
}

/// Refuses types that a device does not compute in.
pub(super) fn check(precision: Precision, device: &Device) -> Result<()> {
    let double = precision.compute == DType::F64 || precision.base == DType::F64;
    ensure!(!(device.is_metal() && double), "--device metal: Metal has no f64; choose f32 or bf16, or --device cpu");
    Ok(())
}

/// The device's name as it is recorded: `cpu`, `cuda:0`, `metal`.
pub(super) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".to_owned(),
    }
}

/// The kind of device, on which the digits of a result depend; empty for the CPU.
pub(super) fn kind(device: &Device) -> &'static str {
    match device.location() {
        DeviceLocation::Cpu => "",
        DeviceLocation::Cuda { .. } => "cuda",
        DeviceLocation::Metal { .. } => "metal",
    }
}

/// What the digits of a result depend on beside the model: the type that is computed in, that of the weights where it
/// is another, and the kind of device where it is not the CPU.
pub(super) fn computed(precision: Precision, device: &Device) -> String {
    let mut text = precision.compute.as_str().to_owned();
    if precision.base != precision.compute || precision.quantised.is_some() {
        text = format!("{text} from {}", precision.base_name());
    }
    match kind(device) {
        "" => text,
        kind => format!("{text} on {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_there_and_nonsense_is_refused() {
        assert!(open("cpu").unwrap().is_cpu());
        open("auto").unwrap();
        for name in ["cuda:", "cuda:x", "cuda0", "gpu", "", "metal:0"] {
            assert!(open(name).unwrap_err().to_string().starts_with(&format!("--device {name}: ")), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_a_feature_names_it() {
        for name in ["cuda", "cuda:3"] {
            let error = open(name).unwrap_err().to_string();
            assert!(error.contains("--features cuda") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_was_always_so_is_recorded_as_always() {
        let mixed = Precision { base: DType::BF16, compute: DType::F32, quantised: None };
        assert_eq!(computed(DType::F32.into(), &Device::Cpu), "f32");
        assert_eq!(computed(mixed, &Device::Cpu), "f32 from bf16");
        assert_eq!((name(&Device::Cpu).as_str(), kind(&Device::Cpu)), ("cpu", ""));
    }
}
