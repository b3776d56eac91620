//! Pre-training of the embedded model: its closed vocabulary, its generated corpus, its gates and the
//! tasks that it is fine-tuned on.
//!
//! Every text is a pure function of a seed and an index, and the generator knows what each of its words
//! cost: loss can be reported above an exact floor.

pub mod cast;
pub mod corpus;
pub mod drill;
pub mod gates;
pub mod holdout;
pub mod page;
pub mod question;
mod recall;
pub mod recipe;
pub mod run;
pub mod story;
pub mod tasks;
pub mod tuned;
pub mod vocabulary;

#[cfg(test)]
mod reader;
