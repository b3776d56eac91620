//! What a reader of a similarity run must know, found in its tables.

use super::read::{SimilarityResult, audit_place};
use crate::measures::{Measure, Scope};
use crate::report::document::Warning;
use crate::report::{SimilarityRow, baseline};

/// Under so many texts a bootstrap covers less than it says.
const FEW_TEXTS: u64 = 30;
/// A difference of the cosine by which one token, or an offset, is said to rule it.
const RULES: f64 = 0.1;

pub(super) fn warnings(result: &SimilarityResult) -> Vec<Warning> {
    let mut found = Vec::new();
    found.extend(few_texts(result));
    found.extend(two_causes(result));
    found.extend(no_baseline(result));
    found.extend(no_rank(result));
    found.extend(lengths(result));
    found.extend(first_token(result));
    found.extend(offset(result));
    found.extend(fewer_than_others(result));
    found.extend(no_interval(result));
    found.extend(within_audit(result));
    found
}

fn few_texts(result: &SimilarityResult) -> Option<Warning> {
    let most = result.values.iter().map(|run| run.texts.len() as u64).max()?;
    (most < FEW_TEXTS).then(|| {
        Warning::general(format!(
            "Only {most} texts: a percentile bootstrap over fewer than {FEW_TEXTS} covers less than the 95 % that it says."
        ))
    })
}

/// A run that reads h0 also shrinks its modules' inputs: two causes of what sets it apart.
fn two_causes(result: &SimilarityResult) -> Option<Warning> {
    let (_, _, table) = result.tables.iter().find(|(stem, ..)| stem == "residual")?;
    let place = |name: &str| table.columns.iter().position(|column| column.name == name);
    let (run, arm) = (place("run")?, place("arm")?);
    let mut runs: Vec<&str> = Vec::new();
    for row in &table.rows {
        let (Some(run), Some(arm)) = (row.get(run), row.get(arm)) else { continue };
        if arm.text.starts_with("h0") && !runs.contains(&run.text.as_str()) {
            runs.push(&run.text);
        }
    }
    (!runs.is_empty()).then(|| {
        Warning::general(format!(
            "{}: λ shrinks what the modules read and adds h0. Only the difference to a run whose λ term adds nothing (trained \
             with --residual none) is h0's own; any other is both effects together.",
            runs.join(", ")
        ))
    })
}

fn no_baseline(result: &SimilarityResult) -> Option<Warning> {
    let none = result.rows.iter().all(|row| baseline(&row.run).is_none());
    none.then(|| {
        Warning::general(
            "No null baseline was measured: tokens that never met have a cosine too, and how much of a curve that is \
             cannot be seen here (--baselines texts).",
        )
    })
}

fn no_rank(result: &SimilarityResult) -> Option<Warning> {
    const RANKS: [Measure; 6] = [
        Measure::EffectiveRank,
        Measure::EffectiveRankCentred,
        Measure::StableRank,
        Measure::StableRankCentred,
        Measure::ParticipationRatio,
        Measure::MaxExplainedVariance,
    ];
    let measures = result.measures();
    let has = |measure: Measure| measures.contains(&measure.name());
    (has(Measure::Cosine) && !RANKS.into_iter().any(has)).then(|| {
        Warning::of_measure(
            Measure::Cosine.name(),
            "A mean cosine cannot see a collapse of dimension, and no rank was measured beside it (--measures \
             cosine,effective_rank).",
        )
    })
}

fn lengths(result: &SimilarityResult) -> Option<Warning> {
    let tokens = result.values.iter().flat_map(|run| run.texts.iter().map(|text| text.tokens));
    let (least, most) = tokens.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
    (most > least.saturating_mul(2)).then(|| {
        Warning::general(format!(
            "Texts have {least} to {most} tokens: similarity depends on length, and groups or data of other lengths differ \
             for that reason too (--tokens N cuts all to one length)."
        ))
    })
}

/// Runs whose last block is ruled by something, with the two means.
fn ruled<'r>(
    result: &'r SimilarityResult,
    other: (&'r str, &'r str),
) -> impl Iterator<Item = (&'r str, f64, f64)> + 'r {
    let cosine = Measure::Cosine.name();
    result.plain_runs().into_iter().filter_map(move |run| {
        let last = result.last_block(run, cosine)?;
        let of = |measure, tokens| result.row(run, measure, tokens, (last, "block"))?.0.mean;
        let (all, less) = (of(cosine, "all")?, of(other.0, other.1)?);
        ((all - less).abs() > RULES).then_some((run, all, less))
    })
}

fn first_token(result: &SimilarityResult) -> Vec<Warning> {
    let cosine = Measure::Cosine.name();
    ruled(result, (cosine, "no_first"))
        .map(|(run, all, less)| {
            let text = format!(
                "{run}: the first token rules the cosine of the last block: {all:.3} over all tokens, {less:.3} without it."
            );
            Warning::of_measure(cosine, text).of_run(run)
        })
        .collect()
}

fn offset(result: &SimilarityResult) -> Option<Warning> {
    let centred = Measure::CosineCentred.name();
    let touched: Vec<String> =
        ruled(result, (centred, "all")).map(|(run, all, less)| format!("{run} {all:.3}, centred {less:.3}")).collect();
    (!touched.is_empty()).then(|| {
        Warning::of_measure(
            Measure::Cosine.name(),
            format!(
                "Much of the last block's cosine is an offset that the whole corpus shares, or a few outlier dimensions: {}.",
                touched.join("; ")
            ),
        )
    })
}

/// Measures that some texts have no value of.
fn fewer_than_others(result: &SimilarityResult) -> Vec<Warning> {
    let per_text = |name: &&str| Measure::from_name(name).is_some_and(|measure| measure.scope() == Scope::Text);
    let mut found = Vec::new();
    for name in result.measures().into_iter().filter(per_text) {
        let own = |row: &&SimilarityRow| {
            row.measure == name && row.group.is_none() && row.mean.is_some() && baseline(&row.run).is_none()
        };
        let texts = result.rows.iter().filter(own).map(|row| row.texts);
        let (least, most) = texts.fold((u64::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
        let all = result.values.iter().map(|run| run.texts.len() as u64).max().unwrap_or(0);
        if least < all && most > 0 {
            let counted = if least == most { format!("{least}") } else { format!("{least} to {most}") };
            found.push(Warning::of_measure(
                name,
                format!("{}: {counted} of {all} texts have a value, by layer and token set.", name.replace('_', " ")),
            ));
        }
    }
    found
}

fn no_interval(result: &SimilarityResult) -> Option<Warning> {
    let corpus = |name: &&str| Measure::from_name(name).is_some_and(|measure| measure.scope() == Scope::Corpus);
    let names: Vec<&str> = result.measures().into_iter().filter(corpus).collect();
    let first = *names.first()?;
    let listed = names.iter().map(|name| name.replace('_', " ")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "One number for all texts, without interval or test: {listed}. Nothing can be said of its differences."
    );
    Some(if names.len() == 1 { Warning::of_measure(first, text) } else { Warning::general(text) })
}

/// Differences that the audit's error is as large as.
fn within_audit(result: &SimilarityResult) -> Vec<Warning> {
    let Some(audit) = &result.audit else { return Vec::new() };
    let mut found: Vec<Warning> = Vec::new();
    for name in result.measures() {
        let plain = |row: &&SimilarityRow| baseline(&row.run).is_none();
        let own = result.rows.iter().filter(|row| row.measure == name && row.group.is_none()).filter(plain);
        let within = own.filter(|row| {
            let error = audit_place(row).and_then(|place| audit.error(place));
            // A difference of exactly 0 is known to be 0: nothing was changed before it.
            row.diff.zip(error).is_some_and(|(diff, error)| diff != 0.0 && diff.abs() <= error)
        });
        let count = within.count();
        if count > 0 {
            found.push(Warning::of_measure(
                name,
                format!(
                    "{}: {count} differences to a reference are no larger than the audit's error, and say nothing.",
                    name.replace('_', " ")
                ),
            ));
        }
    }
    found
}
