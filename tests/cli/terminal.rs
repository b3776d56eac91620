//! The terminal: curves in one line, completions, manual pages, how much is said, and clean pipes.

use crate::program::{assert_one_line, command, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn similarity(&self, options: &str) -> String {
        let [model, data, out] = ["model", "data.jsonl", "out"].map(|name| self.shown(name));
        format!("similarity --model {model} --texts {data} --field output --out {out} {options}")
    }

    fn train(&self, out: &str, options: &str) -> String {
        let [model, data, out] = ["model", "data.jsonl", out].map(|name| self.shown(name));
        format!("train --model {model} --data {data} --out {out} --rank 4 --steps 4 --warmup-steps 1 {options}")
    }
}

/// Stdout under a locale.
fn under(locale: &str, line: &str) -> String {
    let mut command = command(&line.split_whitespace().collect::<Vec<_>>());
    let output = command.env("LC_ALL", locale).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{line}");
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(unix)]
#[test]
fn a_curve_has_a_character_a_layer_that_the_locale_can_show() {
    let place = Place::new();
    let line = place.similarity("--quiet");
    for (locale, heights) in [("C.UTF-8", "▁▂▃▄▅▆▇█"), ("C", ".:-=+*#@")] {
        let text = under(locale, &line);
        let curve = text.lines().last().unwrap().strip_prefix("  base  ").unwrap();
        assert!(curve.chars().count() == 4 && curve.chars().all(|c| heights.contains(c)), "{locale}: {text}");
        // The lowest layer and the highest: the scale is theirs.
        let ends: Vec<char> = [heights.chars().next(), heights.chars().last()].into_iter().flatten().collect();
        assert!(ends.iter().all(|end| curve.contains(*end)), "{locale}: {text}");
        assert!(text.contains("cosine over layers 0 to 3, drawn from "), "{text}");
        assert_eq!(text.is_ascii(), locale == "C", "{text}");
    }
}

#[test]
fn a_dashboard_without_a_terminal_is_lines() {
    let place = Place::new();
    let ended = run(&place.train("run", "--dashboard --val-size 2 --eval-every 2"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), format!("{}\n", place.shown("run/adapter")).as_str()));
    assert!(!ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("ETA")).collect();
    assert!(lines.len() >= 2 && lines[0].starts_with("2/4 steps  ") && lines[0].contains("loss "), "{}", ended.stderr);
    let quiet = run(&place.train("quiet", "--dashboard --quiet"));
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
}

#[test]
fn who_asks_for_more_is_told_more() {
    let place = Place::new();
    let ended = run(&place.similarity("--verbose"));
    assert_eq!(ended.code, Some(0));
    for word in ["--device auto: ", "llama of ", " weights in f32, computed in f32, read in ", " threads"] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    assert_eq!(ended.stdout, run(&place.similarity("")).stdout, "the result is the same");
    std::fs::write(place.path("model/model.safetensors"), b"none").unwrap();
    let usual = run(&place.similarity(""));
    assert_one_line(&usual, &["model.safetensors"], "a broken model");
    let more = run(&place.similarity("-v"));
    assert!(more.stderr.contains(usual.stderr.trim_end()) && more.stderr.contains("\n  0  "), "{}", more.stderr);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::new();
    let model = place.shown("model");
    for line in [format!("inspect --model {model} --json"), "completions bash".to_owned(), place.similarity("--json")] {
        let mut child = command(&line.split_whitespace().collect::<Vec<_>>());
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{line}");
    }
}

#[test]
fn completions_of_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("bash", "smooth-probe.bash"),
        ("elvish", "smooth-probe.elv"),
        ("fish", "smooth-probe.fish"),
        ("powershell", "_smooth-probe.ps1"),
        ("zsh", "_smooth-probe"),
    ];
    for (shell, file) in files {
        let printed = succeed(&format!("completions {shell}"));
        for word in ["similarity", "sibo-lambda", "completions"] {
            assert!(printed.contains(word), "{shell}: {word}");
        }
        succeed(&format!("completions {shell} --quiet --out {}", dir.path().display()));
        let written = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(written.trim_end(), printed.trim_end(), "{shell}");
    }
    // What readline does for a word that is begun.
    let script = "source smooth-probe.bash; f=$(complete -p smooth-probe | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); \
        COMP_WORDS=(smooth-probe sim); COMP_CWORD=1; $f smooth-probe sim smooth-probe; echo ${COMPREPLY[@]}; \
        COMP_WORDS=(smooth-probe train --method do); COMP_CWORD=3; $f smooth-probe do --method; echo ${COMPREPLY[@]}";
    let Ok(output) = Command::new("bash").args(["-c", script]).current_dir(dir.path()).output() else {
        println!("SKIPPED: there is no bash");
        return;
    };
    let replies = String::from_utf8_lossy(&output.stdout);
    assert_eq!(replies, "similarity\ndora\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_manual_page_for_the_program_and_each_verb() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(&format!("completions man --out {}", dir.path().join("man1").display()));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let names: BTreeSet<String> = std::fs::read_dir(dir.path().join("man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(ended.stderr.contains(&format!("wrote {} pages", names.len())), "{}", ended.stderr);
    for name in ["smooth-probe.1", "smooth-probe-train.1", "smooth-probe-similarity.1", "smooth-probe-doctor.1"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name)).unwrap();
    let train = page("smooth-probe-train.1");
    assert!(train.contains(".TH smooth-probe-train 1") && train.contains("\\-\\-sibo\\-lambda"), "{train}");
    // Options of every verb stand on every page.
    assert!(train.contains("\\-\\-quiet") && page("smooth-probe-doctor.1").contains("\\-\\-quiet"));
    assert!(page("smooth-probe.1").contains("smooth\\-probe\\-similarity(1)"));
}

#[test]
fn a_folder_of_event_files_belongs_to_one_run() {
    let place = Place::new();
    let log = place.shown("log");
    let count = || std::fs::read_dir(place.path("log")).unwrap().count();
    succeed(&place.train("run", &format!("--quiet --tensorboard {log}")));
    assert_eq!(count(), 1);
    let words = ["--tensorboard", "holds the events of a run already", "--resume"];
    assert_one_line(&run(&place.train("other", &format!("--quiet --tensorboard {log}"))), &words, "a used folder");
    assert!(!place.path("other").exists());
    // It changes nothing of the run: one that was begun without it goes on with it.
    succeed(&place.train("plain", "--quiet"));
    let adapter = |run: &str| std::fs::read(place.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("run"), adapter("plain"));
    succeed(&place.train("plain", &format!("--quiet --resume --tensorboard {log}")));
    assert_eq!(count(), 2);
}
