//! The hub client against a local server that answers as the real one does.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "the server is part of the test")]

use smooth_probe::hub::{HubError, HubSettings, ModelFiles, fetch, resolve};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";

type Requests = Mutex<Vec<(String, Option<String>)>>;

/// A hub with one public model, one that needs a token, and a log of requests with their tokens.
struct Server {
    endpoint: String,
    requests: Arc<Requests>,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Requests::default());
        let files: BTreeMap<String, Vec<u8>> = files.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (files.clone(), Arc::clone(&log));
                std::thread::spawn(move || answer(stream, &files, &log));
            }
        });
        Self { endpoint, requests }
    }

    fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: self.endpoint.clone(),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
            watch: None,
        }
    }

    fn requests(&self) -> Vec<(String, Option<String>)> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Requests) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(first)) = lines.next() {
        let path = first.split(' ').nth(1).unwrap_or_default().to_string();
        let headers: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let found = headers.iter().find_map(|h| h.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
            found.map(|(_, value)| value.to_string())
        };
        let token = header("authorization");
        log.lock().unwrap().push((path.clone(), token.clone()));
        let reply = reply(&path, &header("range").unwrap_or_default(), token.as_deref(), files);
        if out.write_all(&reply).is_err() {
            return;
        }
    }
}

fn reply(path: &str, range: &str, token: Option<&str>, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let status = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    if path.contains("org/private") && token != Some("Bearer secret") {
        return status("401 Unauthorized");
    }
    if path.contains("org/gated") {
        return status("403 Forbidden");
    }
    let path = path.replace("org/private", "org/tiny");
    let commit = |revision: &str| match revision {
        "main" | COMMIT => Some(COMMIT),
        "v2" | OTHER => Some(OTHER),
        _ => None,
    };
    if let Some(commit) = path.strip_prefix("/api/models/org/tiny/revision/").and_then(commit) {
        let siblings: Vec<_> = files.keys().map(|f| format!("{{\"rfilename\":\"{f}\"}}")).collect();
        let body = format!("{{\"sha\":\"{commit}\",\"siblings\":[{}]}}", siblings.join(","));
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        return format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let asked = path.strip_prefix("/org/tiny/resolve/").and_then(|rest| rest.split_once('/'));
    let Some((commit, (name, bytes))) = asked.and_then(|(r, f)| Some((commit(r)?, files.get_key_value(f)?))) else {
        return status("404 Not Found");
    };
    // The announced hash of a large file, which these bytes do not have.
    let damaged = bytes == b"damaged";
    let etag = if damaged { "0".repeat(64) } else { format!("{commit}-{}", name.replace('.', "-")) };
    // The client asks for the first byte to learn the size, then for everything from some byte on.
    let (from, to) = range.strip_prefix("bytes=").unwrap_or("0-").split_once('-').unwrap();
    let from = from.parse::<usize>().unwrap();
    let end = to.parse::<usize>().map_or(bytes.len(), |to| to + 1);
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nX-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\n\
         Content-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n\r\n",
        end - 1,
        bytes.len(),
        end - from
    );
    [head.as_bytes(), &bytes[from..end]].concat()
}

const WHOLE: [(&str, &[u8]); 4] = [
    ("config.json", b"{\"a\":1}"),
    ("tokenizer.json", b"{}"),
    ("model.safetensors", b"weights"),
    ("README.md", b"not wanted"),
];

fn read(found: &ModelFiles, file: &str) -> String {
    fs::read_to_string(found.folder.join(file)).unwrap()
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let server = Server::start(&WHOLE);
    let dir = tempfile::tempdir().unwrap();
    let settings = server.settings(dir.path());
    let found = resolve("org/tiny", None, &settings).unwrap();
    assert_eq!(found.revision.as_deref(), Some(COMMIT));
    assert_eq!(found.folder, dir.path().join("models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(read(&found, "config.json"), "{\"a\":1}");
    assert_eq!(read(&found, "model.safetensors"), "weights");
    assert!(!found.folder.join("README.md").exists());
    assert!(server.requests().iter().all(|(_, token)| token.is_none()));

    let before = server.requests().len();
    assert_eq!(fetch("org/tiny", None, &settings).unwrap(), found);
    assert_eq!(server.requests().len(), before + 1, "only the list of files is asked for again");
    let offline = HubSettings { offline: true, ..settings.clone() };
    assert_eq!(fetch("org/tiny", None, &offline).unwrap(), found);
    assert_eq!(fetch("org/tiny", Some(COMMIT), &offline).unwrap(), found);
    assert_eq!(server.requests().len(), before + 1, "offline connects to nothing");

    fs::remove_file(found.folder.join("model.safetensors")).unwrap();
    let message = fetch("org/tiny", None, &offline).unwrap_err().to_string();
    assert!(message.contains("not whole in the cache") && message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn a_revision_is_fetched_beside_another() {
    let server = Server::start(&WHOLE);
    let dir = tempfile::tempdir().unwrap();
    let settings = server.settings(dir.path());
    fetch("org/tiny", None, &settings).unwrap();
    let second = fetch("org/tiny", Some("v2"), &settings).unwrap();
    assert_eq!(second.revision.as_deref(), Some(OTHER));
    let offline = HubSettings { offline: true, ..settings };
    assert_eq!(fetch("org/tiny", Some("v2"), &offline).unwrap(), second);
    assert_eq!(fetch("org/tiny", None, &offline).unwrap().revision.as_deref(), Some(COMMIT));
}

#[test]
fn shards_are_fetched_and_hostile_ones_are_not() {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}}"#;
    let server = Server::start(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"first"),
        ("model-2.safetensors", b"second"),
        ("pytorch_model.bin", b"not wanted"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let settings = server.settings(dir.path());
    let found = fetch("org/tiny", None, &settings).unwrap();
    assert_eq!(read(&found, "model-1.safetensors"), "first");
    assert_eq!(read(&found, "model-2.safetensors"), "second");
    assert!(!found.folder.join("pytorch_model.bin").exists());
    fs::remove_file(found.folder.join("model-2.safetensors")).unwrap();
    let offline = HubSettings { offline: true, ..settings };
    assert!(fetch("org/tiny", None, &offline).unwrap_err().to_string().contains("model-2.safetensors"));

    let hostile = Server::start(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", br#"{"weight_map":{"a":"../../../stolen"}}"#),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let message = fetch("org/tiny", None, &hostile.settings(dir.path())).unwrap_err().to_string();
    assert!(message.contains("no plain file name"), "{message}");
}

#[test]
fn the_token_is_sent_and_refusals_are_explained() {
    let server = Server::start(&WHOLE);
    let dir = tempfile::tempdir().unwrap();
    let settings = server.settings(dir.path());
    let refused = fetch("org/private", None, &settings).unwrap_err();
    assert!(matches!(refused, HubError::Refused { status: 401, .. }), "{refused}");
    assert!(refused.to_string().contains("HF_TOKEN"));
    assert!(matches!(fetch("org/gated", None, &settings), Err(HubError::Refused { status: 403, .. })));

    let with_token = HubSettings { token: Some("secret".into()), ..settings };
    let before = server.requests().len();
    let found = fetch("org/private", None, &with_token).unwrap();
    assert_eq!(read(&found, "model.safetensors"), "weights");
    assert!(server.requests()[before..].iter().all(|(_, token)| token.as_deref() == Some("Bearer secret")));
}

#[test]
fn what_is_not_there_is_explained_in_one_line() {
    let server = Server::start(&WHOLE);
    let dir = tempfile::tempdir().unwrap();
    let settings = server.settings(dir.path());
    for (name, revision) in [("org/absent", None), ("org/tiny", Some("no-such-branch"))] {
        let error = fetch(name, revision, &settings).unwrap_err();
        assert!(matches!(error, HubError::NotFound { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
    // A port that was just free: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = HubSettings { endpoint: format!("http://127.0.0.1:{port}"), ..settings.clone() };
    let message = fetch("org/tiny", None, &nobody).unwrap_err().to_string();
    assert!(message.contains("check the network and HF_ENDPOINT") && !message.contains('\n'), "{message}");
    fetch("org/tiny", None, &settings).unwrap();
    let message = fetch("org/tiny", None, &nobody).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE=1 to use the copy"), "{message}");

    let without = Server::start(&[("config.json", b"{}"), ("model.gguf", b"GGUF")]);
    let message = fetch("org/tiny", None, &without.settings(dir.path())).unwrap_err().to_string();
    assert!(message.contains("neither safetensors nor pytorch_model.bin"), "{message}");
}

#[test]
fn a_damaged_file_does_not_stay_in_the_cache() {
    let server = Server::start(&[("config.json", b"damaged"), ("model.safetensors", b"weights")]);
    let dir = tempfile::tempdir().unwrap();
    let message = fetch("org/tiny", None, &server.settings(dir.path())).unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("SHA-256"), "{message}");
    let model = dir.path().join("models--org--tiny");
    assert!(!model.join("blobs").join("0".repeat(64)).exists());
    assert!(!model.join("snapshots").join(COMMIT).join("config.json").exists());
}

#[test]
fn the_verb_fetches_once_and_then_finds_offline() {
    let server = Server::start(&WHOLE);
    let dir = tempfile::tempdir().unwrap();
    let fetch = |arguments: &[&str], offline: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_smooth-probe"));
        command
            .arg("fetch")
            .args(arguments)
            .current_dir(dir.path())
            .env_remove("HF_TOKEN")
            .env("HF_HUB_OFFLINE", offline);
        command
            .env("HF_ENDPOINT", &server.endpoint)
            .env("HF_HOME", dir.path())
            .env_remove("HF_HUB_CACHE")
            .output()
            .unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let folder = dir.path().join("hub/models--org--tiny/snapshots").join(COMMIT);
    let first = fetch(&["org/tiny"], "0");
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout), format!("{}\n", folder.display()));
    assert!(text(&first.stderr).contains(&format!("org/tiny at {COMMIT}: ")), "{}", text(&first.stderr));
    let asked = server.requests().len();
    let again = fetch(&["org/tiny", "--json", "--quiet"], "1");
    assert_eq!((again.status.code(), text(&again.stderr).as_str()), (Some(0), ""));
    assert_eq!(server.requests().len(), asked, "offline nothing is asked");
    let value: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&value["revision"], &value["folder"]), (&COMMIT.into(), &folder.display().to_string().into()));
    let sizes: BTreeMap<&str, u64> = WHOLE.iter().map(|(name, bytes)| (*name, bytes.len() as u64)).collect();
    let files = value["files"].as_array().unwrap();
    assert_eq!(files.len(), std::fs::read_dir(&folder).unwrap().count());
    for file in files {
        assert_eq!(file["bytes"].as_u64(), Some(sizes[file["file"].as_str().unwrap()]), "{file}");
    }
    assert_eq!(value["bytes"].as_u64(), files.iter().map(|file| file["bytes"].as_u64()).sum());
    // The keys are those of docs/json.md.
    let page = include_str!("../docs/json.md").split("\n## fetch\n").nth(1).unwrap();
    let named: std::collections::BTreeSet<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split(" | ").next().unwrap().split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(value.as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), named);
    let absent = fetch(&["org/absent"], "0");
    assert_eq!((absent.status.code(), text(&absent.stdout).as_str()), (Some(1), ""));
    assert_eq!(text(&absent.stderr).lines().count(), 1, "{}", text(&absent.stderr));
}
