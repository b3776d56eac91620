//! What a report says, before it is a page: the question and its answer, warnings, figures, tables, how it was made.
//!
//! One [`Document`] becomes `report.html` ([`Document::html`]) and `report.md` ([`Document::markdown`]), so that both say
//! the same.

mod latex;
mod markdown;
mod table;

pub use latex::latex_table;
pub use table::{Cell, Column, DataTable};

use super::html::{self, HtmlError};
use serde_json::Value;

/// A whole report.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// What it is a report of.
    pub title: String,
    /// The question that it answers.
    pub question: String,
    /// The answer, a sentence each, computed from the tables.
    pub answers: Vec<String>,
    /// What a reader must know before trusting a number.
    pub warnings: Vec<Warning>,
    /// Figures, tables and views, in order.
    pub sections: Vec<Section>,
    /// How it was made, a paragraph each.
    pub methods: Vec<String>,
    /// What made it: names and values.
    pub provenance: Vec<(String, String)>,
}

/// Something that a reader must know, and which numbers it touches.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// One or two sentences.
    pub text: String,
    /// The measure whose numbers it touches; `None` touches all.
    pub measure: Option<String>,
    /// The run whose numbers it touches; `None` touches all.
    pub run: Option<String>,
}

impl Warning {
    /// A warning about every number.
    #[must_use]
    pub fn general(text: impl Into<String>) -> Self {
        Self { text: text.into(), measure: None, run: None }
    }

    /// A warning about the numbers of one measure.
    #[must_use]
    pub fn of_measure(measure: &str, text: impl Into<String>) -> Self {
        Self { text: text.into(), measure: Some(measure.to_owned()), run: None }
    }

    /// The same warning, about one run alone.
    #[must_use]
    pub fn of_run(self, run: &str) -> Self {
        Self { run: Some(run.to_owned()), ..self }
    }
}

/// A part of a report under a heading.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// What stands under it.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A paragraph of plain text.
    Text(String),
    /// A list of plain sentences.
    List(Vec<String>),
    /// A figure.
    Figure(Figure),
    /// A table.
    Table(DataTable),
    /// A view that answers the reader's hand; pages without scripts do without it.
    View(View),
    /// Pieces that stand folded under a line.
    Folded(String, Vec<Block>),
}

/// A figure that was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The file's name without its ending; both `.png` and `.svg` are there.
    pub stem: String,
    /// The whole SVG.
    pub svg: String,
    /// What it shows, in one sentence.
    pub caption: String,
}

/// Which view, and what it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Which.
    pub kind: ViewKind,
    /// Its data, as the script of that view reads them.
    pub data: Value,
}

/// The views that a page has scripts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewKind {
    /// Curves over the layers, by measure, run and group.
    Explorer,
    /// Token × token cosines of a text.
    HeatMaps,
    /// Similarity by layer and training step.
    Training,
}

impl ViewKind {
    /// The name by which the page's scripts find it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Explorer => "explorer",
            Self::HeatMaps => "heatmaps",
            Self::Training => "training",
        }
    }
}

impl Document {
    /// The page: one file that asks for nothing from anywhere.
    ///
    /// # Errors
    /// The template cannot be filled, or the page is larger than [`html::MOST_BYTES`].
    pub fn html(&self) -> Result<String, HtmlError> {
        html::render(self)
    }

    /// The same as Markdown; its figures are the PNG files beside it, and views have no place in it.
    #[must_use]
    pub fn markdown(&self) -> String {
        markdown::page(self)
    }

    /// Adds a section, unless nothing stands under it.
    pub fn section(&mut self, title: &str, blocks: Vec<Block>) -> &mut Self {
        if !blocks.is_empty() {
            self.sections.push(Section { title: title.to_owned(), blocks });
        }
        self
    }
}

/// What was made of a manifest's entry in a provenance box: texts as they are, the rest as JSON.
#[must_use]
pub fn provenance_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
