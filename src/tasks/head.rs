//! Which class each output of a trained head stands for.

use super::{AnswerKind, Task, TaskError};
use serde_json::Value;
use std::path::Path;

/// The file beside an adapter or a model that names its head's classes, in the head's order.
pub const CLASSES_FILE: &str = "classes.json";
/// The manifest of the run that an adapter lies in.
const MANIFEST: &str = "manifest.json";

/// The classes of the head of an adapter or a model in `folder`, in the head's order: of `classes.json`, else of the
/// manifest of the run that the folder lies in, else of `id2label` in `config.json`. `None` where nothing says.
///
/// # Errors
/// A file that is there cannot be read.
pub fn head_classes(folder: &Path) -> Result<Option<Vec<String>>, TaskError> {
    if let Some(Value::Array(classes)) = json(&folder.join(CLASSES_FILE))? {
        return Ok(Some(texts(&classes)));
    }
    let above = folder.parent().map(|run| json(&run.join(MANIFEST))).transpose()?.flatten();
    if let Some(Value::Array(classes)) = above.as_ref().and_then(|manifest| manifest.get("classes")) {
        return Ok(Some(texts(classes)));
    }
    let config = json(&folder.join("config.json"))?;
    let Some(Value::Object(labels)) = config.as_ref().and_then(|config| config.get("id2label")) else {
        return Ok(None);
    };
    let mut numbered: Vec<(usize, String)> = Vec::new();
    for (index, label) in labels {
        numbered.extend(index.parse().ok().zip(label.as_str().map(str::to_owned)));
    }
    numbered.sort();
    Ok(Some(numbered.into_iter().map(|(_, label)| label).collect()))
}

/// For each class of the task its place among the head's; a head may name its classes or number them, as the file that it
/// learned from did. Nothing for a score.
///
/// # Errors
/// The head has other classes than the task.
pub fn class_places(task: &Task, head: &[String]) -> Result<Vec<usize>, TaskError> {
    let classes = &task.answer.classes;
    if task.answer.kind == AnswerKind::Score && head.len() == 1 {
        return Ok(Vec::new());
    }
    let number = |name: &str| name.strip_prefix("LABEL_").unwrap_or(name).parse::<usize>().ok();
    let of = |(index, class): (usize, &String)| {
        let named = head.iter().position(|name| name.eq_ignore_ascii_case(class));
        named.or_else(|| head.iter().position(|name| number(name) == Some(index)))
    };
    let places: Option<Vec<usize>> = classes.iter().enumerate().map(of).collect();
    places.filter(|places| places.len() == head.len() && !places.is_empty()).ok_or_else(|| TaskError::Unfit {
        task: task.name.clone(),
        mode: "classify".to_owned(),
        reason: format!(
            "the head tells {} apart, the task {}; train one with train --task {}",
            head.join(", "),
            if classes.is_empty() { "a score".to_owned() } else { classes.join(", ") },
            task.name
        ),
    })
}

fn texts(values: &[Value]) -> Vec<String> {
    values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect()
}

/// A file of JSON; `None` where there is none.
fn json(path: &Path) -> Result<Option<Value>, TaskError> {
    if !path.is_file() {
        return Ok(None);
    }
    let failed = |source| TaskError::File { path: path.display().to_string(), source };
    let text = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::find_tasks;

    #[test]
    fn classes_by_name_and_by_number() {
        let mnli = &find_tasks("glue/mnli").unwrap()[0];
        let places = |head: &[&str]| {
            let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
            class_places(mnli, &head)
        };
        assert_eq!(places(&["contradiction", "entailment", "neutral"]).unwrap(), [1, 2, 0]);
        assert_eq!(places(&["0", "1", "2"]).unwrap(), [0, 1, 2]);
        assert_eq!(places(&["LABEL_0", "LABEL_1", "LABEL_2"]).unwrap(), [0, 1, 2]);
        let error = places(&["0", "1"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "glue/mnli, --mode classify: the head tells 0, 1 apart, the task entailment, neutral, contradiction; train one \
             with train --task glue/mnli"
        );
    }

    #[test]
    fn classes_are_found_where_they_are_stated() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().join("adapter");
        std::fs::create_dir(&adapter).unwrap();
        assert_eq!(head_classes(&adapter).unwrap(), None);
        std::fs::write(adapter.join("config.json"), r#"{"id2label": {"1": "b", "0": "a", "10": "k"}}"#).unwrap();
        assert_eq!(head_classes(&adapter).unwrap().unwrap(), ["a", "b", "k"]);
        std::fs::write(dir.path().join("manifest.json"), r#"{"classes": ["0", "1"]}"#).unwrap();
        assert_eq!(head_classes(&adapter).unwrap().unwrap(), ["0", "1"]);
        std::fs::write(adapter.join("classes.json"), r#"["yes", "no"]"#).unwrap();
        assert_eq!(head_classes(&adapter).unwrap().unwrap(), ["yes", "no"]);
        std::fs::write(adapter.join("classes.json"), "[").unwrap();
        assert!(head_classes(&adapter).unwrap_err().to_string().contains("classes.json"));
    }
}
