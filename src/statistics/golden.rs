//! Against SciPy and full enumeration (`tests/golden/intervals.json`, made by `intervals.py` beside it).

use super::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    wilson: Vec<Wilson>,
    mcnemar: Vec<McNemar>,
    student: Vec<Student>,
    holm: Vec<Holm>,
    sign_flips: Vec<SignFlips>,
    bootstrap: Vec<Resampled>,
}

#[derive(Deserialize)]
struct Wilson {
    successes: u64,
    trials: u64,
    level: f64,
    low: f64,
    high: f64,
}

#[derive(Deserialize)]
struct McNemar {
    only_first: u64,
    only_second: u64,
    exact: f64,
    mid: f64,
}

#[derive(Deserialize)]
struct Student {
    name: String,
    values: Vec<f64>,
    p: f64,
    intervals: std::collections::BTreeMap<String, (f64, f64)>,
    tost: std::collections::BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Holm {
    p: Vec<f64>,
    adjusted: Vec<f64>,
}

#[derive(Deserialize)]
struct SignFlips {
    values: Vec<f64>,
    p: f64,
}

#[derive(Deserialize)]
struct Resampled {
    values: Vec<f64>,
    level: f64,
    low: [f64; 3],
    high: [f64; 3],
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../tests/golden/intervals.json")).unwrap()
}

/// Within 1e-9, relative below 1.
#[track_caller]
fn close(what: &str, got: f64, expected: f64) {
    let scale = expected.abs().clamp(1e-3, 1.0);
    assert!((got - expected).abs() <= 1e-9 * scale, "{what}: {got} against {expected}");
}

#[test]
fn wilson_is_scipys() {
    for case in golden().wilson {
        let interval = wilson_interval(case.successes, case.trials, case.level).unwrap();
        let what = format!("{}/{} at {}", case.successes, case.trials, case.level);
        close(&what, interval.low, case.low);
        close(&what, interval.high, case.high);
    }
}

#[test]
fn mcnemar_is_scipys() {
    for case in golden().mcnemar {
        let what = format!("{} against {}", case.only_first, case.only_second);
        close(&what, mcnemar_exact(case.only_first, case.only_second), case.exact);
        close(&what, mcnemar_mid_p(case.only_first, case.only_second), case.mid);
    }
}

#[test]
fn students_t_is_scipys() {
    for case in golden().student {
        close(&case.name, student_t_p_value(&case.values).unwrap(), case.p);
        for (level, (low, high)) in &case.intervals {
            let interval = student_t_interval(&case.values, level.parse().unwrap()).unwrap();
            close(&case.name, interval.low, *low);
            close(&case.name, interval.high, *high);
        }
        for (margin, p) in &case.tost {
            let tost = tost_equivalence(&case.values, margin.parse().unwrap(), 0.05).unwrap();
            close(&case.name, tost.p, *p);
            assert_eq!(tost.equivalent, *p < 0.05, "{}: the interval and the p-value agree", case.name);
        }
    }
}

#[test]
fn holm_is_the_closure_of_bonferronis_test() {
    for case in golden().holm {
        for (got, expected) in holm(&case.p).unwrap().into_iter().zip(&case.adjusted) {
            close("Holm", got, *expected);
        }
    }
}

#[test]
fn sign_flips_are_scipys_permutation_test() {
    for case in golden().sign_flips {
        close("sign flips", sign_flip_p_value(&case.values, REPLICATES, 1).unwrap(), case.p);
    }
}

/// 10,000 resamples place a quantile within half a percent of its level (three standard errors).
#[test]
fn the_bootstrap_is_its_full_enumeration() {
    for case in golden().bootstrap {
        let interval = bootstrap_mean_interval(&case.values, case.level, 3).unwrap();
        let inside = |value: f64, ends: [f64; 3]| ends[0] - 1e-12 <= value && value <= ends[2] + 1e-12;
        assert!(inside(interval.low, case.low), "{interval:?} {:?}", case.low);
        assert!(inside(interval.high, case.high), "{interval:?} {:?}", case.high);
    }
}
