//! What is wrong with a machine or may be, each with its remedy.

use super::accelerator::Accelerator;
use super::cache::Cache;
use super::memory::Memory;
use super::processor::Processor;
use crate::kernels::KernelCheck;
use std::fmt;
use std::path::PathBuf;

/// The toolkit that programs are built for.
const CUDA: u32 = 13;
/// Below this a model of 0.1 · 10⁹ weights hardly trains.
const LITTLE_MEMORY: u64 = 2_000_000_000;
/// Below this a model of 0.1 · 10⁹ weights hardly fits.
const LITTLE_DISK: u64 = 1_000_000_000;

/// A finding; its `Display` says what is the case and what to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// A kernel does not compute what it should.
    KernelFailed {
        /// The kernel, its form and its type.
        kernel: String,
        /// What kept it from running, if it did not run.
        error: Option<String>,
    },
    /// The processor lacks the instructions that the fast kernels take.
    SlowInstructions {
        /// What is taken instead.
        taken: &'static str,
    },
    /// Fewer threads than cores.
    FewThreads {
        /// Threads in use.
        threads: usize,
        /// Cores that could be used.
        cores: usize,
    },
    /// More threads than cores.
    ManyThreads {
        /// Threads in use.
        threads: usize,
        /// Cores that there are.
        cores: usize,
    },
    /// candle's own pool has more than one thread.
    SpinningPool {
        /// The value of `CANDLE_NUM_THREADS`.
        value: String,
    },
    /// Little working memory is left.
    LittleMemory {
        /// Bytes.
        available: u64,
    },
    /// There is an NVIDIA card that this build cannot use.
    CudaNotBuilt,
    /// There is an NVIDIA card, this build can use it, and the CPU was asked for or chosen.
    CudaNotUsed,
    /// The driver is older than the toolkit that the program is built for.
    OldDriver {
        /// The newest CUDA version that it knows.
        version: (u32, u32),
    },
    /// Products of `f32` are computed with 10 bits.
    Tf32,
    /// Little memory is left on the device.
    LittleDeviceMemory {
        /// Bytes.
        free: u64,
    },
    /// No model can be downloaded.
    CacheNotWritable {
        /// The cache.
        folder: PathBuf,
    },
    /// Little room for models.
    LittleDisk {
        /// The cache.
        folder: PathBuf,
        /// Bytes.
        free: u64,
    },
    /// `HF_HUB_OFFLINE` is set.
    Offline,
}

impl Finding {
    /// Whether results cannot be trusted; all else is advice.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::KernelFailed { .. })
    }

    /// A failed check.
    pub(super) fn of_kernel(check: &KernelCheck) -> Option<Self> {
        let form = if check.form.is_empty() { String::new() } else { format!(" ({})", check.form) };
        let kernel = format!("{}{form} in {}", check.kernel, check.dtype.as_str());
        (!check.passed()).then(|| Self::KernelFailed { kernel, error: check.error.clone() })
    }

    /// What processor and threads give rise to, `CANDLE_NUM_THREADS` being `variable`.
    pub(super) fn of_processor(processor: &Processor, variable: Option<&str>) -> Vec<Self> {
        let &Processor { threads, cores, row_kernels, .. } = processor;
        let slow = ["SSE2", "portable"].contains(&row_kernels).then_some(Self::SlowInstructions { taken: row_kernels });
        let pool = variable.filter(|value| value.trim().parse::<usize>().is_ok_and(|count| count > 1));
        let all = [
            slow,
            (threads < cores).then_some(Self::FewThreads { threads, cores }),
            (threads > cores).then_some(Self::ManyThreads { threads, cores }),
            pool.map(|value| Self::SpinningPool { value: value.to_owned() }),
        ];
        all.into_iter().flatten().collect()
    }

    pub(super) fn of_memory(memory: &Memory) -> Option<Self> {
        memory.available.filter(|&left| left < LITTLE_MEMORY).map(|available| Self::LittleMemory { available })
    }

    /// What the device gives rise to, where the system shows an NVIDIA card or not.
    pub(super) fn of_device(device: &Accelerator, card: bool, tf32: bool) -> Vec<Self> {
        let cpu = device.device == "cpu";
        let on_cuda = device.device.starts_with("cuda");
        let idle = if cfg!(feature = "cuda") { Self::CudaNotUsed } else { Self::CudaNotBuilt };
        let old = device.driver.filter(|&(major, _)| major < CUDA);
        let all = [
            (cpu && card).then_some(idle),
            old.map(|version| Self::OldDriver { version }),
            (on_cuda && tf32).then_some(Self::Tf32),
            device.free.filter(|&free| free < LITTLE_MEMORY).map(|free| Self::LittleDeviceMemory { free }),
        ];
        all.into_iter().flatten().collect()
    }

    pub(super) fn of_cache(cache: &Cache) -> Vec<Self> {
        let folder = || cache.folder.clone();
        let little = cache.free.filter(|&free| free < LITTLE_DISK);
        let all = [
            (!cache.writable).then(|| Self::CacheNotWritable { folder: folder() }),
            little.map(|free| Self::LittleDisk { folder: folder(), free }),
            cache.offline.then_some(Self::Offline),
        ];
        all.into_iter().flatten().collect()
    }
}

/// What to do where the device that `--device` names cannot be opened; none where its name is wrong.
#[must_use]
pub fn remedy(device: &str) -> Option<String> {
    let kind = device.split(':').next().unwrap_or_default();
    match kind {
        "cuda" if cfg!(feature = "cuda") => {
            Some(format!("install a driver for CUDA {CUDA}, name a card that nvidia-smi lists, or use --device cpu"))
        }
        "cuda" => Some("rebuild with --features cuda, or use --device cpu".to_owned()),
        "metal" if cfg!(feature = "metal") => Some("Metal needs an Apple GPU; use --device cpu".to_owned()),
        "metal" => Some("rebuild with --features metal on a Mac, or use --device cpu".to_owned()),
        _ => None,
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelFailed { kernel, error: Some(error) } => {
                write!(f, "{kernel} does not run: {error}. Use --device cpu, and report this with the output of --json")
            }
            Self::KernelFailed { kernel, error: None } => write!(
                f,
                "{kernel} deviates further than rounding allows: what is trained or measured on this device cannot be \
                 trusted. Use another --device, and report this with the output of --json"
            ),
            Self::SlowInstructions { taken } => write!(
                f,
                "the kernels take {taken}: they are several times faster on a processor with AVX2 and FMA, which a \
                 virtual machine may hide (for QEMU: -cpu host)"
            ),
            Self::FewThreads { threads, cores } => {
                write!(f, "{threads} of {cores} cores are used: raise --threads, or unset RAYON_NUM_THREADS")
            }
            Self::ManyThreads { threads, cores } => write!(
                f,
                "{threads} threads on {cores} cores wait for each other: lower --threads, or unset RAYON_NUM_THREADS"
            ),
            Self::SpinningPool { value } => write!(
                f,
                "CANDLE_NUM_THREADS is {value}: candle's threads spin while they wait and take the cores from the \
                 kernels' threads. Unset it, or set it to 1"
            ),
            Self::LittleMemory { available } => write!(
                f,
                "{} of memory are available: close other programs, or train with --checkpointing and a small \
                 --micro-batch",
                gigabytes(*available)
            ),
            Self::CudaNotBuilt => write!(
                f,
                "there is an NVIDIA card, and this program is built without CUDA: rebuild with --features cuda"
            ),
            Self::CudaNotUsed => write!(f, "there is an NVIDIA card that is not used: --device cuda uses it"),
            Self::OldDriver { version: (major, minor) } => write!(
                f,
                "the driver knows CUDA {major}.{minor}, and the program may be built for CUDA {CUDA}: install a newer \
                 driver if anything fails"
            ),
            Self::Tf32 => write!(f, "NVIDIA_TF32_OVERRIDE=1 makes products of f32 as coarse as f16: unset it"),
            Self::LittleDeviceMemory { free } => write!(
                f,
                "{} of the device's memory are free: end other programs on it (nvidia-smi lists them)",
                gigabytes(*free)
            ),
            Self::CacheNotWritable { folder } => write!(
                f,
                "{} cannot be written, so no model can be downloaded: set HF_HOME to a folder of yours",
                folder.display()
            ),
            Self::LittleDisk { folder, free } => write!(
                f,
                "{} are free for {}: make room, or set HF_HOME to a folder on a larger disk",
                gigabytes(*free),
                folder.display()
            ),
            Self::Offline => write!(
                f,
                "HF_HUB_OFFLINE is set: only models that are in the cache can be opened by name. Unset it to download"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Deviation;
    use candle_core::DType;

    fn processor(threads: usize, cores: usize, row_kernels: &'static str) -> Processor {
        Processor { name: None, cores, threads, row_kernels, products: row_kernels }
    }

    #[test]
    fn threads_and_instructions() {
        let of = |threads, variable| Finding::of_processor(&processor(threads, 4, "AVX2 and FMA"), variable);
        assert!(of(4, Some("1")).is_empty() && of(4, None).is_empty() && of(4, Some("many")).is_empty());
        assert_eq!(of(2, None), [Finding::FewThreads { threads: 2, cores: 4 }]);
        assert_eq!(of(8, None), [Finding::ManyThreads { threads: 8, cores: 4 }]);
        assert_eq!(of(4, Some("16")), [Finding::SpinningPool { value: "16".to_owned() }]);
        let slow = Finding::of_processor(&processor(1, 1, "SSE2"), None);
        assert!(slow[0].to_string().contains("take SSE2"), "{slow:?}");
    }

    #[test]
    fn memory_and_disk() {
        let memory = |available| Finding::of_memory(&Memory { total: None, available });
        assert_eq!((memory(None), memory(Some(3_000_000_000))), (None, None));
        assert!(memory(Some(500_000_000)).unwrap().to_string().starts_with("0.5 GB of memory"));
        let cache = Cache {
            endpoint: String::new(),
            folder: "/models".into(),
            exists: true,
            writable: true,
            free: None,
            offline: false,
            token: false,
        };
        assert!(Finding::of_cache(&cache).is_empty());
        let bad = Cache { writable: false, free: Some(1), offline: true, ..cache };
        let found: Vec<String> = Finding::of_cache(&bad).iter().map(Finding::to_string).collect();
        assert!(found[0].starts_with("/models cannot be written") && found[0].contains("HF_HOME"), "{found:?}");
        assert!(found[1].starts_with("0.0 GB are free for /models") && found[2].starts_with("HF_HUB_OFFLINE"));
    }

    #[test]
    fn devices() {
        let cpu = Accelerator { device: "cpu".to_owned(), ..Accelerator::default() };
        assert!(Finding::of_device(&cpu, false, true).is_empty());
        let idle = if cfg!(feature = "cuda") { Finding::CudaNotUsed } else { Finding::CudaNotBuilt };
        assert_eq!(Finding::of_device(&cpu, true, false), [idle]);
        let card = Accelerator { device: "cuda:0".to_owned(), driver: Some((12, 8)), free: Some(1), ..cpu };
        let all = [Finding::OldDriver { version: (12, 8) }, Finding::Tf32, Finding::LittleDeviceMemory { free: 1 }];
        assert_eq!(Finding::of_device(&card, true, true), all);
        let well = Accelerator { driver: Some((13, 0)), free: Some(20_000_000_000), ..card };
        assert!(Finding::of_device(&well, true, false).is_empty());
        assert!(remedy("cuda:1").unwrap().contains("cpu") && remedy("tpu").is_none());
    }

    #[test]
    fn only_a_failed_kernel_is_a_failure() {
        let value = Deviation { largest: 1.0, tolerance: 0.5 };
        let mut check = KernelCheck {
            kernel: "attention",
            form: "causal",
            dtype: DType::F32,
            value,
            gradient: None,
            formula: None,
            error: None,
            seconds: 0.0,
        };
        let found = Finding::of_kernel(&check).unwrap();
        assert!(found.is_failure() && found.to_string().starts_with("attention (causal) in f32 deviates"), "{found}");
        check.error = Some("no such kernel".to_owned());
        assert!(Finding::of_kernel(&check).unwrap().to_string().contains("does not run: no such kernel."));
        check.error = None;
        check.value.largest = 0.5;
        assert_eq!(Finding::of_kernel(&check), None);
        assert!(!Finding::Offline.is_failure());
    }
}
