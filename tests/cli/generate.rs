//! Generation: what stands on stdout and in files, and that company, threads and the cache change nothing.

use crate::program::{Ended, assert_one_line, command, run, succeed};
use crate::small_model::{instructions, tiny_model};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a command line with one more argument, which may hold spaces.
fn with(line: &str, option: &str, value: &str) -> Ended {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    words.extend([option, value]);
    command(&words).output().unwrap().into()
}

fn adapter(dir: &Path, model: &Path, data: &Path) -> PathBuf {
    let run = dir.join("run");
    succeed(&format!(
        "train --quiet --steps 4 --warmup-steps 1 --lr 3e-2 --rank 4 --val-size 4 --eval-every 4 --batch-size 4 \
         --accumulate 1 --sibo-lambda 0.3 --sibo-policy all --model {} --data {} --out {}",
        model.display(),
        data.display(),
        run.display()
    ));
    run.join("adapter")
}

#[test]
fn one_prompt_appears_as_text_and_as_json() {
    let base = "generate --model embedded --max-new-tokens 12 --quiet";
    let ended = with(base, "--prompt", "lily gives tom");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stderr);
    let text = ended.stdout.strip_suffix('\n').unwrap();
    assert!(!text.trim().is_empty() && !text.contains('\n'), "{text:?}");
    let json = lines(&with(&format!("{base} --json"), "--prompt", "lily gives tom").stdout);
    assert_eq!(json.len(), 1);
    assert_eq!((&json[0]["index"], &json[0]["prompt"]), (&0.into(), &"lily gives tom".into()));
    assert_eq!(json[0]["text"].as_str().unwrap().trim(), text.trim());
    assert!(json[0]["log_probability"].as_f64().unwrap() < 0.0);
    // One beam is greedy; several are seen when they are done, and are at least as likely.
    let one = with(&format!("{base} --beams 1"), "--prompt", "lily gives tom").stdout;
    assert_eq!(one, ended.stdout);
    let beams = with(&format!("{base} --beams 4 --json"), "--prompt", "lily gives tom");
    assert_eq!(beams.code, Some(0), "{}", beams.stderr);
    // What stands behind the stop text is left out, and the stop text too.
    let word = text.split_whitespace().nth(2).unwrap();
    let stopped = with(&format!("{base} --stop {word}"), "--prompt", "lily gives tom").stdout;
    assert_eq!(stopped.trim_end_matches('\n'), &text[..text.find(word).unwrap()]);
    let json = lines(&with(&format!("{base} --json --stop {word}"), "--prompt", "lily gives tom").stdout);
    assert_eq!(json[0]["finish"], "stop");
}

#[test]
fn a_file_is_answered_line_by_line_whatever_runs_beside() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let data = instructions(&dir.path().join("data.jsonl"), 9);
    let adapter = adapter(dir.path(), &model, &data);
    let base = format!(
        "generate --model {} --adapter {} --prompts {} --template short --max-new-tokens 7",
        model.display(),
        adapter.display(),
        data.display()
    );
    for strategy in
        ["", "--beams 3 --length-penalty -0.5 --early-stopping", "--temperature 0.8 --top-k 20 --top-p 0.9 --seed 3"]
    {
        let all = succeed(&format!("{base} {strategy} --quiet"));
        let answers = lines(&all);
        assert_eq!(answers.len(), 9);
        for (index, answer) in answers.iter().enumerate() {
            assert_eq!(answer["index"], index);
            assert!(answer["prompt"].as_str().unwrap().starts_with("give "), "{answer}");
            assert!((1..=7).contains(&answer["tokens"].as_u64().unwrap()) && answer["finish"] != "stop");
        }
        for other in ["--batch-size 1", "--batch-size 4 --threads 1"] {
            assert_eq!(succeed(&format!("{base} {strategy} {other} --quiet")), all, "{strategy} {other}");
        }
        let out = dir.path().join(format!("answers{}.jsonl", strategy.len()));
        let ended = run(&format!("{base} {strategy} --limit 4 --out {}", out.display()));
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains("tokens for 4 prompts in "), "{}", ended.stderr);
        let first: String = all.split_inclusive('\n').take(4).collect();
        assert_eq!(fs::read_to_string(&out).unwrap(), first);
        let again = run(&format!("{base} --out {}", out.display()));
        assert_one_line(&again, &["is there already", "--out"], "a file that is there");
    }
    // The adapter does something, and names its base model.
    let tuned = succeed(&format!("{base} --quiet"));
    let plain = format!("generate --model {} --prompts {} --template short", model.display(), data.display());
    assert_ne!(succeed(&format!("{plain} --max-new-tokens 7 --quiet")), tuned);
    let unnamed = base.replace(&format!("--model {} ", model.display()), "");
    assert_eq!(succeed(&format!("{unnamed} --quiet")), tuned);
    // Read whole, it chooses the same tokens.
    let texts = |all: &str| lines(all).iter().map(|line| line["text"].clone()).collect::<Vec<_>>();
    assert_eq!(texts(&succeed(&format!("{base} --no-cache --quiet"))), texts(&tuned));
}

#[test]
fn what_cannot_be_generated_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    fs::write(&prompts, "{\"question\": \"a\"}\n{\"text\": \"b\", \"text_pair\": \"c\"}\n").unwrap();
    let base = "generate --model embedded --quiet";
    let file = format!("{base} --prompts {}", prompts.display());
    for (line, words) in [
        (format!("{base} --prompt a --temperature 0"), "temperature is 0; it must be greater than 0"),
        (format!("{base} --prompt a --top-p 1.5"), "top-p is 1.5; it must be in (0, 1]"),
        (format!("{base} --prompt a --max-new-tokens 0"), "the number of new tokens is 0"),
        (format!("{base} --prompt a --beams 100"), "the number of beams is 100; it must be from 1 to 64"),
        (format!("{base} --prompt a --batch-size 0"), "--batch-size is 0"),
        (file.clone(), "prompts.jsonl"),
        (format!("{base} --prompts none.jsonl"), "none.jsonl"),
        (format!("{base} --prompt a --out {}/no/where.jsonl", dir.path().display()), "cannot be written"),
    ] {
        assert_one_line(&run(&line), &[words], &line);
    }
    fs::write(&prompts, "{\"text\": \"b\", \"text_pair\": \"c\"}\n").unwrap();
    assert_one_line(&run(&file), &["row 1 is a pair of texts", "--field"], "a pair");
    for (options, word) in [
        ("--prompt a --prompts b.txt", "cannot be used with"),
        ("--prompt a --beams 2 --temperature 1", "cannot be used with"),
        ("--prompt a --length-penalty 2", "--beams"),
        ("--prompt a --early-stopping", "--beams"),
        ("--prompt a --field text", "cannot be used with"),
        ("", "--prompt"),
    ] {
        let ended = run(&format!("{base} {options}"));
        assert!(ended.code == Some(2) && ended.stderr.contains(word), "{options}: {}", ended.stderr);
    }
    // A prompt's answer may be missing from its record.
    fs::write(&prompts, "{\"question\": \"the cat\"}\n{\"instruction\": \"the\", \"input\": \"dog\"}\n").unwrap();
    let found = lines(&succeed(&format!("{file} --template short --max-new-tokens 2")));
    assert_eq!((&found[0]["prompt"], &found[1]["prompt"]), (&"the cat".into(), &"the dog".into()));
}
