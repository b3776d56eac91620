//! `reproduce` with a study file of one's own.

use super::program::{assert_one_line, command, run, succeed};
#[cfg(unix)]
use super::resume::stop_at;
use std::path::Path;
use std::time::{Duration, Instant};

const STUDY: &str = r#"
title = "A study of four steps"
question = "Does it run?"
hypothesis = "It does."
scale = "tiny"
model = "embedded"
task = "identity/difference"
seeds = 3
lr-candidates = [1e-3, 2e-3]

[training]
steps = 4
batch-size = 2
accumulate = 1
warmup-steps = 1
eval-every = 2
probe-every = 2
loss-on = "answer"
rank = 2
dropout = 0.0

[measurement]
validation-items = 4
watched-texts = 2
probe-texts = 4
test-items = 20

[margins]
accuracy = 0.02
similarity = 0.02
above-base = 0.1

[[arms]]
name = "base"
label = "base"
tuned = false

[[methods]]
name = "lora"
group = "LoRA"
lr = { vanilla = 1e-3, sibo = 2e-3 }

[[methods]]
name = "prompt"
group = "Prompt"
lr = { vanilla = 1e-3 }
refused = ["sibo"]
training = { method = "prompt", virtual-tokens = 2 }

[[variants]]
name = "vanilla"
label = "vanilla"

[[variants]]
name = "sibo"
label = "SIBO"
training = { sibo-lambda = 0.3 }

[[contrasts]]
treatment = "sibo"
control = "vanilla"
family = "SIBO − vanilla"
answer = true

[[gates]]
arm = "lora-vanilla"
what = "vanilla LoRA"
at-most = 1.0

[[figures]]
kind = "bars"
file = "accuracy"
section = "Accuracy"
title = "Accuracy"
alt = "Accuracy"
value = "accuracy"

[[figures]]
kind = "differences"
file = "differences"
title = "Differences"
alt = "Differences"
outcome = "similarity-at-equal-steps"

[page]
answers = "What it does"
columns = ["trained", "lr", "accuracy", "cost"]
cost-reference = "lora-vanilla"
limits = ["Anything."]
"#;

fn written(folder: &Path, text: &str) -> String {
    let path = folder.join("mine.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn files(folder: &Path, ending: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().map(|f| f.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(ending)).collect()
}

#[test]
fn the_studies_are_listed() {
    let listed = succeed("reproduce --list");
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["headline", "methods", "lambda", "residuals", "tasks", "remedies"]);
    assert!(listed.contains("8 arms, 5 seeds  Does the initial residual"), "{listed}");
}

#[test]
fn a_bad_study_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let cells = dir.path().join("cells");
    let of = |text: &str| {
        let file = written(dir.path(), text);
        run(&format!("reproduce {file} --dry-run --cells {}", cells.display()))
    };
    let ended = of(&STUDY.replace("rank = 2", "rank = 2\nrang = 3"));
    assert_one_line(&ended, &["mine.toml: training: unknown field `rang`"], "an unknown setting");
    let ended = of(&STUDY.replace("rank = 2", "rank = 2\ntensorboard = \"events\""));
    assert_one_line(&ended, &["tensorboard is no setting of a study: a cell writes no events"], "an unread setting");
    let ended = of(&STUDY.replace("[margins]", "[margin]"));
    assert_one_line(&ended, &["mine.toml:", "unknown field `margin`"], "an unknown table");
    let ended = of(&STUDY.replace("title =", "title"));
    assert_one_line(&ended, &["mine.toml:2:"], "no TOML");
    let ended = of(&STUDY.replace(", sibo = 2e-3", ""));
    assert_one_line(&ended, &["lora-sibo has no lr yet", "reproduce mine --search"], "no learning rate");
    let ended = run("reproduce headlin");
    assert_one_line(&ended, &["headlin: no study has this name", "headline, methods, lambda"], "an unknown name");
    let ended = run("reproduce headline methods --out x");
    assert_one_line(&ended, &["--out is one folder"], "two studies in one folder");
    let ended = of(STUDY);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_study_is_searched_estimated_and_run_once() {
    let dir = tempfile::tempdir().unwrap();
    let (cells, out) = (dir.path().join("cells"), dir.path().join("out"));
    let file = written(dir.path(), STUDY);
    let line = format!("reproduce {file} --cells {} --out {}", cells.display(), out.display());

    let found = succeed(&format!("{line} --search"));
    let search = std::fs::read_to_string(out.join("search.csv")).unwrap();
    let rows: Vec<Vec<&str>> = search.lines().skip(1).map(|row| row.split(',').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), {
        ["lora-vanilla", "lora-vanilla", "lora-sibo", "lora-sibo", "prompt-vanilla", "prompt-vanilla"]
    });
    // The best of an arm is the one with the lowest loss.
    for pair in rows.chunks(2) {
        let loss = |row: &Vec<&str>| row[2].parse::<f64>().unwrap();
        let best = if loss(&pair[0]) < loss(&pair[1]) { &pair[0] } else { &pair[1] };
        let said = found.lines().find(|line| line.contains("  best") && line.starts_with(best[0])).unwrap();
        assert_eq!(said.split_whitespace().nth(1).unwrap().parse::<f64>(), best[1].parse(), "{found}");
    }

    let before = succeed(&format!("{line} --dry-run"));
    assert!(before.contains("12 cells, 0 of them finished"), "{before}");
    assert!(before.contains("no finished cell tells how long they take"), "{before}");
    succeed(&line);
    let first = std::fs::read(out.join("cells.csv")).unwrap();
    assert_eq!(String::from_utf8_lossy(&first).lines().count(), 13);
    assert_eq!(files(&cells, ".claim"), Vec::<String>::new());
    // Six of the search beside those of the study.
    assert_eq!(files(&cells, ".toml").len(), 18);

    let after = run(&line);
    assert!(!after.stderr.contains("seed"), "no cell is run again: {}", after.stderr);
    assert_eq!(std::fs::read(out.join("cells.csv")).unwrap(), first);
    let estimate = succeed(&format!("{line} --dry-run"));
    assert!(estimate.contains("12 cells, 12 of them finished"), "{estimate}");
    // Two virtual tokens of width 96; rank 2 on q, k, v (96 + 96), up and down (96 + 256), 16 blocks.
    let trained = |arm: &str| {
        let row = estimate.lines().find(|line| line.starts_with(arm)).unwrap();
        row.split_whitespace().nth(3).unwrap().to_owned()
    };
    assert_eq!((trained("base").as_str(), trained("prompt-vanilla").as_str()), ("0", "192"));
    assert_eq!(trained("lora-sibo"), "40,960");

    let page = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(page.contains("lora-sibo against lora-vanilla, test accuracy"), "{page}");
    assert!(page.contains("too few seeds for a conclusion"), "{page}");
    assert!(page.contains("| prompt-sibo | sibo-lambda is 0.3; it must be 0 for prefix and prompt"), "{page}");
    assert!(page.contains("Not interpreted: LoRA, Prompt."), "{page}");
    let compared = std::fs::read_to_string(out.join("comparisons.csv")).unwrap();
    assert!(compared.contains("lora-sibo,lora-vanilla,SIBO − vanilla,test accuracy,3,"), "{compared}");
    for name in ["accuracy.png", "differences.svg", "arms.parquet", "cost.csv", "curves.csv", "manifest.json"] {
        assert!(out.join(name).metadata().unwrap().len() > 100, "{name}");
    }

    // Another study finds the cells that it shares.
    let other = dir.path().join("other.toml");
    std::fs::write(&other, STUDY.replace("sibo-lambda = 0.3", "sibo-lambda = 0.5")).unwrap();
    let shared = succeed(&format!("reproduce {} --cells {} --dry-run", other.display(), cells.display()));
    assert!(shared.contains("12 cells, 9 of them finished"), "{shared}");
}

#[test]
fn two_processes_share_the_work_and_a_killed_one_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let cells = dir.path().join("cells");
    let file = written(dir.path(), &STUDY.replace("seeds = 3", "seeds = 4"));
    let start = |out: &str| {
        let line = format!(
            "--threads 1 reproduce {file} --cells {} --out {}",
            cells.display(),
            dir.path().join(out).display()
        );
        let mut command = command(&line.split_whitespace().collect::<Vec<_>>());
        command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut killed = start("killed");
    let begun = Instant::now();
    while files(&cells, ".toml").is_empty() || files(&cells, ".claim").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(300), "no cell was finished");
        assert_eq!(killed.try_wait().unwrap(), None, "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let done = files(&cells, ".toml").len();
    assert!((1..16).contains(&done), "{done}");

    let both = [start("one"), start("two")];
    let mut ran = 0;
    for process in both {
        let ended = process.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{stderr}");
        ran += stderr.lines().filter(|line| line.contains(" seed ")).count();
    }
    assert_eq!(ran, 16 - done, "every cell was run once");
    assert_eq!(files(&cells, ".claim"), Vec::<String>::new());
    let of = |out: &str| std::fs::read_to_string(dir.path().join(out).join("cells.csv")).unwrap();
    assert_eq!(of("one"), of("two"));
    assert_eq!(of("one").lines().count(), 17);
}

#[test]
fn a_sweep_runs_cells_by_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let cells = dir.path().join("cells");
    let study = format!("{} --cells {}", written(dir.path(), STUDY), cells.display());
    let planned = succeed(&format!("sweep plan {study}"));
    let rows: Vec<&str> = planned.lines().collect();
    assert_eq!(rows.len(), 13);
    assert_eq!(rows[0], "index,arm,seed,lr,state,cell");
    assert!(
        rows[1].starts_with("0,base,1,,pending,") && rows[3].starts_with("2,lora-sibo,1,0.002,pending,"),
        "{planned}"
    );

    let cell = rows[1].rsplit(',').next().unwrap();
    assert_eq!(
        succeed(&format!("sweep run {study} --index 0")).trim(),
        cells.join(format!("{cell}.toml")).to_str().unwrap()
    );
    let array = |name: &str, value: &str| {
        let line = format!("sweep run {study}");
        command(&line.split_whitespace().collect::<Vec<_>>()).env(name, value).output().unwrap()
    };
    assert!(array("SLURM_ARRAY_TASK_ID", "2").status.success());
    assert!(array("JOB_COMPLETION_INDEX", "4").status.success());
    assert_one_line(&array("JOB_COMPLETION_INDEX", "x").into(), &["JOB_COMPLETION_INDEX is \"x\""], "no number");
    assert_one_line(&run(&format!("sweep run {study}")), &["--index is missing"], "no index");
    assert_one_line(&run(&format!("sweep run {study} --index 12")), &["cell 12: the study has 12 cells"], "no cell");

    let status = succeed(&format!("sweep status {study}"));
    assert!(status.starts_with("12 cells of mine: 3 finished, 0 running, 0 paused, 9 pending\n"), "{status}");
    assert!(
        status.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == ["base", "2", "of", "3"]),
        "{status}"
    );
    let pending = succeed(&format!("sweep plan {study} --pending"));
    assert_eq!(pending.lines().count(), 10);
    let script = succeed(&format!("sweep emit slurm {study} --minutes 5 --at-once 2"));
    assert!(script.contains("#SBATCH --array=1,3,5-11%2\n#SBATCH"), "{script}");
    assert!(script.contains(&format!("smooth-probe sweep run {study} &")), "{script}");
    let job = succeed(&format!("sweep emit k8s {study} --image here/image --claim work"));
    assert!(job.contains("completions: 12") && job.contains("image: \"here/image\""), "{job}");
    assert_one_line(&run(&format!("sweep emit k8s {study}")), &["k8s needs --image"], "no image");
}

/// A cell's file without the times, which no two runs share.
#[cfg(unix)]
fn timeless(folder: &Path, cell: &str) -> String {
    let text = std::fs::read_to_string(folder.join(format!("{cell}.toml"))).unwrap();
    text.lines().filter(|line| !line.contains("seconds")).collect::<Vec<_>>().join("\n")
}

#[cfg(unix)]
#[test]
fn a_cell_that_is_asked_to_stop_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let text = STUDY.replace("\nsteps = 4\n", "\nsteps = 60\n").replace("eval-every = 2", "eval-every = 7");
    let text = text.replace("probe-every = 2", "probe-every = 7").replace("batch-size = 2", "batch-size = 4");
    let file = written(dir.path(), &text);
    let line = |folder: &str| format!("sweep run {file} --cells {} --index 2", dir.path().join(folder).display());
    succeed(&line("whole"));
    let cell = files(&dir.path().join("whole"), ".toml").remove(0).replace(".toml", "");

    let broken = dir.path().join("broken");
    let asked = line("broken");
    // Wherever in its work the signal finds it: it trains at least a step.
    let code = stop_at(command(&asked.split_whitespace().collect::<Vec<_>>()), "-USR1", || {
        !files(&broken, ".claim").is_empty()
    });
    assert_eq!(code, Some(3));
    assert!(broken.join(format!("{cell}.paused/course.toml")).is_file());
    assert_eq!(files(&broken, ".claim"), Vec::<String>::new());
    let status = succeed(&format!("sweep status {file} --cells {}", broken.display()));
    assert!(status.contains("0 finished, 0 running, 1 paused, 11 pending"), "{status}");
    succeed(&asked);
    assert_eq!(timeless(&broken, &cell), timeless(&dir.path().join("whole"), &cell));
    assert_eq!(files(&broken, ".paused"), Vec::<String>::new());

    // By the clock: what was begun is kept, and the study is as far as it came.
    let stopped = run(&format!("reproduce {file} --cells {} --stop-after 0.02", dir.path().join("clock").display()));
    assert_eq!(stopped.code, Some(3), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("run the same command again"), "{}", stopped.stderr);
}
