//! Which hub, which cache, which token: from the environment, as Hugging Face's own tools read it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where models come from.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The cache folder, with a folder `models--org--name` for each model.
    pub cache: PathBuf,
    /// The token sent with each request, if there is one.
    pub token: Option<String>,
    /// Never connect; take what the cache has.
    pub offline: bool,
    /// Who watches downloads; none: nobody.
    pub watch: Option<Watch>,
}

/// Called with a file's name and its size in bytes when its download begins; what it answers receives how many bytes more
/// have come, and is dropped at the end.
pub type Watch = fn(&str, u64) -> Box<dyn FnMut(u64)>;

impl HubSettings {
    /// The settings that the environment asks for, read as Hugging Face's own tools read them.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// The settings for the variables that `get` knows.
    fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        let home = get("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = get("XDG_CACHE_HOME").map(PathBuf::from);
            let cache =
                cache.or_else(|| get("HOME").or_else(|| get("USERPROFILE")).map(|h| PathBuf::from(h).join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        });
        let cache = get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token_file = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let yes = |value: String| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_string());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token,
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
            watch: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let variables = variables.to_vec();
        HubSettings::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn the_environment_is_read_in_its_usual_order() {
        let plain = settings(&[("HOME", "/h")]);
        assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), (DEFAULT_ENDPOINT, None, false));
        let home =
            settings(&[("HOME", "/h"), ("HF_HOME", "/x"), ("HF_ENDPOINT", "http://e/"), ("HF_HUB_OFFLINE", "Yes")]);
        assert_eq!(
            (home.cache.as_path(), home.endpoint.as_str(), home.offline),
            (Path::new("/x/hub"), "http://e", true)
        );
        let cache =
            settings(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y"), ("HF_TOKEN", " t\n"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!((cache.cache.as_path(), cache.token.as_deref(), cache.offline), (Path::new("/y"), Some("t"), false));

        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let dir = dir.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", dir)]).token.as_deref(), Some("from-file"));
        let path = format!("{dir}/token");
        assert_eq!(settings(&[("HF_HOME", "/x"), ("HF_TOKEN_PATH", &path)]).token.as_deref(), Some("from-file"));
    }
}
