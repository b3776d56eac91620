//! The right to run a cell: a file that one process alone can make, and that dies with it.
//!
//! A claim says who holds it and is written anew every few seconds. One whose process is gone on this machine, or that
//! has not changed for a minute of the *reader's* clock, is taken away. Two processes may in the end run the same cell (a
//! holder that was stopped for a minute and wakes again); both then write the same result, one after the other.

use crate::persist::{self, PersistError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(10);

/// Who holds a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's name, for people.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The running system and the processes' own world in it, in which `pid` means something; unknown where the system
    /// does not say.
    place: Option<String>,
    /// When the process began, in the system's ticks: a number may be given to another process later.
    born: Option<u64>,
    /// This claim and no other.
    token: String,
    /// Signs of life so far.
    beat: u64,
}

impl Holder {
    fn this_process() -> Self {
        static CLAIMS: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let count = CLAIMS.fetch_add(1, Ordering::Relaxed);
        let place = place();
        let whole = format!("{pid} {now} {count} {place:?}");
        Self {
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            pid,
            born: born(pid),
            token: crate::hash::sha256_bytes(whole.as_bytes()),
            place,
            beat: 0,
        }
    }

    /// Whether the process certainly is no more: it was one of this machine's, and is not there.
    pub(super) fn is_gone(&self) -> bool {
        self.place.is_some() && self.place == place() && self.born.is_some() && self.born != born(self.pid)
    }
}

/// Where a process number means something: containers of one machine count their processes apart.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let world = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), world.display()))
}

/// When a process began, in ticks since the system did; `None` if there is none.
fn born(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the 22nd field is the 20th behind it.
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// A claim that this process holds; let go when dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    token: String,
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

impl Claim {
    /// Makes the claim, or answers `None` if there is one.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn take(path: &Path) -> Result<Option<Self>, PersistError> {
        Self::take_beating(path, BEAT)
    }

    fn take_beating(path: &Path, every: Duration) -> Result<Option<Self>, PersistError> {
        let holder = Holder::this_process();
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |source| PersistError::new(path, "claim", source);
        let mut file = tempfile::Builder::new().prefix(".claiming-").tempfile_in(folder).map_err(failed)?;
        file.write_all(text(&holder).as_bytes()).map_err(failed)?;
        // The file has its content from the first moment, and two cannot both be the first.
        match file.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(failed(error.error)),
        }
        let (stop, stopped) = channel::<()>();
        let (token, place) = (holder.token.clone(), path.to_path_buf());
        let heart = std::thread::spawn(move || {
            let mut holder = holder;
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                holder.beat += 1;
                // A claim that was taken away is another's; one that cannot be written now may be the next time.
                match read(&place) {
                    Some(found) if found.token == holder.token => {
                        drop(persist::write_file(&place, text(&holder).as_bytes()))
                    }
                    _ => return,
                }
            }
        });
        Ok(Some(Self { path: path.to_path_buf(), token, stop: Some(stop), heart: Some(heart) }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
        if read(&self.path).is_some_and(|holder| holder.token == self.token) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn text(holder: &Holder) -> String {
    serde_json::to_string(holder).unwrap_or_default()
}

/// Who holds the claim; `None` if it is gone or says nothing.
#[must_use]
pub(super) fn read(path: &Path) -> Option<Holder> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Takes away a claim that `is_stale` by the reader's own clock or whose process is gone; answers whether it did.
pub(super) fn take_away(path: &Path, holder: Option<&Holder>, is_stale: bool) -> bool {
    if !is_stale && !holder.is_some_and(Holder::is_gone) {
        return false;
    }
    // Of several that find it stale one alone can rename it.
    let aside = path.with_extension(format!("stale-{}", Holder::this_process().token));
    if fs::rename(path, &aside).is_err() {
        return false;
    }
    let taken = read(&aside);
    let is_the_one = taken.as_ref().map(|taken| &taken.token) == holder.map(|holder| &holder.token);
    if !is_the_one {
        // Between look and grasp another took the stale one away and made its own: that one goes back.
        let _ = fs::hard_link(&aside, path);
    }
    let _ = fs::remove_file(&aside);
    is_the_one
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The claim of a process of this machine that has ended.
    pub(in super::super) fn of_the_dead(path: &Path) -> Holder {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let holder = Holder { pid: child.id(), born: born(child.id()), ..Holder::this_process() };
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(path, text(&holder)).unwrap();
        holder
    }

    #[test]
    fn one_of_many_gets_it_and_it_goes_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let claims: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Claim::take(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().flatten().count(), 1);
        let holder = read(&path).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(!take_away(&path, Some(&holder), false), "its holder lives");
        drop(claims);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Claim::take(&path).unwrap().is_some());
    }

    #[test]
    fn it_shows_that_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let claim = Claim::take_beating(&path, Duration::from_millis(5)).unwrap().unwrap();
        let begun = std::time::Instant::now();
        while read(&path).is_none_or(|holder| holder.beat < 3) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no sign of life");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(claim);
        assert!(!path.exists());
    }

    #[test]
    fn that_of_a_dead_process_is_taken_away_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let dead = of_the_dead(&path);
        if place().is_none() {
            println!("SKIPPED: the system does not say which processes there are");
            return;
        }
        let taken = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take_away(&path, Some(&dead), false))).collect();
            threads.into_iter().filter(|_| true).map(|thread| thread.join().unwrap()).filter(|taken| *taken).count()
        });
        assert_eq!(taken, 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_fresh_claim_that_was_grasped_by_mistake_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let seen = of_the_dead(&path);
        fs::remove_file(&path).unwrap();
        let fresh = Claim::take(&path).unwrap().unwrap();
        assert!(!take_away(&path, Some(&seen), true));
        assert_eq!(read(&path).unwrap().token, fresh.token);
    }

    #[test]
    fn a_claim_that_was_taken_away_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.claim");
        let stopped = Claim::take(&path).unwrap().unwrap();
        assert!(take_away(&path, read(&path).as_ref(), true));
        let next = Claim::take(&path).unwrap().unwrap();
        drop(stopped);
        assert_eq!(read(&path).unwrap().token, next.token);
    }
}
