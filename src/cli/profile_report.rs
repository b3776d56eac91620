//! What `train --profile` prints and keeps.

use crate::kernels;
use crate::profile::Profile;
use anyhow::Result;
use serde_json::json;

/// Prints where the time went, and answers it for the manifest.
pub(super) fn report() -> Result<serde_json::Value> {
    // Before the measurement below, which makes products too.
    let profile = Profile::so_far();
    let peak = kernels::peak_rate()?;
    let total: f64 = profile.seconds.iter().map(|(_, seconds)| seconds).sum();
    for (phase, seconds) in &profile.seconds {
        note!("{phase:<11} {seconds:>9.2} s  {:>5.1} %", 100.0 * seconds / total.max(f64::MIN_POSITIVE));
    }
    if let Some(rate) = profile.product_rate() {
        let Profile { product_seconds, product_gflop, .. } = profile;
        note!(
            "of which matrix products of linears and loss: {product_seconds:.2} s, {product_gflop:.1} GFLOP, \
             {rate:.1} GFLOP/s; one large product in f32 reaches {peak:.1}"
        );
    }
    if let Some(rate) = profile.attention_rate() {
        let Profile { attention_seconds, attention_gflop, .. } = profile;
        note!(
            "of which attention, its softmax with it: {attention_seconds:.2} s, {attention_gflop:.1} GFLOP, \
             {rate:.1} GFLOP/s"
        );
    }
    let seconds: serde_json::Map<_, _> =
        profile.seconds.iter().map(|(phase, s)| ((*phase).to_owned(), json!(s))).collect();
    Ok(json!({
        "seconds": seconds,
        "product_seconds": profile.product_seconds,
        "product_gflop": profile.product_gflop,
        "product_gflop_per_second": profile.product_rate(),
        "attention_seconds": profile.attention_seconds,
        "attention_gflop": profile.attention_gflop,
        "attention_gflop_per_second": profile.attention_rate(),
        "peak_gflop_per_second": peak,
    }))
}
