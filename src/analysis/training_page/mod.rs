//! The page of a training run, from its event log and manifest alone: when, and at which layer, tokens grow alike.

mod course;

pub use course::{Course, TrainingFigures, course, training_figures};

use super::provenance::provenance;
use crate::report::document::{Block, Cell, Column, DataTable, Document, Figure, View, ViewKind, Warning};
use crate::report::{RenderError, Width};
use crate::train::StepEvent;
use serde_json::{Value, json};

/// Rows of the table of steps that a page holds.
const MOST_STEPS: usize = 250;
/// Points of a curve that a page holds: a longer one is thinned evenly, its ends kept.
const MOST_POINTS: usize = 1_500;

/// The document of a training run; figures are drawn of its events.
///
/// # Errors
/// A figure cannot be drawn.
pub fn training_document(events: &[StepEvent], manifest: &Value) -> Result<Document, RenderError> {
    let course = course(events);
    let config = &manifest["config"];
    let (method, model) = (said(&config["method"]), said(&config["model"]));
    let mut document = Document {
        title: format!("Training: {method} on {model}"),
        question: "When in training do tokens grow alike, and at which layer?".to_owned(),
        answers: answers(events, &course),
        warnings: warnings(events, &course, manifest),
        methods: methods(manifest),
        provenance: provenance(manifest),
        ..Document::default()
    };
    document.section("Explore", vec![Block::View(View { kind: ViewKind::Training, data: view(events, &course) })]);
    let figures = training_figures(events, Width::TwoColumn);
    let mut drawn = Vec::new();
    if let Some(map) = figures.similarity {
        let caption = format!("{}. {}", map.title, map.subtitle);
        drawn.push(Block::Figure(Figure { stem: "training_similarity".to_owned(), svg: map.svg()?, caption }));
    }
    let caption = figures.loss.title.clone();
    drawn.push(Block::Figure(Figure { stem: "training_loss".to_owned(), svg: figures.loss.svg()?, caption }));
    document.section("Figures", drawn);
    document.section("Steps", vec![steps_table(events)]);
    Ok(document)
}

fn said(value: &Value) -> String {
    value.as_str().map_or_else(|| "?".to_owned(), str::to_owned)
}

fn short(value: f64) -> String {
    format!("{value:.4}").replace('-', "−")
}

fn answers(events: &[StepEvent], course: &Course) -> Vec<String> {
    let mut answers = Vec::new();
    let end = course.steps.len().saturating_sub(1);
    let ends = course.last_block().and_then(|last| Some((last, course.at(0, last)?, course.at(end, last)?)));
    if let Some((last, from, to)) = ends.filter(|_| end > 0) {
        let (first_step, last_step) =
            (course.steps.first().copied().unwrap_or(0), course.steps.last().copied().unwrap_or(0));
        let whole = to - from;
        let verb = if whole > 0.0 { "more" } else { "less" };
        answers.push(format!(
            "After the last block (layer {last}) the held-out texts' tokens have a mean cosine of {} at step {first_step} and {} at \
             step {last_step}: {} alike by {}.",
            short(from),
            short(to),
            verb,
            short(whole.abs()),
        ));
        answers.extend(onset(course, last, from, whole));
        let change = |layer: usize| Some((layer, course.at(end, layer)? - course.at(0, layer)?));
        let most = (1..=last).filter_map(change).max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        if let Some((layer, by)) = most {
            let sign = if by < 0.0 { "−" } else { "+" };
            answers.push(format!("Of the blocks, layer {layer} moved most: {sign}{}.", short(by.abs())));
        }
    } else {
        answers.push(
            "Similarity was not watched in this run (--probe-every), so when tokens grow alike cannot be said."
                .to_owned(),
        );
    }
    let validated: Vec<(u64, f64)> = events.iter().filter_map(|event| Some((event.step, event.val_loss?))).collect();
    if let (Some((first, from)), Some((last, to))) = (validated.first(), validated.last()) {
        let (at, least) = validated.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied().unwrap_or((*last, *to));
        answers.push(format!(
            "Validation loss goes from {} (step {first}) to {} (step {last}); the lowest is {} at step {}.",
            short(*from),
            short(*to),
            short(least),
            at
        ));
    }
    answers
}

/// The first measured step from which the last block stays beyond half of its whole change.
fn onset(course: &Course, last: usize, from: f64, whole: f64) -> Option<String> {
    if whole == 0.0 {
        return None;
    }
    let beyond = |step: usize| course.at(step, last).is_some_and(|value| (value - from) / whole >= 0.5);
    let measured = course.steps.len();
    let first = (0..measured).rev().take_while(|&step| beyond(step)).last()?;
    let step = course.steps.get(first)?;
    Some(format!("Half of that change was there at step {step}, and stayed (measured at {measured} steps)."))
}

fn warnings(events: &[StepEvent], course: &Course, manifest: &Value) -> Vec<Warning> {
    let mut found = Vec::new();
    if manifest["status"] != "finished" {
        let status = said(&manifest["status"]);
        found.push(Warning::general(format!("The run is not finished (status: {status}): its last step may be any.")));
    }
    if course.steps.len() > 1 {
        found.push(Warning::general(
            "Similarity along a run is one mean over the probe texts a step, without interval, of all tokens and not centred: \
             `similarity` on the saved adapter gives intervals, controls and ranks.",
        ));
    }
    if events.iter().all(|event| event.val_loss.is_none()) {
        found.push(Warning::general("The run has no validation: its loss is that of the training batches alone."));
    }
    found
}

fn methods(manifest: &Value) -> Vec<String> {
    let config = &manifest["config"];
    let number = |key: &str| config[key].as_f64();
    let shown = |key: &str| match &config[key] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut said = format!("{} was trained on {}", self::said(&config["model"]), self::said(&config["data"]));
    let examples = &manifest["examples"];
    if let Some((train, held)) = examples["train"].as_u64().zip(examples["validation"].as_u64()) {
        said.push_str(&format!(" ({train} examples, {held} held out)"));
    }
    said.push_str(&format!(" by the method {}", self::said(&config["method"])));
    if let Some(trainable) = manifest["trainable"].as_u64() {
        said.push_str(&format!(", {trainable} trained weights"));
    }
    if let Some(lambda) = number("sibo-lambda").filter(|lambda| *lambda != 0.0) {
        let (arm, policy) = (self::said(&config["residual"]), self::said(&config["sibo-policy"]));
        said.push_str(&format!("; initial residual with λ = {lambda}, reading {arm}, policy {policy}"));
    }
    said.push('.');
    let mut settings = Vec::new();
    for (key, words) in [
        ("rank", "rank {}"),
        ("lr", "peak learning rate {}"),
        ("schedule", "schedule {}"),
        ("warmup-steps", "{} warm-up steps"),
        ("batch-size", "micro-batches of {}"),
        ("accumulate", "{} of them a step"),
        ("weight-decay", "weight decay {}"),
        ("dropout", "dropout {}"),
        ("cutoff", "examples cut at {} tokens"),
        ("loss-on", "loss on {}"),
        ("template", "template {}"),
        ("seed", "seed {}"),
    ] {
        settings.extend(shown(key).map(|value| words.replace("{}", &value)));
    }
    let steps = manifest["steps"].as_u64().map(|steps| format!("{steps} steps of AdamW: ")).unwrap_or_default();
    let every = shown("probe-every").unwrap_or_default();
    vec![
        said,
        format!("{steps}{}.", settings.join(", ")),
        format!(
            "Token similarity is the mean over the probe texts of the token-wise cosine (Shi et al., ICLR 2022), all tokens, at \
             layers 0 to L and after the final norm, before the first step and every {every} steps. Loss is in nats a target token."
        ),
    ]
}

/// A table of the steps, thinned evenly where there are many.
fn steps_table(events: &[StepEvent]) -> Block {
    let every = events.len().div_ceil(MOST_STEPS).max(1);
    let measured = |event: &StepEvent| event.val_loss.is_some();
    let kept = events.iter().enumerate().filter(|(i, event)| {
        i % every == 0 || i + 1 == events.len() || (every > 1 && measured(event) && i % (every / 2).max(1) == 0)
    });
    let row = |event: &StepEvent| {
        vec![
            Cell::count(event.step),
            Cell::number(Some(event.loss), 4),
            Cell::number(event.val_loss, 4),
            Cell::number(event.val_accuracy, 4),
            Cell { text: format!("{:.3e}", event.lr).replace('-', "−"), value: Some(event.lr), ..Cell::default() },
            Cell::number(Some(event.grad_norm), 3),
            Cell::count(event.tokens as u64),
            Cell::number(Some(event.seconds), 2),
        ]
    };
    let rows: Vec<Vec<Cell>> = kept.map(|(_, event)| row(event)).take(2 * MOST_STEPS).collect();
    let (shown, all) = (rows.len(), events.len());
    let which =
        if shown < all { format!("{shown} of {all} steps; events.jsonl has all") } else { format!("{all} steps") };
    let table = DataTable {
        caption: format!("{which}. Losses in nats; the gradient's norm is before clipping."),
        columns: [
            "step",
            "loss",
            "validation loss",
            "validation accuracy",
            "learning rate",
            "gradient norm",
            "tokens",
            "seconds",
        ]
        .map(Column::number)
        .to_vec(),
        rows,
    };
    Block::Folded(format!("Steps ({shown})"), vec![Block::Table(table)])
}

fn view(events: &[StepEvent], course: &Course) -> Value {
    let series = |name: &str, of: &dyn Fn(&StepEvent) -> Option<f64>| {
        let all: Vec<(u64, f64)> = events.iter().filter_map(|event| Some((event.step, of(event)?))).collect();
        let every = all.len().div_ceil(MOST_POINTS).max(1);
        let kept = all.iter().enumerate().filter(|(i, _)| i % every == 0 || i + 1 == all.len());
        let points: Vec<Value> = kept.map(|(_, (step, value))| json!([step, rounded(Some(*value))])).collect();
        (!points.is_empty()).then(|| json!({"name": name, "points": points}))
    };
    let curve = |name: &str, axis: &str, series: Vec<Option<Value>>| {
        let series: Vec<Value> = series.into_iter().flatten().collect();
        (!series.is_empty()).then(|| json!({"name": name, "axis": axis, "series": series}))
    };
    let along = course.last_block().map(|last| {
        let middle = last / 2;
        let mut places = vec![
            (middle, format!("layer {middle}")),
            (last, format!("layer {last} (last block)")),
            (last + 1, "final norm".to_owned()),
        ];
        places.dedup();
        let points = |place: usize| -> Vec<Value> {
            course.steps.iter().enumerate().map(|(i, step)| json!([step, rounded(course.at(i, place))])).collect()
        };
        places.into_iter().map(|(place, name)| Some(json!({"name": name, "points": points(place)}))).collect()
    });
    let lambdas: Vec<&String> = events.last().map(|event| event.lambda.keys().take(6).collect()).unwrap_or_default();
    let learned = lambdas.into_iter().map(|path| series(path, &|event| event.lambda.get(path).copied())).collect();
    let curves = [
        along.and_then(|along| curve("similarity of some layers", "token-wise cosine similarity", along)),
        curve(
            "loss",
            "loss (nats)",
            vec![series("training batch", &|e| Some(e.loss)), series("validation", &|e| e.val_loss)],
        ),
        curve("validation accuracy", "share of targets predicted", vec![series("validation", &|e| e.val_accuracy)]),
        curve("learned λ", "λ", learned),
        curve("learning rate", "learning rate", vec![series("learning rate", &|e| Some(e.lr))]),
        curve(
            "gradient norm",
            "norm of the gradient, before clipping",
            vec![series("gradient norm", &|e| Some(e.grad_norm))],
        ),
    ];
    let similarity: Vec<Vec<Option<f64>>> =
        course.similarity.iter().map(|values| values.iter().copied().map(rounded).collect()).collect();
    json!({
        "steps": course.steps, "layers": course.names(), "similarity": similarity,
        "curves": curves.into_iter().flatten().collect::<Vec<_>>(),
    })
}

/// Seven digits.
fn rounded(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite()).and_then(|value| format!("{value:.6e}").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(step: u64, last: Option<f64>) -> StepEvent {
        let mut event: StepEvent = serde_json::from_value(json!({
            "step": step, "loss": 4.0 / step as f64, "lr": 1e-3, "tokens": 10, "seconds": 0.5, "grad_norm": 2.0, "epoch": 0.1,
        }))
        .unwrap();
        event.similarity = last.map(|last| vec![Some(0.1), Some(0.2), Some(last), None]);
        event.similarity_before = (step == 1).then(|| vec![Some(0.1), Some(0.2), Some(0.3), None]);
        event.val_loss = step.is_multiple_of(2).then_some(5.0 - step as f64);
        event
    }

    fn events() -> Vec<StepEvent> {
        let last = [None, Some(0.5), Some(0.35), Some(0.45), Some(0.5)];
        last.into_iter().enumerate().map(|(i, last)| event(i as u64 + 1, last)).collect()
    }

    #[test]
    fn the_answer_names_the_step_from_which_half_stays() {
        let course = course(&events());
        assert_eq!(course.steps, [0, 2, 3, 4, 5]);
        let said = answers(&events(), &course);
        assert_eq!(
            said[0],
            "After the last block (layer 2) the held-out texts' tokens have a mean cosine of 0.3000 at step 0 and 0.5000 at step 5: more alike by 0.2000."
        );
        assert_eq!(
            said[1], "Half of that change was there at step 4, and stayed (measured at 5 steps).",
            "step 3 fell back"
        );
        assert_eq!(said[2], "Of the blocks, layer 2 moved most: +0.2000.");
        assert_eq!(
            said[3],
            "Validation loss goes from 3.0000 (step 2) to 1.0000 (step 4); the lowest is 1.0000 at step 4."
        );
    }

    #[test]
    fn the_map_is_of_changes_with_the_deepest_layer_on_top() {
        let map = training_figures(&events(), Width::OneColumn).similarity.unwrap();
        assert_eq!(map.rows, ["final norm", "layer 2", "layer 1", "embedding"]);
        assert_eq!(map.columns, ["0", "2", "3", "4", "5"]);
        assert_eq!(map.values[0], None);
        assert_eq!(map.values[5], Some(0.0));
        assert_eq!(map.values[6], Some(0.2));
        let frame = course(&events()).frame().unwrap();
        assert_eq!(frame.shape(), (20, 4));
    }

    #[test]
    fn a_run_without_probes_says_so_and_has_a_page() {
        let mut events = events();
        events.iter_mut().for_each(|event| (event.similarity, event.similarity_before) = (None, None));
        let manifest = json!({"status": "running", "config": {"method": "lora", "model": "m<1>"}});
        let document = training_document(&events, &manifest).unwrap();
        assert!(document.answers[0].contains("--probe-every"));
        assert!(document.warnings[0].text.contains("not finished"));
        let html = document.html().unwrap();
        assert!(html.contains("Training: lora on m&lt;1&gt;") && !html.contains("<1>"));
    }
}
