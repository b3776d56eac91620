//! The study's tables.

use super::cell::{Cell, SearchResult};
use super::schema::Column;
use super::summary::Summary;
use super::verdicts::{Paired, last_block};
use polars::df;
use polars::prelude::{Column as PolarsColumn, DataFrame, PolarsError};

/// One row a cell.
pub(super) fn cells_frame(cells: &[Cell]) -> Result<DataFrame, PolarsError> {
    df!(
        "arm" => cells.iter().map(|c| c.arm.as_str()).collect::<Vec<_>>(),
        "seed" => cells.iter().map(|c| c.seed).collect::<Vec<_>>(),
        "lr" => cells.iter().map(|c| (c.lr > 0.0).then_some(c.lr)).collect::<Vec<_>>(),
        "trainable" => cells.iter().map(|c| c.result.trainable as u64).collect::<Vec<_>>(),
        "accuracy" => cells.iter().map(|c| c.result.accuracy).collect::<Vec<_>>(),
        "loss" => cells.iter().map(|c| c.result.loss).collect::<Vec<_>>(),
        "majority" => cells.iter().map(|c| c.result.majority).collect::<Vec<_>>(),
        "last_block_similarity" => cells.iter().map(|c| last_block(&c.result)).collect::<Vec<_>>(),
    )
}

/// One row an arm and learning rate.
pub(super) fn search_frame(search: &[Cell<SearchResult>]) -> Result<DataFrame, PolarsError> {
    df!(
        "arm" => search.iter().map(|c| c.arm.as_str()).collect::<Vec<_>>(),
        "lr" => search.iter().map(|c| c.lr).collect::<Vec<_>>(),
        "validation_loss" => search.iter().map(|c| c.result.validation_loss).collect::<Vec<_>>(),
    )
}

/// One row a cell and layer.
pub(super) fn curves_frame(cells: &[Cell]) -> Result<DataFrame, PolarsError> {
    let rows: Vec<(&Cell, usize)> =
        cells.iter().flat_map(|c| (0..c.result.similarity.len()).map(move |i| (c, i))).collect();
    let depth = |c: &Cell| c.result.similarity.len().saturating_sub(2);
    let at = |values: &[Option<f64>], i: usize| values.get(i).copied().flatten();
    df!(
        "arm" => rows.iter().map(|(c, _)| c.arm.as_str()).collect::<Vec<_>>(),
        "seed" => rows.iter().map(|(c, _)| c.seed).collect::<Vec<_>>(),
        "layer" => rows.iter().map(|(c, i)| (*i).min(depth(c)) as u32).collect::<Vec<_>>(),
        "site" => rows.iter().map(|(c, i)| match *i {
            0 => "embedding",
            i if i > depth(c) => "final_norm",
            _ => "block",
        }).collect::<Vec<_>>(),
        "cosine" => rows.iter().map(|(c, i)| at(&c.result.similarity, *i)).collect::<Vec<_>>(),
        "effective_rank" => rows.iter().map(|(c, i)| at(&c.result.effective_rank, *i)).collect::<Vec<_>>(),
    )
}

/// One row a cell with what its steps cost; a measurement, other than all else here.
pub(super) fn cost_frame(cells: &[Cell]) -> Result<DataFrame, PolarsError> {
    let timed: Vec<&Cell> = cells.iter().filter(|cell| cell.result.step_cpu_seconds.is_some()).collect();
    df!(
        "arm" => timed.iter().map(|c| c.arm.as_str()).collect::<Vec<_>>(),
        "seed" => timed.iter().map(|c| c.seed).collect::<Vec<_>>(),
        "step_cpu_seconds" => timed.iter().map(|c| c.result.step_cpu_seconds).collect::<Vec<_>>(),
        "cell_seconds" => timed.iter().map(|c| c.result.seconds).collect::<Vec<_>>(),
    )
}

/// One row a comparison and outcome.
pub(super) fn comparisons_frame(compared: &[Paired]) -> Result<DataFrame, PolarsError> {
    let of = |value: fn(&Paired) -> Option<f64>| compared.iter().map(value).collect::<Vec<_>>();
    df!(
        "treatment" => compared.iter().map(|c| c.entry.treatment.as_str()).collect::<Vec<_>>(),
        "control" => compared.iter().map(|c| c.entry.control.as_str()).collect::<Vec<_>>(),
        "family" => compared.iter().map(|c| c.entry.family.as_deref()).collect::<Vec<_>>(),
        "outcome" => compared.iter().map(|c| c.outcome.name()).collect::<Vec<_>>(),
        "seeds" => compared.iter().map(|c| c.differences.len() as u64).collect::<Vec<_>>(),
        "mean" => of(|c| Some(c.comparison.as_ref()?.mean)),
        "low" => of(|c| Some(c.comparison.as_ref()?.interval?.low)),
        "high" => of(|c| Some(c.comparison.as_ref()?.interval?.high)),
        "margin" => of(|c| Some(c.comparison.as_ref()?.margin)),
        "p_differs_holm" => of(|c| Some(c.adjusted?.0)),
        "p_equivalent_holm" => of(|c| Some(c.adjusted?.1)),
        "verdict" => compared.iter().map(|c| c.comparison.as_ref().map(ToString::to_string)).collect::<Vec<_>>(),
    )
}

impl Column {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Lr => "lr",
            Self::Accuracy => "accuracy (%)",
            Self::Loss => "loss (nats)",
            Self::LastBlockSimilarity => "last-block similarity",
            Self::StepSeconds => "CPU seconds a step",
            Self::Cost => "cost",
        }
    }

    /// The cell of a page's table.
    pub(super) fn text(self, summary: &Summary) -> String {
        let number =
            |value: Option<f64>, decimals: usize| value.map_or_else(String::new, |value| format!("{value:.decimals$}"));
        match self {
            Self::Trained => summary.trained.to_string(),
            Self::Lr => summary.lr.map_or_else(String::new, |lr| lr.to_string()),
            Self::Accuracy => number(summary.accuracy.map(|share| 100.0 * share), 1),
            Self::Loss => number(summary.loss, 3),
            Self::LastBlockSimilarity => number(summary.last_block, 4),
            Self::StepSeconds => number(summary.step_seconds, 4),
            Self::Cost => number(summary.cost, 2),
        }
    }

    fn values(self, summaries: &[Summary]) -> PolarsColumn {
        let of = |value: fn(&Summary) -> Option<f64>| summaries.iter().map(value).collect::<Vec<_>>();
        match self {
            Self::Trained => {
                let trained = summaries.iter().map(|s| s.trained as u64).collect::<Vec<_>>();
                PolarsColumn::new("trained".into(), trained)
            }
            Self::Lr => PolarsColumn::new("lr".into(), of(|s| s.lr)),
            Self::Accuracy => PolarsColumn::new("accuracy".into(), of(|s| s.accuracy)),
            Self::Loss => PolarsColumn::new("loss".into(), of(|s| s.loss)),
            Self::LastBlockSimilarity => PolarsColumn::new("last_block_similarity".into(), of(|s| s.last_block)),
            Self::StepSeconds => PolarsColumn::new("step_cpu_seconds".into(), of(|s| s.step_seconds)),
            Self::Cost => PolarsColumn::new("cost".into(), of(|s| s.cost)),
        }
    }
}

/// One row an arm, with the columns that the study asks for.
pub(super) fn arms_frame(summaries: &[Summary], columns: &[Column]) -> Result<DataFrame, PolarsError> {
    let mut frame = df!(
        "arm" => summaries.iter().map(|s| s.arm.name.as_str()).collect::<Vec<_>>(),
        "group" => summaries.iter().map(|s| s.arm.group.as_str()).collect::<Vec<_>>(),
        "seeds" => summaries.iter().map(|s| s.seeds as u64).collect::<Vec<_>>(),
    )?;
    for column in columns {
        frame.with_column(column.values(summaries))?;
    }
    Ok(frame)
}
