//! What stands on stderr while work goes on, and that nobody need read it.

use crate::program::{command, progress, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(texts: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_model(&dir.path().join("model"));
        instructions(&dir.path().join("data.jsonl"), texts);
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn line(&self, verb: &str, data: &str, out: &str, options: &str) -> String {
        let [model, texts, out] = ["model", "data.jsonl", out].map(|name| self.path(name).display().to_string());
        format!("{verb} --model {model} {data} {texts} --out {out} {options}")
    }

    fn adapter(&self) -> String {
        let options = "--quiet --steps 2 --warmup-steps 1 --rank 4 --val-size 0 --sibo-lambda 0.2";
        succeed(&self.line("train", "--data", "run", options));
        self.path("run/adapter").display().to_string()
    }
}

/// The exit code of a command whose stderr nobody reads.
fn unread(line: &str) -> Option<i32> {
    let mut child = command(&line.split_whitespace().collect::<Vec<_>>());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    child.wait().unwrap().code()
}

#[test]
fn a_closed_stderr_stops_no_verb() {
    let place = Place::new(12);
    let adapter = place.adapter();
    let train = "--steps 2 --warmup-steps 1 --rank 4 --val-size 4 --eval-every 1";
    let lines = [
        place.line("similarity", "--texts", "curves", "--field output --progress-every 0"),
        place.line("dose", "--texts", "dose", &format!("--field output --adapter {adapter} --lambda 0:1:0.1")),
        place.line("train", "--data", "again", train),
    ];
    for line in lines {
        assert_eq!(unread(&line), Some(0), "{line}");
    }
    assert_eq!(unread(&place.line("similarity", "--texts", "bad", "--layers 99")), Some(1), "a failure stays one");
}

#[test]
fn progress_counts_every_pass_from_the_start_to_the_end() {
    let place = Place::new(20);
    let options = format!(
        "--field output --adapter tuned={} --baselines texts,shuffled --token-classes --audit 3 --lookup-texts 5 \
         --save-states {} --max-texts 6 --progress-every 0",
        place.adapter(),
        place.path("states").display()
    );
    let ended = run(&place.line("similarity", "--texts", "out", &options));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said = progress(&ended.stderr);
    // Of each run two passes, as many of each baseline, states, pairs and four roads of the audit; once what is read
    // of h0.
    let total = 2 * (20 * 2 * 3 + 6 + 20 + 4 * 3) + 5;
    assert!(said.iter().all(|(_, _, of)| *of == total), "{said:?}");
    assert!(said.is_sorted_by_key(|(_, done, _)| *done), "{said:?}");
    assert_eq!(said.last().map(|(_, done, _)| *done), Some(total), "{said:?}");
    let stages: BTreeSet<&str> = said.iter().map(|(stage, ..)| stage.as_str()).collect();
    let parts = ["", " (other texts)", " (shuffled)", ", audit", ", pairs of tokens", ", saving states"];
    let mut wanted: BTreeSet<String> =
        ["base", "tuned"].iter().flat_map(|run| parts.map(|part| format!("{run}{part}"))).collect();
    wanted.insert("tuned, reading of h0".to_owned());
    assert_eq!(stages, wanted.iter().map(String::as_str).collect());
    assert!(ended.stderr.contains("/s  ETA "), "{}", ended.stderr);
}

#[test]
fn progress_is_said_now_and_then_and_never_under_quiet() {
    let place = Place::new(20);
    let seldom = run(&place.line("similarity", "--texts", "out", "--field output"));
    assert_eq!(progress(&seldom.stderr), [], "no line in less than ten seconds");
    let quiet = run(&place.line("similarity", "--texts", "out", "--field output --quiet --audit --progress-every 0"));
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
    // Stored states of other runs are part of the whole.
    let [states, out] = ["states", "out"].map(|name| place.path(name).display().to_string());
    succeed(&place.line("similarity", "--texts", "out", &format!("--quiet --field output --save-states {states}")));
    let stored = run(&format!("similarity --states {states} --distance --out {out} --progress-every 0"));
    let said = progress(&stored.stderr);
    assert_eq!(said.last().map(|(_, done, total)| (*done, *total)), Some((60, 60)), "two passes and pairs: {said:?}");
}
