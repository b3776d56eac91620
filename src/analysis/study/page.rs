//! The study's page and the files beside it.

use super::StudyError;
use super::cell::{Cell, SearchResult};
use super::figures::write_figure;
use super::file::{Arm, Study};
use super::gates::gates;
use super::schema::{Column, Outcome};
use super::summary::{Summary, summaries};
use super::tables;
use super::verdicts::{self, Paired};
use crate::persist;
use crate::pretrain::tasks::Task;
use crate::report::{Page, write_table};
use std::path::Path;

pub(super) fn write_chart(folder: &Path, stem: &str, png: &[u8], svg: &str) -> Result<(), StudyError> {
    persist::write_file(&folder.join(format!("{stem}.png")), png)?;
    persist::write_file(&folder.join(format!("{stem}.svg")), svg.as_bytes())?;
    Ok(())
}

/// Writes `search.csv` and `.parquet`: what every arm's learning rate was chosen by.
///
/// # Errors
/// The folder cannot be written.
pub fn write_search(folder: &Path, search: &[Cell<SearchResult>]) -> Result<(), StudyError> {
    Ok(write_table(folder, "search", &mut tables::search_frame(search)?)?)
}

/// Writes tables, figures and page from the cells that are there.
///
/// # Errors
/// The folder cannot be written.
pub fn write_report(folder: &Path, study: &Study, cells: &[Cell]) -> Result<(), StudyError> {
    let compared = verdicts::comparisons(study, cells)?;
    let summaries = summaries(study, cells);
    write_table(folder, "cells", &mut tables::cells_frame(cells)?)?;
    write_table(folder, "curves", &mut tables::curves_frame(cells)?)?;
    write_table(folder, "arms", &mut tables::arms_frame(&summaries, &study.page.columns)?)?;
    write_table(folder, "comparisons", &mut tables::comparisons_frame(&compared)?)?;
    if study.page.cost_reference.is_some() {
        write_table(folder, "cost", &mut tables::cost_frame(cells)?)?;
    }
    for figure in &study.figures {
        write_figure(folder, figure, study, cells, &compared)?;
    }
    let page = page(study, cells, &summaries, &compared);
    Ok(persist::write_file(&folder.join("README.md"), page.as_bytes())?)
}

fn page(study: &Study, cells: &[Cell], summaries: &[Summary], compared: &[Paired]) -> String {
    let mut page = Page::new(&study.title);
    page.paragraph(&format!(
        "The embedded model, tuned at {} scale by `smooth-probe {}`. Every sentence with a verdict is computed from the \
         intervals beside it; nothing on this page is a number of the paper's.",
        study.scale.name(),
        command(study),
    ));
    page.paragraph(&format!("Question: {} Expected: {}", study.question, study.hypothesis));
    let interpreted = interpretation(study, cells);
    page.section(&study.page.answers);
    let answer = |paired: &Paired| {
        let unread = study.arm(&paired.entry.treatment).is_some_and(|arm| interpreted.is_unread(&arm.group));
        format!("{}{}", verdicts::sentence(paired), if unread { " (not interpreted)" } else { "" })
    };
    page.list(&compared.iter().filter(|paired| paired.entry.answer).map(answer).collect::<Vec<_>>());
    if let Some(text) = interpreted.text(study) {
        page.paragraph(&text);
    }
    for figure in &study.figures {
        let (file, section, alt) = figure.place();
        if let Some(section) = section {
            page.section(section);
        }
        page.figure(&format!("{file}.png"), alt);
    }
    page.section("Every arm");
    let header: Vec<&str> = ["arm", "seeds"].into_iter().chain(study.page.columns.iter().map(|c| c.title())).collect();
    page.table(&header, &arm_rows(summaries, &study.page.columns));
    if let Some(reference) = &study.page.cost_reference {
        page.paragraph(&format!(
            "CPU seconds are those that the thread of a cell ran during its median training step, so that what else the \
             machine does enters as little as can be; cost is their ratio to `{reference}` of the same seed.",
        ));
    }
    if !study.refused.is_empty() {
        page.section("What cannot be run");
        let row = |refused: &super::file::Refusal| vec![refused.name.clone(), refused.reason.clone()];
        page.table(&["arm", "why"], &study.refused.iter().map(row).collect::<Vec<_>>());
    }
    page.section("All comparisons, paired by seed");
    let families = compared.iter().any(|paired| paired.adjusted.is_some());
    let mut header = vec!["treatment", "control", "outcome", "mean difference", "95 % interval"];
    header.extend(families.then_some("Holm p"));
    header.push("verdict");
    page.table(&header, &compared.iter().map(|paired| verdict_row(paired, families)).collect::<Vec<_>>());
    page.section("Gates");
    page.list(&gates(study, cells));
    page.section("How it was made");
    page.paragraph(&methods(study, cells));
    page.table(&["arm", "its own settings"], &study.arms.iter().filter_map(own_settings).collect::<Vec<_>>());
    page.section("What this study cannot tell");
    page.list(&study.page.limits);
    page.text()
}

/// The command that makes the study.
fn command(study: &Study) -> String {
    if study.name == "headline" { "reproduce".to_owned() } else { format!("reproduce {}", study.name) }
}

/// Which methods learned enough to be interpreted.
struct Interpretation<'s> {
    read: Vec<&'s str>,
    unread: Vec<&'s str>,
}

impl Interpretation<'_> {
    fn is_unread(&self, group: &str) -> bool {
        self.unread.contains(&group)
    }

    fn text(&self, study: &Study) -> Option<String> {
        let above = 100.0 * study.margins.above_base?;
        let names = |groups: &[&str]| if groups.is_empty() { "none".to_owned() } else { groups.join(", ") };
        Some(format!(
            "A method is interpreted only where its best arm lies more than {above:.0} points above the base model and the \
             commonest answer. Interpreted: {}. Not interpreted: {}.",
            names(&self.read),
            names(&self.unread),
        ))
    }
}

fn interpretation<'s>(study: &'s Study, cells: &[Cell]) -> Interpretation<'s> {
    let of = |wanted: bool| {
        let groups = study.groups().into_iter();
        groups.filter(|group| verdicts::is_interpreted(study, cells, group) == Some(wanted)).collect()
    };
    Interpretation { read: of(true), unread: of(false) }
}

fn arm_rows(summaries: &[Summary], columns: &[Column]) -> Vec<Vec<String>> {
    let row = |summary: &Summary| {
        let first = [summary.arm.name.clone(), summary.seeds.to_string()];
        first.into_iter().chain(columns.iter().map(|column| column.text(summary))).collect()
    };
    summaries.iter().map(row).collect()
}

fn verdict_row(paired: &Paired, families: bool) -> Vec<String> {
    let (mean, interval, verdict) = match &paired.comparison {
        None => (String::new(), String::new(), "no common seed".to_owned()),
        Some(c) => (
            format!("{:+.4}", c.mean),
            c.interval.map_or_else(String::new, |i| format!("[{:+.4}, {:+.4}]", i.low, i.high)),
            c.to_string(),
        ),
    };
    let mut row = vec![
        paired.entry.treatment.clone(),
        paired.entry.control.clone(),
        paired.outcome.name().to_owned(),
        mean,
        interval,
    ];
    if families {
        row.push(paired.adjusted.map_or_else(String::new, |(p, _)| verdicts::p_value(p)));
    }
    row.push(verdict);
    row
}

/// An arm's own settings as they stand in the file.
fn own_settings(arm: &Arm) -> Option<Vec<String>> {
    arm.is_tuned().then(|| vec![arm.name.clone(), settings_words(&arm.own)])
}

fn settings_words(table: &toml::Table) -> String {
    table.iter().map(|(key, value)| format!("`{key} = {value}`")).collect::<Vec<_>>().join(", ")
}

fn methods(study: &Study, cells: &[Cell]) -> String {
    let outcomes = Outcome::ALL.map(Outcome::name).join("; ");
    let seeds = summaries(study, cells).iter().map(|summary| summary.seeds).max().unwrap_or_default();
    let mut rates: Vec<String> = Vec::new();
    for arm in study.arms.iter().filter(|arm| !arm.lr_candidates.is_empty()) {
        let rate = format!("{:?}", arm.lr_candidates);
        if !rates.contains(&rate) {
            rates.push(rate);
        }
    }
    let families = study.comparisons.iter().any(|entry| entry.family.is_some());
    let holm = if families {
        " Comparisons of a family (column `family` of comparisons.csv) are judged together, outcome by \
                              outcome, by Holm's correction; their intervals are those of each alone."
    } else {
        ""
    };
    format!(
        "Task {}, 3,000 training items, {} test items. Settings of every arm, by the keys of `train`: {}. Each arm's peak \
         learning rate was chosen from {} by its validation loss on another seed (`search.csv`). {seeds} seeds, paired: the \
         same start values, batches and items in every arm. Outcomes: {outcomes}. Intervals are Student-t over seeds; \
         margins, fixed before the run: ±{:.0} points of accuracy, ±{} of similarity. Verdicts: helps, hurts, equivalent \
         (two one-sided tests), undecided.{holm} {}",
        study.task_names().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        study.measurement.test_items,
        settings_words(&study.common),
        rates.join(" or "),
        100.0 * study.margins.accuracy,
        study.margins.similarity,
        study.page.made,
    )
}

impl Study {
    /// What is said of the tasks in a figure: their names without their groups.
    pub(super) fn task_words(&self) -> String {
        let word = |arm: &Arm| arm.task.name().rsplit('/').next().unwrap_or_default().to_owned();
        let mut words: Vec<String> = Vec::new();
        for arm in &self.arms {
            if !words.contains(&word(arm)) {
                words.push(word(arm));
            }
        }
        format!("{} {}", if words.len() == 1 { "task" } else { "tasks" }, words.join(", "))
    }

    /// The task of a method's arms.
    pub(super) fn task_of(&self, group: &str) -> Option<Task> {
        self.arms.iter().find(|arm| arm.group == group).map(|arm| arm.task)
    }

    /// The tasks in the order in which arms have them, by their whole names.
    fn task_names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for arm in &self.arms {
            if !names.contains(&arm.task.name()) {
                names.push(arm.task.name());
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The study file has for every arm what its search found best.
    fn has_what_the_search_chose(name: &str, search: &str) {
        let study = Study::open(name).unwrap();
        for arm in study.arms.iter().filter(|arm| !arm.lr_candidates.is_empty()) {
            let rows = search.lines().filter_map(|line| {
                let [of, lr, loss] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
                (of == arm.name).then_some((lr.parse::<f64>().ok()?, loss.parse::<f64>().ok()?))
            });
            let rows: Vec<(f64, f64)> = rows.collect();
            assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), arm.lr_candidates, "{}", arm.name);
            let best = rows.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            assert_eq!(arm.lr, Some(best.0), "{}", arm.name);
        }
    }

    #[test]
    fn the_headline_has_what_its_search_chose() {
        has_what_the_search_chose("headline", include_str!("../../../reports/headline/search.csv"));
    }

    #[test]
    fn the_study_of_methods_has_what_its_search_chose() {
        has_what_the_search_chose("methods", include_str!("../../../reports/methods/search.csv"));
    }
}
