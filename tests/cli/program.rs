//! Running the program and reading what it left.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// How a run of the program ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// A command of the program that cannot reach a hub.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smooth-probe"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", std::env::temp_dir().join("no-hub-cache"));
    command
}

/// Runs a command line, split at spaces.
pub fn run(line: &str) -> Ended {
    command(&line.split_whitespace().collect::<Vec<_>>()).output().unwrap().into()
}

/// Runs a command line that must succeed; answers its stdout.
pub fn succeed(line: &str) -> String {
    let ended = run(line);
    assert_eq!(ended.code, Some(0), "{line}\n{}", ended.stderr);
    ended.stdout
}

/// What the lines of progress say: stage, units done, units in all.
pub fn progress(stderr: &str) -> Vec<(String, u64, u64)> {
    let line = |line: &str| {
        let (stage, rest) = line.rsplit_once(": ")?;
        let (done, total) = rest.split_once(" texts")?.0.split_once('/')?;
        Some((stage.to_owned(), done.parse().ok()?, total.parse().ok()?))
    };
    stderr.lines().filter_map(line).collect()
}

/// Asserts one clear line on stderr that holds every one of `words`, exit code 1, and no panic.
pub fn assert_one_line(ended: &Ended, words: &[&str], what: &str) {
    let text = ended.stderr.trim_end();
    assert_eq!(ended.code, Some(1), "{what}: {text}\n{}", ended.stdout);
    assert_eq!(text.lines().count(), 1, "{what}: {text}");
    assert!(!text.contains("panicked") && text.len() < 1200, "{what}: {text}");
    for word in words {
        assert!(text.contains(word), "{what}: {word:?} is not in: {text}");
    }
}

/// Asserts that nothing was written to a folder: it is absent or empty.
pub fn assert_untouched(folder: &Path, what: &str) {
    let left: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    assert!(left.is_empty(), "{what} left {left:?}");
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The lines of a run's event log.
pub fn events(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
