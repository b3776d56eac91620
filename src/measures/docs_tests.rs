//! docs/measures.md lists what the catalogue says.

use super::{Class, Measure, Need, Scope};
use std::fmt::Write;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/measures.md");
const BEGIN: &str = "<!-- catalogue: begin -->\n";
const END: &str = "<!-- catalogue: end -->\n";

fn catalogue() -> String {
    let mut out = String::new();
    for class in Class::ALL {
        let _ = writeln!(out, "### {}\n", heading(class));
        let _ = writeln!(out, "| measure | formula | source | state | reveals | hides |\n|---|---|---|---|---|---|");
        for measure in Measure::ALL.into_iter().filter(|m| m.class() == class) {
            let cells = [measure.formula(), measure.source(), measure.state(), measure.reveals(), measure.hides()];
            let cells = cells.map(|cell| cell.replace('|', "\\|")).join(" | ");
            let _ = writeln!(out, "| `{measure}`{} | {cells} |", notes(measure));
        }
        out.push('\n');
    }
    out
}

fn heading(class: Class) -> &'static str {
    match class {
        Class::Streaming => "Streaming: O(d) numbers a point",
        Class::Matrix => "Matrix: a matrix or a sample",
        Class::Lookup => "Lookup: reads something beside the states, on a sample of texts",
    }
}

fn notes(measure: Measure) -> String {
    let mut notes = Vec::new();
    if let Some(parent) = measure.parent() {
        notes.push(format!("derived from `{parent}`"));
    }
    if measure.scope() == Scope::Corpus {
        notes.push("one value a corpus".to_owned());
    }
    match measure.need() {
        Some(Need::H0) => notes.push("needs h0".to_owned()),
        Some(Need::CentredReference) => notes.push("needs a reference run".to_owned()),
        _ => {}
    }
    if measure.second_pass() {
        notes.push("second pass".to_owned());
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) }
}

#[test]
fn the_page_lists_the_catalogue() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/measures.md has lost its begin mark");
    let (listed, after) = rest.split_once(END).expect("docs/measures.md has lost its end mark");
    let wanted = format!("\n{}", catalogue());
    if listed == wanted {
        return;
    }
    if std::env::var_os("SMOOTH_PROBE_RENEW_DOCS").is_some() {
        std::fs::write(PAGE, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    panic!("docs/measures.md is stale: renew it with SMOOTH_PROBE_RENEW_DOCS=1 cargo test --lib measures::docs");
}
