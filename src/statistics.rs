//! Intervals, tests and verdicts.
