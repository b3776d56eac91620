//! The embedded model: its corpus, tokenizer, tasks and pre-training.
