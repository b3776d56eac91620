//! The question of a similarity run and its answer, computed from the tables.

use super::read::SimilarityResult;
use crate::analysis::estimates::{Estimate, Estimates};
use crate::analysis::run_values::RunValues;
use crate::measures::{Measure, Point, TokenSet};
use crate::probe::Site;
use crate::report::{BASELINE_SUFFIXES, SimilarityRow};
use crate::statistics::StatisticsError;

/// Most runs that are spoken of one by one.
const MOST_RUNS: usize = 8;
/// The level under which an adjusted p-value counts as a difference.
pub(super) const LEVEL: f64 = 0.05;

pub(super) fn question(result: &SimilarityResult) -> String {
    match (result.plain_runs().as_slice(), result.reference()) {
        ([run], _) => format!("Do the tokens of a text grow alike with depth in {run}?"),
        (_, None) => "Do the tokens of a text grow alike with depth?".to_owned(),
        (runs, Some(reference)) => {
            let others: Vec<&str> = runs.iter().copied().filter(|run| *run != reference).collect();
            format!(
                "Do the tokens of a text grow alike with depth, and how does {} differ from {reference}?",
                listed(&others)
            )
        }
    }
}

/// Names in a sentence; many are counted.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "no run".to_owned(),
        [one] => (*one).to_owned(),
        [a, b] => format!("{a} or {b}"),
        [a, b, c] => format!("{a}, {b} or {c}"),
        more => format!("each of {} runs", more.len()),
    }
}

/// The answer: what depth does in each run, then what sets each run apart from the reference.
pub(super) fn answers(result: &SimilarityResult) -> Result<Vec<String>, StatisticsError> {
    let measures = result.measures();
    let Some(measure) = measures.iter().find(|name| **name == Measure::Cosine.name()).or(measures.first()) else {
        return Ok(Vec::new());
    };
    let runs = result.plain_runs();
    let mut answers = Vec::new();
    for run in runs.iter().take(MOST_RUNS) {
        answers.extend(with_depth(result, run, measure)?);
    }
    for run in runs.iter().take(MOST_RUNS) {
        answers.extend(against_reference(result, run, measure));
    }
    if runs.len() > MOST_RUNS {
        answers.push(format!("{} more runs stand in the table below.", runs.len() - MOST_RUNS));
    }
    Ok(answers)
}

/// What the measure does from the embedding to the last block, text by text.
fn with_depth(result: &SimilarityResult, run: &str, measure: &str) -> Result<Option<String>, StatisticsError> {
    let Some(last) = result.last_block(run, measure) else { return Ok(None) };
    let first = result.row(run, measure, "all", (0, "embedding"));
    let end = result.row(run, measure, "all", (last, "block"));
    let Some(((first, _), (end, _))) = first.zip(end) else { return Ok(None) };
    let Some((from, to)) = first.mean.zip(end.mean) else { return Ok(None) };
    let change = match result.values.iter().find(|values| values.run == run) {
        Some(values) => change(values, measure, last, result.seed)?,
        None => None,
    };
    let name = name(measure);
    let moved = format!("{run}: {name} goes from {} at the embedding to {} after block {last}", short(from), short(to));
    let Some(change) = change else { return Ok(Some(format!("{moved}."))) };
    let (low, high) = (change.interval.low, change.interval.high);
    let verdict = match (measure == Measure::Cosine.name(), low > 0.0, high < 0.0) {
        (true, true, _) => "tokens grow more alike with depth",
        (true, _, true) => "tokens grow less alike with depth",
        (false, true, _) => "it grows with depth",
        (false, _, true) => "it falls with depth",
        _ => "whether it moves cannot be told from these texts",
    };
    let (change, n) = (signed(change.mean), change.n);
    let mut sentence = format!("{moved} ({change} [{}, {}], n = {n} texts): {verdict}.", signed(low), signed(high));
    if let Some(null) = null(result, run, measure, last) {
        sentence.push_str(&format!(" Tokens of different texts, which never met, have {} there.", short(null)));
    }
    if let Some(rank) = rank(result, run, last) {
        sentence.push_str(&rank);
    }
    Ok(Some(sentence))
}

fn change(run: &RunValues, measure: &str, last: u32, seed: u64) -> Result<Option<Estimate>, StatisticsError> {
    let slot = Measure::from_name(measure).and_then(|measure| run.slot(measure));
    let embedding = run.place(Point { site: Site::Embedding, layer: 0 });
    let block = run.place(Point { site: Site::Block, layer: last as usize });
    let Some(((slot, embedding), block)) = slot.zip(embedding).zip(block) else { return Ok(None) };
    let mut estimates = Estimates::new(seed);
    let at = |point| run.series(&None, point, slot, TokenSet::All);
    estimates.add_difference(&at(block), &at(embedding));
    Ok(estimates.finish()?.first().copied().flatten())
}

/// The null that tokens of other texts give.
fn null(result: &SimilarityResult, run: &str, measure: &str, last: u32) -> Option<f64> {
    let [other_texts, ..] = BASELINE_SUFFIXES;
    if measure != Measure::Cosine.name() {
        return None;
    }
    result.row(&format!("{run}{other_texts}"), measure, "all", (last, "block"))?.0.mean
}

/// What the effective rank does beside, where it was measured: the cosine cannot see dimensions.
fn rank(result: &SimilarityResult, run: &str, last: u32) -> Option<String> {
    let measure = Measure::EffectiveRank.name();
    let at = |place| result.row(run, measure, "all", place)?.0.mean;
    let (from, to) = (at((0, "embedding"))?, at((last, "block"))?);
    Some(format!(" Effective rank: {from:.1} at the embedding, {to:.1} there."))
}

/// How a run differs from the reference at its last block, and at how many layers.
fn against_reference(result: &SimilarityResult, run: &str, measure: &str) -> Option<String> {
    let last = result.last_block(run, measure)?;
    let (row, p) = result.row(run, measure, "all", (last, "block"))?;
    let (reference, diff) = (row.reference.as_deref()?, row.diff?);
    let (low, high) = row.diff_ci_low.zip(row.diff_ci_high)?;
    let mut sentence = format!(
        "{run} against {reference}, over the same texts: {} after block {last} is {} {} [{}, {}]",
        name(measure),
        short(diff.abs()),
        if diff < 0.0 { "lower" } else { "higher" },
        signed(low),
        signed(high),
    );
    match p {
        Some(p) if p < LEVEL => sentence.push_str(&format!(", {}.", probability(p))),
        Some(p) => sentence.push_str(&format!(
            ", {}: a difference cannot be told from chance after adjustment over the layers.",
            probability(p)
        )),
        None => sentence.push('.'),
    }
    let stream = |row: &SimilarityRow| ["embedding", "block"].contains(&row.site.as_str());
    let own = result.rows.iter().zip(&result.p_holm).filter(|(row, _)| {
        row.run == run && row.measure == measure && row.tokens == "all" && row.group.is_none() && stream(row)
    });
    let tested: Vec<f64> =
        own.filter_map(|(row, p)| row.diff.zip(*p)).map(|(d, p)| if p < LEVEL { d } else { 0.0 }).collect();
    if !tested.is_empty() {
        let lower = tested.iter().filter(|d| **d < 0.0).count();
        let higher = tested.iter().filter(|d| **d > 0.0).count();
        let layers = tested.len();
        sentence.push_str(&format!(
            " Of {layers} layers, it is lower at {lower} and higher at {higher} (p < {LEVEL}, Holm)."
        ));
    }
    Some(sentence)
}

fn name(measure: &str) -> String {
    match Measure::from_name(measure) {
        Some(Measure::Cosine) => "token-wise cosine similarity".to_owned(),
        Some(measure) => measure.title().to_lowercase(),
        None => measure.replace('_', " "),
    }
}

fn short(value: f64) -> String {
    format!("{value:.4}").replace('-', "−")
}

fn signed(value: f64) -> String {
    format!("{value:+.4}").replace('-', "−")
}

pub(super) fn probability(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") }
}
