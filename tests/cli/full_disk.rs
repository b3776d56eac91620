//! A disk with no room left: an error, and what was whole stays whole.

use crate::program::{Ended, command};
use crate::small_model::{instructions, tiny_model};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A small disk of its own, where the system lets us mount one.
struct SmallDisk<'p>(&'p Path);

impl<'p> SmallDisk<'p> {
    fn mount(folder: &'p Path, size: &str) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let option = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(folder).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => None,
        }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

fn assert_refused(ended: &Ended, what: &str) {
    assert_eq!(ended.code, Some(1), "{what}: {}", ended.stderr);
    let last = ended.stderr.trim_end().lines().last().unwrap();
    assert!(last.contains("has room") && !ended.stderr.contains("panicked"), "{what}: {}", ended.stderr);
}

/// No temporary file and no half of a folder may stay.
fn assert_nothing_half_written(out: &Path) {
    let Ok(entries) = fs::read_dir(out) else { return };
    for entry in entries {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(!name.contains(".writing") && !name.ends_with(".next"), "{name} was left");
        assert!(!["last", "best", "adapter", "similarity.csv"].contains(&name.as_str()), "{name} cannot be whole");
    }
}

#[test]
fn a_disk_without_room() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let Some(mounted) = SmallDisk::mount(&disk, "48k") else {
        println!("SKIPPED: no small disk can be mounted here; a limit on file sizes stands in for it below");
        return;
    };
    let model = tiny_model(&dir.path().join("model"));
    let data = instructions(&dir.path().join("data.jsonl"), 12);
    let (model, data) = (model.display().to_string(), data.display().to_string());
    let (run, curves) = (disk.join("run"), disk.join("curves"));
    let paths = ["train", "--quiet", "--model", &model, "--data", &data, "--out", run.to_str().unwrap()];
    let ended = command(&paths).args(["--steps", "2", "--rank", "16"]).output().unwrap().into();
    assert_refused(&ended, "train");
    assert_nothing_half_written(&run);
    let paths = ["similarity", "--quiet", "--model", &model, "--texts", &data, "--out", curves.to_str().unwrap()];
    let ended = command(&paths).args(["--field", "output", "--group-by", "id"]).output().unwrap().into();
    assert_refused(&ended, "similarity");
    assert_nothing_half_written(&curves);
    drop(mounted);
}

/// The kernel refuses to write past a size that the shell sets: a full disk for everyone who is not root.
#[cfg(unix)]
#[test]
fn files_that_cannot_grow() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(&dir.path().join("model"));
    let data = instructions(&dir.path().join("data.jsonl"), 12);
    let limited = |arguments: &str| -> Ended {
        let program = env!("CARGO_BIN_EXE_smooth-probe");
        let script = format!("trap '' XFSZ; ulimit -f 16; exec {program} {arguments}");
        Command::new("sh").args(["-c", &script]).output().unwrap().into()
    };
    let (run, curves) = (dir.path().join("run"), dir.path().join("curves"));
    let train = format!("train --quiet --model {} --data {} --steps 2 --rank 16", model.display(), data.display());
    let ended = limited(&format!("{train} --out {}", run.display()));
    assert_refused(&ended, "train");
    assert_nothing_half_written(&run);
    let ended = limited(&format!(
        "similarity --quiet --model {} --texts {} --field output --group-by id --out {}",
        model.display(),
        data.display(),
        curves.display()
    ));
    assert_refused(&ended, "similarity");
    assert_nothing_half_written(&curves);

    // A run that had come further keeps its last whole checkpoint and goes on once there is room.
    let ended = command(&format!("{train} --resume --out {}", run.display()).split(' ').collect::<Vec<_>>()).output();
    assert_eq!(Ended::from(ended.unwrap()).code, Some(0));
    assert!(run.join("adapter/adapter_model.safetensors").is_file());
}
