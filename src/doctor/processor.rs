//! The processor, and which of its instructions the kernels take.

use serde::Serialize;
use std::num::NonZero;

/// A processor.
#[derive(Debug, Clone, Serialize)]
pub struct Processor {
    /// As the system names it, if it does.
    pub name: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Threads that kernels use.
    pub threads: usize,
    /// The instructions that row kernels (norms, activations, softmax) take.
    pub row_kernels: &'static str,
    /// The instructions that matrix products take.
    pub products: &'static str,
}

impl Processor {
    /// The processor at hand.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self {
            name: name(),
            cores: std::thread::available_parallelism().map_or(1, NonZero::get),
            threads: rayon::current_num_threads(),
            row_kernels: instructions(Wanted::Avx2AndFma),
            products: instructions(Wanted::Fma),
        }
    }
}

/// What a kernel asks an x86 processor for.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    /// As `kernels::vector` does.
    Avx2AndFma,
    /// As the gemm crate does, whose kernels for AVX-512 are not compiled in.
    Fma,
}

#[cfg(target_arch = "x86_64")]
fn instructions(wanted: Wanted) -> &'static str {
    let fma = std::arch::is_x86_feature_detected!("fma");
    let avx2 = std::arch::is_x86_feature_detected!("avx2");
    if fma && (avx2 || wanted == Wanted::Fma) { "AVX2 and FMA" } else { "SSE2" }
}

#[cfg(target_arch = "aarch64")]
fn instructions(_: Wanted) -> &'static str {
    "NEON"
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions(_: Wanted) -> &'static str {
    "portable"
}

#[cfg(target_os = "macos")]
fn name() -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
    some(&String::from_utf8(output.stdout).ok()?)
}

#[cfg(not(target_os = "macos"))]
fn name() -> Option<String> {
    match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => in_cpuinfo(&text),
        // Windows sets it.
        Err(_) => some(&std::env::var("PROCESSOR_IDENTIFIER").ok()?),
    }
}

/// The model's name in Linux's `/proc/cpuinfo`; ARM kernels give none.
#[cfg_attr(target_os = "macos", expect(dead_code, reason = "Linux's file"))]
fn in_cpuinfo(text: &str) -> Option<String> {
    let line = |key: &str| text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key);
    line("model name").or_else(|| line("Hardware")).and_then(|(_, value)| some(value))
}

fn some(text: &str) -> Option<String> {
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_taken_from_the_first_processor() {
        let text =
            "processor\t: 0\nvendor_id\t: X\nmodel name\t: X 9 @ 3 GHz: fast\n\nprocessor\t: 1\nmodel name\t: Y\n";
        assert_eq!(in_cpuinfo(text).as_deref(), Some("X 9 @ 3 GHz: fast"));
        assert_eq!(in_cpuinfo("Hardware\t: Board\n").as_deref(), Some("Board"));
        assert_eq!(in_cpuinfo("processor\t: 0\nmodel name\t:\n"), None);
    }

    #[test]
    fn threads_are_those_of_the_pool_that_asks() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(Processor::of_this_machine).threads, 3);
    }
}
