//! Fine-tuning: trainer, optimizer, schedule, checkpoints, events.
