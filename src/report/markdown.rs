//! A Markdown page: paragraphs, figures, tables, provenance.

use polars::prelude::{AnyValue, DataFrame};

/// A page under construction; blocks appear in the order of the calls.
#[derive(Debug, Clone, Default)]
pub struct Page {
    blocks: Vec<String>,
}

impl Page {
    /// A page with its title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { blocks: vec![format!("# {}", line(title))] }
    }

    /// Adds a section heading.
    pub fn section(&mut self, title: &str) -> &mut Self {
        self.block(format!("## {}", line(title)))
    }

    /// Adds a paragraph, or any block already in Markdown.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        self.block(text.trim().to_owned())
    }

    /// Adds a list of points.
    pub fn list<S: AsRef<str>>(&mut self, points: &[S]) -> &mut Self {
        let lines: Vec<String> = points.iter().map(|point| format!("- {}", line(point.as_ref()))).collect();
        self.block(lines.join("\n"))
    }

    /// Adds a figure: `file` relative to the page, `alt` what it shows to someone who cannot see it.
    pub fn figure(&mut self, file: &str, alt: &str) -> &mut Self {
        let alt = line(alt).replace('[', "\\[").replace(']', "\\]");
        self.block(format!("![{alt}](<{file}>)"))
    }

    /// Adds a table of text cells.
    pub fn table<H: AsRef<str>>(&mut self, header: &[H], rows: &[Vec<String>]) -> &mut Self {
        self.block(markdown_table(header, rows))
    }

    /// Adds a table of `frame`, floats with `decimals` places.
    pub fn frame(&mut self, frame: &DataFrame, decimals: usize) -> &mut Self {
        self.block(frame_table(frame, decimals))
    }

    /// Adds what the page was made from: pairs of a name and a value, set as code.
    pub fn provenance<S: AsRef<str>>(&mut self, entries: &[(S, S)]) -> &mut Self {
        let rows: Vec<Vec<String>> = entries
            .iter()
            .map(|(name, value)| vec![name.as_ref().to_owned(), format!("`{}`", value.as_ref().replace('`', "'"))])
            .collect();
        self.section("Provenance").table(&["what", "value"], &rows)
    }

    /// The page's text, ending in one line break.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n", self.blocks.join("\n\n"))
    }

    fn block(&mut self, block: String) -> &mut Self {
        self.blocks.push(block);
        self
    }
}

/// A pipe table; columns whose filled cells are all numbers are set flush right. Pipes and line breaks in
/// cells are escaped; a short row is filled up, a long one cut.
#[must_use]
pub fn markdown_table<H: AsRef<str>>(header: &[H], rows: &[Vec<String>]) -> String {
    let cell = |row: &Vec<String>, column: usize| row.get(column).map(|text| escape(text)).unwrap_or_default();
    let rule = (0..header.len()).map(|column| {
        let filled: Vec<&String> =
            rows.iter().filter_map(|row| row.get(column)).filter(|text| !text.is_empty()).collect();
        let numbers = !filled.is_empty() && filled.iter().all(|text| is_number(text));
        if numbers { "---:" } else { "---" }.to_owned()
    });
    let mut lines = vec![joined(header.iter().map(|name| escape(name.as_ref()))), joined(rule)];
    lines.extend(rows.iter().map(|row| joined((0..header.len()).map(|column| cell(row, column)))));
    lines.join("\n")
}

/// A pipe table of `frame`, floats with `decimals` places, missing values as empty cells.
#[must_use]
pub fn frame_table(frame: &DataFrame, decimals: usize) -> String {
    let header: Vec<&str> = frame.columns().iter().map(|column| column.name().as_str()).collect();
    let rows: Vec<Vec<String>> = (0..frame.height())
        .map(|row| {
            let cell = |value| match value {
                AnyValue::Null => String::new(),
                AnyValue::Float64(number) => format!("{number:.decimals$}"),
                AnyValue::Float32(number) => format!("{number:.decimals$}"),
                AnyValue::String(text) => text.to_owned(),
                other => other.to_string(),
            };
            frame.columns().iter().map(|column| column.get(row).map_or_else(|_| String::new(), cell)).collect()
        })
        .collect();
    markdown_table(&header, &rows)
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

fn escape(text: &str) -> String {
    line(text).replace('|', "\\|")
}

fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A number as tables write them: with a sign, a percent sign, an interval in brackets, or ±.
fn is_number(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || " .,+-−–±%[]()eE×".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    #[test]
    fn a_table_keeps_its_columns_whatever_the_cells_hold() {
        let rows = vec![vec!["a|b\nc".to_owned(), "0.5 [0.4, 0.6]".to_owned()], vec!["SIBO".to_owned()]];
        let expected = "| arm | accuracy |\n| --- | ---: |\n| a\\|b c | 0.5 [0.4, 0.6] |\n| SIBO |  |";
        assert_eq!(markdown_table(&["arm", "accuracy"], &rows), expected);
    }

    #[test]
    fn a_frame_is_rounded_only_where_it_is_shown() {
        let frame = df!("run" => ["base", "x"], "layer" => [0_u32, 12], "mean" => [Some(0.123_46), None]).unwrap();
        let expected = "| run | layer | mean |\n| --- | ---: | ---: |\n| base | 0 | 0.123 |\n| x | 12 |  |";
        assert_eq!(frame_table(&frame, 3), expected);
    }

    #[test]
    fn a_page_is_its_blocks_in_order() {
        let mut page = Page::new("Similarity");
        page.paragraph("One figure.").figure("similarity.png", "curves [of 3 runs]").list(&["a", "b"]);
        page.provenance(&[("seed", "7")]);
        let expected = "# Similarity\n\nOne figure.\n\n![curves \\[of 3 runs\\]](<similarity.png>)\n\n- a\n- b\n\n\
                        ## Provenance\n\n| what | value |\n| --- | --- |\n| seed | `7` |\n";
        assert_eq!(page.text(), expected);
    }
}
