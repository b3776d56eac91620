//! The tasks that are compiled in, their groups, and tasks of a user's own file.

use super::{Task, TaskError};
use std::path::Path;

macro_rules! sets {
    ($($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("sets/", $file)))),*]
    };
}

/// The compiled-in tasks, in the order of the tables.
const SETS: [(&str, &str); 23] = sets![
    "gsm8k.toml",
    "svamp.toml",
    "mawps.toml",
    "aqua.toml",
    "multiarith.toml",
    "addsub.toml",
    "singleeq.toml",
    "boolq.toml",
    "piqa.toml",
    "siqa.toml",
    "hellaswag.toml",
    "winogrande.toml",
    "arc-easy.toml",
    "arc-challenge.toml",
    "openbookqa.toml",
    "glue-cola.toml",
    "glue-sst2.toml",
    "glue-mrpc.toml",
    "glue-qqp.toml",
    "glue-stsb.toml",
    "glue-mnli.toml",
    "glue-qnli.toml",
    "glue-rte.toml",
];

/// Every compiled-in task.
///
/// # Errors
/// None that a build which passed its tests could meet.
pub fn all_tasks() -> Result<Vec<Task>, TaskError> {
    SETS.iter().map(|(file, text)| Task::parse(file, text)).collect()
}

/// The tasks that a name stands for: a group, a task, or the one of a `.toml` file.
///
/// # Errors
/// No such task, or a file that cannot be read or states none.
pub fn find_tasks(name: &str) -> Result<Vec<Task>, TaskError> {
    if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
        let text = std::fs::read_to_string(name).map_err(|source| TaskError::File { path: name.to_owned(), source })?;
        return Ok(vec![Task::parse(name, &text)?]);
    }
    let all = all_tasks()?;
    let mut groups: Vec<String> = Vec::new();
    for group in all.iter().flat_map(|task| &task.groups) {
        if !groups.contains(group) {
            groups.push(group.clone());
        }
    }
    let known: Vec<&str> = groups.iter().map(String::as_str).chain(all.iter().map(|task| task.name.as_str())).collect();
    let known = known.join(", ");
    let found: Vec<Task> =
        all.into_iter().filter(|task| task.name == name || task.groups.iter().any(|group| group == name)).collect();
    if found.is_empty() {
        return Err(TaskError::Unknown { name: name.to_owned(), known });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{AnswerKind, Mode};

    #[test]
    fn the_tasks_are_those_of_the_paper() {
        let count = |group: &str| find_tasks(group).unwrap().len();
        assert_eq!((count("arithmetic"), count("commonsense"), count("glue"), count("aqua")), (7, 8, 8, 1));
        let items: Vec<usize> = all_tasks().unwrap().iter().filter_map(|task| task.items).collect();
        let paper = [1319, 1000, 238, 254, 600, 395, 508, 3270, 1838, 1954, 10_042, 1267, 2376, 1172, 500];
        assert_eq!(items, paper);
        for task in all_tasks().unwrap() {
            let generated = task.modes.contains(&Mode::Released);
            assert_eq!(generated, !task.groups.contains(&"glue".to_owned()), "{}", task.name);
            let tokens = if task.groups.contains(&"arithmetic".to_owned()) { 256 } else { 32 };
            assert!(!generated || (task.decoding.max_new_tokens, task.decoding.beams) == (tokens, 4), "{}", task.name);
            assert_eq!(task.answer.kind == AnswerKind::Number, generated && task.answer.words.is_empty());
        }
        let cola = &find_tasks("glue/cola").unwrap()[0];
        assert_eq!(["unacceptable", "acceptable"].map(|class| cola.choice_text(class)), ["no", "yes"]);
        assert_eq!(find_tasks("aqua").unwrap()[0].choice_text("B"), "The answer is (B)");
        let error = find_tasks("maths").unwrap_err().to_string();
        assert!(error.starts_with("--task maths: no such task; there are arithmetic, commonsense, glue, gsm8k, "));
        assert!(find_tasks("no/such.toml").unwrap_err().to_string().starts_with("no/such.toml: "));
    }
}
