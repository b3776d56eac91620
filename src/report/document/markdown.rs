//! A report as Markdown.

use super::table::{Cell, DataTable};
use super::{Block, Document};
use crate::report::markdown::Page;

pub(super) fn page(document: &Document) -> String {
    let mut page = Page::new(&plain(&document.title));
    page.paragraph(&format!("**Question.** {}", plain(&document.question)));
    page.list(&plain_all(&document.answers));
    if !document.warnings.is_empty() {
        page.section("Warnings");
        let numbered = document.warnings.iter().enumerate();
        page.list(&numbered.map(|(n, w)| format!("[{}] {}", n + 1, plain(&w.text))).collect::<Vec<_>>());
    }
    for section in &document.sections {
        if section.blocks.iter().any(has_place) {
            page.section(&plain(&section.title));
            section.blocks.iter().for_each(|block| add(&mut page, block));
        }
    }
    page.section("How it was made");
    document.methods.iter().for_each(|text| {
        page.paragraph(&plain(text));
    });
    page.provenance(&document.provenance);
    page.text()
}

/// Whether Markdown can hold it.
fn has_place(block: &Block) -> bool {
    match block {
        Block::View(_) => false,
        Block::Folded(_, blocks) => blocks.iter().any(has_place),
        _ => true,
    }
}

fn add(page: &mut Page, block: &Block) {
    match block {
        Block::View(_) => {}
        Block::Text(text) => {
            page.paragraph(&plain(text));
        }
        Block::List(points) => {
            page.list(&plain_all(points));
        }
        Block::Figure(figure) => {
            // The page escapes brackets itself.
            let caption = figure.caption.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            page.figure(&format!("{}.png", figure.stem), &caption);
        }
        Block::Table(table) => add_table(page, table),
        Block::Folded(_, blocks) => blocks.iter().for_each(|block| add(page, block)),
    }
}

fn add_table(page: &mut Page, table: &DataTable) {
    let names: Vec<String> = table.columns.iter().map(|column| plain(&column.name)).collect();
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(shown).collect()).collect();
    page.paragraph(&plain(&table.caption)).table(&names, &rows);
}

fn shown(cell: &Cell) -> String {
    let text = plain(&cell.text);
    let text = if cell.bold && !text.is_empty() { format!("**{text}**") } else { text };
    let numbers: String = cell.warnings.iter().map(|n| format!(" \\[{n}\\]")).collect();
    format!("{text}{numbers}")
}

fn plain_all(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| plain(text)).collect()
}

/// The text with nothing in it that Markdown, or HTML within it, would take as its own.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '&' => plain.push_str("&amp;"),
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '*' | '_' | '`' | '[' | ']' | '\\' => {
                plain.push('\\');
                plain.push(c);
            }
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::{Column, Warning};

    #[test]
    fn a_page_says_what_its_document_says_and_nothing_else_speaks_through_it() {
        let mut document = Document {
            title: "Similarity of <a>".into(),
            question: "Is *it* so?".into(),
            answers: vec!["Yes.".into()],
            warnings: vec![Warning::general("Few texts.")],
            methods: vec!["So.".into()],
            provenance: vec![("seed".into(), "7".into())],
            ..Document::default()
        };
        let bold = Cell { bold: true, warnings: vec![1], ..Cell::number(Some(-1.5), 1) };
        let table = DataTable {
            caption: "Means.".into(),
            columns: vec![Column::text("run"), Column::number("mean")],
            rows: vec![vec![Cell::text("a|b"), bold]],
        };
        document.section("Numbers", vec![Block::Table(table)]).section("Nothing", vec![]);
        let wanted = "# Similarity of &lt;a&gt;\n\n**Question.** Is \\*it\\* so?\n\n- Yes.\n\n## Warnings\n\n\
                      - [1] Few texts.\n\n## Numbers\n\nMeans.\n\n| run | mean |\n| --- | --- |\n\
                      | a\\|b | **−1.5** \\[1\\] |\n\n## How it was made\n\nSo.\n\n## Provenance\n\n\
                      | what | value |\n| --- | --- |\n| seed | `7` |\n";
        assert_eq!(document.markdown(), wanted);
    }
}
