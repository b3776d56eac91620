//! What has to hold before a comparison is worth reading.

use super::cell::{Cell, CellResult};
use super::file::Study;
use super::schema::Gate;
use crate::pretrain::run::read_log;

const PRETRAIN_LOG: &str = include_str!("../../../models/embedded/pretrain.jsonl");

/// The gates that the embedded model itself had to pass, from the last line of its log.
fn pretraining_gates(log: &str) -> Vec<String> {
    let gates = read_log(log).pop().map(|event| event.gates).unwrap_or_default();
    let wanted = [("how many", 0.90), ("yes/no", 0.95)];
    let line = |(kind, least): (&str, f64)| {
        let gate = gates.iter().find(|gate| gate.kind == kind && gate.split == "validation")?;
        let ok = if gate.accuracy >= least { "passed" } else { "**missed**: the model cannot do this lookup" };
        let (found, least) = (100.0 * gate.accuracy, 100.0 * least);
        Some(format!("pre-training, \"{kind}\" on held-out pairs at least {least:.0} %: {found:.1} %: {ok}"))
    };
    wanted.into_iter().filter_map(line).collect()
}

/// The gates of the model and of the study, each with what was found.
pub(super) fn gates(study: &Study, cells: &[Cell]) -> Vec<String> {
    let own = study.gates.iter().filter_map(|gate| line(gate, cells));
    pretraining_gates(PRETRAIN_LOG).into_iter().chain(own).collect()
}

/// A gate's sentence; `None` where its arm has no cell.
fn line(gate: &Gate, cells: &[Cell]) -> Option<String> {
    let mean = |value: fn(&CellResult) -> f64| {
        let own: Vec<f64> = cells.iter().filter(|c| c.arm == gate.arm).map(|c| value(&c.result)).collect();
        (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
    };
    let (found, commonest) = (mean(|cell| cell.accuracy)?, mean(|cell| cell.majority)?);
    let points = |share: f64| format!("{:.0}", 100.0 * share);
    let mut bounds = Vec::new();
    match (gate.at_least, gate.at_most) {
        (Some(low), Some(high)) => bounds.push(format!("between {} and {} %", points(low), points(high))),
        (Some(low), None) => bounds.push(format!("at least {} %", points(low))),
        (None, Some(high)) => bounds.push(format!("at most {} %", points(high))),
        (None, None) => {}
    }
    let mut seen = format!("{:.1} %", 100.0 * found);
    if let Some(over) = gate.at_most_over_commonest {
        bounds.push(format!("at most {} points over the commonest answer", points(over)));
        seen = format!("{seen} over {:.1} %", 100.0 * commonest);
    }
    let passed = gate.at_least.is_none_or(|low| found >= low)
        && gate.at_most.is_none_or(|high| found <= high)
        && gate.at_most_over_commonest.is_none_or(|over| found <= commonest + over);
    let verdict = if passed { "passed" } else { "**missed**: read the comparisons with care" };
    Some(format!("{} {}: {seen}: {verdict}", gate.what, bounds.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_passed_its_gates() {
        let gates = pretraining_gates(PRETRAIN_LOG);
        assert_eq!(gates.len(), 2);
        assert!(gates.iter().all(|gate| gate.ends_with("passed")), "{gates:?}");
    }

    #[test]
    fn a_gate_says_what_it_asks_and_what_was_found() {
        let result = CellResult {
            trainable: 0,
            accuracy: 0.435,
            loss: 1.0,
            majority: 0.101,
            similarity: Vec::new(),
            effective_rank: Vec::new(),
            seconds: 1.0,
            step_cpu_seconds: None,
            course: Vec::new(),
        };
        let cells = [Cell { arm: "a".to_owned(), seed: 1, lr: 0.0, result }];
        let gate = |low, high, over| Gate {
            arm: "a".to_owned(),
            what: "vanilla".to_owned(),
            at_least: low,
            at_most: high,
            at_most_over_commonest: over,
        };
        assert_eq!(
            line(&gate(Some(0.45), Some(0.8), None), &cells).unwrap(),
            "vanilla between 45 and 80 %: 43.5 %: **missed**: read the comparisons with care"
        );
        assert_eq!(line(&gate(Some(0.4), None, None), &cells).unwrap(), "vanilla at least 40 %: 43.5 %: passed");
        assert_eq!(
            line(&gate(None, None, Some(0.25)), &cells).unwrap(),
            "vanilla at most 25 points over the commonest answer: 43.5 % over 10.1 %: **missed**: read the comparisons \
             with care"
        );
        assert_eq!(line(&gate(None, None, Some(0.25)), &[]), None);
    }
}
