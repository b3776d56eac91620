//! docs/tasks.md lists the tasks that are compiled in, and the outputs that the two rules of extraction read differently.

use super::{AnswerKind, Task, all_tasks, find_tasks};
use serde_json::Value;
use std::fmt::Write;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tasks.md");
const END: &str = "<!-- end -->\n";

fn tasks() -> String {
    let mut out = String::from(
        "| `--task` | set | groups | test items | answer | metrics | new tokens, beams | modes | file of `--data` |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for task in all_tasks().unwrap() {
        let generates = task.modes.iter().any(|mode| mode.generates());
        let decoding = format!("{}, {}", task.decoding.max_new_tokens, task.decoding.beams);
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} | `{}` |",
            task.name,
            task.title,
            task.groups.join(", "),
            task.items.map_or_else(|| "–".to_owned(), |items| items.to_string()),
            answer(&task),
            task.metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", "),
            if generates { decoding } else { "–".to_owned() },
            task.modes.iter().map(|mode| mode.name()).collect::<Vec<_>>().join(", "),
            task.files.test.first().cloned().unwrap_or_default(),
        );
    }
    out
}

fn answer(task: &Task) -> String {
    match task.answer.kind {
        AnswerKind::Number => "number".to_owned(),
        AnswerKind::Score => "score".to_owned(),
        AnswerKind::Choice => "one of the item's choices".to_owned(),
        AnswerKind::Class => task.answer.classes.join(" · "),
        AnswerKind::Letter | AnswerKind::Word => task.answer.words.join(" · "),
    }
}

/// The hand-written outputs of which the two rules make another thing.
fn differences() -> String {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/extraction.json")).unwrap();
    let mut out = String::from("| task | output | ours | released |\n|---|---|---|---|\n");
    for case in cases.iter().filter(|case| case["ours"] != case["released"]) {
        let number = find_tasks(case["task"].as_str().unwrap()).unwrap()[0].answer.kind == AnswerKind::Number;
        let cell = |key: &str| match case[key].as_str() {
            None => "nothing".to_owned(),
            Some(text) if number && key != "output" => text.parse::<f64>().unwrap().to_string(),
            Some(text) => text.replace('\n', "↵").replace('|', "\\|"),
        };
        let _ = writeln!(
            out,
            "| `{}` | `{}` | {} | {} |",
            case["task"].as_str().unwrap(),
            cell("output"),
            cell("ours"),
            cell("released")
        );
    }
    out
}

#[test]
fn the_page_lists_the_tasks() {
    let mut page = std::fs::read_to_string(PAGE).unwrap();
    let before = page.clone();
    for (mark, made) in [("tasks", tasks()), ("differences", differences())] {
        let begin = format!("<!-- {mark}; SMOOTH_PROBE_WRITE_DOCS=1 cargo test --lib tasks::docs writes it -->\n");
        let (front, rest) = page.split_once(&begin).expect("docs/tasks.md has lost a begin mark");
        let (_, back) = rest.split_once(END).expect("docs/tasks.md has lost an end mark");
        page = format!("{front}{begin}{made}{END}{back}");
    }
    if page == before {
        return;
    }
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(PAGE, page).unwrap();
        return;
    }
    panic!("docs/tasks.md is stale: renew it with SMOOTH_PROBE_WRITE_DOCS=1 cargo test --lib tasks::docs");
}
