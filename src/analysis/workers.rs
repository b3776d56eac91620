//! Jobs on several workers, their results taken in the order of the jobs.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// What the workers tell, in the thread that called them.
pub(super) enum Event<J, R> {
    /// A part of a job is done: so many units.
    Progress(usize),
    /// A job is done, and all jobs before it were told.
    Done(J, R),
}

enum Message<J, R, E> {
    Progress(usize),
    Done(usize, J, Result<R, E>),
    /// A worker panics.
    Stopped,
}

/// Does `work` for every job and calls `event` with its result, in the order of the jobs.
///
/// One job occupies one worker. With `workers` above 1 the threads of the current pool are shared out among them, so
/// that jobs do not wait for each other at every kernel; with 1 all threads serve one job after another. At most
/// `workers + 1` jobs are under way or wait to be told.
///
/// # Errors
/// The first error in the order of the jobs.
pub(super) fn in_order<J: Send + Sync, R: Send, E: Send>(
    workers: usize,
    mut jobs: impl Iterator<Item = Result<J, E>>,
    work: impl Fn(&J, &mut dyn FnMut(usize)) -> Result<R, E> + Sync,
    mut event: impl FnMut(Event<J, R>) -> Result<(), E>,
) -> Result<(), E> {
    // Fewer jobs than workers: the first ones are looked at before threads are shared out.
    let first: Vec<Result<J, E>> = jobs.by_ref().take(workers).collect();
    let workers = workers.min(first.len());
    let jobs = first.into_iter().chain(jobs);
    let pools = if workers > 1 { pools(workers, rayon::current_num_threads()) } else { Vec::new() };
    if pools.is_empty() {
        for job in jobs {
            let job = job?;
            let mut told = Ok(());
            let result = work(&job, &mut |units| {
                if told.is_ok() {
                    told = event(Event::Progress(units));
                }
            })?;
            told?;
            event(Event::Done(job, result))?;
        }
        return Ok(());
    }
    let (hand, waiting) = channel::<(usize, J)>();
    let (tell, told) = channel::<Message<J, R, E>>();
    let (waiting, work) = (&Mutex::new(waiting), &work);
    std::thread::scope(|scope| {
        for pool in pools {
            let tell = tell.clone();
            scope.spawn(move || run(&pool, waiting, &tell, work));
        }
        drop(tell);
        // Hanging up, as soon as this closure ends, lets the workers end.
        let hand = hand;
        collect(workers, jobs, &hand, &told, &mut event)
    })
}

/// A pool for each worker; none if the system gives no threads, which costs time and nothing else.
fn pools(workers: usize, threads: usize) -> Vec<ThreadPool> {
    let pool = |_| ThreadPoolBuilder::new().num_threads((threads / workers).max(1)).build();
    (0..workers).map(pool).collect::<Result<_, _>>().unwrap_or_default()
}

/// A worker's life.
fn run<J: Send + Sync, R: Send, E: Send>(
    pool: &ThreadPool,
    jobs: &Mutex<Receiver<(usize, J)>>,
    tell: &Sender<Message<J, R, E>>,
    work: &(impl Fn(&J, &mut dyn FnMut(usize)) -> Result<R, E> + Sync),
) {
    let _alarm = Alarm(tell);
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, job)) = next else { return };
        let progress = tell.clone();
        let result = pool.install(|| {
            work(&job, &mut |units| {
                let _ = progress.send(Message::Progress(units));
            })
        });
        if tell.send(Message::Done(number, job, result)).is_err() {
            return;
        }
    }
}

/// Says that its thread panics, so that nobody waits for it.
struct Alarm<'a, J, R, E>(&'a Sender<Message<J, R, E>>);

impl<J, R, E> Drop for Alarm<'_, J, R, E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(Message::Stopped);
        }
    }
}

/// Hands out jobs and takes their results in order.
fn collect<J, R, E>(
    workers: usize,
    jobs: impl Iterator<Item = Result<J, E>>,
    hand: &Sender<(usize, J)>,
    told: &Receiver<Message<J, R, E>>,
    event: &mut impl FnMut(Event<J, R>) -> Result<(), E>,
) -> Result<(), E> {
    let mut jobs = jobs.fuse();
    let mut early = BTreeMap::new();
    // An error among the jobs counts after those before it.
    let mut refused = None;
    let (mut handed, mut done) = (0, 0);
    loop {
        while refused.is_none() && handed <= done + workers {
            match jobs.next() {
                Some(Ok(job)) => {
                    // With no worker left the answers end as well.
                    let _ = hand.send((handed, job));
                    handed += 1;
                }
                Some(Err(e)) => refused = Some(e),
                None => break,
            }
        }
        if done == handed {
            return refused.map_or(Ok(()), Err);
        }
        match told.recv() {
            Ok(Message::Progress(units)) => event(Event::Progress(units))?,
            Ok(Message::Done(number, job, result)) => {
                early.insert(number, (job, result));
                while let Some((job, result)) = early.remove(&done) {
                    event(Event::Done(job, result?))?;
                    done += 1;
                }
            }
            // The scope passes the panic on.
            Ok(Message::Stopped) | Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Job `n` takes the longer the earlier it comes; the results, or what stopped them.
    fn squares(workers: usize, jobs: Vec<Result<u64, String>>, bad: u64) -> (Vec<u64>, usize, Result<(), String>) {
        let (mut results, mut units) = (Vec::new(), 0);
        let work = |&n: &u64, progress: &mut dyn FnMut(usize)| {
            progress(1);
            std::thread::sleep(Duration::from_millis(9u64.saturating_sub(n)));
            if n == bad { Err(format!("job {n}")) } else { Ok(n * n) }
        };
        let outcome = in_order(workers, jobs.into_iter(), work, |event| {
            match event {
                Event::Progress(n) => units += n,
                Event::Done(job, square) => {
                    assert_eq!(job * job, square);
                    results.push(square);
                }
            }
            Ok(())
        });
        (results, units, outcome)
    }

    #[test]
    fn results_come_in_order_whoever_computed_them() {
        for workers in [1, 2, 3, 20] {
            let (results, units, outcome) = squares(workers, (0..10).map(Ok).collect(), 99);
            assert_eq!(results, (0..10).map(|n| n * n).collect::<Vec<_>>(), "{workers}");
            assert_eq!((units, outcome), (10, Ok(())));
            assert_eq!(squares(workers, vec![], 99), (vec![], 0, Ok(())));
        }
    }

    #[test]
    fn the_first_error_counts_after_the_results_before_it() {
        for workers in [1, 3] {
            let (results, _, outcome) = squares(workers, (0..10).map(Ok).collect(), 4);
            assert_eq!((results, outcome), (vec![0, 1, 4, 9], Err("job 4".to_owned())));
            let jobs = vec![Ok(0), Ok(1), Err("unreadable".to_owned()), Ok(3)];
            let (results, _, outcome) = squares(workers, jobs, 99);
            assert_eq!((results, outcome), (vec![0, 1], Err("unreadable".to_owned())));
        }
    }

    #[test]
    fn who_listens_can_stop_the_work() {
        for workers in [1, 2] {
            let outcome = in_order(
                workers,
                (0..50).map(Ok),
                |&n: &u64, _: &mut dyn FnMut(usize)| Ok(n),
                |event| match event {
                    Event::Done(3, _) => Err("full"),
                    _ => Ok(()),
                },
            );
            assert_eq!(outcome, Err("full"));
        }
    }

    #[test]
    #[should_panic(expected = "scoped thread panicked")]
    fn a_panic_is_passed_on() {
        let work = |&n: &u64, _: &mut dyn FnMut(usize)| if n == 3 { panic!("three") } else { Ok::<_, String>(n) };
        let _ = in_order(2, (0..9).map(Ok), work, |_| Ok(()));
    }
}
