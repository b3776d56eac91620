//! The runs of a similarity command, measured one after another; what is finished or begun is kept on disk.

use super::identity::{describe, identity};
use super::{SimilarityArgs, say_unless};
use crate::analysis::audit::{Audit, Precisions, audit, sample};
use crate::analysis::baselines::{Baseline, Shuffled};
use crate::analysis::chunks::TextSupply;
use crate::analysis::means::MeansFile;
use crate::analysis::plan::MeasurePlan;
use crate::analysis::residual_share::{ResidualRow, measure_residual};
use crate::analysis::run_values::RunValues;
use crate::analysis::runs::RunSpec;
use crate::analysis::saved::{Found, Saver};
use crate::analysis::scratch::Scratch;
use crate::analysis::similarity::{
    EncodedText, RunInput, RunModel, RunState, SimilarityError, StateSource, Watch, measure_run,
};
use crate::analysis::split::{self, split_layers};
use crate::analysis::states::StoredStates;
use crate::analysis::texts::{FileTexts, Scan, scan};
use crate::analysis::token_pairs::{PairRequest, RunPairs, measure_pairs};
use crate::analysis::token_text::TokenTexts;
use crate::cli::states::{self, SavedRun, StatesSpec};
use crate::cli::{open, progress, texts};
use crate::hash;
use crate::measures::{Class, Measure, Need};
use crate::model::{Initialisation, LoadedModel, RandomWeights, Transformer};
use crate::peft::{Peft, load_adapter};
use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Where unfinished work lies in the output folder.
const PROGRESS: &str = "progress";

/// What the runs gave.
pub(super) struct Done {
    pub(super) runs: Vec<RunValues>,
    /// For each run the one that its differences are against.
    pub(super) references: Vec<Option<usize>>,
    pub(super) described: Vec<Value>,
    pub(super) means: MeansFile,
    pub(super) audit: Option<Audit>,
    /// Pairs of tokens, where they are asked for.
    pub(super) pairs: Vec<RunPairs>,
    pub(super) request: PairRequest,
    /// What the modules of runs with an initial residual read of h0.
    pub(super) residual: Vec<ResidualRow>,
}

/// A model with the name that it was asked for by.
type Opened<'s> = ((&'s str, Option<&'s str>), Rc<LoadedModel>);

/// The run that the others are compared with.
struct ReferenceRun {
    name: String,
    model: Rc<LoadedModel>,
    peft: Option<Peft>,
    texts_sha256: String,
}

pub(super) fn measure(
    args: &SimilarityArgs,
    measures: &[Measure],
    specs: &[RunSpec],
    stored: &[StatesSpec],
    reference: usize,
    quiet: bool,
) -> Result<Done> {
    let device = open::device(&args.device)?;
    let frozen =
        args.means.as_deref().map(|path| Ok::<_, anyhow::Error>((path, MeansFile::read(path)?))).transpose()?;
    let mut work = Work {
        args,
        measures,
        frozen,
        device,
        quiet,
        bar: progress::bar(0, "texts", quiet),
        done: 0,
        means: MeansFile::default(),
        audit: None,
        residual: Vec::new(),
    };
    // Runs of the same model, which mostly follow each other, load it once.
    let mut current: Option<Opened<'_>> = None;
    let mut compared: Option<ReferenceRun> = None;
    let mut measured: Vec<Option<(Value, Vec<RunValues>)>> = specs.iter().map(|_| None).collect();
    // The reference comes first: CKA centres it on its own means.
    let order = std::iter::once(reference).chain((0..specs.len()).filter(|&i| i != reference));
    let request = args.pairs.request(args.states.save_states.is_some())?;
    let mut pairs: Vec<(usize, RunPairs)> = Vec::new();
    for (spec, place) in order.filter_map(|i| Some((specs.get(i)?, i))) {
        let key = (spec.model.as_str(), spec.revision.as_deref());
        let model = match current.take() {
            Some((known, model)) if known == key => model,
            _ => {
                let model = Rc::new(open::model(&spec.model, key.1, args.dtype.into(), &work.device)?);
                // An adapter that does not fit is refused before the first text is read, not after an hour.
                let same = specs.iter().filter(|other| (other.model.as_str(), other.revision.as_deref()) == key);
                for folder in same.filter_map(|other| other.adapter.as_deref()) {
                    load_adapter(folder, &model.transformer)?;
                }
                model
            }
        };
        args.layers.check(model.transformer.architecture().layers, &spec.model).map_err(|e| anyhow!(e))?;
        let peft = spec.adapter.as_deref().map(|folder| load_adapter(folder, &model.transformer)).transpose()?;
        let texts = file_texts(args, &model)?;
        let found = scan(&texts, args.lookup_texts, args.seed)?;
        let what = args
            .tokens
            .map_or_else(|| "no text in it".to_owned(), |n| format!("no text of {n} tokens; lower --tokens"));
        ensure!(found.texts > 0, "{}: {what}", texts.path.display());
        args.pairs.check(model.transformer.architecture().layers, &spec.model)?;
        request.check(&texts)?;
        let run = SavedRun { name: &spec.name, alone: specs.len() == 1, model: &model, peft: peft.as_ref() };
        let (plan, say) = (work.plan(&model.transformer), |line: &str| say_unless(quiet, line));
        let split = !args.split || !split_layers(&plan.points).is_empty();
        ensure!(
            split,
            "--split compares each layer with the one before it; let --layers hold two that follow each other"
        );
        args.states.save(&run, &texts, &plan.points, args.pairs.max_texts(), args.batch_size, &say)?;
        if !request.is_empty() {
            let mut decoder = TokenTexts::new(&model.tokenizer);
            let mut decode = |text: &EncodedText| text.ids.iter().map(|&id| decoder.text(id)).collect();
            let own = StateSource::Model(RunModel { transformer: &model.transformer, peft: peft.as_ref() });
            pairs.push((place, work.pairs(&spec.name, own, &texts, &mut decode, &request)?));
        }
        let runs = work.runs(spec, &model, peft.as_ref(), &texts, &found, compared.as_ref())?;
        work.audit(spec, &model, peft.as_ref(), &texts)?;
        work.residual(&spec.name, &model, peft.as_ref(), &texts)?;
        if let Some(slot) = measured.get_mut(place) {
            *slot = Some((describe(spec, &model, &found)?, runs));
        }
        if place == reference && measures.contains(&Measure::CkaBase) {
            let (name, model) = (spec.name.clone(), Rc::clone(&model));
            compared = Some(ReferenceRun { name, model, peft, texts_sha256: found.sha256 });
        }
        current = Some((key, model));
    }
    let stored = stored.iter().enumerate();
    for (place, spec) in stored.map(|(k, spec)| (specs.len() + k, spec)) {
        let states = StoredStates::open(&spec.folder)?;
        let (described, run) = work.stored(spec, &states)?;
        if !request.is_empty() {
            let texts = states.encoded();
            request.check(&texts)?;
            let mut decode = |text: &EncodedText| states.tokens(text.index).to_vec();
            let own = StateSource::Stored(&states);
            pairs.push((place, work.pairs(&spec.name, own, &texts, &mut decode, &request)?));
        }
        measured.push(Some((described, vec![run])));
    }
    pairs.sort_by_key(|(place, _)| *place);
    work.bar.finish_and_clear();
    let (mut runs, mut references, mut described): (Vec<RunValues>, Vec<Option<usize>>, Vec<Value>) =
        Default::default();
    // The baselines of a model's run stand behind it; stored states have none.
    let reference = reference + args.baselines.len() * reference.min(specs.len());
    for (value, own) in measured.into_iter().flatten() {
        described.push(value);
        // A baseline differs from its own run, a run from the reference.
        let first = runs.len();
        references.extend((0..own.len()).map(|k| Some(if k == 0 { reference } else { first })));
        runs.extend(own);
    }
    for &measure in measures {
        // What every run leaves out was said before.
        let measured = runs.iter().any(|run| run.slot(measure).is_some());
        if measured && !runs.iter().any(|run| run.is_defined(measure)) {
            say_unless(quiet, &format!("{measure}: no value anywhere; {}", why_undefined(measure)));
        }
    }
    let pairs = pairs.into_iter().map(|(_, pairs)| pairs).collect();
    Ok(Done {
        runs,
        references,
        described,
        means: work.means,
        audit: work.audit,
        pairs,
        request,
        residual: work.residual,
    })
}

fn why_undefined(measure: Measure) -> &'static str {
    match measure.need() {
        Some(Need::CentredLayer0) => {
            "it compares with layer 0, at the site embedding: let --layers and --sites hold it"
        }
        Some(Need::CentredReference) => "it compares with the reference run, over the same tokens: add an --adapter",
        Some(Need::Attention) => "only blocks have attention maps, and only the --lookup-texts are looked at",
        Some(Need::EmbeddingTable) => "only the --lookup-texts are looked at",
        Some(Need::CorpusDeviation) => "frozen --means hold deviations only if their run measured cosine_standardised",
        _ => "the texts may be too short or too few",
    }
}

/// What all runs share.
struct Work<'a> {
    args: &'a SimilarityArgs,
    measures: &'a [Measure],
    frozen: Option<(&'a Path, MeansFile)>,
    device: Device,
    quiet: bool,
    bar: ProgressBar,
    /// Runs and baselines so far, which number their files.
    done: usize,
    means: MeansFile,
    audit: Option<Audit>,
    residual: Vec<ResidualRow>,
}

impl Work<'_> {
    /// A run and its baselines.
    fn runs(
        &mut self,
        spec: &RunSpec,
        model: &LoadedModel,
        peft: Option<&Peft>,
        texts: &FileTexts<'_>,
        found: &Scan,
        reference: Option<&ReferenceRun>,
    ) -> Result<Vec<RunValues>> {
        let own = RunModel { transformer: &model.transformer, peft };
        // Other tokens have no counterpart in the reference run.
        let reference = reference.filter(|r| r.texts_sha256 == found.sha256);
        let identity = identity(spec, model)?;
        self.say_cost(spec, model, found);
        let plan = self.plan(&model.transformer);
        let mut runs =
            vec![self.one(&spec.name, StateSource::Model(own), &plan, reference, texts, found, &identity, None)?];
        for &baseline in &self.args.baselines {
            let name = format!("{}{}", spec.name, baseline.suffix());
            let shuffled = Shuffled { texts, seed: self.args.seed };
            let untrained;
            let (own, texts): (RunModel<'_>, &dyn TextSupply) = match baseline {
                Baseline::Texts => (own, texts),
                Baseline::Shuffled => (own, &shuffled),
                Baseline::Untrained => {
                    let shape = model.transformer.architecture();
                    let weights = RandomWeights::new(shape, Initialisation::Transformers, self.args.seed);
                    let dtype = model.transformer.dtype();
                    untrained = Transformer::load("untrained", shape.clone(), &weights, dtype, &self.device)?;
                    (RunModel { transformer: &untrained, peft: None }, texts)
                }
            };
            let own = StateSource::Model(own);
            runs.push(self.one(&name, own, &plan, None, texts, found, &identity, Some(baseline))?);
        }
        Ok(runs)
    }

    #[expect(clippy::too_many_arguments, reason = "what makes one run differ from the next")]
    fn one(
        &mut self,
        name: &str,
        own: StateSource<'_>,
        plan: &MeasurePlan,
        reference: Option<&ReferenceRun>,
        texts: &dyn TextSupply,
        found: &Scan,
        identity: &Value,
        baseline: Option<Baseline>,
    ) -> Result<RunValues> {
        let args = self.args;
        let means = match &self.frozen {
            // A baseline is centred on means of its own, as everywhere.
            Some((path, file)) if baseline.is_none() => Some(file.run(path, name, &plan.points, own.width())?),
            _ => None,
        };
        let reference_means = match (&self.frozen, reference) {
            (Some((path, file)), Some(r)) => {
                let width = r.model.transformer.architecture().hidden_size;
                Some(file.run(path, &r.name, &[], width)?)
            }
            (None, Some(r)) => self.means.get(&r.name).cloned(),
            _ => None,
        };
        let passes = if plan.second_pass() && means.is_none() { 2 } else { 1 };
        let folder = args.out.join(PROGRESS);
        let scratch = (passes == 2 && args.scratch_gib > 0.0)
            .then(|| Scratch::new(&folder, (args.scratch_gib * f64::from(1 << 30)) as u64))
            .transpose()?;
        let reference_model = reference.map(|r| RunModel { transformer: &r.model.transformer, peft: r.peft.as_ref() });
        let input = RunInput {
            name,
            source: own,
            reference: reference_model,
            reference_means: reference_means.as_ref(),
            texts,
            lookup: &found.lookup,
            means: means.as_ref(),
            other_texts: baseline == Some(Baseline::Texts),
            batch_size: args.batch_size,
            scratch: scratch.as_ref(),
        };
        let path = folder.join(format!("{}.safetensors", self.done));
        let points: Vec<String> = plan.points.iter().map(|p| format!("{} {}", p.site, p.layer)).collect();
        let names: Vec<&str> = plan.measures.iter().map(|m| m.name()).collect();
        let frozen = args.means.as_deref().map(hash::sha256_file).transpose()?;
        let fingerprint = json!([
            env!("CARGO_PKG_VERSION"),
            name,
            identity,
            baseline.map(Baseline::name),
            found.sha256,
            found.lookup,
            names,
            points,
            args.seed,
            format!("{:?}", args.dtype),
            frozen,
            reference.map(|r| &r.name),
        ]);
        let fingerprint = hash::sha256_bytes(fingerprint.to_string().as_bytes());
        let saver = Saver::new(path, fingerprint, Duration::from_secs(args.save_every));
        let state = match saver.find() {
            Found::Own(state) => {
                say_unless(self.quiet, &format!("{name}: goes on after {} texts", state.texts.len()));
                *state
            }
            Found::Other(why) => {
                say_unless(
                    self.quiet,
                    &format!("{name}: unfinished work in {} {why}; it starts anew", folder.display()),
                );
                RunState::default()
            }
            Found::Nothing => RunState::default(),
        };
        self.bar.set_prefix(name.to_owned());
        self.bar.inc_length(passes * found.texts);
        let mut follow = Follow { bar: &self.bar, saver };
        let (values, own_means) = measure_run(&input, plan, state, &mut follow)?;
        self.done += 1;
        if let Some(means) = own_means.or(means) {
            self.means.insert(name, means);
        }
        Ok(values)
    }

    /// A run of stored states; a measure that needs the model is left out, and it is said.
    fn stored(&mut self, spec: &StatesSpec, states: &StoredStates) -> Result<(Value, RunValues)> {
        let args = self.args;
        let folder = spec.folder.display().to_string();
        states::check_layers(states, &args.layers, "--layers", &folder)?;
        args.pairs.check_stored(states, &folder)?;
        let bound = |m: &&Measure| {
            matches!(m.need(), Some(Need::H0 | Need::Attention | Need::EmbeddingTable | Need::CentredReference))
        };
        let (bound, free): (Vec<&Measure>, Vec<&Measure>) = self.measures.iter().partition(bound);
        if !bound.is_empty() {
            let names: Vec<&str> = bound.iter().map(|m| m.name()).collect();
            say_unless(
                self.quiet,
                &format!("{}: left out, since they need the model: {}", spec.name, names.join(", ")),
            );
        }
        ensure!(!free.is_empty(), "--states {folder}: every measure of --measures needs the model; choose others");
        let free = free.into_iter().copied().collect();
        let plan = MeasurePlan::stored(free, &args.sites, &args.layers, states.points(), args.seed);
        ensure!(!plan.points.is_empty(), "--states {folder}: holds none of the chosen --sites and --layers");
        let texts = states.encoded();
        let found = scan(&texts, args.lookup_texts, args.seed)?;
        let mut described = states::describe(spec, states)?;
        let run = self.one(&spec.name, StateSource::Stored(states), &plan, None, &texts, &found, &described, None)?;
        if let Some(entries) = described.as_object_mut() {
            entries.insert("texts_measured".to_owned(), json!(found.texts));
            entries.insert("tokens_measured".to_owned(), json!(found.tokens));
        }
        Ok((described, run))
    }

    /// The pairs of tokens of a run.
    fn pairs(
        &self,
        name: &str,
        own: StateSource<'_>,
        texts: &dyn TextSupply,
        decode: &mut dyn FnMut(&EncodedText) -> Vec<String>,
        request: &PairRequest,
    ) -> Result<RunPairs> {
        let pairs = request.distance_pairs(texts)?;
        if pairs > 0 {
            say_unless(self.quiet, &format!("{name}: {pairs} pairs of tokens at each layer for --distance"));
        }
        Ok(measure_pairs(name, own, texts, decode, &self.args.layers, request, self.args.batch_size)?)
    }

    /// Measures what the modules of a run with an initial residual read of h0, on the texts of `--lookup-texts`.
    fn residual(&mut self, name: &str, model: &LoadedModel, peft: Option<&Peft>, texts: &FileTexts<'_>) -> Result<()> {
        let Some(peft) = peft.filter(|peft| peft.config().residual.is_some()) else { return Ok(()) };
        let drawn = scan(texts, self.args.lookup_texts, self.args.seed)?.lookup;
        let drawn = sample(texts, &drawn)?;
        self.residual.extend(measure_residual(name, &model.transformer, peft, &drawn, self.args.batch_size)?);
        Ok(())
    }

    /// Audits a run that was measured, if it is asked for.
    fn audit(&mut self, spec: &RunSpec, model: &LoadedModel, peft: Option<&Peft>, texts: &FileTexts<'_>) -> Result<()> {
        let Some(count) = self.args.audit else { return Ok(()) };
        let drawn = scan(texts, count, self.args.seed)?.lookup;
        let exact = open::model(&spec.model, spec.revision.as_deref(), DType::F64, &self.device)?;
        let exact_peft = spec.adapter.as_deref().map(|folder| load_adapter(folder, &exact.transformer)).transpose()?;
        let models = Precisions {
            model: RunModel { transformer: &model.transformer, peft },
            exact: RunModel { transformer: &exact.transformer, peft: exact_peft.as_ref() },
        };
        let plan = self.plan(&model.transformer);
        let means = self.means.get(&spec.name);
        let found = audit(&spec.name, models, &sample(texts, &drawn)?, &plan, means, self.args.batch_size)?;
        self.audit.get_or_insert_default().merge(&found);
        Ok(())
    }

    fn plan(&self, transformer: &Transformer) -> MeasurePlan {
        let args = self.args;
        let sites = if args.split { args.sites.with(&split::SITES) } else { args.sites.clone() };
        MeasurePlan::new(self.measures.to_vec(), &sites, &args.layers, transformer.architecture(), args.seed)
    }

    fn say_cost(&self, spec: &RunSpec, model: &LoadedModel, found: &Scan) {
        let lookups: Vec<&str> =
            self.measures.iter().filter(|m| m.class() == Class::Lookup).map(|m| m.name()).collect();
        if !lookups.is_empty() {
            let rows = model.transformer.architecture().vocab_size;
            let (drawn, all) = (found.lookup.len(), found.texts);
            let line = format!(
                "{}: {} on {drawn} of {all} texts; nearest_embedding compares each of their tokens with {rows} rows at \
                 every layer",
                spec.name,
                lookups.join(", ")
            );
            say_unless(self.quiet, &line);
        }
    }
}

/// Shows progress and saves unfinished work.
struct Follow<'a> {
    bar: &'a ProgressBar,
    saver: Saver,
}

impl Watch for Follow<'_> {
    fn texts(&mut self, count: usize) {
        self.bar.inc(count as u64);
    }

    fn folded(&mut self, state: &RunState) -> Result<(), SimilarityError> {
        Ok(self.saver.save(state)?)
    }
}

/// Removes unfinished work that is finished now.
pub(super) fn remove_progress(out: &Path) -> Result<()> {
    let folder = out.join(PROGRESS);
    match std::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{}: cannot be removed; remove it by hand", folder.display()))
        }
        _ => Ok(()),
    }
}

fn file_texts<'t>(args: &SimilarityArgs, model: &'t LoadedModel) -> Result<FileTexts<'t>> {
    let path = args.texts.as_deref().context("--texts is missing: a model is measured on texts")?;
    let (template, field) = (args.template.as_deref(), args.field.as_deref());
    let mut texts = texts::file_texts(model, path, template, field, args.max_tokens)?;
    texts.options.group_by.clone_from(&args.group_by);
    Ok(FileTexts { span: args.span, exact: args.tokens, limit: args.limit, ..texts })
}
