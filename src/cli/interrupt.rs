//! Being asked to stop: by a scheduler's signal, or by the clock.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The exit code of a run that was asked to stop and can go on: run the same command again.
pub(super) const EXIT_CODE: u8 = 3;

/// The work was asked to stop, has kept what it did, and can go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(pub(super) String);

/// The flag that SIGTERM and SIGUSR1 set from now on: what a cluster sends before it takes a machine away.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = FLAG.get() {
        return Ok(flag.clone());
    }
    let flag = FLAG.get_or_init(Arc::default).clone();
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGUSR1] {
        signal_hook::flag::register(signal, flag.clone()).with_context(|| format!("signal {signal}"))?;
    }
    Ok(flag)
}

/// Sets the flag when the minutes are over.
pub(super) fn after_minutes(minutes: f64, flag: &Arc<AtomicBool>) -> Result<()> {
    let time = Duration::try_from_secs_f64(60.0 * minutes)
        .ok()
        .filter(|time| !time.is_zero())
        .with_context(|| format!("--stop-after is {minutes}; it must be minutes, above 0"))?;
    let flag = flag.clone();
    std::thread::spawn(move || {
        std::thread::sleep(time);
        flag.store(true, Ordering::Relaxed);
    });
    Ok(())
}
