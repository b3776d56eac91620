//! Pre-training of the embedded model, checkpointed, with its gates and its log.

use super::gates::gate_items;
use super::holdout::Split;
use super::page::Text;
use super::question::QuestionKind;
use super::recipe::Recipe;
use super::tuned::{TunedEvent, TuningError, tune};
use super::{corpus::Corpus, corpus::Stage, vocabulary};
use crate::data::{Example, LossOn, Packed};
use crate::measures::{CosineProbe, TokenSet, effective_rank};
use crate::model::{Initialisation, ModelError, Pass, RandomWeights, Transformer};
use crate::persist;
use crate::probe::{Probe, Silent, Site};
use crate::train::{Checkpoint, Moments, Subject, TrainError, learning_rate, train_step};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// The log's name.
const LOG: &str = "pretrain.jsonl";

/// How much a survey reads.
struct SurveySize {
    /// Held-out texts whose loss is taken.
    texts: u64,
    /// Items of each gate and split.
    items: usize,
    /// The splits of the gates.
    splits: &'static [Split],
}

const DURING: SurveySize = SurveySize { texts: 32, items: 100, splits: &[Split::Train, Split::Validation] };
const AT_THE_END: SurveySize =
    SurveySize { texts: 200, items: 1000, splits: &[Split::Train, Split::Validation, Split::Test] };

/// The state of the model after some steps, as the log has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainEvent {
    /// Steps done.
    pub step: u64,
    /// Tokens read so far.
    pub tokens: u64,
    /// Wall time since the run, or its continuation, began.
    pub seconds: f64,
    /// Mean training loss since the last event, in nats a token; `None` before the first step.
    pub loss: Option<f64>,
    /// The generator's exact entropy on the same tokens: what no model can go below.
    pub floor: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean loss of the determined tokens of held-out texts of stage 3: 0 at best.
    pub validation_determined: f64,
    /// Mean loss of all tokens of the same texts.
    pub validation_loss: f64,
    /// Share of right answers on held-out items, by gate.
    pub gates: Vec<GateResult>,
    /// Token similarity of held-out texts: layers 0 to L, then after the final norm.
    pub similarity: Vec<Option<f64>>,
    /// Effective rank of the same states, mean over texts.
    pub effective_rank: Vec<Option<f64>>,
}

/// The share of right answers on one gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    /// The kind of question.
    pub kind: String,
    /// `train` (new stories of trained pairs), `validation` or `test`.
    pub split: String,
    /// Items asked.
    pub items: usize,
    /// Share of right answers.
    pub accuracy: f64,
}

/// Accuracy of `model` on the first `n` items of every gate.
///
/// # Errors
/// The model cannot be run.
pub fn gate_results(model: &Transformer, splits: &[Split], n: usize) -> Result<Vec<GateResult>, ModelError> {
    let mut results = Vec::new();
    let asked = |kind: &QuestionKind| Stage::Three.rules().weight(*kind) > 0;
    for kind in QuestionKind::ALL.into_iter().filter(asked) {
        for &split in splits {
            let items = gate_items(kind, split, n);
            let prompts: Vec<Vec<u32>> = items.iter().map(|item| encode(&item.prompt)).collect();
            let answers: Vec<u32> = items.iter().map(|item| vocabulary::id(item.answer)).collect();
            let right = count_right(model, &prompts, &answers)?;
            results.push(GateResult {
                kind: kind.name().to_owned(),
                split: split.name().to_owned(),
                items: items.len(),
                accuracy: right as f64 / items.len().max(1) as f64,
            });
        }
    }
    Ok(results)
}

fn encode(words: &str) -> Vec<u32> {
    std::iter::once(vocabulary::BOS).chain(words.split_whitespace().map(vocabulary::id)).collect()
}

/// How many prompts are continued by their answer as the likeliest next token.
fn count_right(model: &Transformer, prompts: &[Vec<u32>], answers: &[u32]) -> Result<usize, ModelError> {
    let mut right = 0;
    for (prompts, answers) in prompts.chunks(64).zip(answers.chunks(64)) {
        let batch = Packed::from_sequences(prompts);
        let states = model.hidden_states(&batch, &Pass::default(), &mut Silent)?.detach();
        let last: Vec<u32> = batch.offsets.iter().skip(1).map(|&end| end as u32 - 1).collect();
        let states = states.index_select(&Tensor::new(last, states.device())?, 0)?;
        let (_, hits) = model.token_losses_and_hits(&states, answers)?;
        right += hits.iter().filter(|&&hit| hit).count();
    }
    Ok(right)
}

/// How alike the tokens are, and how many dimensions they use, at every point of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Mean token similarity over texts.
    pub similarity: Vec<Option<f64>>,
    /// Mean effective rank over texts.
    pub effective_rank: Vec<Option<f64>>,
}

/// Similarity and effective rank of every layer over `texts`, in [`crate::measures::points`]'s order.
///
/// # Errors
/// The model cannot be run.
pub fn geometry(model: &Transformer, pass: &Pass<'_>, texts: &[Vec<u32>]) -> Result<Geometry, ModelError> {
    let mut probe = GeometryProbe {
        cosine: CosineProbe::new(model.architecture().layers, None),
        ranks: vec![(0.0, 0); model.architecture().layers + 2],
    };
    for group in texts.chunks(16) {
        let batch = Packed::from_sequences(group);
        let specials: Vec<Vec<bool>> = group.iter().map(|ids| vec![false; ids.len()]).collect();
        probe.cosine.expect(specials.iter().map(|s| (s.as_slice(), 0..s.len())));
        model.hidden_states(&batch, pass, &mut probe)?;
    }
    let ranks = probe.ranks.iter().map(|&(sum, n)| (n > 0).then(|| sum / f64::from(n))).collect();
    Ok(Geometry { similarity: probe.cosine.curve(TokenSet::All), effective_rank: ranks })
}

struct GeometryProbe {
    cosine: CosineProbe,
    ranks: Vec<(f64, u32)>,
}

impl Probe for GeometryProbe {
    fn record(&mut self, site: Site, layer: usize, states: &Tensor, batch: &Packed) -> Result<(), ModelError> {
        self.cosine.record(site, layer, states, batch)?;
        let values = states.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let width = values.dim(1)?;
        let rows: Vec<f64> = values.flatten_all()?.to_vec1()?;
        let index = if site == Site::FinalNorm { self.ranks.len() - 1 } else { layer };
        for span in batch.offsets.windows(2) {
            let text = rows.get(span[0] * width..span[1] * width).unwrap_or_default();
            if let (Some(rank), Some((sum, n))) = (effective_rank(text, width), self.ranks.get_mut(index)) {
                *sum += rank;
                *n += 1;
            }
        }
        Ok(())
    }
}

/// Makes the model: trains from the last checkpoint in `folder`, or from the start, and writes
/// `config.json`, `tokenizer.json`, `model.safetensors` and `pretrain.jsonl` there; then tunes copies of it for
/// the log's last lines. Answers the last event of pre-training itself.
///
/// # Errors
/// A run diverges or a file cannot be written.
pub fn pretrain(
    recipe: &Recipe,
    folder: &Path,
    watch: &mut dyn FnMut(&PretrainEvent, u64),
) -> Result<PretrainEvent, TuningError> {
    let mut events = train(recipe, folder, watch)?;
    let log = folder.join(LOG);
    let mut tuned = Vec::new();
    write_log(&log, &events, &tuned)?;
    if recipe.tuning_steps > 0 {
        for loss_on in [LossOn::Answer, LossOn::All] {
            tuned.push(tune(folder, loss_on, recipe.tuning_steps)?);
            write_log(&log, &events, &tuned)?;
        }
    }
    events.pop().ok_or_else(|| TrainError::NoData.into())
}

/// Trains and writes the model; answers the log.
fn train(
    recipe: &Recipe,
    folder: &Path,
    watch: &mut dyn FnMut(&PretrainEvent, u64),
) -> Result<Vec<PretrainEvent>, TrainError> {
    let architecture = recipe.architecture().map_err(ModelError::from)?;
    let weights = RandomWeights::new(&architecture, Initialisation::FanIn, recipe.seed);
    let model = Transformer::load("embedded", architecture.clone(), &weights, DType::F32, &Device::Cpu)?;
    let subject = Subject::full(model)?;
    let fingerprint = crate::hash::sha256_bytes(serde_json::to_string(recipe).unwrap_or_default().as_bytes());
    persist::create_folder(folder)?;
    let checkpoint = Checkpoint::new(&folder.join("checkpoint"), &fingerprint);
    let log_path = folder.join(LOG);
    let (mut moments, mut done, mut events) = match checkpoint.load_model(&subject)? {
        Some((moments, step)) => {
            // What of the log cannot be read is lost: the weights do not depend on it.
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let kept: Vec<PretrainEvent> = read_log(&log).into_iter().filter(|e| e.step <= step).collect();
            (moments, step, kept)
        }
        None => (Moments::default(), 0, Vec::new()),
    };
    let validation = validation_texts(recipe);
    let started = Instant::now();
    let mut since = Since { tokens: events.last().map_or(0, |e| e.tokens), ..Since::default() };
    let total = recipe.total_steps();
    if events.is_empty() {
        events.push(survey(&subject, &validation, &DURING, 0, &since, 0.0, started)?);
    }
    while done < total {
        let texts = recipe.texts(done);
        let examples: Vec<Example> = texts.iter().map(example).collect();
        let rate = {
            let schedule = crate::train::Schedule::Cosine;
            learning_rate(schedule, recipe.lr, recipe.lr_floor, recipe.warmup_steps, total, done)
        };
        let report = train_step(
            &subject,
            &mut moments,
            &recipe.optimizer(),
            rate,
            recipe.max_grad_norm,
            &[examples.iter().collect()],
            None,
            done + 1,
        )?;
        done += 1;
        since.add(&report, &texts);
        if done.is_multiple_of(recipe.eval_every) || done == total {
            let size = if done == total { AT_THE_END } else { DURING };
            let event = survey(&subject, &validation, &size, done, &since, rate, started)?;
            watch(&event, total);
            events.push(event);
            since = Since { tokens: since.tokens, ..Since::default() };
            write_log(&log_path, &events, &[])?;
        }
        if done.is_multiple_of(recipe.save_every) || done == total {
            checkpoint.save_model(&subject, &moments, done)?;
        }
    }
    if events.last().is_none_or(|event| event.step < done) {
        events.push(survey(&subject, &validation, &AT_THE_END, done, &since, 0.0, started)?);
    }
    subject.save(folder, "embedded")?;
    let config = serde_json::to_string_pretty(&recipe.config_json()).unwrap_or_default() + "\n";
    persist::write_file(&folder.join("config.json"), config.as_bytes())?;
    persist::write_file(&folder.join("tokenizer.json"), vocabulary::tokenizer_json().as_bytes())?;
    Ok(events)
}

/// Sums since the last event.
#[derive(Debug, Default)]
struct Since {
    tokens: u64,
    loss: f64,
    floor: f64,
    targets: usize,
}

impl Since {
    fn add(&mut self, report: &crate::train::StepReport, texts: &[Text]) {
        self.tokens += report.tokens as u64;
        self.loss += report.loss * report.targets as f64;
        self.floor += texts.iter().filter_map(Text::entropy).sum::<f64>();
        self.targets += report.targets;
    }
}

fn example(text: &Text) -> Example {
    let n = text.ids.len();
    let loss = (0..n).map(|i| i > 0).collect();
    Example { ids: text.ids.clone(), loss, response: 0, special: vec![false; n], ..Example::default() }
}

fn validation_texts(recipe: &Recipe) -> Vec<Text> {
    let corpus = Corpus { seed: recipe.seed };
    (0..AT_THE_END.texts).map(|i| corpus.text(Stage::Three, Split::Validation, i)).collect()
}

fn survey(
    subject: &Subject,
    validation: &[Text],
    size: &SurveySize,
    step: u64,
    since: &Since,
    lr: f64,
    started: Instant,
) -> Result<PretrainEvent, TrainError> {
    let model = subject.model();
    let (mut all, mut determined) = ((0.0, 0u64), (0.0, 0u64));
    let read = validation.get(..size.texts as usize).unwrap_or(validation);
    for group in read.chunks(16) {
        let batch = Packed::from_sequences(&group.iter().map(|t| t.ids.as_slice()).collect::<Vec<_>>());
        let states = model.hidden_states(&batch, &Pass::default(), &mut Silent)?.detach();
        let targets: Vec<u32> = batch.ids.iter().copied().skip(1).chain([0]).collect();
        let (losses, _) = model.token_losses_and_hits(&states, &targets)?;
        for (text, span) in group.iter().zip(batch.offsets.windows(2)) {
            let losses = losses.get(span[0]..span[1] - 1).unwrap_or_default();
            for (loss, &is_determined) in losses.iter().zip(text.determined.iter().skip(1)) {
                all = (all.0 + loss, all.1 + 1);
                if is_determined {
                    determined = (determined.0 + loss, determined.1 + 1);
                }
            }
        }
    }
    let mean = |(sum, n): (f64, u64)| sum / n.max(1) as f64;
    let texts: Vec<Vec<u32>> = validation.iter().take(50).map(|t| t.ids.clone()).collect();
    let Geometry { similarity, effective_rank } = geometry(model, &Pass::default(), &texts)?;
    let per_target = |sum: f64| (since.targets > 0).then(|| sum / since.targets as f64);
    Ok(PretrainEvent {
        step,
        tokens: since.tokens,
        seconds: started.elapsed().as_secs_f64(),
        loss: per_target(since.loss),
        floor: per_target(since.floor),
        lr,
        validation_determined: mean(determined),
        validation_loss: mean(all),
        gates: gate_results(model, size.splits, size.items)?,
        similarity,
        effective_rank,
    })
}

/// The events of a log, without what comes after pre-training.
#[must_use]
pub fn read_log(text: &str) -> Vec<PretrainEvent> {
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

fn write_log(path: &Path, events: &[PretrainEvent], tuned: &[TunedEvent]) -> Result<(), TrainError> {
    let events = events.iter().filter_map(|event| serde_json::to_string(event).ok());
    let tuned = tuned.iter().filter_map(|event| serde_json::to_string(event).ok());
    let lines: Vec<String> = events.chain(tuned).collect();
    Ok(persist::write_file(path, (lines.join("\n") + "\n").as_bytes())?)
}
