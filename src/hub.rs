//! A model's name or folder to its files: a folder as it is, or a name through the hub and its cache.
//!
//! The cache is the one that Hugging Face's own tools use, and the same environment variables say where
//! it is: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.

mod settings;

use crate::hash;
use crate::model::COMPANIONS;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
pub use settings::{HubSettings, Watch};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Weights, the best first.
const WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// A model that cannot be found or fetched; each message is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor a hub name.
    #[error("{name}: no such folder; a hub name looks like org/name")]
    NoSuchFolder {
        /// What was asked for.
        name: String,
    },
    /// A folder or file that is there and holds no model.
    #[error("{path}: {problem}")]
    NoModel {
        /// The folder or file.
        path: String,
        /// What is missing.
        problem: String,
    },
    /// A revision was asked of a local folder, which has none.
    #[error("{path}: a local folder has no revision; leave --revision out, or give a hub name")]
    LocalRevision {
        /// The folder.
        path: String,
    },
    /// A revision that no hub could have.
    #[error("{revision:?} is no revision; give a branch, a tag or a commit")]
    BadRevision {
        /// What was asked for.
        revision: String,
    },
    /// The hub refuses: private, gated, or no access.
    #[error(
        "{name}: {endpoint} refuses access (HTTP {status}); if the model is private or gated, accept its licence on its page and set HF_TOKEN to a token that may read it; otherwise check the name"
    )]
    Refused {
        /// The model's name.
        name: String,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
    },
    /// The hub has no such model, or no such revision of it.
    #[error(
        "{name}: neither a folder here nor, in revision {revision}, a model on {endpoint}; check the spelling and the revision"
    )]
    NotFound {
        /// The model's name.
        name: String,
        /// The revision asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub cannot be reached, or breaks off.
    #[error("{name}: cannot fetch {what} from {endpoint}: {problem}; {remedy}")]
    Transfer {
        /// The model's name.
        name: String,
        /// The file, or the list of files.
        what: String,
        /// The hub.
        endpoint: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Offline, and not in the cache.
    #[error(
        "{name}: revision {revision} is not whole in the cache {cache} ({problem}) and HF_HUB_OFFLINE is set; unset it once to fetch the model"
    )]
    NotCached {
        /// The model's name.
        name: String,
        /// The revision asked for.
        revision: String,
        /// The cache folder.
        cache: String,
        /// What is missing.
        problem: String,
    },
    /// The cache cannot be written or read.
    #[error("{path}: {source}; check that the cache folder is writable and has room, or set HF_HUB_CACHE")]
    Cache {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// What was asked for.
    pub name: String,
    /// The folder with the files; for a GGUF file, the folder that it is in.
    pub folder: PathBuf,
    /// The GGUF file, if the model is one.
    pub gguf: Option<PathBuf>,
    /// The commit, if the model is from the hub.
    pub revision: Option<String>,
}

/// Finds a model: a folder with `config.json`, a `.gguf` file, a folder with exactly one such file, or
/// a hub name `org/name`, fetched unless the cache has it.
///
/// # Errors
/// There is no such folder and it is no hub name; the folder holds no model; or see [`fetch`].
pub fn resolve(name: &str, revision: Option<&str>, settings: &HubSettings) -> Result<ModelFiles, HubError> {
    let path = Path::new(name);
    if path.exists() {
        if revision.is_some() {
            return Err(HubError::LocalRevision { path: name.to_string() });
        }
        return local(name, path);
    }
    if !is_hub_name(name) {
        return Err(HubError::NoSuchFolder { name: name.to_string() });
    }
    fetch(name, revision, settings)
}

fn local(name: &str, path: &Path) -> Result<ModelFiles, HubError> {
    let no_model = |problem: &str| HubError::NoModel { path: name.to_string(), problem: problem.to_string() };
    let found =
        |folder: &Path, gguf| ModelFiles { name: name.to_string(), folder: folder.to_path_buf(), gguf, revision: None };
    let is_gguf = |file: &Path| file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if path.is_file() {
        if !is_gguf(path) {
            return Err(no_model("is a file; give the model's folder, or a .gguf file"));
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok(found(folder, Some(path.to_path_buf())));
    }
    if path.join("config.json").exists() {
        return Ok(found(path, None));
    }
    let listed =
        fs::read_dir(path).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>());
    let listed = listed.map_err(|source| HubError::Cache { path: name.to_string(), source })?;
    let mut files = listed.into_iter().filter(|file| is_gguf(file));
    match (files.next(), files.next()) {
        (Some(gguf), None) => Ok(found(path, Some(gguf))),
        (Some(_), Some(_)) => Err(no_model("holds several .gguf files; give the path of one")),
        (None, _) => {
            Err(no_model("holds no config.json and no .gguf file; give the folder that the model was saved in"))
        }
    }
}

/// Whether `name` reads as `org/name`.
fn is_hub_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    name.split_once('/').is_some_and(|(org, model)| part(org) && part(model)) && !name.contains("..")
}

/// Fetches a model from the hub into the cache, or finds it there: its configuration, its tokenizer, and
/// its weights, `model.safetensors` or its shards, else `pytorch_model.bin`. All files are of one commit.
///
/// # Errors
/// The hub refuses, does not know the model or the revision, or cannot be reached; the model has no
/// weights of these kinds; a file arrives damaged; the cache cannot be written; or, offline, the cache
/// does not hold the model whole.
pub fn fetch(name: &str, revision: Option<&str>, settings: &HubSettings) -> Result<ModelFiles, HubError> {
    let revision = revision.unwrap_or("main");
    if revision.is_empty()
        || revision.split('/').any(|part| part.is_empty() || part.starts_with('.'))
        || revision.contains(['\\', '?', '#', '%', ' '])
    {
        return Err(HubError::BadRevision { revision: revision.to_string() });
    }
    let cache = std::path::absolute(&settings.cache)
        .map_err(|source| HubError::Cache { path: settings.cache.display().to_string(), source })?;
    let source = Source { name, revision, settings, cache };
    if settings.offline { source.cached() } else { source.fetched() }
}

/// One model on one hub.
struct Source<'a> {
    name: &'a str,
    revision: &'a str,
    settings: &'a HubSettings,
    cache: PathBuf,
}

impl Source<'_> {
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_string(), RepoType::Model, revision.to_string())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.join(self.repo(commit).folder_name()).join("snapshots").join(commit)
    }

    fn found(&self, commit: String) -> ModelFiles {
        let folder = self.snapshot(&commit);
        ModelFiles { name: self.name.to_string(), folder, gguf: None, revision: Some(commit) }
    }

    fn cached(&self) -> Result<ModelFiles, HubError> {
        let missing = |problem: String| HubError::NotCached {
            name: self.name.to_string(),
            revision: self.revision.to_string(),
            cache: self.cache.display().to_string(),
            problem,
        };
        let reference = self.cache.join(self.repo(self.revision).folder_name()).join("refs").join(self.revision);
        let commit = match fs::read_to_string(reference) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) => self.revision.to_string(),
        };
        if !is_commit(&commit) || !self.snapshot(&commit).is_dir() {
            return Err(missing("it was never fetched".to_string()));
        }
        let folder = self.snapshot(&commit);
        let has = |file: &str| folder.join(file).is_file();
        let weights = WEIGHTS.iter().find(|file| has(file));
        let weights =
            weights.filter(|_| has("config.json")).ok_or_else(|| missing("config.json or weights lack".to_string()))?;
        if weights.ends_with(".index.json") {
            let shards = shards(&folder.join(weights)).map_err(missing)?;
            if let Some(shard) = shards.iter().find(|shard| !has(shard)) {
                return Err(missing(format!("{shard} lacks")));
            }
        }
        Ok(self.found(commit))
    }

    fn fetched(&self) -> Result<ModelFiles, HubError> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.settings.endpoint.clone())
            .with_token(self.settings.token.clone())
            .with_progress(false)
            .build()
            .map_err(|e| self.failed("anything", e))?;
        let info = api.repo(self.repo(self.revision)).info().map_err(|e| self.failed("the list of files", e))?;
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(self.transfer("the list of files", "the answer names no commit".to_string()));
        }
        let offered: BTreeSet<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let no_model = |problem: &str| HubError::NoModel { path: self.name.to_string(), problem: problem.to_string() };
        if !offered.contains("config.json") {
            return Err(no_model(
                "has no config.json on the hub; a GGUF file must be downloaded and given by its path",
            ));
        }
        let weights = WEIGHTS.iter().find(|file| offered.contains(**file));
        let weights = *weights
            .ok_or_else(|| no_model("has neither safetensors nor pytorch_model.bin on the hub; give another model"))?;
        // The commit, not the branch, is what is downloaded: a push in between must not mix two versions.
        let pinned = api.repo(self.repo(&commit));
        for file in COMPANIONS.iter().filter(|file| offered.contains(**file)) {
            self.file(&pinned, &commit, file)?;
        }
        self.file(&pinned, &commit, weights)?;
        if weights.ends_with(".index.json") {
            let index = self.snapshot(&commit).join(weights);
            for shard in shards(&index).map_err(|problem| self.transfer(weights, problem))? {
                self.file(&pinned, &commit, &shard)?;
            }
        }
        // Last, so that offline a name never leads to a part of a model.
        Cache::new(self.cache.clone())
            .repo(self.repo(self.revision))
            .create_ref(&commit)
            .map_err(|source| HubError::Cache { path: self.cache.display().to_string(), source })?;
        Ok(self.found(commit))
    }

    fn file(&self, pinned: &ApiRepo, commit: &str, file: &str) -> Result<(), HubError> {
        let place = self.snapshot(commit).join(file);
        if place.exists() {
            return Ok(());
        }
        let watched = self.settings.watch.map(|watch| Watched { watch, advance: None });
        let found = match watched {
            Some(watched) => pinned.download_with_progress(file, watched),
            None => pinned.download(file),
        };
        found.map_err(|e| self.failed(file, e))?;
        // A large file's place in the cache is named by its SHA-256: a transfer that broke off shows here.
        let broken = |source| HubError::Cache { path: place.display().to_string(), source };
        let blob = fs::canonicalize(&place).map_err(broken)?;
        let etag = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if etag.len() == 64
            && etag.chars().all(|c| c.is_ascii_hexdigit())
            && hash::sha256_file(&blob).map_err(broken)? != etag
        {
            let _ = fs::remove_file(&place);
            let _ = fs::remove_file(&blob);
            return Err(self.transfer(file, "its SHA-256 is not the announced one".to_string()));
        }
        Ok(())
    }

    fn transfer(&self, what: &str, problem: String) -> HubError {
        let cached = self.cached().is_ok();
        HubError::Transfer {
            name: self.name.to_string(),
            what: what.to_string(),
            endpoint: self.settings.endpoint.clone(),
            problem,
            remedy: if cached {
                "set HF_HUB_OFFLINE=1 to use the copy in the cache"
            } else {
                "check the network and HF_ENDPOINT, or give a local folder"
            },
        }
    }

    fn failed(&self, what: &str, error: ApiError) -> HubError {
        let status = match &error {
            ApiError::RequestError(request) => match request.as_ref() {
                ureq::Error::StatusCode(status) => Some(*status),
                _ => None,
            },
            _ => None,
        };
        let (name, endpoint) = (self.name.to_string(), self.settings.endpoint.clone());
        match (status, error) {
            (Some(status @ (401 | 403)), _) => HubError::Refused { name, endpoint, status },
            (Some(404), _) => HubError::NotFound { name, endpoint, revision: self.revision.to_string() },
            (_, ApiError::IoError(source)) => HubError::Cache { path: self.cache.display().to_string(), source },
            (_, error) => self.transfer(what, error.to_string().replace(['\n', '\r'], " ")),
        }
    }
}

/// The watch of one file, as the client reports to it.
struct Watched {
    watch: Watch,
    advance: Option<Box<dyn FnMut(u64)>>,
}

impl hf_hub::api::Progress for Watched {
    fn init(&mut self, size: usize, filename: &str) {
        self.advance = Some((self.watch)(filename, size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(advance) = &mut self.advance {
            advance(size as u64);
        }
    }

    fn finish(&mut self) {
        self.advance = None;
    }
}

/// Whether a text can be a commit's hash, and so a folder's name.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The files that an index lists; plain names only, since they become paths.
fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let bytes = fs::read(index).map_err(|e| e.to_string())?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| format!("it is not JSON: {e}"))?;
    let map = json.get("weight_map").and_then(serde_json::Value::as_object).ok_or("it has no weight_map")?;
    let plain = |file: &serde_json::Value| {
        let file = file.as_str().filter(|file| !file.starts_with('.') && !file.contains(['/', '\\', ':']))?;
        Some(file.to_string())
    };
    map.values()
        .map(plain)
        .collect::<Option<_>>()
        .ok_or_else(|| "it lists a shard that is no plain file name".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_names_and_neither() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_string();
        let offline = HubSettings {
            endpoint: "http://127.0.0.1:1".to_string(),
            cache: dir.path().to_path_buf(),
            token: None,
            offline: true,
            watch: None,
        };
        let message = |name: &str| resolve(name, None, &offline).unwrap_err().to_string();
        assert_eq!(message("./x"), "./x: no such folder; a hub name looks like org/name");
        for name in ["x", "/x/y", "../x", "a/b/c", "a/..", "~/m", "a b/c", ""] {
            assert!(message(name).ends_with("a hub name looks like org/name"), "{name}");
        }
        assert!(message("org/name").contains("never fetched"), "{}", message("org/name"));
        assert!(message(&path).contains("holds no config.json"));

        fs::write(dir.path().join("m.gguf"), "").unwrap();
        let file = format!("{path}/m.gguf");
        for name in [&path, &file] {
            let found = resolve(name, None, &offline).unwrap();
            assert_eq!((found.folder.as_path(), found.gguf.as_deref()), (dir.path(), Some(Path::new(&file))));
        }
        fs::write(dir.path().join("n.gguf"), "").unwrap();
        assert!(message(&path).contains("several .gguf files"));
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(resolve(&path, None, &offline).unwrap().gguf, None);
        assert!(message(&format!("{path}/config.json")).contains("is a file"));
        assert!(resolve(&path, Some("main"), &offline).unwrap_err().to_string().contains("has no revision"));
        for revision in ["", "../x", "a//b", "a b"] {
            assert!(matches!(fetch("org/name", Some(revision), &offline), Err(HubError::BadRevision { .. })));
        }
    }
}
