//! The training loop: steps, validation, similarity, checkpoints, early stopping.

use super::checkpoint::{Checkpoint, Progress};
use super::config::TrainConfig;
use super::events::{EventLog, StepEvent};
use super::optimizer::{AdamW, Moments};
use super::schedule::{lambda_share, learning_rate};
use super::step::{evaluate, train_step};
use super::{Subject, TrainError};
use crate::data::{EpochOrder, Example, Packed};
use crate::kernels;
use crate::measures::{CosineProbe, TokenSet};
use crate::model::Pass;
use crate::peft::Peft;
use crate::persist;
use crate::profile::{self, Phase, Profile};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a run reads.
#[derive(Debug, Default)]
pub struct TrainData {
    /// Training examples, in the file's order.
    pub train: Vec<Example>,
    /// Held-out examples.
    pub validation: Vec<Example>,
    /// Held-out texts whose similarity is watched.
    pub probe: ProbeSet,
}

/// Held-out texts whose similarity is watched while training.
#[derive(Debug, Default)]
pub struct ProbeSet {
    /// The texts; what the loss asks of them is not read.
    pub texts: Vec<Example>,
}

impl ProbeSet {
    /// Mean token similarity (all tokens) of layers 0 to L and after the final norm.
    ///
    /// # Errors
    /// The model cannot be run.
    pub fn similarity(&self, subject: &Subject, batch_size: usize) -> Result<Vec<Option<f64>>, TrainError> {
        let frozen = subject.peft().map(Peft::frozen);
        let pass = Pass::inference(frozen.as_ref());
        let mut probe = CosineProbe::new(subject.model().architecture().layers, None);
        for group in self.texts.chunks(batch_size.max(1)) {
            let batch = Packed::pack(group.iter().map(Example::sequence));
            probe.expect(group.iter().map(|text| (text.special.as_slice(), 0..text.ids.len())));
            kernels::forget(|| subject.model().hidden_states(&batch, &pass, &mut probe))?;
        }
        Ok(probe.curve(TokenSet::All))
    }
}

/// Where a run writes.
#[derive(Debug, Clone)]
pub struct RunFiles {
    folder: PathBuf,
    base_model: String,
    /// Nothing but the checkpoint of a run that is asked to stop.
    checkpoint_alone: bool,
}

impl RunFiles {
    /// The run folder and the base model's name, which adapters carry.
    #[must_use]
    pub fn new(folder: &Path, base_model: &str) -> Self {
        Self { folder: folder.to_path_buf(), base_model: base_model.to_owned(), checkpoint_alone: false }
    }

    /// A folder in which nothing is written but a checkpoint when the run is asked to stop ([`Trainer::stop_when`]).
    #[must_use]
    pub fn checkpoint_alone(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), base_model: String::new(), checkpoint_alone: true }
    }

    /// The folder of the newest checkpoint.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        self.folder.join("last")
    }

    /// The folder of the best checkpoint by validation loss.
    #[must_use]
    pub fn best(&self) -> PathBuf {
        self.folder.join("best")
    }

    /// The folder of the run's result: the best where there is validation, else the last.
    #[must_use]
    pub fn result(&self, subject: &Subject) -> PathBuf {
        self.folder.join(if subject.peft().is_some() { "adapter" } else { "model" })
    }

    fn events(&self) -> PathBuf {
        self.folder.join("events.jsonl")
    }
}

/// Watches a run.
pub trait Observer {
    /// Called after every step with its event and the number of steps to come.
    fn step(&mut self, event: &StepEvent, total: u64);
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Optimizer steps done.
    pub steps: u64,
    /// Lowest validation loss and the step after which it was seen.
    pub best: Option<(f64, u64)>,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// The step that the run continued from, if it was resumed.
    pub resumed_from: Option<u64>,
    /// Whether it was asked to stop before its end: there is a checkpoint, and no result.
    pub interrupted: bool,
}

/// A training run over a subject and its data.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    subject: &'a Subject,
    data: &'a TrainData,
    files: Option<&'a RunFiles>,
    settings: AdamW,
    total: u64,
    stop_after: Option<u64>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Trainer<'a> {
    /// A run; without `files` nothing is written.
    ///
    /// # Errors
    /// A setting makes no sense, or there is nothing to train on.
    pub fn new(
        config: &'a TrainConfig,
        subject: &'a Subject,
        data: &'a TrainData,
        files: Option<&'a RunFiles>,
    ) -> Result<Self, TrainError> {
        config.check()?;
        if data.train.is_empty() {
            return Err(TrainError::NoData);
        }
        let settings =
            AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: config.weight_decay, decay_vectors: true };
        let total = match (config.steps, config.batch_tokens) {
            (Some(steps), _) => steps,
            (None, Some(limit)) => order(config).token_steps(config.epochs, limit, &lengths(data)),
            (None, None) => {
                let per_step = config.batch_size * config.accumulate;
                let per_epoch = EpochOrder::steps_per_epoch(per_step, data.train.len()) as u64;
                per_epoch.saturating_mul(config.epochs)
            }
        };
        Ok(Self { config, subject, data, files, settings, total, stop_after: None, stop: None })
    }

    /// Stops after `step` steps as an interruption would: with a checkpoint, without a result.
    #[must_use]
    pub fn stop_after(mut self, step: u64) -> Self {
        self.stop_after = Some(step);
        self
    }

    /// Stops after the step during which `stop` was set: with a checkpoint, without a result.
    #[must_use]
    pub fn stop_when(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Files that hold more than a checkpoint.
    fn run_files(&self) -> Option<&'a RunFiles> {
        self.files.filter(|files| !files.checkpoint_alone)
    }

    /// Optimizer steps of the whole run.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// The examples of the step after `done` steps, by micro-batch, and how many epochs are done after it.
    #[must_use]
    pub fn micro_batches(&self, done: u64) -> (Vec<Vec<&'a Example>>, f64) {
        let (config, order) = (self.config, order(self.config));
        let (indices, epoch) = match config.batch_tokens {
            Some(limit) => order.token_batch(done as usize, limit, &lengths(self.data)),
            None => {
                let per_step = config.batch_size * config.accumulate;
                let per_epoch = EpochOrder::steps_per_epoch(per_step, self.data.train.len()).max(1);
                let indices = order.batch_indices(done as usize, per_step, self.data.train.len());
                (indices, (done + 1) as f64 / per_epoch as f64)
            }
        };
        let together = match (config.micro_batch, config.batch_tokens) {
            (Some(count), _) => count,
            (None, Some(_)) => indices.len(),
            (None, None) => config.batch_size,
        };
        let chosen: Vec<&Example> = indices.iter().filter_map(|&i| self.data.train.get(i)).collect();
        (chosen.chunks(together.max(1)).map(<[_]>::to_vec).collect(), epoch)
    }

    /// Runs to the end, from the last checkpoint if `resume` and there is one.
    ///
    /// `fingerprint` names model, data and settings; a checkpoint of another is refused.
    ///
    /// # Errors
    /// The run diverges, a tensor receives no gradient, or a file cannot be written.
    pub fn run(&self, resume: bool, fingerprint: &str, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        let mut moments = Moments::default();
        let mut progress = Progress::default();
        let checkpoint = self.files.map(|files| (Checkpoint::new(&files.last(), fingerprint), files));
        if resume
            && let Some((checkpoint, _)) = &checkpoint
            && let Some((saved, at)) = checkpoint.load(self.subject)?
        {
            (moments, progress) = (saved, at);
        }
        let resumed_from = (progress.step > 0).then_some(progress.step);
        let mut log = match self.run_files() {
            Some(files) => Some(EventLog::open(&files.events(), progress.step)?),
            None => None,
        };
        let total = self.total_steps();
        let end = self.stop_after.map_or(total, |stop| stop.min(total));
        let watches = self.config.probe_every > 0 && !self.data.probe.texts.is_empty();
        let mut before = match watches && progress.step == 0 {
            true => Some(self.similarity()?),
            false => None,
        };
        let mut interrupted = false;
        while progress.step < end && !progress.stopped && !interrupted {
            let profiled = profile::is_on().then(Profile::so_far);
            let mut event = self.step(progress.step, &mut moments)?;
            progress.step = event.step;
            event.similarity_before = before.take();
            let step = progress.step;
            let due = |every: u64| every > 0 && (step.is_multiple_of(every) || step == total);
            if due(self.config.eval_every) && !self.data.validation.is_empty() {
                self.validate(&mut event, &mut progress)?;
            }
            if watches && due(self.config.probe_every) {
                event.similarity = Some(self.similarity()?);
            }
            event.phase_seconds = profiled.map(|before| Profile::so_far().phases_since(&before));
            if let Some(log) = &mut log {
                log.append(&event)?;
            }
            observer.step(&event, total);
            let asked = self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            interrupted = asked && progress.step < total && !progress.stopped;
            let saves = due(self.config.save_every) || progress.step == end || progress.stopped;
            if let Some((checkpoint, files)) = &checkpoint
                && (interrupted || (saves && !files.checkpoint_alone))
            {
                checkpoint.save(self.subject, &moments, &progress, &files.base_model)?;
            }
        }
        if let Some(files) = self.run_files()
            && (progress.step >= total || progress.stopped)
        {
            self.write_result(files, progress.best.is_some())?;
        }
        Ok(Outcome {
            steps: progress.step,
            best: progress.best,
            stopped_early: progress.stopped,
            resumed_from,
            interrupted,
        })
    }

    /// The optimizer step after `done` steps.
    fn step(&self, done: u64, moments: &mut Moments) -> Result<StepEvent, TrainError> {
        let started = Instant::now();
        let config = self.config;
        let (micro_batches, epoch) = profile::timed(Phase::Data, || self.micro_batches(done));
        let total = self.total_steps();
        if let (Some(schedule), Some(peft)) = (config.lambda_schedule, self.subject.peft()) {
            peft.set_lambda_share(lambda_share(schedule, total, done));
        }
        let rate = learning_rate(config.schedule, config.lr, 0.0, config.warmup_steps, total, done);
        let report = train_step(
            self.subject,
            moments,
            &self.settings,
            rate,
            config.max_grad_norm,
            &micro_batches,
            Some((config.seed, done)),
            done + 1,
        )?;
        Ok(StepEvent {
            penalty: report.penalty,
            step: done + 1,
            loss: report.loss,
            lr: rate,
            tokens: report.tokens,
            seconds: started.elapsed().as_secs_f64(),
            grad_norm: report.gradient_norm,
            epoch,
            lambda: self.lambdas()?,
            val_loss: None,
            val_accuracy: None,
            similarity: None,
            similarity_before: None,
            phase_seconds: None,
        })
    }

    /// λ as they are, where they are learned or follow a schedule.
    fn lambdas(&self) -> Result<BTreeMap<String, f64>, TrainError> {
        let Some(peft) = self.subject.peft() else { return Ok(BTreeMap::new()) };
        match (self.config.lambda_schedule, peft.config().residual) {
            (Some(_), Some(residual)) => {
                Ok(BTreeMap::from([("all".to_owned(), residual.lambda * peft.lambda_share())]))
            }
            _ => Ok(peft.learned_lambdas()?),
        }
    }

    fn similarity(&self) -> Result<Vec<Option<f64>>, TrainError> {
        profile::timed(Phase::Probe, || self.data.probe.similarity(self.subject, self.config.batch_size))
    }

    fn validate(&self, event: &mut StepEvent, progress: &mut Progress) -> Result<(), TrainError> {
        let examples: Vec<&Example> = self.data.validation.iter().collect();
        let at_once = self.config.batch_size * self.config.accumulate;
        let (loss, accuracy) = profile::timed(Phase::Validation, || evaluate(self.subject, &examples, at_once))?;
        (event.val_loss, event.val_accuracy) = (Some(loss), Some(accuracy));
        if progress.best.is_none_or(|(best, _)| loss < best) {
            (progress.best, progress.stale) = (Some((loss, event.step)), 0);
            if let Some(files) = self.run_files() {
                persist::replace_folder(&files.best(), |folder| self.subject.save(folder, &files.base_model))?;
            }
        } else {
            progress.stale += 1;
            progress.stopped = self.config.patience > 0 && progress.stale >= self.config.patience;
        }
        Ok(())
    }

    fn write_result(&self, files: &RunFiles, has_best: bool) -> Result<(), TrainError> {
        let best = if has_best { persist::whole_folder(&files.best()) } else { None };
        persist::replace_folder(&files.result(self.subject), |folder| match &best {
            None => self.subject.save(folder, &files.base_model),
            Some(best) => copy_files(best, folder),
        })
    }
}

fn order(config: &TrainConfig) -> EpochOrder {
    EpochOrder { seed: config.seed, shuffle: !config.no_shuffle }
}

fn lengths(data: &TrainData) -> Vec<usize> {
    data.train.iter().map(|example| example.ids.len()).collect()
}

fn copy_files(from: &Path, to: &Path) -> Result<(), TrainError> {
    let unreadable = |source| TrainError::Unreadable { file: from.display().to_string(), source };
    for entry in std::fs::read_dir(from).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let bytes = std::fs::read(entry.path()).map_err(unreadable)?;
        persist::write_file(&to.join(entry.file_name()), &bytes)?;
    }
    Ok(())
}
