//! Measuring a run: chunks of texts through the model, once or twice, folded in the order of the input.

use super::baselines::stand_ins;
use super::chunks::{CHUNK, Chunks, TextSupply, batches, pack};
use super::means::RunMeans;
use super::partner::partners;
use super::plan::MeasurePlan;
use super::pooled::Pooled;
use super::recorder::{ChunkResult, Recorder};
use super::run_values::{MeasuredText, RunValues};
use super::scratch::{Keeper, KeptBatch, Scratch};
use super::states::{StatesError, StoredStates};
use super::text_values::Stage;
use super::workers::{Event, in_order};
use crate::data::{DataError, Image, Packed, Sequence};
use crate::measures::{Cka, EmbeddingTable, Need, Point, TokenSet};
use crate::model::{ModelError, Pass, Transformer};
use crate::peft::Peft;
use crate::persist::PersistError;
use crate::probe::{Probe, Site};
use candle_core::{DType, Device};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A text ready to be measured by one model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EncodedText {
    /// Its position in the input, from 0.
    pub index: u64,
    /// Its group.
    pub group: Option<String>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which tokens are special.
    pub special: Vec<bool>,
    /// Token types; empty where all are 0.
    pub types: Vec<u32>,
    /// The image, where it is one.
    pub image: Option<Image>,
    /// The rows to measure; all run through the model.
    pub span: Range<usize>,
}

impl EncodedText {
    /// What a model reads of it.
    #[must_use]
    pub fn sequence(&self) -> Sequence<'_> {
        Sequence { ids: &self.ids, types: &self.types, image: self.image.as_ref() }
    }
}

/// Why similarity cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SimilarityError {
    /// The model cannot be run.
    #[error("{run}: {source}")]
    Run {
        /// The run.
        run: String,
        /// Why.
        source: ModelError,
    },
    /// A text cannot be read or encoded.
    #[error(transparent)]
    Text(#[from] DataError),
    /// Stored states cannot be read.
    #[error("{run}: {source}")]
    States {
        /// The run.
        run: String,
        /// Why.
        source: StatesError,
    },
    /// Unfinished work cannot be saved.
    #[error(transparent)]
    Save(#[from] PersistError),
}

/// A model with what is plugged into it.
#[derive(Debug, Clone, Copy)]
pub struct RunModel<'a> {
    /// The model.
    pub transformer: &'a Transformer,
    /// Its adapter.
    pub peft: Option<&'a Peft>,
}

/// Where a run's hidden states come from.
#[derive(Debug, Clone, Copy)]
pub enum StateSource<'a> {
    /// A model that is run.
    Model(RunModel<'a>),
    /// Files.
    Stored(&'a StoredStates),
}

impl<'a> StateSource<'a> {
    /// The model, if there is one.
    #[must_use]
    pub fn model(self) -> Option<RunModel<'a>> {
        match self {
            Self::Model(model) => Some(model),
            Self::Stored(_) => None,
        }
    }

    /// The width of a hidden state.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Model(model) => model.transformer.architecture().hidden_size,
            Self::Stored(states) => states.width(),
        }
    }
}

/// One run to measure.
#[derive(Clone, Copy)]
pub struct RunInput<'a> {
    /// The run's name.
    pub name: &'a str,
    /// What is measured.
    pub source: StateSource<'a>,
    /// The run that CKA compares with, on the same tokens.
    pub reference: Option<RunModel<'a>>,
    /// The corpus means of that run, which CKA centres it on.
    pub reference_means: Option<&'a RunMeans>,
    /// The texts.
    pub texts: &'a dyn TextSupply,
    /// The texts, by index, that lookup measures are taken of.
    pub lookup: &'a BTreeSet<u64>,
    /// Frozen corpus means; without them a second pass makes its own.
    pub means: Option<&'a RunMeans>,
    /// Whether each text's rows are taken from other texts of its chunk.
    pub other_texts: bool,
    /// Texts that run through the model together: bounds memory; results change by rounding at most.
    pub batch_size: usize,
    /// Where the states of a first pass are kept for the second; without it the model runs twice.
    pub scratch: Option<&'a Scratch>,
}

/// Which pass a run is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum PassNumber {
    /// The one that needs no corpus means, or that has frozen ones.
    #[default]
    First,
    /// The one that uses the first one's means.
    Second,
    /// None: all is measured.
    Done,
}

/// What a run has given so far: what is saved and gone on from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunState {
    /// The pass at hand.
    pub pass: PassNumber,
    /// Chunks that it has folded.
    pub chunks: u64,
    /// The texts that the first pass has seen.
    pub texts: Vec<MeasuredText>,
    /// By text, point, measure, token set; NaN is undefined.
    pub values: Vec<f64>,
    /// The first pass' accumulators, by point and token set.
    pub first: Vec<[Pooled; 3]>,
    /// The second pass' accumulators.
    pub second: Vec<[Pooled; 3]>,
}

/// Who follows the work.
pub trait Watch {
    /// A batch of so many texts went through the model.
    fn texts(&mut self, count: usize);

    /// A chunk was folded; a watcher may save the state.
    ///
    /// # Errors
    /// The state cannot be saved.
    fn folded(&mut self, state: &RunState) -> Result<(), SimilarityError>;
}

/// A watcher that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn texts(&mut self, _: usize) {}

    fn folded(&mut self, _: &RunState) -> Result<(), SimilarityError> {
        Ok(())
    }
}

/// Measures one run from `state` on (an empty one at first) and returns its values and, if a first pass made them,
/// its corpus means.
///
/// Every chunk is computed alone and folded in the order of the input: neither threads nor an interruption change a bit
/// of what is accumulated. The batch size moves last digits: a matrix product of another shape may round otherwise.
///
/// # Errors
/// A hidden state is not finite, the model cannot be run, a text cannot be read, or the watcher fails.
pub fn measure_run(
    input: &RunInput<'_>,
    plan: &MeasurePlan,
    mut state: RunState,
    watch: &mut dyn Watch,
) -> Result<(RunValues, Option<RunMeans>), SimilarityError> {
    let own_means = plan.second_pass() && input.means.is_none();
    let table = Table::new(input, plan).map_err(|source| failed(input, source))?;
    let mut measured = Measured { input, plan, table: table.view(), kept: BTreeMap::new() };
    if state.pass == PassNumber::First {
        let stage = Stage { first: true, means: input.means, wanted: plan.wanted(own_means) };
        measured.pass(stage, &mut state, watch)?;
        state.pass = if own_means { PassNumber::Second } else { PassNumber::Done };
        state.chunks = 0;
    }
    let means = own_means.then(|| RunMeans::of(&plan.points, &state.first, plan.needs(Need::CorpusDeviation)));
    if state.pass == PassNumber::Second {
        let stage = Stage { first: false, means: means.as_ref(), wanted: Default::default() };
        measured.pass(stage, &mut state, watch)?;
        (state.pass, state.chunks) = (PassNumber::Done, 0);
    }
    watch.folded(&state)?;
    let mut pooled = state.first;
    for (own, second) in pooled.iter_mut().zip(&state.second) {
        // The texts were counted in the first pass already.
        own.iter_mut().zip(second).for_each(|(own, second)| own.merge(&Pooled { texts: 0, ..second.clone() }));
    }
    Ok((RunValues::new(input.name, plan, state.texts, state.values, &pooled), means))
}

fn failed(input: &RunInput<'_>, source: ModelError) -> SimilarityError {
    SimilarityError::Run { run: input.name.to_owned(), source }
}

/// One batch through a model.
fn run(model: RunModel<'_>, batch: &Packed, probe: &mut dyn Probe) -> Result<(), ModelError> {
    let frozen = model.peft.map(Peft::frozen);
    model.transformer.hidden_states(batch, &Pass::inference(frozen.as_ref()), probe).map(|_| ())
}

/// A run with its embedding table.
struct Measured<'a> {
    input: &'a RunInput<'a>,
    plan: &'a MeasurePlan,
    table: Option<EmbeddingTable<'a>>,
    /// The chunks whose states the first pass kept, by number.
    kept: BTreeMap<u64, Vec<KeptBatch>>,
}

/// A chunk with its number and that of its first text.
struct Job {
    number: u64,
    first: usize,
    texts: Vec<EncodedText>,
}

impl Measured<'_> {
    fn pass(&mut self, stage: Stage<'_>, state: &mut RunState, watch: &mut dyn Watch) -> Result<(), SimilarityError> {
        let mut done = 0;
        let jobs = (0u64..).zip(Chunks::open(self.input.texts)?).map(|(number, chunk)| {
            let texts = chunk?;
            let first = done;
            done += texts.len();
            Ok(Job { number, first, texts })
        });
        let folded = state.chunks;
        let jobs = jobs.filter(|job| job.as_ref().map_or(true, |job: &Job| job.number >= folded));
        let mut kept = BTreeMap::new();
        let work = |job: &Job, texts: &mut dyn FnMut(usize)| self.chunk(job, stage, texts);
        in_order(self.workers(stage), jobs, work, |event| match event {
            Event::Progress(texts) => {
                watch.texts(texts);
                Ok(())
            }
            Event::Done(job, (result, states)) => {
                self.fold(&job, stage, result, state);
                state.chunks = job.number + 1;
                kept.extend(states.map(|states| (job.number, states)));
                watch.folded(state)
            }
        })?;
        self.kept = kept;
        Ok(())
    }

    /// Chunks that are computed at a time. On a CPU one a thread, since small kernels gain little from several; but
    /// one after another where a chunk's own accumulators are large, or another run goes beside it.
    fn workers(&self, stage: Stage<'_>) -> usize {
        let large = [Need::CentredLayer0, Need::CentredReference].into_iter().any(|need| self.plan.needs(need));
        if large || !self.on_cpu() || self.reference(stage).is_some() { 1 } else { rayon::current_num_threads() }
    }

    /// Whether the states are on the CPU from the start.
    fn on_cpu(&self) -> bool {
        match self.input.source {
            StateSource::Model(model) => model.transformer.device().is_cpu(),
            StateSource::Stored(_) => true,
        }
    }

    /// Whether states on the CPU are measured as those on another device are: in tests that compare the two.
    fn by_device_sums(&self) -> bool {
        #[cfg(test)]
        if self.input.name == super::recorder::BY_DEVICE_SUMS {
            return true;
        }
        false
    }

    /// What a chunk gives, alone, and its kept states.
    fn chunk(
        &self,
        job: &Job,
        stage: Stage<'_>,
        done: &mut dyn FnMut(usize),
    ) -> Result<(ChunkResult, Option<Vec<KeptBatch>>), SimilarityError> {
        let (input, chunk) = (self.input, &job.texts);
        let pooled = self.plan.points.iter().map(|&point| self.empty(point, stage)).collect();
        // Stored states have no attention maps, which alone ask for it.
        let causal = input.source.model().is_none_or(|model| model.transformer.architecture().causal);
        let mut recorder = Recorder::new(self.plan, stage, self.table.as_ref(), causal, chunk.len(), pooled);
        recorder.by_device_sums = self.by_device_sums();
        let mut kept = self.scratch(stage).map(|_| Vec::new());
        let replayed = self.kept.get(&job.number).zip(input.scratch);
        // Rows can stand in for each other only where they are computed together.
        let size = if input.other_texts { CHUNK as usize } else { input.batch_size };
        for (number, batch) in batches(chunk, size).into_iter().enumerate() {
            let stand_ins = match input.other_texts {
                true => match stand_ins(chunk, &batch, self.plan.seed) {
                    None => {
                        done(batch.len());
                        continue;
                    }
                    found => found,
                },
                false => None,
            };
            let packed = pack(chunk, &batch);
            let expect = || -> Result<(), ModelError> {
                let model = input.source.model().filter(|_| stage.first && self.plan.needs(Need::H0));
                let h0 = model.map(|model| model.transformer.h0(&packed)).transpose()?;
                recorder.expect(chunk, &batch, h0, |index| input.lookup.contains(&index), stand_ins)
            };
            expect().map_err(|source| failed(input, source))?;
            match (input.source, replayed.and_then(|(kept, scratch)| Some((kept.get(number)?, scratch)))) {
                (_, Some((kept, scratch))) => scratch.replay(kept, &packed, &mut recorder),
                (StateSource::Model(model), None) => match (&mut kept, self.scratch(stage)) {
                    (Some(batches), Some(scratch)) => {
                        let mut keeper = Keeper::new(scratch, &mut recorder);
                        let run = run(model, &packed, &mut keeper);
                        match keeper.finish() {
                            Some(batch) => batches.push(batch),
                            None => kept = None,
                        }
                        run
                    }
                    _ => self.forward(model, &packed, stage, &mut recorder),
                },
                (StateSource::Stored(states), None) => {
                    let texts: Vec<u64> = batch.iter().filter_map(|&p| chunk.get(p)).map(|text| text.index).collect();
                    let run = input.name.to_owned();
                    states.replay(&texts, &mut recorder).map_err(|source| SimilarityError::States { run, source })?;
                    Ok(())
                }
            }
            .map_err(|source| failed(input, source))?;
            done(batch.len());
        }
        Ok((recorder.finish(), kept))
    }

    /// Where this stage keeps states: in a first pass that a second one follows.
    fn scratch(&self, stage: Stage<'_>) -> Option<&Scratch> {
        let follows = stage.first && stage.means.is_none() && self.plan.second_pass();
        // A second pass beside another run needs both models.
        let beside = self.input.reference.is_some() && self.plan.needs(Need::CentredReference);
        // Tokens of other texts skip batches, so that kept ones would not be counted alike.
        // What can be measured on its device does not leave it: the second pass computes it again.
        let stays = !self.on_cpu() && self.plan.sums_suffice(true, true);
        self.input.scratch.filter(|_| follows && !beside && !stays && !self.input.other_texts)
    }

    fn forward(
        &self,
        model: RunModel<'_>,
        packed: &Packed,
        stage: Stage<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), ModelError> {
        let Some(reference) = self.reference(stage) else {
            return run(model, packed, recorder);
        };
        let (mut sender, partner) = partners(&self.plan.points);
        std::thread::scope(|scope| {
            let beside = scope.spawn(move || run(reference, packed, &mut sender));
            recorder.partner = Some(partner);
            let own = run(model, packed, recorder);
            // Hanging up lets the other side run to its end.
            recorder.partner = None;
            let beside = beside.join().unwrap_or_else(|_| {
                Err(ModelError::Tensor(candle_core::Error::Msg("the reference run stopped".to_owned())))
            });
            own.and(beside)
        })
    }

    /// The run to compare with in this stage.
    fn reference(&self, stage: Stage<'_>) -> Option<RunModel<'_>> {
        self.input.reference.filter(|_| stage.means.is_some() && self.plan.needs(Need::CentredReference))
    }

    /// Empty accumulators of a stage at a point.
    fn empty(&self, point: Point, stage: Stage<'_>) -> [Pooled; 3] {
        let width = self.input.source.width();
        TokenSet::ALL.map(|set| {
            let mut pooled = match stage.first {
                true => Pooled::new(self.plan.kept(stage.wanted.sum), width, self.plan.seed),
                false => Pooled::default(),
            };
            let mean = |point: Point| Some(stage.means?.get(point, set)?.mean.clone());
            if let (true, Some(own)) = (self.plan.needs(Need::CentredLayer0), mean(point)) {
                let layer0 = mean(Point { site: Site::Embedding, layer: 0 });
                pooled.cka_layer0 = layer0.map(|layer0| Cka::new(layer0, own));
            }
            if let (Some(_), Some(own)) = (self.reference(stage), mean(point)) {
                let reference = self.input.reference_means.and_then(|means| Some(means.get(point, set)?.mean.clone()));
                pooled.cka_base = reference.map(|reference| Cka::new(reference, own));
            }
            pooled
        })
    }

    /// Folds a chunk into the state.
    fn fold(&self, job: &Job, stage: Stage<'_>, result: ChunkResult, state: &mut RunState) {
        if stage.first {
            state.texts.extend(job.texts.iter().map(|text| MeasuredText {
                index: text.index,
                group: text.group.clone(),
                tokens: text.span.len(),
            }));
            state.values.resize(state.texts.len() * self.plan.values_a_text(), f64::NAN);
        }
        let own = state.values.iter_mut().skip(job.first * self.plan.values_a_text());
        own.zip(&result.values).filter(|(_, new)| !new.is_nan()).for_each(|(cell, new)| *cell = *new);
        let pooled = if stage.first { &mut state.first } else { &mut state.second };
        pooled.resize(self.plan.points.len(), Default::default());
        for (own, new) in pooled.iter_mut().zip(&result.pooled) {
            own.iter_mut().zip(new).for_each(|(own, new)| own.merge(new));
        }
    }
}

/// The embedding table in f32, where a lookup asks for it.
struct Table {
    values: Vec<f32>,
    width: usize,
}

impl Table {
    fn new(input: &RunInput<'_>, plan: &MeasurePlan) -> Result<Self, ModelError> {
        let model = input.source.model().filter(|_| plan.needs(Need::EmbeddingTable));
        let Some(embedding) = model.and_then(|model| model.transformer.embedding()) else {
            return Ok(Self { values: Vec::new(), width: input.source.width() });
        };
        let width = embedding.dim(1)?;
        let values = embedding.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, width })
    }

    fn view(&self) -> Option<EmbeddingTable<'_>> {
        EmbeddingTable::new(&self.values, self.width)
    }
}
