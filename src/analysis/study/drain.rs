//! Running cells: as many at a time as there are threads, each on one of its own.

use super::StudyError;
use super::cell::Job;
use super::claim::Holder;
use super::store::{State, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time between two looks at a cell that another process runs.
const LOOK: Duration = Duration::from_millis(500);

/// What happened to a cell.
#[derive(Debug)]
pub enum Event<'a, R> {
    /// It is finished; `ran` tells whether it was run now or lay in the store.
    Finished {
        /// The cell.
        job: &'a Job,
        /// What it gave.
        result: &'a R,
        /// Whether it was run now.
        ran: bool,
    },
    /// Only cells of other processes are left; said once.
    Waiting {
        /// How many.
        cells: usize,
        /// Who runs one of them, where that is known.
        holder: Option<&'a Holder>,
    },
}

/// Runs what is not finished and no other process runs, waits for what others run, and answers every result in the order
/// of `jobs`. A cell is too small to share a thread's work, so each runs on one thread; results do not depend on it. The
/// first failure stops what has not begun, and so does `asked` once it is set.
///
/// # Errors
/// A cell fails or is asked to stop, or the store cannot be written.
pub fn drain<R: Serialize + DeserializeOwned + Send>(
    store: &Store,
    jobs: &[Job],
    asked: &AtomicBool,
    run: &(impl Fn(&Job) -> Result<R, StudyError> + Sync),
    watch: impl Fn(Event<'_, R>) + Sync,
) -> Result<Vec<R>, StudyError> {
    let queue = Mutex::new((0..jobs.len()).collect::<VecDeque<usize>>());
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let (stop, told) = (AtomicBool::new(false), AtomicBool::new(false));
    let work = || -> Result<Vec<(usize, R)>, StudyError> {
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(StudyError::Threads)?;
        let mut done = Vec::new();
        let mut busy = 0;
        while !stop.load(Ordering::Relaxed) {
            if asked.load(Ordering::Relaxed) {
                return Err(StudyError::Interrupted);
            }
            let Some(index) = lock().pop_front() else { break };
            let Some(job) = jobs.get(index) else { continue };
            let (result, ran) = match store.begin(&job.identity)? {
                State::Finished(result) => (result, false),
                State::Free(claim) => (store.finish(&job.identity, claim, alone.install(|| run(job))?)?, true),
                State::Busy(holder) => {
                    let left = {
                        let mut queue = lock();
                        queue.push_back(index);
                        queue.len()
                    };
                    busy += 1;
                    if busy >= left {
                        if !told.swap(true, Ordering::Relaxed) {
                            watch(Event::Waiting { cells: left, holder: holder.as_ref() });
                        }
                        std::thread::sleep(LOOK);
                        busy = 0;
                    }
                    continue;
                }
            };
            busy = 0;
            watch(Event::Finished { job, result: &result, ran });
            done.push((index, result));
        }
        Ok(done)
    };
    let guarded = || {
        let done = work();
        if done.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        done
    };
    let mut all = std::thread::scope(|scope| -> Result<Vec<(usize, R)>, StudyError> {
        let workers: Vec<_> = (0..rayon::current_num_threads()).map(|_| scope.spawn(guarded)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| StudyError::Stopped)??);
        }
        Ok(all)
    })?;
    all.sort_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}
