//! Tables, plots and pages: views over results that never need the model again.

mod chart;
mod curves;
mod markdown;
mod measure_words;
mod rows;
mod site_curves;
mod table;
mod token_pairs;

pub use chart::{
    Bar, BarChart, BarGroup, Chart, Drawing, HeatMap, Panel, Point, Reference, RenderError, Scale, Series, Width,
};
pub use curves::{CurveOptions, Depth, Shown, grey_below, similarity_chart};
pub use markdown::{Page, frame_table, markdown_table};
pub use measure_words::{BASELINE_SUFFIXES, baseline};
pub use rows::{
    PER_TEXT_COLUMNS, PerTextRow, SIMILARITY_COLUMNS, SimilarityRow, per_text_frame, per_text_rows, similarity_frame,
    similarity_rows,
};
pub use site_curves::site_chart;
pub use table::{TableError, read_table, write_csv, write_parquet, write_table};
pub use token_pairs::{
    DistanceRow, HeatMapRow, MIN_TEXTS, TokenClassRow, distance_chart, distance_frame, heatmap_chart, heatmap_frame,
    token_class_chart, token_class_frame,
};
