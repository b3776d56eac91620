//! Test items that a training set holds too.

use super::definition::LABEL;
use super::{Item, Task};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// How many of a set's test items a training set holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The set.
    pub task: String,
    /// Its test items.
    pub items: usize,
    /// Those of them whose text, normalised, is one of the training set's.
    pub shared: usize,
}

/// A text without what copies differ in: lower case, and of all else than letters and digits a space.
#[must_use]
pub fn normalised(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    plain.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// What an item asks, normalised: its fields without answer and label.
#[must_use]
pub fn asked_text(item: &Item) -> String {
    let fields = item.fields.iter().filter(|(name, _)| !["output", LABEL].contains(&name.as_str()));
    normalised(&fields.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" "))
}

/// The overlap of a training set, given by its normalised texts, with sets of test items.
#[must_use]
pub fn overlaps(training: &HashSet<String>, tests: &[(Task, Vec<Item>)]) -> Vec<Overlap> {
    let of = |(task, items): &(Task, Vec<Item>)| {
        let shared = items.iter().map(asked_text).filter(|text| !text.is_empty() && training.contains(text)).count();
        Overlap { task: task.name.clone(), items: items.len(), shared }
    };
    tests.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::shared;
    use crate::data::{Record, read_records};
    use crate::tasks::{find_tasks, read_items, task_file};

    #[test]
    fn copies_are_alike_whatever_their_spaces_and_marks() {
        assert_eq!(
            normalised(" Mary took 3 crayons out . How many\tare there ? "),
            "mary took 3 crayons out how many are there"
        );
        assert_eq!(normalised("Émile’s"), "émile s");
    }

    /// What LLM-Adapters offers as training data of arithmetic is for the most part its test sets, word for word: counted by
    /// Python too.
    #[test]
    fn what_the_real_sets_share() {
        let Some(shared) = shared() else { return };
        let data = shared.join("data");
        let items = |name: &str| {
            let task = find_tasks(name).unwrap().remove(0);
            let path = task_file(&task, &data, false).unwrap();
            let items = read_items(&task, &path, None).unwrap();
            (task, items)
        };
        let path = task_file(&find_tasks("multiarith").unwrap()[0], &data, true).unwrap();
        let text = |record: &Record| match record {
            Record::Instruction { instruction, .. } => normalised(instruction),
            _ => String::new(),
        };
        let training: HashSet<String> = read_records(&path).unwrap().iter().map(text).collect();
        let tests: Vec<_> = ["gsm8k", "addsub", "multiarith", "singleeq", "svamp", "mawps"].map(items).into();
        let found = overlaps(&training, &tests);
        let counts: Vec<(&str, usize)> = found.iter().map(|one| (one.task.as_str(), one.shared)).collect();
        let counted_elsewhere =
            [("gsm8k", 1055), ("addsub", 330), ("multiarith", 491), ("singleeq", 425), ("svamp", 800), ("mawps", 131)];
        assert_eq!(counts, counted_elsewhere);
        // A set shares everything with itself.
        let own: HashSet<String> = tests[1].1.iter().map(asked_text).collect();
        let itself = overlaps(&own, &tests[1..2]);
        assert_eq!((itself[0].shared, itself[0].items), (395, 395));
    }
}
