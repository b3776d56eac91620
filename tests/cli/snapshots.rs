//! What a user reads, word by word: help, errors, tables. `SMOOTH_PROBE_WRITE_DOCS=1 cargo test --test cli snapshots`
//! writes the files anew.

use crate::program::{Ended, command};
use crate::small_model::{instructions, tiny_model};
use std::path::{Path, PathBuf};

/// A folder that commands run in, so that paths are short and the same everywhere.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("model"));
        instructions(&dir.path().join("data.jsonl"), 12);
        Self { dir }
    }

    fn run(&self, line: &str) -> Ended {
        let mut command = command(&line.split_whitespace().collect::<Vec<_>>());
        // The width of a terminal that says nothing of itself.
        command.env_remove("COLUMNS").env("LC_ALL", "C.UTF-8").env("HF_HOME", "cache");
        command.current_dir(self.dir.path()).output().unwrap().into()
    }

    /// A command as a terminal would show it, with its exit code where that is not 0.
    fn shown(&self, line: &str) -> String {
        let Ended { code, stdout, stderr } = self.run(line);
        let here = self.dir.path().canonicalize().unwrap().display().to_string();
        let text =
            format!("{stdout}{stderr}").replace(&here, "DIR").replace(&self.dir.path().display().to_string(), "DIR");
        assert!(!text.contains('\u{1b}'), "{line}: colours in a pipe");
        let code = code.filter(|code| *code != 0).map_or_else(String::new, |code| format!("[exit code {code}]\n"));
        format!("$ smooth-probe {line}\n{text}{code}")
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/snapshots").join(format!("{name}.txt"))
}

/// Compares with the file of that name, or writes it.
fn assert_snapshot(name: &str, text: &str) {
    let path = file(name);
    if std::env::var_os("SMOOTH_PROBE_WRITE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    if known == text {
        return;
    }
    let pairs = known.lines().map(Some).chain(std::iter::repeat(None)).zip(text.lines());
    let different = pairs.enumerate().find(|(_, (known, now))| *known != Some(*now));
    panic!(
        "{} differs, first at {different:?}; if that is meant, write it anew: \
         SMOOTH_PROBE_WRITE_DOCS=1 cargo test --test cli snapshots",
        path.display()
    );
}

#[test]
fn help_of_the_program_and_of_every_verb() {
    let place = Place::new();
    let program = place.run("--help").stdout;
    assert_snapshot("help", &program);
    let verbs = program.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs = verbs.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for verb in verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help") {
        assert_snapshot(&format!("help_{verb}"), &place.run(&format!("{verb} --help")).stdout);
    }
}

/// Mistakes that a newcomer makes. Messages of the system are those of Unix.
#[cfg(unix)]
#[test]
fn common_errors() {
    let place = Place::new();
    let lines = [
        "trian --model embedded",
        "train --model embedded",
        "train --model embedded --data nowhere.jsonl --out run",
        "train --model embedded --data data.jsonl --out run --rank four",
        "train --model embedded --data data.jsonl --out run --method loora",
        "train --model embedded --data data.jsonl --out run --method bitfit --rank 4",
        "train --model embedded --data data.jsonl --out run --sibo-lambda 2",
        "train --model nowhere --data data.jsonl --out run",
        "similarity --model model",
        "similarity --model model --text data.jsonl",
        "similarity --model model --texts data.jsonl --field body",
        "similarity --model model --texts data.jsonl --field output --layers 9",
        "similarity --model model --texts data.jsonl --field output --measures cosin",
        "inspect",
        "inspect --model org/name",
        "inspect --model data.jsonl",
        "dose --model model --adapter nowhere --texts data.jsonl",
        "merge --adapter nowhere --out merged",
        "export --adapter nowhere",
        "pretrain --recipe nowhere.toml",
        "doctor --jsn",
        "doctor --quiet --verbose",
        "doctor --threads 0",
        "fetch embedded",
        "fetch model",
        "fetch nowhere",
        "fetch org/name",
        "completions csh",
        "completions man",
    ];
    assert_snapshot("errors", &lines.map(|line| place.shown(line)).join("\n"));
}

#[test]
fn tables() {
    let place = Place::new();
    let lines = [
        "inspect --model model --method lora --rank 4 --sibo-lambda 0.2",
        "similarity --model model --texts data.jsonl --field output --quiet --baselines shuffled",
        "dose --model model --adapter run/adapter --texts data.jsonl --field output --lambda 0:1:0.5 --quiet",
    ];
    let train = "train --model model --data data.jsonl --out run --rank 4 --sibo-lambda 0.2 --steps 1 --warmup-steps 1 \
        --val-size 0 --quiet";
    // A step of rate 0 moves nothing: what is printed does not depend on the machine's last digits.
    assert_eq!(place.run(train).code, Some(0));
    assert_snapshot("tables", &lines.map(|line| place.shown(line)).join("\n"));
}
