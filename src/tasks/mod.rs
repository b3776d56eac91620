//! Tasks: sets of items with right answers, put to a model and scored.
//!
//! A [`Task`] is data: a compiled-in TOML ([`find_tasks`]) or a user's own. [`read_items`] reads its items from a file,
//! a [`PromptTemplate`] makes each a prompt, a model answers by generation, by the likelihood of its choices
//! ([`likelihoods`]) or by a head ([`head_outputs`]), an [`Extractor`] finds what of a generated text counts, and
//! [`Scores`] are what comes of all answers. `docs/tasks.md` has every task and rule.

mod calibration;
mod catalogue;
mod choices;
mod classes;
mod compare;
mod definition;
#[cfg(test)]
mod docs_tests;
mod error;
mod evaluation;
mod extract;
#[cfg(feature = "cli")]
mod frames;
#[cfg(test)]
mod golden;
mod harness;
mod head;
mod items;
mod journal;
mod metric;
mod overlap;
mod prompt;
mod record;
mod scores;
mod training;

pub use calibration::{BINS, Calibration, ReliabilityBin, Stated, calibration, softmax};
pub use catalogue::{all_tasks, find_tasks};
pub use choices::{Continuation, Likelihood, likelihoods};
pub use classes::head_outputs;
pub use compare::{TaskComparison, adjust, compare_runs};
pub use definition::{Answer, AnswerKind, Files, Generation, Mode, Task};
pub use error::TaskError;
pub use evaluation::{Answerer, ByChoices, ByHead, ByText, Done, Model, ask, evaluate, prompt_ids};
pub use extract::{Extractor, Found, parse_number, same_number};
#[cfg(feature = "cli")]
pub use frames::{RunScores, comparisons_frame, reliability_frame, results_frame};
pub use harness::harness_results;
pub use head::{CLASSES_FILE, class_places, head_classes};
pub use items::{Item, Label, read_items, task_file};
pub use journal::Journal;
pub use metric::{Metric, accuracy, f1, matthews, pearson, spearman};
pub use overlap::{Overlap, asked_text, normalised, overlaps};
pub use prompt::{Part, PromptTemplate, encode_choice};
pub use record::{Answered, Asked, ChoiceRecord, ItemRecord};
pub use scores::{LEVEL, RESAMPLES, Score, Scores};
pub use training::{choice_records, encode_texts, labelled_items};
