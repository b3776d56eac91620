//! The machine and its kernels.

use crate::program::{assert_one_line, command, run, succeed};
use serde_json::Value;

#[test]
fn on_the_cpu_every_kernel_passes_and_is_named() {
    let text = succeed("doctor --device cpu");
    for kernel in
        ["attention", "linear", "linear_cross_entropy", "rms_norm", "layer_norm", "rope", "gated", "columns", "dropout"]
    {
        let own = || text.lines().filter(|line| line.split_whitespace().next() == Some(kernel));
        assert!(own().count() >= 2 && own().all(|line| line.ends_with("  ok")), "{kernel}\n{text}");
    }
    assert!(text.contains("f32") && text.contains("f64") && text.contains("checks passed"), "{text}");
    assert!(text.contains("device     cpu") && text.contains("GFLOP/s"), "{text}");
    // The tests run offline.
    assert!(text.contains("advice     HF_HUB_OFFLINE is set"), "{text}");
}

#[test]
fn json_holds_every_check_with_its_tolerance_and_no_token() {
    let output = command(&["doctor", "--json", "--threads", "1"]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("hf_secret"), "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&value["passed"], &value["machine"]["hub"]["token"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(value["machine"]["processor"]["threads"], 1);
    assert_eq!(value["machine"]["version"], env!("CARGO_PKG_VERSION"));
    let kernels = value["kernels"].as_array().unwrap();
    let number = |check: &Value, of: &str, what: &str| check[of][what].as_f64();
    for check in kernels {
        assert!(number(check, "value", "largest") <= number(check, "value", "tolerance"), "{check}");
        let (found, allowed) = (number(check, "gradient", "largest"), number(check, "gradient", "tolerance"));
        assert!(
            found <= allowed && found.is_some() != check["kernel"].as_str().unwrap().starts_with("token_"),
            "{check}"
        );
    }
    // Each in f32 and in f64.
    assert!(kernels.len() >= 36 && kernels.len().is_multiple_of(2), "{}", kernels.len());
}

#[test]
fn what_the_environment_spoils_is_named_with_its_remedy() {
    let advice = |key: &str, value: &str| {
        let output = command(&["doctor"]).env(key, value).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.starts_with("advice")).collect::<Vec<_>>().join("\n")
    };
    assert!(advice("CANDLE_NUM_THREADS", "8").contains("Unset it, or set it to 1"));
    assert!(advice("HF_HUB_CACHE", "/dev/null/cache").contains("set HF_HOME to a folder of yours"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_the_build_lacks_is_one_line_with_the_remedy() {
    assert_one_line(&run("doctor --device cuda"), &["--device cuda", "--features cuda"], "doctor");
    assert_one_line(&run("doctor --device nonsense"), &["--device nonsense"], "doctor");
    assert_eq!(run("doctor --no-such-option").code, Some(2));
}
