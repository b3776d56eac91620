//! A run that was killed and resumed ends as one that was never stopped.

use crate::program::{command, events, run, succeed};
use crate::small_model::{instructions, tiny_model};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const OPTIONS: &str = "--model embedded --steps 12 --rank 4 --sibo-lambda 0.2 --dropout 0.1 --batch-size 4 --accumulate 2 \
    --val-size 6 --eval-every 3 --save-every 4 --probe-every 5 --warmup-steps 2 --lr 1e-2 --cutoff 96 --quiet \
    --contranorm 0.1 --neutreno 0.3 --attn-scale --feat-scale --cosine-regulariser 0.1 --stochastic-depth 0.2";

/// Every file that decides the result: adapters and the optimizer's moments, by name.
fn results(out: &Path) -> Vec<(String, Vec<u8>)> {
    let names = ["adapter_model.safetensors", "adapter_config.json"];
    let mut files: Vec<String> =
        ["adapter", "best", "last"].iter().flat_map(|f| names.map(|n| format!("{f}/{n}"))).collect();
    files.extend(["last/optimizer.safetensors".to_owned(), "last/trainer_state.json".to_owned()]);
    files.into_iter().map(|name| (name.clone(), fs::read(out.join(&name)).unwrap())).collect()
}

fn assert_same_results(a: &Path, b: &Path) {
    for ((name, left), (_, right)) in results(a).into_iter().zip(results(b)) {
        assert!(left == right, "{name} differs between {} and {}", a.display(), b.display());
    }
}

fn assert_same_events(a: &Path, b: &Path) {
    let (whole, resumed) = (events(a), events(b));
    assert_eq!(resumed.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    for (left, right) in whole.iter().zip(&resumed) {
        for key in ["step", "loss", "lr", "tokens", "val_loss", "similarity", "similarity_before"] {
            assert_eq!(left.get(key), right.get(key), "{key} of step {}", left["step"]);
        }
    }
}

/// Starts a run and kills it, as `kill -9` does, once `moment` has come; answers whether it was still running.
pub fn kill_at(mut command: Command, moment: impl Fn() -> bool) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if moment() {
            break;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// Starts a run and asks it to stop with a signal once `moment` has come; answers its exit code.
#[cfg(unix)]
pub fn stop_at(mut command: Command, signal: &str, moment: impl Fn() -> bool) -> Option<i32> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !moment() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "the run ended before it could be asked to stop");
    child.wait().unwrap().code()
}

#[cfg(unix)]
#[test]
fn a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_exit_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let data = instructions(&dir.path().join("data.jsonl"), 40);
    // No checkpoint is due before the end: the one that is left is that of the signal.
    let options = OPTIONS.replace("--save-every 4", "--save-every 1000");
    let line = |out: &Path| format!("train {options} --data {} --out {}", data.display(), out.display());
    let whole = dir.path().join("whole");
    succeed(&line(&whole));
    for signal in ["-TERM", "-USR1"] {
        let out = dir.path().join(signal);
        let line = line(&out);
        let logged = || fs::read_to_string(out.join("events.jsonl")).map_or(0, |text| text.lines().count());
        let code = stop_at(command(&line.split_whitespace().collect::<Vec<_>>()), signal, || logged() >= 2);
        assert_eq!(code, Some(3), "{signal}");
        assert!(out.join("last/trainer_state.json").is_file() && !out.join("adapter").exists());
        let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
        assert!(manifest.contains("\"status\": \"interrupted\""), "{manifest}");
        succeed(&format!("{line} --resume"));
        assert_same_results(&whole, &out);
        assert_same_events(&whole, &out);
    }
}

#[test]
fn a_killed_run_resumes_to_the_bytes_of_one_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let data = instructions(&dir.path().join("data.jsonl"), 40);
    let line = |out: &Path| format!("train {OPTIONS} --data {} --out {}", data.display(), out.display());
    let whole = dir.path().join("whole");
    succeed(&line(&whole));

    // At the first checkpoint, and some steps after it, when lines of the log must be taken back.
    for (name, lines) in [("first", 0), ("later", 7)] {
        let out = dir.path().join(name);
        let line = line(&out);
        let logged = || fs::read_to_string(out.join("events.jsonl")).map_or(0, |text| text.lines().count());
        let moment = || out.join("last/trainer_state.json").is_file() && logged() >= lines;
        let killed = kill_at(command(&line.split_whitespace().collect::<Vec<_>>()), moment);
        assert!(killed, "the run ended before it could be killed: give it more steps");
        assert!(!out.join("adapter").exists());
        let refused = run(&line);
        assert!(refused.stderr.contains("--resume"), "{}", refused.stderr);
        succeed(&format!("{line} --resume"));
        assert_same_results(&whole, &out);
        assert_same_events(&whole, &out);
    }
}

#[test]
fn every_moment_of_a_kill_leaves_a_checkpoint_that_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let data = instructions(&dir.path().join("data.jsonl"), 24);
    // A checkpoint a step: most moments fall into the writing of one.
    let line = |out: &Path| {
        format!(
            "train --model {} --data {} --out {} --steps 12 --save-every 1 --val-size 4 --eval-every 4 --rank 4 \
             --warmup-steps 1 --quiet",
            model.display(),
            data.display(),
            out.display()
        )
    };
    let whole = dir.path().join("whole");
    succeed(&line(&whole));
    for moment in 0..6_u64 {
        let out = dir.path().join(format!("killed{moment}"));
        let line = line(&out);
        let started = std::cell::OnceCell::new();
        let due = || {
            let begun = out.join("events.jsonl").is_file();
            begun && started.get_or_init(std::time::Instant::now).elapsed() > Duration::from_millis(3 * moment)
        };
        kill_at(command(&line.split_whitespace().collect::<Vec<_>>()), due);
        succeed(&format!("{line} --resume"));
        assert_same_results(&whole, &out);
    }
}

#[test]
fn threads_change_no_bit_and_a_changed_setting_is_no_resume() {
    let dir = tempfile::tempdir().unwrap();
    let data = instructions(&dir.path().join("data.jsonl"), 40);
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for (threads, out) in [(1, &one), (2, &two)] {
        succeed(&format!("train {OPTIONS} --data {} --out {} --threads {threads}", data.display(), out.display()));
    }
    assert_same_results(&one, &two);
    // Resuming what is finished does nothing over again.
    let line = format!("train {OPTIONS} --data {} --out {} --resume", data.display(), two.display());
    succeed(&line);
    assert_same_results(&one, &two);
    assert_same_events(&one, &two);

    let before = results(&one);
    let other = OPTIONS.replace("--lr 1e-2", "--lr 2e-2");
    let ended = run(&format!("train {other} --data {} --out {} --resume", data.display(), one.display()));
    crate::program::assert_one_line(&ended, &["checkpoint", "other settings", "without --resume"], "other settings");
    assert!(results(&one) == before, "a refused resume changes nothing");

    let state = one.join("last/adapter_model.safetensors");
    let mut bytes = fs::read(&state).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&state, bytes).unwrap();
    let ended = run(&format!("train {OPTIONS} --data {} --out {} --resume", data.display(), one.display()));
    crate::program::assert_one_line(&ended, &["adapter_model.safetensors", "damaged"], "a damaged checkpoint");
}

#[test]
fn threads_change_no_bit_of_a_model_trained_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data = instructions(&dir.path().join("data.jsonl"), 40);
    let outs = [1, 2, 3].map(|threads| {
        let out = dir.path().join(threads.to_string());
        let options = "--model embedded --method full --steps 3 --batch-size 4 --accumulate 2 --val-size 4 \
            --eval-every 2 --probe-every 2 --warmup-steps 0 --lr 1e-3 --cutoff 96 --quiet";
        succeed(&format!("train {options} --data {} --out {} --threads {threads}", data.display(), out.display()));
        out
    });
    let bytes = |out: &Path| {
        let names = ["model/model.safetensors", "last/model.safetensors", "last/optimizer.safetensors"];
        names.map(|name| fs::read(out.join(name)).unwrap())
    };
    let figures = |out: &Path| {
        let keys = ["loss", "grad_norm", "val_loss", "similarity", "similarity_before"];
        events(out).iter().map(|event| keys.map(|key| event.get(key).cloned())).collect::<Vec<_>>()
    };
    let [one, two, three] = &outs;
    assert_eq!(figures(one).len(), 3);
    for other in [two, three] {
        assert!(bytes(one) == bytes(other), "the weights depend on the threads");
        assert_eq!(figures(one), figures(other));
    }
}
