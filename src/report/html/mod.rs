//! `report.html`: one file that asks for nothing from anywhere and needs nothing but a browser.
//!
//! The template escapes all that comes from data. Scripts, styles and figures are the program's own; data of views are
//! JSON in which no tag can begin. The page forbids itself the network by its content security policy.

use super::document::{Block, Cell, DataTable, Document, Section, View, ViewKind};
use minijinja::{Environment, Value, context};
use std::collections::BTreeSet;

/// The most that a page may hold, in bytes.
pub const MOST_BYTES: usize = 2_000_000;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// What every page has: sorting, and unfolding for print.
const PAGE_SCRIPT: &str = include_str!("page.js");
/// What the views share: axes, marks, read-outs.
const PLOT_SCRIPT: &str = include_str!("plot.js");

/// A page that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HtmlError {
    /// The template failed.
    #[error("the page cannot be filled: {0}; report this, the tables are written")]
    Template(#[from] minijinja::Error),
    /// The page would be too large.
    #[error("the page would hold {bytes} bytes, and a page may hold {MOST_BYTES}; measure fewer sites or measures")]
    TooLarge {
        /// What it would hold.
        bytes: usize,
    },
}

fn script(kind: ViewKind) -> &'static str {
    match kind {
        ViewKind::Explorer => include_str!("explorer.js"),
        ViewKind::HeatMaps => include_str!("heatmaps.js"),
        ViewKind::Training => include_str!("training.js"),
    }
}

/// The page of a document.
///
/// # Errors
/// The template cannot be filled, or the page is too large.
pub(super) fn render(document: &Document) -> Result<String, HtmlError> {
    let mut environment = Environment::new();
    // Its ending makes the template escape what it is given.
    environment.add_template("page.html", TEMPLATE)?;
    let kinds: BTreeSet<ViewKind> = document.sections.iter().flat_map(|s| &s.blocks).flat_map(kinds).collect();
    let mut scripts = vec![PAGE_SCRIPT];
    if !kinds.is_empty() {
        scripts.push(PLOT_SCRIPT);
    }
    scripts.extend(kinds.into_iter().map(script));
    let answered = document.answers.iter().chain(&document.methods);
    let page = environment.get_template("page.html")?.render(context! {
        title => document.title,
        question => document.question,
        answers => document.answers,
        description => answered.take(1).collect::<Vec<_>>(),
        warnings => document.warnings,
        sections => document.sections.iter().enumerate().map(section).collect::<Vec<_>>(),
        methods => document.methods,
        provenance => document.provenance,
        version => env!("CARGO_PKG_VERSION"),
        style => Value::from_safe_string(STYLE.to_owned()),
        scripts => scripts.into_iter().map(|text| Value::from_safe_string(text.to_owned())).collect::<Vec<_>>(),
    })?;
    let page = format!("{}\n", page.trim_end());
    if page.len() > MOST_BYTES {
        return Err(HtmlError::TooLarge { bytes: page.len() });
    }
    Ok(page)
}

fn kinds(block: &Block) -> Vec<ViewKind> {
    match block {
        Block::View(view) => vec![view.kind],
        Block::Folded(_, blocks) => blocks.iter().flat_map(kinds).collect(),
        _ => Vec::new(),
    }
}

fn section((number, section): (usize, &Section)) -> Value {
    context! { id => format!("section-{}", number + 1), title => section.title, blocks => blocks(&section.blocks) }
}

fn blocks(all: &[Block]) -> Vec<Value> {
    all.iter().map(block).collect()
}

fn block(block: &Block) -> Value {
    match block {
        Block::Text(text) => context! { kind => "text", text },
        Block::List(points) => context! { kind => "list", points },
        Block::Figure(figure) => context! {
            kind => "figure", stem => figure.stem, caption => figure.caption, svg => inline_svg(&figure.svg),
        },
        Block::Table(table) => context! { kind => "table", table => data_table(table) },
        Block::View(View { kind, data }) => {
            context! { kind => "view", name => kind.name(), data => Value::from_safe_string(safe_json(data)) }
        }
        Block::Folded(line, inner) => context! { kind => "folded", line, blocks => blocks(inner) },
    }
}

fn data_table(table: &DataTable) -> Value {
    let cell = |(place, cell): (usize, &Cell)| {
        let number = table.columns.get(place).is_some_and(|column| column.number);
        context! {
            text => cell.text, value => cell.value, bold => cell.bold, warnings => cell.warnings,
            number => number,
        }
    };
    let rows: Vec<Vec<Value>> = table.rows.iter().map(|row| row.iter().enumerate().map(cell).collect()).collect();
    let columns: Vec<Value> =
        table.columns.iter().map(|column| context! { name => column.name, number => column.number }).collect();
    context! { caption => table.caption, columns, rows }
}

/// JSON within a script: no `<`, so that no tag can end it or begin in it.
fn safe_json(data: &serde_json::Value) -> String {
    data.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// A figure that the program drew, without its size on paper: the page's width is its width.
fn inline_svg(svg: &str) -> Value {
    let start = svg.find("<svg").unwrap_or(0);
    let svg = svg.get(start..).unwrap_or_default();
    let Some((head, body)) = svg.split_once('>') else { return Value::from_safe_string(String::new()) };
    let kept = head.split(" viewBox").nth(1).map(|rest| format!("<svg class=\"print\" viewBox{rest}"));
    Value::from_safe_string(format!("{}>{body}", kept.as_deref().unwrap_or(head)))
}

#[cfg(test)]
mod tests;
