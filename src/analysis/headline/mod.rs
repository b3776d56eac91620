//! The headline study at tiny scale: does the initial residual relieve over-smoothing in fine-tuning, and
//! what of that is the residual rather than the shrunken input?
//!
//! The embedded model is tuned on one task it has not seen, in paired seeds: every arm of a seed starts from
//! the same matrices, reads the same batches and drops the same inputs out. The arm `none` shrinks the
//! branch's input as SIBO does and adds nothing; only the difference to it is the initial residual's. Every arm chose
//! its learning rate from the same three, on the validation items of a seed that is not the study's.

mod cell;
mod figures;
mod page;
mod verdicts;

pub use cell::{Arm, CellResult, SearchResult, StudyConfig, run_cell, search_cell};
pub use page::{StudyError, write_base_figure, write_report, write_search};
