//! Tables for papers: LaTeX with booktabs.

use super::table::{Cell, DataTable};

/// The table as a `tabular` of booktabs rules; a cell is bold where the table says so.
#[must_use]
pub fn latex_table(table: &DataTable) -> String {
    let columns: String = table.columns.iter().map(|column| if column.number { 'r' } else { 'l' }).collect();
    let line = |cells: Vec<String>| format!("{} \\\\", cells.join(" & "));
    let head = line(table.columns.iter().map(|column| escaped(&column.name)).collect());
    let mut lines = vec![
        format!("% {}", table.caption.split_whitespace().collect::<Vec<_>>().join(" ")),
        "% needs \\usepackage{booktabs}".to_owned(),
        format!("\\begin{{tabular}}{{{columns}}}"),
        "\\toprule".to_owned(),
        head,
        "\\midrule".to_owned(),
    ];
    for row in &table.rows {
        let cells = (0..table.columns.len()).map(|column| row.get(column).map(shown).unwrap_or_default());
        lines.push(line(cells.collect()));
    }
    lines.extend(["\\bottomrule".to_owned(), "\\end{tabular}".to_owned(), String::new()]);
    lines.join("\n")
}

fn shown(cell: &Cell) -> String {
    let text = escaped(&cell.text);
    if cell.bold { format!("\\textbf{{{text}}}") } else { text }
}

/// The text with every character that LaTeX would take as its own made plain.
fn escaped(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '\\' => plain.push_str("\\textbackslash{}"),
            '~' => plain.push_str("\\textasciitilde{}"),
            '^' => plain.push_str("\\textasciicircum{}"),
            '<' => plain.push_str("\\textless{}"),
            '>' => plain.push_str("\\textgreater{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                plain.push('\\');
                plain.push(c);
            }
            '−' => plain.push_str("$-$"),
            'λ' => plain.push_str("$\\lambda$"),
            'Δ' => plain.push_str("$\\Delta$"),
            '×' => plain.push_str("$\\times$"),
            '–' => plain.push_str("--"),
            c if c.is_control() => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::document::Column;

    #[test]
    fn a_table_for_a_paper() {
        let table = DataTable {
            caption: "two\nruns".into(),
            columns: vec![Column::text("run_name"), Column::number("Δ")],
            rows: vec![
                vec![Cell::text("a & b <λ=0.3>"), Cell { bold: true, ..Cell::change(Some(-0.25), 2) }],
                vec![Cell::text("\\input{x}")],
            ],
        };
        let wanted = "% two runs\n% needs \\usepackage{booktabs}\n\\begin{tabular}{lr}\n\\toprule\n\
                      run\\_name & $\\Delta$ \\\\\n\\midrule\n\
                      a \\& b \\textless{}$\\lambda$=0.3\\textgreater{} & \\textbf{$-$0.25} \\\\\n\
                      \\textbackslash{}input\\{x\\} &  \\\\\n\\bottomrule\n\\end{tabular}\n";
        assert_eq!(latex_table(&table), wanted);
    }
}
