//! `train --dry-run`: modules, memory and time of a run that is not made.

use crate::cli::inspect::thousands;
use crate::peft::Mixing;
use crate::train::{Subject, TrainConfig, TrainData, Trainer, gradients};
use anyhow::Result;
use candle_core::DType;
use serde_json::json;
use std::time::Instant;

/// What a run would take; sizes in bytes.
pub(super) struct DryRun {
    frozen: u64,
    trained: u64,
    /// Measured with one micro-batch; `None` where the system does not say.
    activations: Option<u64>,
    /// Tokens of that micro-batch.
    tokens: usize,
    steps: u64,
    seconds: f64,
    examples: (usize, usize),
}

/// Memory and time. The time is that of the first micro-batch, run for real.
pub(super) fn measure(config: &TrainConfig, subject: &Subject, data: &TrainData) -> Result<DryRun> {
    let trainer = Trainer::new(config, subject, data, None)?;
    let bytes = |dtype: DType| dtype.size_in_bytes() as u64;
    let weights = subject.model().bytes();
    let (mut micro_batches, _) = trainer.micro_batches(0);
    let count = micro_batches.len();
    micro_batches.truncate(1);
    let tokens = micro_batches.iter().flatten().map(|e| e.ids.len()).sum();
    let before = resident(false);
    let started = Instant::now();
    gradients(subject, &micro_batches, Some((config.seed, 0)), 1)?;
    let seconds = started.elapsed().as_secs_f64() * count as f64;
    let activations = resident(true).zip(before).map(|(peak, before)| peak.saturating_sub(before));
    Ok(DryRun {
        frozen: if subject.peft().is_some() { weights } else { 0 },
        trained: subject.trainable() as u64 * bytes(subject.model().precision().trained()),
        activations,
        tokens,
        steps: trainer.total_steps(),
        seconds,
        examples: (data.train.len(), data.validation.len()),
    })
}

impl DryRun {
    /// Prints it for people, or as JSON.
    pub(super) fn print(&self, subject: &Subject, notes: &[String], json: bool) {
        match json {
            true => self.print_json(subject, notes),
            false => self.print_text(subject, notes),
        }
    }

    fn print_text(&self, subject: &Subject, notes: &[String]) {
        for note in notes {
            say!("{note}");
        }
        if let Some(peft) = subject.peft() {
            say!(
                "{}; residual mixed into {} of {} modules",
                peft.config().method,
                peft.plan().mixed(),
                peft.plan().modules.len()
            );
            for module in &peft.plan().modules {
                let mixed = if module.residual == Mixing::Mixed { "h0 mixed in" } else { "" };
                say!("  {}  {} -> {}  {}  {mixed}", module.path, module.input, module.output, module.trainable);
            }
        }
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        say!("trainable        {}", thousands(subject.trainable() as u64));
        say!("frozen weights   {}", mib(self.frozen));
        say!("trained weights  {}", mib(self.trained));
        say!("gradients        {}", mib(self.trained));
        say!("AdamW moments    {}", mib(2 * self.trained));
        if let Some(bytes) = self.activations {
            say!("activations      {} (measured: one micro-batch of {} tokens)", mib(bytes), self.tokens);
        }
        let minutes = self.seconds * self.steps as f64 / 60.0;
        say!("steps            {}, about {:.2} s each: {minutes:.0} min", self.steps, self.seconds);
        say!("examples         {} to train on, {} held out", self.examples.0, self.examples.1);
    }

    fn print_json(&self, subject: &Subject, notes: &[String]) {
        let modules: Option<Vec<_>> = subject.peft().map(|peft| {
            let module = |m: &crate::peft::PlannedModule| {
                json!({
                    "path": m.path,
                    "reads": m.input,
                    "writes": m.output,
                    "trainable": m.trainable,
                    "h0_mixed": m.residual == Mixing::Mixed,
                })
            };
            peft.plan().modules.iter().map(module).collect()
        });
        let value = json!({
            "notes": notes,
            "modules": modules,
            "trainable": subject.trainable(),
            "bytes": {
                "frozen_weights": self.frozen,
                "trained_weights": self.trained,
                "gradients": self.trained,
                "moments": 2 * self.trained,
                "activations": self.activations,
            },
            "measured_tokens": self.tokens,
            "steps": self.steps,
            "seconds_per_step": self.seconds,
            "examples": {"train": self.examples.0, "validation": self.examples.1},
        });
        say!("{value:#}");
    }
}

/// The process's resident memory, now or at its peak, in bytes; `None` where the system does not say.
fn resident(peak: bool) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let key = if peak { "VmHWM:" } else { "VmRSS:" };
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
