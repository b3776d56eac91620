//! The command line: one file per verb; arguments and calls, no logic.
