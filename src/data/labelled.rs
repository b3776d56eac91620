//! Texts and images with their classes.

use super::texts::{Content, TextOptions, TextSource};
use super::{DataError, Encoded, Example, ImageFile, ImageProcessor, Tokenize, clip, image_files};
use rayon::prelude::*;
use std::path::Path;

/// More classes than any task has; more are a field of another kind.
const MOST_CLASSES: usize = 1000;

/// Texts or images with their classes, and the classes' names.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// The texts or images, each with its class.
    pub examples: Vec<Example>,
    /// What the classes are called in the file, or the folders, in their order: by number if all are whole numbers, else by letter.
    pub classes: Vec<String>,
}

/// Reads the texts of `path` (`.csv`, `.tsv`, `.json`, `.jsonl`; pairs as [`TextSource`] reads them) with the class that the
/// field `label` names; the text is that of `field`, without a name what `similarity` reads. A text is cut at `cutoff` tokens.
///
/// # Errors
/// The file cannot be read, a row lacks the field or its text, or the field has fewer than two values or too many.
pub fn read_labelled(
    path: &Path,
    label: &str,
    field: Option<&str>,
    tokenizer: &dyn Tokenize,
    cutoff: usize,
) -> Result<Labelled, DataError> {
    let content = Content::Field(field.map(str::to_owned));
    let options = TextOptions { content, group_by: Some(label.to_owned()), chat: None };
    let mut rows = Vec::new();
    for text in TextSource::open(path, options)? {
        let text = text?;
        let Some(encoded) = clip(text.encode(tokenizer)?, Some(cutoff), None) else { continue };
        rows.push((encoded, text.group.unwrap_or_default()));
    }
    labelled(rows).map_err(|classes| DataError::Classes {
        path: path.display().to_string(),
        label: label.to_owned(),
        classes,
    })
}

/// Reads the images of a folder, each with the class that the folder which it lies in names.
///
/// # Errors
/// An image cannot be read or lies in no folder, or there are fewer than two folders or too many.
pub fn read_labelled_images(path: &Path, processor: &ImageProcessor) -> Result<Labelled, DataError> {
    let files = image_files(path)?;
    let row = |file: &ImageFile| match &file.class {
        Some(class) => Ok((processor.encode(&file.path)?, class.clone())),
        None => Err(DataError::NoClass { path: file.path.display().to_string() }),
    };
    let rows = files.par_iter().map(row).collect::<Result<Vec<_>, _>>()?;
    labelled(rows).map_err(|classes| DataError::Folders { path: path.display().to_string(), classes })
}

/// Rows and their classes as examples; how many classes there are where that is too few or too many.
fn labelled(rows: Vec<(Encoded, String)>) -> Result<Labelled, usize> {
    let mut classes: Vec<String> = rows.iter().map(|(_, class)| class.clone()).collect();
    match classes.iter().map(|class| class.parse::<i64>()).collect::<Result<Vec<_>, _>>() {
        Ok(_) => classes.sort_by_key(|class| class.parse::<i64>().unwrap_or(0)),
        Err(_) => classes.sort(),
    }
    classes.dedup();
    if !(2..=MOST_CLASSES).contains(&classes.len()) {
        return Err(classes.len());
    }
    let example = |(encoded, class): (Encoded, String)| Example {
        loss: vec![false; encoded.ids.len()],
        response: encoded.ids.len(),
        special: encoded.special,
        types: encoded.types,
        image: encoded.image,
        class: classes.iter().position(|known| *known == class).map(|index| index as u32),
        score: None,
        ids: encoded.ids,
    };
    let examples = rows.into_iter().map(example).collect();
    Ok(Labelled { examples, classes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::Words;

    fn read(name: &str, content: &str) -> Result<Labelled, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let field = content.starts_with("sentence").then_some("sentence");
        read_labelled(&path, "label", field, &Words::default(), 4)
    }

    #[test]
    fn classes_are_ordered_and_texts_cut() {
        let read = read("a.tsv", "sentence\tlabel\na b c d e\t10\nb\t9\nc\t10\n").unwrap();
        assert_eq!(read.classes, ["9", "10"]);
        assert_eq!(read.examples.iter().map(|e| e.class.unwrap()).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!(read.examples[0].ids.len(), 4);
    }

    #[test]
    fn words_are_ordered_by_letter() {
        let rows = "{\"text\": \"a\", \"label\": \"yes\"}\n{\"text\": \"b\", \"label\": \"no\"}\n";
        assert_eq!(read("a.jsonl", rows).unwrap().classes, ["no", "yes"]);
    }

    #[test]
    fn one_class_is_refused() {
        let error = read("a.tsv", "sentence\tlabel\na\t1\nb\t1\n").unwrap_err().to_string();
        assert!(error.ends_with("a.tsv: the field label has 1 value; a classifier needs 2 to 1000"), "{error}");
    }
}
