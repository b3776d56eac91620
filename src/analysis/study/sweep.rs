//! A study as a sweep: its cells by number, how they stand, and the job files of clusters that run them one by one.
//!
//! The cluster's own engine schedules; a job runs one cell by its number. Cells that are finished end at once, so an array
//! may be sent again whole.

use super::cell::{CellResult, Job, SearchResult};
use super::claim::Holder;
use super::store::Store;

/// How a cell stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its result is in the store.
    Finished,
    /// Someone runs it, or did a moment ago.
    Running(Holder),
    /// It was begun, asked to stop, and goes on from its checkpoint.
    Paused,
    /// It was not begun.
    Pending,
}

impl Standing {
    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Running(_) => "running",
            Self::Paused => "paused",
            Self::Pending => "pending",
        }
    }

    /// Whether a job has something to do here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Paused | Self::Pending)
    }
}

/// How every cell stands, in the order of `jobs`.
#[must_use]
pub fn standings(jobs: &[Job], store: &Store) -> Vec<Standing> {
    let standing = |job: &Job| {
        let finished = store.finished::<CellResult>(&job.identity).is_some()
            || store.finished::<SearchResult>(&job.identity).is_some();
        match store.holder(&job.identity) {
            _ if finished => Standing::Finished,
            Some(holder) => Standing::Running(holder),
            None if job.is_paused(store.folder()) => Standing::Paused,
            None => Standing::Pending,
        }
    };
    jobs.iter().map(standing).collect()
}

/// Numbers as ranges, as Slurm writes them: `0-2,5`.
#[must_use]
pub fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |&(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// What a cluster's job file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterJob {
    /// The job's name: letters, digits and `-`.
    pub name: String,
    /// The command that runs one cell, but for its number.
    pub command: Vec<String>,
    /// The longest that one cell may take, in minutes.
    pub minutes: u64,
    /// Cells at a time.
    pub at_once: usize,
}

impl ClusterJob {
    /// A Slurm script: an array of the cells `pending`, each told two minutes before its time is up, and put into the queue
    /// again when it was asked to stop.
    #[must_use]
    pub fn slurm(&self, pending: &[usize]) -> String {
        let Self { name, minutes, at_once, .. } = self;
        let (hours, rest) = (minutes / 60, minutes % 60);
        let (cells, command) = (ranges(pending), self.quoted());
        format!(
            r#"#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array={cells}%{at_once}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time={hours:02}:{rest:02}:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%A_%a.log

# The cell's number is SLURM_ARRAY_TASK_ID, which the program reads.
{command} &
cell=$!
trap 'kill -USR1 "$cell"' USR1 TERM
wait "$cell"
code=$?
# A signal ends the wait, not the cell.
while kill -0 "$cell" 2>/dev/null; do
    wait "$cell"
    code=$?
done
if [ "$code" -eq 3 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"#
        )
    }

    /// A Kubernetes Job of `cells` completions; a pod that was asked to stop is replaced and counts for no failure. The
    /// claim is mounted at `/work`, where the command runs.
    #[must_use]
    pub fn kubernetes(&self, cells: usize, image: &str, claim: &str) -> String {
        let Self { name, minutes, at_once, .. } = self;
        let (seconds, command) = (minutes * 60, serde_json::json!(self.command));
        let (image, claim) = (serde_json::json!(image), serde_json::json!(claim));
        format!(
            r#"apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  # The cell's number is JOB_COMPLETION_INDEX, which the program reads.
  completionMode: Indexed
  completions: {cells}
  parallelism: {at_once}
  backoffLimitPerIndex: 2
  podFailurePolicy:
    rules:
      - action: Ignore
        onExitCodes:
          containerName: cell
          operator: In
          values: [3]
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      activeDeadlineSeconds: {seconds}
      containers:
        - name: cell
          image: {image}
          command: {command}
          workingDir: /work
          resources:
            requests:
              cpu: "1"
          volumeMounts:
            - name: work
              mountPath: /work
      volumes:
        - name: work
          persistentVolumeClaim:
            claimName: {claim}
"#
        )
    }

    /// The command for a shell.
    fn quoted(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
        let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        };
        self.command.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[]), "");
    }

    fn job() -> ClusterJob {
        let command = ["smooth-probe", "sweep", "run", "it's mine.toml"].map(str::to_owned).to_vec();
        ClusterJob { name: "mine".to_owned(), command, minutes: 90, at_once: 4 }
    }

    #[test]
    fn a_slurm_script_has_the_pending_cells_and_the_time() {
        let script = job().slurm(&[1, 2, 9]);
        for line in [
            "#SBATCH --array=1-2,9%4",
            "#SBATCH --time=01:30:00",
            "#SBATCH --signal=B:USR1@120",
            r"smooth-probe sweep run 'it'\''s mine.toml' &",
            r#"    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}""#,
        ] {
            assert!(script.lines().any(|found| found == line), "{line} is not in\n{script}");
        }
    }

    #[test]
    fn a_kubernetes_job_has_an_index_a_cell() {
        let text = job().kubernetes(36, "registry/image:1", "shared");
        for line in [
            "  completions: 36",
            "  parallelism: 4",
            "      activeDeadlineSeconds: 5400",
            r#"          command: ["smooth-probe","sweep","run","it's mine.toml"]"#,
            r#"            claimName: "shared""#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
