//! The program as its users meet it: command lines, exit codes, files, and what stands on stderr.
#![cfg(feature = "cli")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what the tests share is part of the tests"
)]

mod bad_input;
mod bad_model;
mod compare;
mod doctor;
mod dose;
mod encoder;
mod evaluate;
mod full_disk;
mod generate;
mod images;
mod inspect;
mod json;
mod measures;
mod merge;
mod program;
mod progress;
mod report;
mod results;
mod resume;
mod similarity;
mod small_model;
mod snapshots;
mod states;
mod study;
mod terminal;
mod token_pairs;
mod training;
