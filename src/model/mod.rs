//! The one instrumented transformer, and the readers that fill it.
