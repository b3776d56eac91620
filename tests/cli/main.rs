//! The program as its users meet it: command lines, exit codes, files, and what stands on stderr.
#![cfg(feature = "cli")]

mod bad_input;
mod bad_model;
mod full_disk;
mod inspect;
mod program;
mod resume;
mod similarity;
mod small_model;
mod training;
