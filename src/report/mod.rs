//! Tables, plots and pages: views over results that never need the model again.

mod cells;
mod chart;
mod curves;
pub mod document;
mod explorer;
pub mod html;
mod markdown;
mod measure_words;
mod rows;
mod site_curves;
mod table;
mod token_pairs;

pub use cells::{CellColumn, CellReader};
pub use chart::{
    Bar, BarChart, BarGroup, Chart, Drawing, HeatMap, Panel, Point, Reference, RenderError, Scale, Series, Width,
};
pub use curves::{CurveOptions, Depth, Shown, grey_below, similarity_chart};
pub use explorer::{Beside, DifferenceRow, explorer_data};
pub use markdown::{Page, frame_table, markdown_table};
pub use measure_words::{BASELINE_SUFFIXES, baseline};
pub use rows::{
    PER_TEXT_COLUMNS, PerTextRow, SIMILARITY_COLUMNS, SimilarityRow, per_text_frame, per_text_rows, similarity_frame,
    similarity_rows,
};
pub use site_curves::site_chart;
pub use table::{TableError, read_table, write_csv, write_parquet, write_table};
pub use token_pairs::{
    DistanceRow, HeatMapRow, MIN_TEXTS, TokenClassRow, distance_chart, distance_frame, distance_rows, heatmap_chart,
    heatmap_frame, heatmap_rows, token_class_chart, token_class_frame, token_class_rows,
};
