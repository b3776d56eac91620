//! One run with its baselines, pairs of tokens, audit and reading of h0; what is finished or begun is kept on disk.

use super::SimilarityArgs;
use super::amount::{AUDIT_PASSES, lookup_cost};
use super::follow::{Follow, PROGRESS, resume};
use crate::analysis::audit::{Audit, Precisions, audit, sample};
use crate::analysis::baselines::{Baseline, Shuffled};
use crate::analysis::chunks::{CHUNK, TextSupply};
use crate::analysis::means::MeansFile;
use crate::analysis::plan::MeasurePlan;
use crate::analysis::residual_share::{ResidualRow, measure_residual};
use crate::analysis::run_values::RunValues;
use crate::analysis::runs::RunSpec;
use crate::analysis::saved::Saver;
use crate::analysis::scratch::Scratch;
use crate::analysis::similarity::{EncodedText, RunInput, RunModel, StateSource, measure_run};
use crate::analysis::split;
use crate::analysis::states::StoredStates;
use crate::analysis::texts::{FileTexts, Scan, scan};
use crate::analysis::token_pairs::{PairRequest, RunPairs, measure_pairs};
use crate::cli::progress::Progress;
use crate::cli::states::{self, StatesSpec};
use crate::cli::{device, open};
use crate::hash;
use crate::measures::{Measure, Need};
use crate::model::{Initialisation, LoadedModel, Precision, RandomWeights, Transformer};
use crate::peft::{Peft, load_adapter};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use serde_json::{Value, json};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// The run that the others are compared with.
pub(super) struct ReferenceRun {
    pub(super) name: String,
    pub(super) model: Rc<LoadedModel>,
    pub(super) peft: Option<Peft>,
    pub(super) texts_sha256: String,
}

/// What all runs share.
pub(super) struct Work<'a> {
    pub(super) args: &'a SimilarityArgs,
    pub(super) measures: &'a [Measure],
    pub(super) frozen: Option<(&'a Path, MeansFile)>,
    pub(super) device: Device,
    pub(super) progress: Progress,
    /// Runs and baselines so far, which number their files.
    pub(super) done: usize,
    pub(super) means: MeansFile,
    pub(super) audit: Option<Audit>,
    pub(super) residual: Vec<ResidualRow>,
}

impl Work<'_> {
    /// A run and its baselines.
    #[expect(clippy::too_many_arguments, reason = "a run and what is known of it")]
    pub(super) fn runs(
        &mut self,
        name: &str,
        identity: &Value,
        model: &LoadedModel,
        peft: Option<&Peft>,
        texts: &FileTexts<'_>,
        found: &Scan,
        reference: Option<&ReferenceRun>,
    ) -> Result<Vec<RunValues>> {
        let own = RunModel { transformer: &model.transformer, peft };
        // Other tokens have no counterpart in the reference run.
        let reference = reference.filter(|r| r.texts_sha256 == found.sha256);
        let plan = self.plan(&model.transformer);
        if let Some(cost) = lookup_cost(&plan, &model.transformer, texts, found, &self.args.baselines)? {
            self.progress.say(&format!("{name}: {cost}"));
        }
        let mut runs = vec![self.one(name, StateSource::Model(own), &plan, reference, texts, found, identity, None)?];
        for &baseline in &self.args.baselines {
            let name = format!("{name}{}", baseline.suffix());
            if baseline == Baseline::Texts && !runs.first().is_some_and(shares_chunks) {
                self.progress.say(&format!("{name}: no values; no {CHUNK} texts in a row hold two that are measured"));
            }
            let shuffled = Shuffled { texts, seed: self.args.seed };
            let untrained;
            let (own, texts): (RunModel<'_>, &dyn TextSupply) = match baseline {
                Baseline::Texts => (own, texts),
                Baseline::Shuffled => (own, &shuffled),
                Baseline::Untrained => {
                    let shape = model.transformer.architecture();
                    let weights = RandomWeights::new(shape, Initialisation::Transformers, self.args.seed);
                    let precision = model.transformer.precision();
                    untrained = Transformer::load("untrained", shape.clone(), &weights, precision, &self.device)?;
                    (RunModel { transformer: &untrained, peft: None }, texts)
                }
            };
            let own = StateSource::Model(own);
            runs.push(self.one(&name, own, &plan, None, texts, found, identity, Some(baseline))?);
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
            device::computed(args.precision(), &self.device),
            frozen,
            reference.map(|r| &r.name),
        ]);
        let fingerprint = hash::sha256_bytes(fingerprint.to_string().as_bytes());
        let saver = Saver::new(path, fingerprint, Duration::from_secs(args.save_every));
        self.progress.begin(name, passes * found.texts);
        let state = resume(&saver, name, &folder, &mut self.progress);
        let mut follow = Follow { progress: &mut self.progress, saver };
        let measured = measure_run(&input, plan, state, &mut follow);
        if measured.is_err() {
            // The folder goes if nothing was saved in it; one that holds something stays.
            let _ = std::fs::remove_dir(&folder);
        }
        let (values, own_means) = measured?;
        self.progress.finish_stage();
        self.done += 1;
        if let Some(means) = own_means.or(means) {
            self.means.insert(name, means);
        }
        Ok(values)
    }

    /// A run of stored states; a measure that needs the model is left out, and it is said.
    pub(super) fn stored(&mut self, spec: &StatesSpec, states: &StoredStates) -> Result<(Value, RunValues)> {
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
            let names = names.join(", ");
            self.progress.say(&format!("{}: left out, since they need the model: {names}", spec.name));
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

    /// The pairs of tokens of a run, which reads so many texts for them.
    pub(super) fn pairs(
        &mut self,
        name: &str,
        own: StateSource<'_>,
        texts: &dyn TextSupply,
        decode: &mut dyn FnMut(&EncodedText) -> Vec<String>,
        request: &PairRequest,
        reads: u64,
    ) -> Result<RunPairs> {
        let pairs = request.distance_pairs(texts)?;
        if pairs > 0 {
            self.progress.say(&format!("{name}: {pairs} pairs of tokens at each layer for --distance"));
        }
        let (args, progress) = (self.args, &mut self.progress);
        progress.begin(&format!("{name}, pairs of tokens"), reads);
        let mut done = |texts| progress.advance(texts as u64);
        let found = measure_pairs(name, own, texts, decode, &args.layers, request, args.batch_size, &mut done)?;
        self.progress.finish_stage();
        Ok(found)
    }

    /// Measures what the modules of a run with an initial residual read of h0, on the texts of `--lookup-texts`.
    pub(super) fn residual(
        &mut self,
        name: &str,
        model: &LoadedModel,
        peft: Option<&Peft>,
        texts: &FileTexts<'_>,
    ) -> Result<()> {
        let Some(peft) = peft.filter(|peft| peft.config().residual.is_some()) else { return Ok(()) };
        let drawn = scan(texts, self.args.lookup_texts, self.args.seed)?.lookup;
        let drawn = sample(texts, &drawn)?;
        let (batch_size, progress) = (self.args.batch_size, &mut self.progress);
        progress.begin(&format!("{name}, reading of h0"), drawn.len() as u64);
        let mut done = |texts| progress.advance(texts as u64);
        let rows = measure_residual(name, &model.transformer, peft, &drawn, batch_size, &mut done)?;
        self.residual.extend(rows);
        self.progress.finish_stage();
        Ok(())
    }

    /// Audits a run that was measured, if it is asked for.
    pub(super) fn audit(
        &mut self,
        spec: &RunSpec,
        model: &LoadedModel,
        peft: Option<&Peft>,
        texts: &FileTexts<'_>,
    ) -> Result<()> {
        let Some(count) = self.args.audit else { return Ok(()) };
        let drawn = scan(texts, count, self.args.seed)?.lookup;
        // The same weights, in whatever they are stored.
        let own = self.args.precision();
        let base = if own.base == own.compute { DType::F64 } else { own.base };
        let exact = Precision { base, compute: DType::F64, ..own };
        device::check(exact, &self.device).context("--audit")?;
        let exact = open::model(&spec.model, spec.revision.as_deref(), exact, &self.device)?;
        let mut exact = exact;
        let exact_peft = spec.adapter.as_deref().map(|folder| load_adapter(folder, &exact.transformer)).transpose()?;
        if let Some(tuned) = exact_peft.as_ref().and_then(|peft| peft.tuned(&exact.transformer)) {
            exact.transformer = tuned;
        }
        let models = Precisions {
            model: RunModel { transformer: &model.transformer, peft },
            exact: RunModel { transformer: &exact.transformer, peft: exact_peft.as_ref() },
        };
        let plan = self.plan(&model.transformer);
        let means = self.means.get(&spec.name);
        let drawn = sample(texts, &drawn)?;
        self.progress.begin(&format!("{}, audit", spec.name), AUDIT_PASSES * drawn.len() as u64);
        self.progress.announce();
        let found = audit(&spec.name, models, &drawn, &plan, means, self.args.batch_size)?;
        self.audit.get_or_insert_default().merge(&found);
        self.progress.finish_stage();
        Ok(())
    }

    pub(super) fn plan(&self, transformer: &Transformer) -> MeasurePlan {
        let args = self.args;
        let sites = if args.split { args.sites.with(&split::SITES) } else { args.sites.clone() };
        MeasurePlan::new(self.measures.to_vec(), &sites, &args.layers, transformer.architecture(), args.seed)
    }
}

/// Whether two texts of a run lie in the same chunk, so that tokens of one can stand in for the other's.
fn shares_chunks(run: &RunValues) -> bool {
    run.texts.windows(2).any(|pair| matches!(pair, [a, b] if a.index / CHUNK == b.index / CHUNK))
}
