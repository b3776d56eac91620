//! Measures of over-smoothing, one a file.
