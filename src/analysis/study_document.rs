//! The document of a study or a comparison, from what its own page has computed.

use super::provenance::provenance;
use crate::report::document::{Block, DataTable, Document, Figure, Warning};
use serde_json::Value;

/// What a study says: its answer is computed, its figures and tables are drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StudyParts {
    /// The title.
    pub title: String,
    /// The question, and what was expected.
    pub question: String,
    /// The answer, a computed sentence each.
    pub answers: Vec<String>,
    /// Figures in order, each with what it shows.
    pub figures: Vec<Figure>,
    /// Tables in order; a cell is bold only where a paired test says so.
    pub tables: Vec<DataTable>,
    /// What a reader must know.
    pub warnings: Vec<Warning>,
    /// How it was made, a paragraph each, written from the study's file.
    pub methods: Vec<String>,
}

/// The document of a study; `manifest` is what made it.
#[must_use]
pub fn study_document(parts: StudyParts, manifest: &Value) -> Document {
    let mut document = Document {
        title: parts.title,
        question: parts.question,
        answers: parts.answers,
        warnings: parts.warnings,
        methods: parts.methods,
        provenance: provenance(manifest),
        ..Document::default()
    };
    document.section("Figures", parts.figures.into_iter().map(Block::Figure).collect());
    document.section("Tables", parts.tables.into_iter().map(Block::Table).collect());
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::{Cell, Column};
    use serde_json::json;

    #[test]
    fn a_study_is_a_page_that_escapes_what_it_is_given() {
        let figure = Figure {
            stem: "similarity".into(),
            svg: "<svg width=\"504pt\" height=\"200pt\" viewBox=\"0 0 10 4\" role=\"img\">\n<title>t</title>\n</svg>\n"
                .into(),
            caption: "Curves of \"a\" & <b>".into(),
        };
        let table = DataTable {
            caption: "Arms.".into(),
            columns: vec![Column::text("arm"), Column::number("Δ")],
            rows: vec![vec![
                Cell::text("</td><script>alert(1)</script>"),
                Cell { bold: true, ..Cell::change(Some(0.5), 2) },
            ]],
        };
        let parts = StudyParts {
            title: "Does <it> help?".into(),
            question: "Q".into(),
            answers: vec!["Helps: +0.5.".into()],
            figures: vec![figure],
            tables: vec![table],
            warnings: vec![Warning::general("Few seeds.")],
            methods: vec!["So.".into()],
        };
        let html = study_document(parts, &json!({"program": "smooth-probe", "seed": 3})).html().unwrap();
        for wanted in [
            "<h1>Does &lt;it&gt; help?</h1>",
            "<svg class=\"print\" viewBox=\"0 0 10 4\" role=\"img\">",
            "Curves of &quot;a&quot; &amp; &lt;b&gt;",
            "&lt;script&gt;alert(1)&lt;&#x2f;script&gt;",
            "<td class=\"number\" data-value=\"0.5\"><b>+0.50</b></td>",
            "<li id=\"warning-1\">Few seeds.</li>",
            "<div><dt>seed</dt><dd>3</dd></div>",
        ] {
            assert!(html.contains(wanted), "{wanted} is not in {html}");
        }
        assert!(!html.contains("alert(1)</script>"));
    }
}
