//! What an evaluation leaves: results.json, the same in lm-evaluation-harness's shape, tables.

use super::runs::Run;
use super::{EvaluateArgs, Prepared, Scored};
use crate::persist;
use crate::report;
use crate::tasks::{
    Scores, Task, TaskComparison, adjust, compare_runs, comparisons_frame, harness_results, reliability_frame,
    results_frame,
};
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// What the released code does otherwise than it says; `--mode released` has its prompt, decoding and extraction, not these.
const DEFECTS: [&str; 5] = [
    "8-bit layers, merged layers and the parallel adapter ignore h0",
    "the commonsense evaluation loads in 8 bit by default, so that lambda does nothing there",
    "the maths prompt contains the text of Python's builtin `input`",
    "greedy decoding never injects h0 for GPT-J",
    "some scripts train at lambda 0.3 and evaluate the folder of 0.1",
];

/// All results of a command.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    program: &'static str,
    version: &'static str,
    runs: Vec<RunResults>,
    comparisons: Vec<TaskComparison>,
    left_out: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    defects_not_reproduced: Vec<&'static str>,
    #[serde(skip)]
    seed: u64,
}

/// The results of a run.
#[derive(Debug, Serialize)]
struct RunResults {
    name: String,
    model: String,
    revision: Option<String>,
    adapter: Option<String>,
    tasks: Vec<Scores>,
    groups: Vec<GroupMean>,
}

/// The mean over the sets of a group.
#[derive(Debug, Serialize)]
struct GroupMean {
    group: String,
    /// Mean of the tasks' own metrics.
    mean: Option<f64>,
    /// Sets that entered.
    sets: usize,
    /// Sets of the group.
    of: usize,
}

impl Results {
    pub(super) fn of(
        args: &EvaluateArgs,
        runs: &[Run],
        tasks: &[Prepared],
        all: &[Scored],
        left_out: Vec<String>,
    ) -> Result<Self> {
        let mut results = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let scores: Vec<Scores> = all.iter().filter(|one| one.run == index).map(|one| one.scores.clone()).collect();
            results.push(RunResults {
                name: run.name.clone(),
                model: run.model.clone(),
                revision: run.revision.clone(),
                adapter: run.adapter.as_ref().map(|folder| folder.display().to_string()),
                groups: groups(args, tasks, &scores)?,
                tasks: scores,
            });
        }
        let released = tasks.iter().any(|prepared| prepared.mode == crate::tasks::Mode::Released);
        Ok(Self {
            program: "smooth-probe",
            version: env!("CARGO_PKG_VERSION"),
            runs: results,
            comparisons: comparisons(args, runs, tasks, all)?,
            left_out,
            defects_not_reproduced: if released { DEFECTS.to_vec() } else { Vec::new() },
            seed: args.seed,
        })
    }

    pub(super) fn json(&self) -> Value {
        json!(self)
    }

    /// Writes every file but the items' own.
    pub(super) fn write(&self, out: &Path, tasks: &[Prepared]) -> Result<()> {
        persist::write_file(&out.join("results.json"), format!("{:#}\n", self.json()).as_bytes())?;
        let harness = out.join("lm_eval");
        persist::create_folder(&harness)?;
        for run in &self.runs {
            let pairs: Vec<(&Task, &Scores)> = tasks.iter().map(|prepared| &prepared.task).zip(&run.tasks).collect();
            let adapter = run.adapter.as_ref().map(|folder| format!(",peft={folder}")).unwrap_or_default();
            let arguments = format!("pretrained={}{adapter}", run.model);
            let text = format!("{:#}\n", harness_results((&run.model, &arguments), self.seed, &pairs));
            let name: String = run.name.chars().map(|c| if c == '/' { '-' } else { c }).collect();
            persist::write_file(&harness.join(format!("{name}.json")), text.as_bytes())?;
        }
        let rows: Vec<(&str, &Scores)> =
            self.runs.iter().flat_map(|run| run.tasks.iter().map(|scores| (run.name.as_str(), scores))).collect();
        report::write_table(out, "results", &mut results_frame(&rows)?)?;
        if rows.iter().any(|(_, scores)| scores.calibration.is_some()) {
            report::write_table(out, "reliability", &mut reliability_frame(&rows)?)?;
        }
        if !self.comparisons.is_empty() {
            report::write_table(out, "comparisons", &mut comparisons_frame(&self.comparisons)?)?;
        }
        Ok(())
    }

    /// The table of a terminal.
    pub(super) fn print(&self) {
        let name = |text: &str| text.chars().count();
        let runs = self.runs.iter().map(|run| name(&run.name)).max().unwrap_or(0).max(3);
        let tasks = self.runs.iter().flat_map(|run| &run.tasks).map(|s| name(&s.task)).max().unwrap_or(0).max(4);
        let metrics = self.runs.iter().flat_map(|run| &run.tasks).flat_map(|s| &s.metrics).map(|m| name(&m.metric));
        let metrics = metrics.max().unwrap_or(0).max(6);
        let shown = |value: Option<f64>| value.map_or_else(|| "     -".to_owned(), |value| format!("{value:>6.4}"));
        say!("{:<runs$}  {:<tasks$}  {:<metrics$}   value  95 % interval     items", "run", "task", "metric");
        for run in &self.runs {
            for scores in &run.tasks {
                for score in &scores.metrics {
                    say!(
                        "{:<runs$}  {:<tasks$}  {:<metrics$}  {}  {} {}  {:>6}",
                        run.name,
                        scores.task,
                        score.metric,
                        shown(score.value),
                        shown(score.low),
                        shown(score.high),
                        scores.items
                    );
                }
            }
            for group in &run.groups {
                let sets = format!("{} of {} sets", group.sets, group.of);
                say!(
                    "{:<runs$}  {:<tasks$}  {:<metrics$}  {}  {sets}",
                    run.name,
                    group.group,
                    "mean",
                    shown(group.mean)
                );
            }
        }
        for one in &self.comparisons {
            let p = one.p_holm.map(|p| format!("  McNemar p {p:.4} (Holm)")).unwrap_or_default();
            say!(
                "{} - {}  {}  {}  {}  [{}, {}]{p}",
                one.run,
                one.reference,
                one.task,
                one.metric,
                shown(one.difference),
                shown(one.low).trim(),
                shown(one.high).trim()
            );
        }
    }
}

/// The means over the groups that were asked for by name.
fn groups(args: &EvaluateArgs, tasks: &[Prepared], scores: &[Scores]) -> Result<Vec<GroupMean>> {
    let mut means = Vec::new();
    for name in &args.task {
        let of = tasks.iter().filter(|prepared| prepared.task.groups.contains(name)).count();
        if of == 0 {
            continue;
        }
        let own = tasks.iter().zip(scores).filter(|(prepared, _)| prepared.task.groups.contains(name));
        let values: Vec<f64> = own.filter_map(|(_, scores)| scores.first()?.value).collect();
        means.push(GroupMean {
            group: name.clone(),
            mean: (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            sets: values.len(),
            of: crate::tasks::find_tasks(name)?.len(),
        });
    }
    Ok(means)
}

/// Every run against the first.
fn comparisons(args: &EvaluateArgs, runs: &[Run], tasks: &[Prepared], all: &[Scored]) -> Result<Vec<TaskComparison>> {
    let of = |run: usize, task: usize| all.iter().find(|one| (one.run, one.task) == (run, task));
    let mut found = Vec::new();
    for (index, run) in runs.iter().enumerate().skip(1) {
        for (number, prepared) in tasks.iter().enumerate() {
            let (Some(own), Some(first), Some(reference)) = (of(index, number), of(0, number), runs.first()) else {
                continue;
            };
            found.push(compare_runs(
                &prepared.task,
                prepared.mode,
                (&run.name, &own.records),
                (&reference.name, &first.records),
                args.seed,
            )?);
        }
    }
    adjust(&mut found)?;
    Ok(found)
}
