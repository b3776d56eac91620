//! Where models from the hub are kept.

use crate::disk;
use crate::hub::HubSettings;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The hub as the environment sets it, and its cache.
#[derive(Debug, Clone, Serialize)]
pub struct Cache {
    /// The hub's address.
    pub endpoint: String,
    /// The cache folder, which the first download makes.
    pub folder: PathBuf,
    /// Whether it is there.
    pub exists: bool,
    /// Whether files can be made in it, or in the folder that it would be made in.
    pub writable: bool,
    /// Bytes that are free there; none where the system does not say.
    pub free: Option<u64>,
    /// Whether `HF_HUB_OFFLINE` forbids to connect.
    pub offline: bool,
    /// Whether there is a token, in `HF_TOKEN` or a file. Never the token.
    pub token: bool,
}

impl Cache {
    /// What the settings lead to.
    #[must_use]
    pub fn of(settings: &HubSettings) -> Self {
        let folder = &settings.cache;
        Self {
            endpoint: settings.endpoint.clone(),
            folder: folder.clone(),
            exists: folder.is_dir(),
            writable: writable(disk::nearest(folder)),
            free: disk::free_space(folder),
            offline: settings.offline,
            token: settings.token.is_some(),
        }
    }
}

#[cfg(unix)]
fn writable(path: &Path) -> bool {
    path.is_dir() && rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(not(unix))]
fn writable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_dir() && !found.permissions().readonly())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cache: PathBuf) -> HubSettings {
        let token = Some("hf_secret".to_owned());
        HubSettings { endpoint: "http://hub".to_owned(), cache, token, offline: true, watch: None }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_where_it_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let found = Cache::of(&settings(dir.path().join("deep/down")));
        assert!(!found.exists && found.writable && found.offline && found.token && found.free.is_some());
        let text = serde_json::to_string(&found).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert!(Cache::of(&settings(dir.path().to_owned())).exists);
    }

    #[test]
    fn a_file_in_its_place_is_not_writable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(!Cache::of(&settings(file.join("cache"))).writable);
    }
}
