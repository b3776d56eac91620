//! What is compared: `--model`, `--adapter NAME=DIR`, `--run NAME=MODEL[@REVISION][+ADAPTER]`.

use std::path::PathBuf;

/// A named model with an optional adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// The run's name in tables and figures.
    pub name: String,
    /// Hub name, folder, GGUF file, or `embedded`.
    pub model: String,
    /// A hub revision.
    pub revision: Option<String>,
    /// An adapter folder.
    pub adapter: Option<PathBuf>,
}

impl RunSpec {
    /// Parses `NAME=MODEL[@REVISION][+ADAPTER]`.
    ///
    /// # Errors
    /// The name or the model is missing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = named(text, "--run", "NAME=MODEL[@REVISION][+ADAPTER]")?;
        let (model, adapter) = match rest.split_once('+') {
            Some((model, adapter)) => (model, Some(PathBuf::from(adapter))),
            None => (rest, None),
        };
        // A folder may hold an @ in its name; only a name that is no path has a revision.
        let (model, revision) = match model.rsplit_once('@') {
            Some((front, revision)) if !std::path::Path::new(model).exists() => (front, Some(revision.to_owned())),
            _ => (model, None),
        };
        if model.is_empty() {
            return Err(format!("--run {text}: the model is missing; write NAME=MODEL[@REVISION][+ADAPTER]"));
        }
        Ok(Self { name: name.to_owned(), model: model.to_owned(), revision, adapter })
    }

    /// Parses `NAME=DIR` into a run of `model` with that adapter.
    ///
    /// # Errors
    /// The name or the folder is missing.
    pub fn adapter(text: &str, model: &str, revision: Option<&str>) -> Result<Self, String> {
        let (name, folder) = named(text, "--adapter", "NAME=DIR")?;
        Ok(Self {
            name: name.to_owned(),
            model: model.to_owned(),
            revision: revision.map(str::to_owned),
            adapter: Some(PathBuf::from(folder)),
        })
    }
}

fn named<'t>(text: &'t str, option: &str, form: &str) -> Result<(&'t str, &'t str), String> {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !rest.is_empty() => Ok((name, rest)),
        _ => Err(format!("{option} {text}: write {option} {form}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_run() {
        let run = RunSpec::parse("big=org/name@v2+out/adapter").unwrap();
        assert_eq!((run.name.as_str(), run.model.as_str()), ("big", "org/name"));
        assert_eq!((run.revision.as_deref(), run.adapter), (Some("v2"), Some(PathBuf::from("out/adapter"))));
        let plain = RunSpec::parse("b=./folder").unwrap();
        assert_eq!((plain.model.as_str(), plain.revision, plain.adapter), ("./folder", None, None));
        assert!(RunSpec::parse("noname").unwrap_err().contains("NAME=MODEL"));
        assert!(RunSpec::adapter("=dir", "m", None).is_err());
    }
}
