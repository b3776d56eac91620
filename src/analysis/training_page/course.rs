//! Similarity along a training run, and the figures of its events.

use crate::report::{Chart, HeatMap, Panel, Point, Scale, Series, Width};
use crate::train::StepEvent;
use polars::df;
use polars::prelude::{DataFrame, PolarsError};

/// Token similarity along a run: of each measured step the layers 0 to L, then what is after the final norm.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Course {
    /// The steps, 0 before the first.
    pub steps: Vec<u64>,
    /// For each step the layers' values, all of one length.
    pub similarity: Vec<Vec<Option<f64>>>,
}

/// The similarity that the events hold; lines of another length than the first are left out.
#[must_use]
pub fn course(events: &[StepEvent]) -> Course {
    let mut course = Course::default();
    let mut add = |step: u64, values: &Option<Vec<Option<f64>>>| {
        let Some(values) = values.as_ref().filter(|values| values.len() > 1) else { return };
        if course.similarity.first().is_none_or(|first| first.len() == values.len()) {
            course.steps.push(step);
            course.similarity.push(values.clone());
        }
    };
    for event in events {
        add(event.step.saturating_sub(1), &event.similarity_before);
        add(event.step, &event.similarity);
    }
    course
}

impl Course {
    pub(super) fn layers(&self) -> usize {
        self.similarity.first().map_or(0, Vec::len)
    }

    /// The place of the last block's value: the one before what is after the final norm.
    pub(super) fn last_block(&self) -> Option<usize> {
        self.layers().checked_sub(2)
    }

    pub(super) fn at(&self, step: usize, layer: usize) -> Option<f64> {
        self.similarity.get(step)?.get(layer).copied().flatten()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let name = |layer: usize| match layer {
            0 => "embedding".to_owned(),
            n if n + 1 == self.layers() => "final norm".to_owned(),
            n => format!("layer {n}"),
        };
        (0..self.layers()).map(name).collect()
    }

    /// A long table: a row for each step and layer.
    ///
    /// # Errors
    /// None in practice; polars' constructor is fallible.
    pub fn frame(&self) -> Result<DataFrame, PolarsError> {
        let (mut step, mut layer, mut site, mut value) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (own, values) in self.steps.iter().zip(&self.similarity) {
            for (place, similarity) in values.iter().enumerate() {
                let after = place + 1 == values.len();
                step.push(*own);
                layer.push(if after { place.saturating_sub(1) } else { place } as u32);
                site.push(if after {
                    "final_norm"
                } else if place == 0 {
                    "embedding"
                } else {
                    "block"
                });
                value.push(*similarity);
            }
        }
        df!("step" => step, "layer" => layer, "site" => site, "similarity" => value)
    }
}

/// The figures of a training run: stem, and the drawing's parts.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingFigures {
    /// Change of similarity by layer and step, where it was measured.
    pub similarity: Option<HeatMap>,
    /// Loss over the steps.
    pub loss: Chart,
}

/// Draws a run's course at a width.
#[must_use]
pub fn training_figures(events: &[StepEvent], width: Width) -> TrainingFigures {
    let course = course(events);
    let change = |step: usize, layer: usize| Some(course.at(step, layer)? - course.at(0, layer)?);
    let layers: Vec<usize> = (0..course.layers()).rev().collect();
    let values = layers.iter().flat_map(|&layer| (0..course.steps.len()).map(move |step| (step, layer)));
    let names = course.names();
    let similarity = (course.steps.len() > 1).then(|| HeatMap {
        title: "When and where tokens grow alike".to_owned(),
        subtitle: "Change of token-wise cosine similarity since before training, by layer and step".to_owned(),
        rows: layers.iter().filter_map(|&layer| names.get(layer).cloned()).collect(),
        columns: course.steps.iter().map(u64::to_string).collect(),
        values: values.map(|(step, layer)| change(step, layer)).collect(),
        value_label: "change".to_owned(),
        notes: vec![
            "Columns: training steps. All tokens of the held-out probe texts; no interval: one mean a cell.".to_owned(),
        ],
        width,
    });
    let points = |of: &dyn Fn(&StepEvent) -> Option<f64>, gaps: bool| -> Vec<Point> {
        let point = |event: &StepEvent| Point { x: event.step as f64, y: of(event), interval: None };
        let all = events.iter().map(point);
        if gaps { all.collect() } else { all.filter(|point| point.y.is_some()).collect() }
    };
    let series = [
        ("training batch", points(&|event| Some(event.loss), true)),
        ("validation", points(&|event| event.val_loss, false)),
    ];
    let series = series.into_iter().enumerate().filter(|(_, (_, points))| !points.is_empty());
    let series =
        series.map(|(style, (label, points))| Series { label: label.to_owned(), style, points, hollow: vec![] });
    TrainingFigures {
        similarity,
        loss: Chart {
            title: "Loss over the steps".to_owned(),
            subtitle: "Mean loss a target token".to_owned(),
            x_label: "training step".to_owned(),
            x_scale: Scale::Whole,
            panels: vec![Panel {
                title: String::new(),
                y_label: "loss (nats)".to_owned(),
                x_axis: None,
                series: series.collect(),
                y_range: None,
            }],
            columns: None,
            notes: vec![
                "Each training batch is another one, before its update; validation is of the same texts.".to_owned(),
            ],
            width,
        },
    }
}
