//! How much work there is: texts that go through a model, and what lookup measures cost.

use super::SimilarityArgs;
use crate::analysis::audit::sample;
use crate::analysis::baselines::Baseline;
use crate::analysis::plan::MeasurePlan;
use crate::analysis::runs::RunSpec;
use crate::analysis::similarity::SimilarityError;
use crate::analysis::states_save::size;
use crate::analysis::texts::{FileTexts, Scan};
use crate::analysis::token_pairs::PairRequest;
use crate::measures::{Class, Measure, Need};
use crate::model::Transformer;
use std::collections::BTreeSet;

/// How often an audit sends its texts through a model.
pub(super) const AUDIT_PASSES: u64 = 4;

/// Texts that the runs send through their models in all passes. A run whose texts were not read yet is taken to have
/// as many as the last that was.
pub(super) struct Amounts<'a> {
    args: &'a SimilarityArgs,
    measures: &'a [Measure],
    request: &'a PairRequest,
    runs: Vec<Run>,
    stored: u64,
}

struct Run {
    residual: bool,
    texts: Option<u64>,
}

impl<'a> Amounts<'a> {
    pub(super) fn new(
        args: &'a SimilarityArgs,
        measures: &'a [Measure],
        request: &'a PairRequest,
        specs: &[RunSpec],
    ) -> Self {
        let runs = specs.iter().map(|spec| Run { residual: spec.adapter.is_some(), texts: None }).collect();
        Self { args, measures, request, runs, stored: 0 }
    }

    /// Adds a run of stored states.
    pub(super) fn stored(&mut self, texts: u64) {
        self.stored += texts * self.passes(self.args.means.is_some()) + self.request.reads(texts);
    }

    /// Takes in what a run was found to have, and answers the total.
    pub(super) fn found(&mut self, place: usize, texts: u64, residual: bool) -> u64 {
        if let Some(run) = self.runs.get_mut(place) {
            *run = Run { residual, texts: Some(texts) };
        }
        self.runs.iter().map(|run| self.run(run.texts.unwrap_or(texts), run.residual)).sum::<u64>() + self.stored
    }

    /// The total once every run was found.
    pub(super) fn total(&self) -> u64 {
        self.runs.iter().filter_map(|run| Some(self.run(run.texts?, run.residual))).sum::<u64>() + self.stored
    }

    fn passes(&self, frozen: bool) -> u64 {
        if !frozen && self.measures.iter().any(|measure| measure.second_pass()) { 2 } else { 1 }
    }

    fn run(&self, texts: u64, residual: bool) -> u64 {
        let args = self.args;
        let at_most = |n: usize| texts.min(n as u64);
        let own = texts * self.passes(args.means.is_some());
        let baselines = texts * self.passes(false) * args.baselines.len() as u64;
        let saved = if args.states.save_states.is_some() { at_most(args.pairs.max_texts()) } else { 0 };
        let audit = AUDIT_PASSES * args.audit.map_or(0, at_most);
        let residual = if residual { at_most(args.lookup_texts) } else { 0 };
        own + baselines + saved + audit + residual + self.request.reads(texts)
    }
}

/// What the lookup measures of a run and its baselines cost, in words; none if there are none.
///
/// # Errors
/// A text cannot be read.
pub(super) fn lookup_cost(
    plan: &MeasurePlan,
    transformer: &Transformer,
    texts: &FileTexts<'_>,
    found: &Scan,
    baselines: &[Baseline],
) -> Result<Option<String>, SimilarityError> {
    let lookups: Vec<&str> = plan.measures.iter().filter(|m| m.class() == Class::Lookup).map(|m| m.name()).collect();
    if lookups.is_empty() {
        return Ok(None);
    }
    let architecture = transformer.architecture();
    let lengths: Vec<(u64, u64)> =
        sample(texts, &found.lookup)?.iter().map(|text| (text.span.len() as u64, text.ids.len() as u64)).collect();
    let mut parts = vec![format!("{} on {} of {} texts", lookups.join(", "), lengths.len(), found.texts)];
    if plan.needs(Need::EmbeddingTable) {
        let factors = [
            (lengths.iter().map(|(measured, _)| measured).sum::<u64>(), "tokens"),
            (architecture.vocab_size as u64, "embedding rows"),
            (plan.points.len() as u64, "points"),
            (1 + baselines.len() as u64, "runs"),
        ];
        let shown: Vec<String> = factors.iter().map(|(n, what)| format!("{n} {what}")).collect();
        let product: f64 = factors.iter().map(|(n, _)| *n as f64).product();
        parts.push(format!("{} = {} comparisons", shown.join(" × "), count(product)));
    }
    if plan.needs(Need::Attention) {
        // Tokens of different texts have no attention among them.
        let runs = 1 + baselines.iter().filter(|baseline| **baseline != Baseline::Texts).count() as u64;
        let layers: BTreeSet<usize> = plan.points.iter().map(|point| point.layer).filter(|layer| *layer > 0).collect();
        let width = transformer.dtype().size_in_bytes() as u64;
        let map = |n: u64| architecture.heads as u64 * n * n * width;
        let largest = lengths.iter().map(|(_, n)| map(*n)).max().unwrap_or(0);
        let all = lengths.iter().map(|(_, n)| map(*n)).sum::<u64>() * layers.len() as u64 * runs;
        let (heads, largest, all) = (architecture.heads, size(largest), size(all));
        parts.push(format!("attention maps of {heads} heads, up to {largest} a text and layer, {all} in all"));
    }
    Ok(Some(parts.join("; ")))
}

/// A large number for people.
fn count(number: f64) -> String {
    match number {
        n if n < 1e6 => format!("{n}"),
        n if n < 1e9 => format!("{:.1} million", n / 1e6),
        n if n < 1e12 => format!("{:.1} billion", n / 1e9),
        n => format!("{:.1} trillion", n / 1e12),
    }
}
