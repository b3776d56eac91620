//! A folder of images, and which of them belong together.

use super::DataError;
use std::path::{Path, PathBuf};

/// An image of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// The folder within the folder that it lies in, which names its class; `None` at the top.
    pub class: Option<String>,
}

/// The `.jpg`, `.jpeg` and `.png` files of a folder and the folders within, in the order of their names; the folder at the
/// top of each path is the class, as in torchvision's `ImageFolder`.
///
/// # Errors
/// A folder cannot be read, or there is no image.
pub fn image_files(folder: &Path) -> Result<Vec<ImageFile>, DataError> {
    let mut found = Vec::new();
    collect(folder, None, &mut found)?;
    if found.is_empty() {
        let path = folder.display().to_string();
        return Err(DataError::Empty { path, wanted: "images (.jpg, .jpeg, .png)" });
    }
    Ok(found)
}

fn collect(folder: &Path, class: Option<&str>, found: &mut Vec<ImageFile>) -> Result<(), DataError> {
    let unreadable = |source| DataError::Read { path: folder.display().to_string(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if path.is_dir() {
            collect(&path, Some(class.unwrap_or(&name)), found)?;
        } else if ["jpg", "jpeg", "png"].contains(&extension.as_str()) {
            found.push(ImageFile { path, class: class.map(str::to_owned) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_in_order_with_their_class() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/2.PNG", "b/deep/1.jpg", "a/9.jpeg", "top.png", "a/notes.txt"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = image_files(folder.path()).unwrap();
        let shown: Vec<(String, Option<&str>)> = found
            .iter()
            .map(|image| {
                (image.path.strip_prefix(folder.path()).unwrap().display().to_string(), image.class.as_deref())
            })
            .collect();
        let wanted = [("a/9.jpeg", Some("a")), ("b/2.PNG", Some("b")), ("b/deep/1.jpg", Some("b")), ("top.png", None)];
        assert_eq!(shown, wanted.map(|(name, class)| (name.to_owned(), class)));
        let empty = tempfile::tempdir().unwrap();
        let error = image_files(empty.path()).unwrap_err().to_string();
        assert!(error.ends_with(": holds no images (.jpg, .jpeg, .png); give a file that does"), "{error}");
    }
}
