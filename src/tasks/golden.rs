//! Against scikit-learn and SciPy (`tests/golden/task_metrics.json`, made by `task_metrics.py` beside it).

use super::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    classes: Vec<Classes>,
    scores: Vec<ScorePairs>,
    calibration: Vec<Probabilities>,
}

#[derive(Deserialize)]
struct Classes {
    predicted: Vec<usize>,
    label: Vec<usize>,
    accuracy: f64,
    matthews: f64,
    f1: f64,
}

#[derive(Deserialize)]
struct ScorePairs {
    predicted: Vec<f64>,
    label: Vec<f64>,
    pearson: f64,
    spearman: f64,
}

#[derive(Deserialize)]
struct Probabilities {
    probabilities: Vec<Vec<f64>>,
    label: Vec<usize>,
    ece: f64,
    brier: f64,
    nll: f64,
}

#[track_caller]
fn close(what: &str, got: Option<f64>, expected: f64) {
    assert!(got.is_some_and(|got| (got - expected).abs() <= 1e-12), "{what}: {got:?} against {expected}");
}

#[test]
fn metrics_are_those_of_scikit_learn_and_scipy() {
    let golden: Golden = serde_json::from_str(include_str!("../../tests/golden/task_metrics.json")).unwrap();
    assert_eq!((golden.classes.len(), golden.scores.len(), golden.calibration.len()), (8, 5, 4));
    for case in golden.classes {
        let pairs: Vec<(usize, usize)> = case.predicted.into_iter().zip(case.label).collect();
        close("accuracy", accuracy(&pairs), case.accuracy);
        close("matthews", matthews(&pairs), case.matthews);
        close("f1", f1(&pairs), case.f1);
    }
    for case in golden.scores {
        let pairs: Vec<(f64, f64)> = case.predicted.into_iter().zip(case.label).collect();
        close("pearson", pearson(&pairs), case.pearson);
        close("spearman", spearman(&pairs), case.spearman);
    }
    for case in golden.calibration {
        let stated = |(probabilities, label)| Stated { probabilities, label };
        let items: Vec<Stated> = case.probabilities.into_iter().zip(case.label).map(stated).collect();
        let found = calibration(&items, BINS).unwrap();
        close("ece", Some(found.ece), case.ece);
        close("brier", Some(found.brier), case.brier);
        close("nll", Some(found.nll), case.nll);
    }
}
