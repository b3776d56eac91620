//! Texts and training records: readers, prompt templates, encoding, batching.
