//! Results in the shape of lm-evaluation-harness's `results_*.json`, so that its readers and leaderboards read ours.

use super::{Mode, Scores, Task};
use serde_json::{Map, Value, json};

/// A run's results in lm-evaluation-harness's shape; `model` names the model and its arguments.
///
/// Its own metrics have their names (`acc,none`, `acc_norm,none`, `mcc,none`, …); what it does not have stands beside
/// them under the names of ours.
#[must_use]
pub fn harness_results(model: (&str, &str), seed: u64, results: &[(&Task, &Scores)]) -> Value {
    let mut all = ["results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"]
        .map(|key| (key, Map::<String, Value>::new()));
    for (task, scores) in results {
        let filter = match scores.mode {
            Mode::LogLikelihood | Mode::Classify => "none".to_owned(),
            mode => mode.to_string(),
        };
        let (mut values, mut higher) = (Map::new(), Map::new());
        values.insert("alias".to_owned(), json!(task.name));
        for score in &scores.metrics {
            values.insert(format!("{},{filter}", score.harness), json!(score.value));
            values.insert(format!("{}_stderr,{filter}", score.harness), json!(score.standard_error));
            higher.insert(score.harness.clone(), json!(true));
        }
        if let Some(calibration) = &scores.calibration {
            for (name, value) in
                [("ece", calibration.ece), ("brier_score", calibration.brier), ("nll", calibration.nll)]
            {
                values.insert(format!("{name},{filter}"), json!(value));
                higher.insert(name.to_owned(), json!(false));
            }
        }
        let output = match scores.mode {
            Mode::LogLikelihood => "multiple_choice",
            Mode::Classify => "classification",
            _ => "generate_until",
        };
        let config = json!({
            "task": task.name, "doc_to_text": task.template, "output_type": output, "num_fewshot": 0,
            "metric_list": scores.metrics.iter().map(|score| json!({"metric": score.harness})).collect::<Vec<_>>(),
            "metadata": {"version": task.version, "mode": scores.mode.name(), "source": task.source},
        });
        let entries = [
            Value::Object(values),
            config,
            json!(task.version),
            json!(0),
            Value::Object(higher),
            json!({"original": task.items.unwrap_or(scores.items), "effective": scores.items}),
        ];
        for ((_, map), entry) in all.iter_mut().zip(entries) {
            map.insert(task.name.clone(), entry);
        }
    }
    let mut whole: Map<String, Value> =
        all.into_iter().map(|(key, map)| (key.to_owned(), Value::Object(map))).collect();
    whole.insert("group_subtasks".to_owned(), json!({}));
    whole.insert(
        "config".to_owned(),
        json!({"model": "smooth-probe", "model_args": model.1, "random_seed": seed, "limit": null}),
    );
    whole.insert("model_source".to_owned(), json!("smooth-probe"));
    whole.insert("model_name".to_owned(), json!(model.0));
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;

    #[test]
    fn a_result_has_the_harness_s_keys() {
        let task = &find_tasks("boolq").unwrap()[0];
        let scores = serde_json::from_value::<Scores>(json!({
            "task": "boolq", "version": 1, "mode": "loglikelihood", "items": 10, "without_answer": 0, "cut": 0,
            "seconds": 1.0, "metrics": [{"metric": "accuracy", "harness": "acc", "value": 0.5, "low": 0.2, "high": 0.8,
            "interval": "wilson", "standard_error": 0.1}]
        }))
        .unwrap();
        let found = harness_results(("m", "pretrained=m"), 1, &[(task, &scores)]);
        assert_eq!(found["results"]["boolq"]["acc,none"], json!(0.5));
        assert_eq!(found["results"]["boolq"]["acc_stderr,none"], json!(0.1));
        assert_eq!(found["versions"]["boolq"], json!(1));
        assert_eq!(found["n-samples"]["boolq"], json!({"original": 3270, "effective": 10}));
        assert_eq!(found["configs"]["boolq"]["output_type"], json!("multiple_choice"));
    }
}
