//! What the system says about the disk behind a folder.

use std::path::Path;

/// The folder itself if it is there, else the one that it would be made in.
pub(crate) fn nearest(folder: &Path) -> &Path {
    let here = Path::new(".");
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(here);
    if there.as_os_str().is_empty() { here } else { there }
}

/// The bytes that are free where `folder` is or will be; none where the system does not say.
#[cfg(unix)]
pub(crate) fn free_space(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(nearest(folder)).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(not(unix))]
pub(crate) fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_folder_is_the_deepest_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&dir.path().join("a/b")), dir.path());
        assert_eq!(nearest(dir.path()), dir.path());
        assert_eq!(nearest(Path::new("no such folder/at all")), Path::new("."));
    }
}
