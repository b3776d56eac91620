//! Items that the runs answer differently, side by side, with the similarity of their prompts' tokens.

use super::runs::{Opened, Run};
use super::{EvaluateArgs, Prepared, Scored};
use crate::data::{Packed, Sequence, Tokenize, encode_text};
use crate::kernels;
use crate::measures::{CosineProbe, TokenSet};
use crate::model::Pass;
use crate::persist;
use crate::random::{permutation, stream};
use crate::report::{self, Page};
use crate::tasks::{ItemRecord, Model};
use anyhow::Result;
use polars::df;
use std::path::Path;

/// An item that not all runs have right, or wrong.
struct Case<'s> {
    task: usize,
    /// The records of the runs, in their order.
    records: Vec<&'s ItemRecord>,
    /// For each run the mean token cosine of the prompt at layers 0 to L and after the final norm.
    curves: Vec<Vec<Option<f64>>>,
}

/// Writes cases.md, cases.csv, case_curves.csv and their Parquet.
pub(super) fn write(
    args: &EvaluateArgs,
    count: usize,
    runs: &[Run],
    tasks: &[Prepared],
    all: &[Scored],
    opener: &mut Opened<'_>,
) -> Result<()> {
    let mut cases = choose(args, count, runs, tasks, all);
    for (index, run) in runs.iter().enumerate() {
        for case in &mut cases {
            let Some(prepared) = tasks.get(case.task) else { continue };
            let subject = opener.subject(run, prepared)?;
            if let Some(record) = case.records.get(index) {
                case.curves.push(curve(subject.model()?, &record.prompt)?);
            }
        }
    }
    tables(&args.out, runs, tasks, &cases)?;
    Ok(persist::write_file(&args.out.join("cases.md"), page(runs, tasks, all, &cases).as_bytes())?)
}

/// Up to `count` items of each task, drawn, in their order.
fn choose<'s>(args: &EvaluateArgs, count: usize, runs: &[Run], tasks: &[Prepared], all: &'s [Scored]) -> Vec<Case<'s>> {
    let mut cases = Vec::new();
    for (number, prepared) in tasks.iter().enumerate() {
        let own: Vec<&Scored> =
            (0..runs.len()).filter_map(|run| all.iter().find(|one| (one.run, one.task) == (run, number))).collect();
        let items = own.first().map_or(0, |scored| scored.records.len());
        let records =
            |item: usize| -> Vec<&'s ItemRecord> { own.iter().filter_map(|scored| scored.records.get(item)).collect() };
        let differing: Vec<usize> = (0..items)
            .filter(|&item| {
                let rights: Vec<Option<bool>> = records(item).iter().map(|one| one.is_right(prepared.mode)).collect();
                rights.contains(&Some(true)) && rights.contains(&Some(false))
            })
            .collect();
        let drawn = permutation(differing.len(), &mut stream(args.seed, &["cases", &prepared.task.name]));
        let mut kept: Vec<usize> = drawn.into_iter().take(count).filter_map(|i| differing.get(i).copied()).collect();
        kept.sort_unstable();
        cases.extend(kept.into_iter().map(|item| Case { task: number, records: records(item), curves: Vec::new() }));
    }
    cases
}

/// The mean token cosine of a text at every layer.
fn curve(model: Model<'_>, text: &str) -> Result<Vec<Option<f64>>> {
    let tokenizer: &dyn Tokenize = model.tokenizer;
    let mut encoded = encode_text(text, true, tokenizer)?;
    let longest = model.transformer.architecture().max_positions;
    encoded.ids.truncate(longest);
    encoded.special.truncate(longest);
    let batch = Packed::pack([Sequence { ids: &encoded.ids, types: &[], image: None }]);
    let mut probe = CosineProbe::new(model.transformer.architecture().layers, None);
    probe.expect([(encoded.special.as_slice(), 0..encoded.ids.len())]);
    let pass = Pass::inference(model.peft);
    kernels::forget(|| model.transformer.hidden_states(&batch, &pass, &mut probe))?;
    Ok(probe.curve(TokenSet::All))
}

fn tables(out: &Path, runs: &[Run], tasks: &[Prepared], cases: &[Case<'_>]) -> Result<()> {
    let task = |case: &Case<'_>| tasks.get(case.task).map(|p| p.task.name.clone()).unwrap_or_default();
    let mode = |case: &Case<'_>| tasks.get(case.task).map(|p| p.mode);
    let rows: Vec<(&Case<'_>, &Run, &ItemRecord)> =
        cases.iter().flat_map(|case| runs.iter().zip(&case.records).map(move |(run, one)| (case, run, *one))).collect();
    let mut frame = df!(
        "task" => rows.iter().map(|(case, ..)| task(case)).collect::<Vec<_>>(),
        "item" => rows.iter().map(|(.., one)| one.index as u64).collect::<Vec<_>>(),
        "run" => rows.iter().map(|(_, run, _)| run.name.as_str()).collect::<Vec<_>>(),
        "label" => rows.iter().map(|(.., one)| one.label.as_str()).collect::<Vec<_>>(),
        "answer" => rows.iter().map(|(case, _, one)| mode(case).and_then(|mode| one.answer(mode))).collect::<Vec<_>>(),
        "right" => rows.iter().map(|(case, _, one)| mode(case).and_then(|mode| one.is_right(mode))).collect::<Vec<_>>(),
        "log_probability" => rows.iter().map(|(.., one)| one.log_probability).collect::<Vec<_>>(),
        "output" => rows.iter().map(|(.., one)| one.output.as_deref()).collect::<Vec<_>>(),
        "prompt" => rows.iter().map(|(.., one)| one.prompt.as_str()).collect::<Vec<_>>(),
    )?;
    report::write_table(out, "cases", &mut frame)?;
    /// Task, item, run, layer, site, cosine.
    type CurvePoint<'a> = (String, u64, &'a str, u32, &'a str, Option<f64>);
    let mut points: Vec<CurvePoint<'_>> = Vec::new();
    for case in cases {
        let item = case.records.first().map_or(0, |one| one.index as u64);
        for (run, curve) in runs.iter().zip(&case.curves) {
            for (place, value) in curve.iter().enumerate() {
                let (layer, site) = point(place, curve.len());
                points.push((task(case), item, &run.name, layer, site, *value));
            }
        }
    }
    let mut frame = df!(
        "task" => points.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(),
        "item" => points.iter().map(|row| row.1).collect::<Vec<_>>(),
        "run" => points.iter().map(|row| row.2).collect::<Vec<_>>(),
        "layer" => points.iter().map(|row| row.3).collect::<Vec<_>>(),
        "site" => points.iter().map(|row| row.4).collect::<Vec<_>>(),
        "cosine" => points.iter().map(|row| row.5).collect::<Vec<_>>(),
    )?;
    Ok(report::write_table(out, "case_curves", &mut frame)?)
}

/// Layer and site of a curve's point: the last two are the last block, before and after the final norm.
fn point(place: usize, length: usize) -> (u32, &'static str) {
    match place {
        0 => (0, "embedding"),
        _ if place + 1 == length => (place.saturating_sub(1) as u32, "final_norm"),
        _ => (place as u32, "block"),
    }
}

fn page(runs: &[Run], tasks: &[Prepared], all: &[Scored], cases: &[Case<'_>]) -> String {
    let mut page = Page::new("Items that the runs answer differently");
    page.paragraph(
        "Drawn among all such items of each task. The curves are the mean token cosine of the prompt alone, whose tokens are \
         the same in every run: layer 0 is what the first block receives, the last line follows the final norm.",
    );
    for (number, prepared) in tasks.iter().enumerate() {
        let own: Vec<&Case<'_>> = cases.iter().filter(|case| case.task == number).collect();
        let items = all.iter().find(|one| one.task == number).map_or(0, |one| one.records.len());
        page.section(&prepared.task.title);
        page.paragraph(&format!("{} shown; {items} items scored, mode {}.", own.len(), prepared.mode));
        for case in own {
            let Some(first) = case.records.first() else { continue };
            page.paragraph(&format!("### Item {}: {}", first.index, first.label));
            page.paragraph(&fenced(&first.prompt));
            let row = |(run, one): (&Run, &&ItemRecord)| {
                let right = match one.is_right(prepared.mode) {
                    Some(true) => "right",
                    Some(false) => "wrong",
                    None => "",
                };
                let log = one.log_probability.map(|value| format!("{value:.3}")).unwrap_or_default();
                let output = one.output.clone().unwrap_or_default();
                let answer = one.answer(prepared.mode).unwrap_or("none").to_owned();
                vec![run.name.clone(), answer, right.to_owned(), log, output]
            };
            let rows: Vec<Vec<String>> = runs.iter().zip(&case.records).map(row).collect();
            page.table(&["run", "answer", "", "log-probability", "output"], &rows);
            let length = case.curves.iter().map(Vec::len).max().unwrap_or(0);
            let header: Vec<&str> =
                ["layer", "site"].into_iter().chain(runs.iter().map(|run| run.name.as_str())).collect();
            let curves: Vec<Vec<String>> = (0..length)
                .map(|place| {
                    let (layer, site) = point(place, length);
                    let value = |curve: &Vec<Option<f64>>| {
                        curve.get(place).copied().flatten().map(|value| format!("{value:.4}")).unwrap_or_default()
                    };
                    [layer.to_string(), site.to_owned()].into_iter().chain(case.curves.iter().map(value)).collect()
                })
                .collect();
            page.table(&header, &curves);
        }
    }
    page.text()
}

/// A text as a block of code, whatever it holds.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{text}\n{fence}")
}
