//! The working memory.

use serde::Serialize;

/// Working memory in bytes, as far as the system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All that this process could have: the machine's, or the limit of its control group.
    pub total: Option<u64>,
    /// What is to be had without swapping.
    pub available: Option<u64>,
}

impl Memory {
    /// The memory of this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let found = read("/proc/meminfo").map(|text| in_meminfo(&text));
        let found = found.unwrap_or(Self { total: of_sysctl(), available: None });
        let number = |path| read(path)?.trim().parse::<u64>().ok();
        match (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current")) {
            (Some(limit), used) => found.within(limit, used.unwrap_or_default()),
            (None, _) => found,
        }
    }

    /// The memory of a control group that may use `limit` bytes and uses `used`.
    fn within(self, limit: u64, used: u64) -> Self {
        let left = limit.saturating_sub(used);
        Self {
            total: Some(self.total.map_or(limit, |total| total.min(limit))),
            available: Some(self.available.map_or(left, |available| available.min(left))),
        }
    }
}

/// What Linux's `/proc/meminfo` says, in kB of 1024 bytes.
fn in_meminfo(text: &str) -> Memory {
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Memory { total: bytes("MemTotal:"), available: bytes("MemAvailable:") }
}

#[cfg(target_os = "macos")]
fn of_sysctl() -> Option<u64> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[cfg(not(target_os = "macos"))]
fn of_sysctl() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kilobytes_and_a_control_group_narrows_it() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    600 kB\n";
        let found = in_meminfo(text);
        assert_eq!(found, Memory { total: Some(1_024_000), available: Some(614_400) });
        assert_eq!(found.within(500_000, 100_000), Memory { total: Some(500_000), available: Some(400_000) });
        assert_eq!(found.within(u64::MAX, 5), found);
        assert_eq!(found.within(10, 50).available, Some(0));
        assert_eq!(in_meminfo("MemTotal: much\n"), Memory { total: None, available: None });
    }
}
