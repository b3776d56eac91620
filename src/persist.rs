//! Writing without ever leaving half a file: beside, then rename.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file or folder that could not be written; names the path and what the system said.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot {action}: {source}; check that the folder exists, is writable and has room")]
pub struct PersistError {
    path: String,
    action: &'static str,
    source: io::Error,
}

impl PersistError {
    pub(crate) fn new(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self { path: path.display().to_string(), action, source }
    }
}

/// Writes `bytes` to `path`: to a temporary file in the same folder, synced, then renamed over it, so
/// that a reader or a crash sees the old content or the new, never a part.
///
/// # Errors
/// The folder does not exist or cannot be written, or the disk is full; the old file is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), PersistError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)
        .map_err(|e| PersistError::new(path, "write", e))?;
    file.write_all(bytes).map_err(|e| PersistError::new(path, "write", e))?;
    file.as_file().sync_all().map_err(|e| PersistError::new(path, "write", e))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A temporary file is private to its owner; results are for everyone the umask allows.
        let mode = fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(|e| PersistError::new(path, "write", e))?;
    }
    file.persist(path).map_err(|e| PersistError::new(path, "write", e.error))?;
    Ok(())
}

/// Creates `folder` and its parents.
///
/// # Errors
/// What the system answers, with the folder's name.
pub fn create_folder(folder: &Path) -> Result<(), PersistError> {
    fs::create_dir_all(folder).map_err(|e| PersistError::new(folder, "create", e))
}

/// Replaces the folder `target` by what `fill` writes, as a whole: `fill` writes into a sibling
/// `target.next`; then `target` becomes `target.previous`, the sibling becomes `target`, and
/// `target.previous` goes. A crash leaves at least one whole generation: see [`whole_folder`].
///
/// # Errors
/// What `fill` answers, or a folder that cannot be made or renamed.
pub fn replace_folder<E: From<PersistError>>(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let (next, previous) = (sibling(target, "next"), sibling(target, "previous"));
    remove_folder(&next)?;
    create_folder(&next)?;
    if let Err(error) = fill(&next) {
        let _ = fs::remove_dir_all(&next);
        return Err(error);
    }
    if target.exists() {
        remove_folder(&previous)?;
        fs::rename(target, &previous).map_err(|e| PersistError::new(target, "rename", e))?;
    }
    fs::rename(&next, target).map_err(|e| PersistError::new(target, "rename", e))?;
    remove_folder(&previous)?;
    Ok(())
}

/// The newest whole generation of a folder written by [`replace_folder`]: the folder itself or, if a
/// crash fell between the two renames, its previous generation.
#[must_use]
pub fn whole_folder(target: &Path) -> Option<PathBuf> {
    [target.to_path_buf(), sibling(target, "previous")].into_iter().find(|folder| folder.is_dir())
}

fn sibling(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    target.with_file_name(name)
}

fn remove_folder(folder: &Path) -> Result<(), PersistError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PersistError::new(folder, "remove", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_the_old_generation() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("last");
        replace_folder::<PersistError>(&target, |f| write_file(&f.join("a"), b"1")).unwrap();
        let failed: Result<(), PersistError> = replace_folder(&target, |f| {
            write_file(&f.join("a"), b"2")?;
            write_file(&f.join("missing/b"), b"2")
        });
        assert!(failed.unwrap_err().to_string().contains("missing/b"));
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half-written stays");
    }

    #[test]
    fn a_crash_between_the_renames_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("last");
        replace_folder::<PersistError>(&target, |f| write_file(&f.join("a"), b"1")).unwrap();
        fs::rename(&target, sibling(&target, "previous")).unwrap();
        assert_eq!(fs::read(whole_folder(&target).unwrap().join("a")).unwrap(), b"1");
        replace_folder::<PersistError>(&target, |f| write_file(&f.join("a"), b"3")).unwrap();
        assert_eq!(fs::read(whole_folder(&target).unwrap().join("a")).unwrap(), b"3");
    }
}
