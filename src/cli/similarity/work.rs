//! The runs of a similarity command, measured one after another.

use super::SimilarityArgs;
use super::amount::Amounts;
use super::identity::{describe, identity, made_from};
use super::run::{ReferenceRun, Work};
use crate::analysis::audit::Audit;
use crate::analysis::means::MeansFile;
use crate::analysis::residual_share::ResidualRow;
use crate::analysis::run_values::RunValues;
use crate::analysis::runs::RunSpec;
use crate::analysis::similarity::{EncodedText, RunModel, StateSource};
use crate::analysis::split::split_layers;
use crate::analysis::states::StoredStates;
use crate::analysis::states_save::SavedRun;
use crate::analysis::texts::{BY_FOLDER, FileTexts, scan};
use crate::analysis::token_pairs::{PairRequest, RunPairs};
use crate::cli::progress::Progress;
use crate::cli::states::StatesSpec;
use crate::cli::{device, open, texts};
use crate::measures::{Measure, Need};
use crate::model::LoadedModel;
use crate::peft::{Peft, load_adapter};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::rc::Rc;
use std::time::Duration;

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
    /// Where it was computed.
    pub(super) device: String,
}

/// A model with the name that it was asked for by.
type Opened<'s> = ((&'s str, Option<&'s str>), Rc<LoadedModel>);

pub(super) fn measure(
    args: &SimilarityArgs,
    measures: &[Measure],
    specs: &[RunSpec],
    stored: &[StatesSpec],
    reference: usize,
    quiet: bool,
) -> Result<Done> {
    let (place, precision) = (device::open(&args.device)?, args.precision());
    device::check(precision, &place)?;
    let frozen =
        args.means.as_deref().map(|path| Ok::<_, anyhow::Error>((path, MeansFile::read(path)?))).transpose()?;
    let request = args.pairs.request(args.states.save_states.is_some())?;
    let opened = stored.iter().map(|spec| StoredStates::open(&spec.folder)).collect::<Result<Vec<_>, _>>()?;
    let mut amounts = Amounts::new(args, measures, &request, specs);
    opened.iter().for_each(|states| amounts.stored(states.texts().len() as u64));
    let mut work = Work {
        args,
        measures,
        frozen,
        device: place,
        progress: Progress::new("texts", quiet, Duration::from_secs(args.progress_every)),
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
    let mut pairs: Vec<(usize, RunPairs)> = Vec::new();
    for (spec, place) in order.filter_map(|i| Some((specs.get(i)?, i))) {
        let key = (spec.model.as_str(), spec.revision.as_deref());
        let model = match current.take() {
            Some((known, model)) if known == key => model,
            _ => {
                let model = Rc::new(open::model(&spec.model, key.1, precision, &work.device)?);
                let architecture = model.transformer.architecture();
                args.layers.check(architecture.layers, &spec.model).map_err(|e| anyhow!(e))?;
                let missing = args.sites.check(&args.layers, architecture, &spec.model).map_err(|e| anyhow!(e))?;
                missing.iter().for_each(|line| work.progress.say(line));
                args.pairs.check(architecture.layers, &spec.model)?;
                // An adapter that does not fit is refused before the first text is read, not after an hour.
                for other in specs.iter().filter(|other| (other.model.as_str(), other.revision.as_deref()) == key) {
                    adapter(args, other, &model)?;
                }
                model
            }
        };
        if spec.adapter.is_none() {
            model.refuse_partial()?;
        }
        let peft = adapter(args, spec, &model)?;
        let base = Rc::clone(&model);
        // What of the base model was trained with the modules stands in for its own.
        let model = match peft.as_ref().and_then(|peft| peft.tuned(&model.transformer)) {
            Some(transformer) => Rc::new(LoadedModel { transformer, ..(*model).clone() }),
            None => model,
        };
        let texts = file_texts(args, &model)?;
        let found = scan(&texts, args.lookup_texts, args.seed)?;
        let what = args
            .tokens
            .map_or_else(|| "no text in it".to_owned(), |n| format!("no text of {n} tokens; lower --tokens"));
        ensure!(found.texts > 0, "{}: {what}", texts.path.display());
        request.check(&texts)?;
        work.progress.expect(amounts.found(place, found.texts, has_residual(peft.as_ref())));
        let identity = identity(spec, &model)?;
        let made_from = made_from(&identity, &device::computed(precision, &work.device));
        let (name, batch_size) = (spec.name.as_str(), args.batch_size);
        let run = SavedRun { name, model: &model, peft: peft.as_ref(), made_from: &made_from, batch_size };
        let plan = work.plan(&model.transformer);
        let split = !args.split || !split_layers(&plan.points).is_empty();
        ensure!(
            split,
            "--split compares each layer with the one before it; let --layers hold two that follow each other"
        );
        args.states.save(&run, specs.len() == 1, &texts, &plan.points, args.pairs.max_texts(), &mut work.progress)?;
        if !request.is_empty() {
            let mut decode = texts::token_names(&model);
            let own = StateSource::Model(RunModel { transformer: &model.transformer, peft: peft.as_ref() });
            let reads = request.reads(found.texts);
            pairs.push((place, work.pairs(name, own, &texts, &mut *decode, &request, reads)?));
        }
        let runs = work.runs(name, &identity, &model, peft.as_ref(), &texts, &found, compared.as_ref())?;
        work.audit(spec, &model, peft.as_ref(), &texts)?;
        work.residual(name, &model, peft.as_ref(), &texts)?;
        if let Some(slot) = measured.get_mut(place) {
            *slot = Some((describe(&identity, &found), runs));
        }
        if place == reference && measures.contains(&Measure::CkaBase) {
            let (name, model) = (spec.name.clone(), Rc::clone(&model));
            compared = Some(ReferenceRun { name, model, peft, texts_sha256: found.sha256 });
        }
        current = Some((key, base));
    }
    work.progress.expect(amounts.total());
    for (place, (spec, states)) in (specs.len()..).zip(stored.iter().zip(&opened)) {
        let (described, run) = work.stored(spec, states)?;
        if !request.is_empty() {
            let texts = states.encoded();
            request.check(&texts)?;
            let mut decode = |text: &EncodedText| states.tokens(text.index).to_vec();
            let own = StateSource::Stored(states);
            let reads = request.reads(texts.len() as u64);
            pairs.push((place, work.pairs(&spec.name, own, &texts, &mut decode, &request, reads)?));
        }
        measured.push(Some((described, vec![run])));
    }
    pairs.sort_by_key(|(place, _)| *place);
    work.progress.finish();
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
            work.progress.say(&format!("{measure}: no value anywhere; {}", why_undefined(measure)));
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
        device: device::name(&work.device),
    })
}

/// The adapter of a run; refused if what it would show has no texts to be shown on.
fn adapter(args: &SimilarityArgs, spec: &RunSpec, model: &LoadedModel) -> Result<Option<Peft>> {
    let peft = spec.adapter.as_deref().map(|folder| load_adapter(folder, &model.transformer)).transpose()?;
    ensure!(
        args.lookup_texts > 0 || !has_residual(peft.as_ref()),
        "--lookup-texts is 0, but what {} reads of h0 is measured on them; it must be at least 1",
        spec.name
    );
    Ok(peft)
}

fn has_residual(peft: Option<&Peft>) -> bool {
    peft.is_some_and(|peft| peft.config().residual.is_some())
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

fn file_texts<'t>(args: &SimilarityArgs, model: &'t LoadedModel) -> Result<FileTexts<'t>> {
    let path = args.texts.as_deref().context("--texts is missing: a model is measured on texts")?;
    let (template, field) = (args.template.as_deref(), args.field.as_deref());
    let mut texts = texts::file_texts(model, path, template, field, args.max_tokens)?;
    let architecture = model.transformer.architecture();
    if architecture.patches.is_some() {
        texts::refuse_for_images(architecture.family, &args.of_texts())?;
        let by = args.group_by.as_deref().unwrap_or(BY_FOLDER);
        ensure!(
            by == BY_FOLDER,
            "--group-by {by}: images are grouped by the folder that each lies in: --group-by folder"
        );
    }
    texts.options.group_by.clone_from(&args.group_by);
    Ok(FileTexts { span: args.span, exact: args.tokens, limit: args.limit, ..texts })
}
