//! The pages of `report.html` in a browser: what a reader clicks, what is then read, and that nothing leaves the page.
//!
//! Needs Chromium (Debian: `apt-get install chromium`), found on the path or through SMOOTH_PROBE_CHROMIUM; says SKIPPED
//! without. SMOOTH_PROBE_SHOTS=FOLDER keeps screenshots at phone and desktop width, in light and dark.
#![cfg(all(feature = "cli", unix))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what the tests share is part of the tests"
)]

mod devtools;
mod runs;
mod similarity;
mod training;
