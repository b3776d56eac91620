//! Token × token cosine of one text at one layer.

use super::unit_rows::UnitRows;
use crate::measures::Point;
use crate::report::HeatMapRow;

/// The longest text of a heat map, in tokens: a table of a million cells.
pub const LONGEST: usize = 1024;

/// The cosine of every two tokens of a text's span.
#[derive(Debug, Clone, PartialEq)]
pub struct CosineMatrix {
    /// The text's position in the input, from 0.
    pub text: u64,
    /// Where it was measured.
    pub point: Point,
    /// The position in the text of the first row and column.
    pub first: usize,
    /// The tokens of the span, as a reader sees them.
    pub tokens: Vec<String>,
    /// `[tokens, tokens]` row by row; `None` where one of the two is a zero row.
    pub cosines: Vec<Option<f64>>,
}

impl CosineMatrix {
    /// The matrix of a text's unit rows; `tokens` are those of the span that begins at position `first`.
    /// O(n²·d), n² values.
    #[must_use]
    pub fn new(text: u64, point: Point, first: usize, tokens: &[String], rows: &UnitRows) -> Self {
        let n = tokens.len();
        let mut cosines = vec![None; n * n];
        let mut set = |row: usize, column: usize, cosine: f64| {
            if row < n
                && column < n
                && let Some(cell) = cosines.get_mut(row * n + column)
            {
                // Rounding may carry a product of unit vectors past 1.
                *cell = Some(cosine.clamp(-1.0, 1.0));
            }
        };
        // Rows outside the span wrap to places that `set` refuses.
        let places: Vec<usize> = rows.positions().iter().map(|position| position.wrapping_sub(first)).collect();
        let place = |index: usize| places.get(index).copied().unwrap_or(usize::MAX);
        (0..rows.len()).for_each(|i| set(place(i), place(i), 1.0));
        rows.for_each_pair(|i, j, cosine| {
            set(place(i), place(j), cosine);
            set(place(j), place(i), cosine);
        });
        Self { text, point, first, tokens: tokens.to_vec(), cosines }
    }

    /// The table: a row for each cell, row by row; positions are those in the text.
    #[must_use]
    pub fn rows(&self) -> Vec<HeatMapRow> {
        let n = self.tokens.len();
        let cells = self.cosines.iter().enumerate();
        cells
            .map(|(cell, &cosine)| {
                let (row, column) = (cell / n.max(1), cell % n.max(1));
                let token = |at: usize| self.tokens.get(at).cloned().unwrap_or_default();
                HeatMapRow {
                    row: (self.first + row) as u32,
                    column: (self.first + column) as u32,
                    token_row: token(row),
                    token_column: token(column),
                    cosine,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Site;

    #[test]
    fn the_matrix_holds_every_pair_and_the_table_every_cell() {
        // Position 0 lies outside the span, position 2 is zero.
        let rows = [7.0, 7.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, -2.0, 0.0];
        let rows = UnitRows::new(&rows, 2, 1..5).unwrap();
        let tokens: Vec<String> = ["a", "zero", "b", "c"].map(str::to_owned).to_vec();
        let point = Point { site: Site::Block, layer: 3 };
        let matrix = CosineMatrix::new(9, point, 1, &tokens, &rows);
        let half = 0.5_f64.sqrt();
        let wanted = [
            [Some(1.0), None, Some(half), Some(-1.0)],
            [None; 4],
            [Some(half), None, Some(1.0), Some(-half)],
            [Some(-1.0), None, Some(-half), Some(1.0)],
        ];
        for (found, wanted) in matrix.cosines.iter().zip(wanted.as_flattened()) {
            assert_eq!(found.is_some(), wanted.is_some());
            assert!((found.unwrap_or(0.0) - wanted.unwrap_or(0.0)).abs() < 1e-15);
        }
        let table = matrix.rows();
        assert_eq!(table.len(), 16);
        let cell = &table[11];
        assert_eq!((cell.row, cell.column), (3, 4));
        assert_eq!((cell.token_row.as_str(), cell.token_column.as_str()), ("b", "c"));
        assert!((cell.cosine.unwrap() + half).abs() < 1e-15);
    }
}
