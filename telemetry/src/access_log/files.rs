//! Who has a thread: a place for each target that is logged to, as long as something names it.
//!
//! Not for: writing ([`Writer`]). A chain holds a [`LogFile`] for each target it names; chains that name the same one share it.
//! Invariants: a target that nobody holds any more is retired: its place is free at once, and its thread ends once what was logged is
//! written; where there is no place, one that the current configuration does not name gives way; a target that found no place asks
//! again when places or configuration change; no target has two threads.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use model::access_log::LogTarget;
use parking_lot::Mutex;

use super::writer::{Inbox, LogCounters, Outlet, RETRY_DELAY, Writer};

/// Targets, and so threads, at most; lines for others are dropped and counted.
pub const TARGETS_MAX: usize = 16;
/// Retired targets at most that still write what was logged, beside which others begin.
pub const RETIRED_TARGETS_MAX: usize = 16;

/// What is for one target, of all chains that name it.
#[derive(Debug)]
pub(crate) struct LogFile {
    writers: Arc<Writers>,
    target: LogTarget,
    place: Arc<Place>,
    /// The number of changes at which there was no place; 0 before that.
    refused_at: AtomicU64,
}

/// Of a target, what outlives its chains until its thread is retired.
#[derive(Debug, Default)]
struct Place {
    /// While there is a thread.
    inbox: ArcSwapOption<Inbox>,
    /// The last configuration that named it.
    named_by: AtomicU64,
}

impl LogFile {
    /// Where its lines go now, if anything was logged before.
    pub(super) fn inbox(&self) -> Guard<Option<Arc<Inbox>>> {
        self.place.inbox.load()
    }

    /// A buffer for one worker; none if there is no place. Asks only once between two changes.
    pub(super) fn outlet(&self) -> Option<Outlet> {
        let changes = self.writers.changes.load(Acquire);
        if self.refused_at.load(Relaxed) == changes {
            return None;
        }
        let outlet = self.writers.start(self).and_then(|inbox| Outlet::new(inbox, self.writers.counters.clone()));
        if outlet.is_none() {
            self.refused_at.store(changes, Relaxed);
        }
        outlet
    }

    /// A line found no place.
    pub(super) fn count_refused(&self) {
        self.writers.counters.dropped.inc();
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.writers.retire(&self.place);
    }
}

#[derive(Debug)]
struct Running {
    target: LogTarget,
    place: Arc<Place>,
    inbox: Arc<Inbox>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Of one that is finished.
    fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!(target = ?self.target, "the writer of an access log panicked");
        }
    }
}

#[derive(Debug, Default)]
struct Threads {
    running: Vec<Running>,
    retired: Vec<Running>,
    /// There are to be no more.
    ended: bool,
}

impl Threads {
    /// Forgets those that wrote all they had.
    fn sweep(&mut self) {
        self.retired.extract_if(.., |retired| retired.thread.is_finished()).for_each(Running::join);
    }

    fn retire_at(&mut self, at: usize) {
        let retired = self.running.swap_remove(at);
        retired.place.inbox.store(None);
        retired.inbox.stop();
        self.retired.push(retired);
        self.sweep();
    }
}

/// One thread per target, made when the first line for it is there.
#[derive(Debug)]
pub(crate) struct Writers {
    flush_interval: Duration,
    counters: LogCounters,
    files: Mutex<Vec<Weak<LogFile>>>,
    threads: Mutex<Threads>,
    /// The current configuration's number.
    configuration: AtomicU64,
    /// Counts what may give a place to a target that found none; begins with 1.
    changes: Arc<AtomicU64>,
}

impl Writers {
    pub(crate) fn new(flush_interval: Duration, counters: LogCounters) -> Arc<Self> {
        Arc::new(Self {
            flush_interval,
            counters,
            files: Mutex::default(),
            threads: Mutex::default(),
            configuration: AtomicU64::new(0),
            changes: Arc::new(AtomicU64::new(1)),
        })
    }

    /// What a chain that logs to a target holds.
    pub(crate) fn file(self: &Arc<Self>, target: &LogTarget) -> Arc<LogFile> {
        let mut files = self.files.lock();
        files.retain(|known| known.strong_count() > 0);
        // Dropping what was only looked at may retire it, which does not take this lock.
        if let Some(known) = files.iter().filter_map(Weak::upgrade).find(|known| known.target == *target) {
            return known;
        }
        let (writers, target) = (Arc::clone(self), target.clone());
        let file = Arc::new(LogFile { writers, target, place: Arc::default(), refused_at: AtomicU64::new(0) });
        files.push(Arc::downgrade(&file));
        file
    }

    /// These are what the configuration names from now on.
    pub(crate) fn configured<'a>(&self, named: impl Iterator<Item = &'a Arc<LogFile>>) {
        let next = self.configuration.load(Acquire) + 1;
        for file in named {
            file.place.named_by.store(next, Release);
        }
        self.configuration.store(next, Release);
        self.changes.fetch_add(1, AcqRel);
    }

    /// Bytes that wait to be written.
    pub(crate) fn bytes(&self) -> u64 {
        let threads = self.threads.lock();
        threads.running.iter().chain(&threads.retired).map(|running| running.inbox.bytes()).sum()
    }

    /// Makes each target open its file anew before it writes again.
    pub(crate) fn reopen(&self) {
        let threads = self.threads.lock();
        threads.running.iter().chain(&threads.retired).for_each(|running| running.inbox.reopen());
    }

    /// Writes what is buffered and ends the threads. Waits for them until `deadline`; lines written later are lost.
    pub(crate) fn shutdown(&self, deadline: Instant) {
        let ended = Threads { ended: true, ..Threads::default() };
        let Threads { running, retired, .. } = std::mem::replace(&mut *self.threads.lock(), ended);
        for target in &running {
            target.place.inbox.store(None);
            target.inbox.stop();
        }
        for target in running.into_iter().chain(retired) {
            while !target.thread.is_finished() && Instant::now() < deadline {
                thread::park_timeout(RETRY_DELAY);
            }
            if target.thread.is_finished() {
                target.join();
            }
        }
    }

    fn is_named(&self, place: &Place) -> bool {
        place.named_by.load(Acquire) >= self.configuration.load(Acquire)
    }

    /// A thread for a target, if there is a place.
    fn start(&self, file: &LogFile) -> Option<Arc<Inbox>> {
        let mut threads = self.threads.lock();
        if let Some(inbox) = file.place.inbox.load_full() {
            return Some(inbox);
        }
        threads.sweep();
        if threads.ended || !self.make_room(&mut threads, file) {
            return None;
        }
        let running = self.begin(&mut threads, file)?;
        let inbox = Arc::clone(&running.inbox);
        file.place.inbox.store(Some(Arc::clone(&inbox)));
        threads.running.push(running);
        Some(inbox)
    }

    fn make_room(&self, threads: &mut Threads, file: &LogFile) -> bool {
        let unnamed = || threads.running.iter().position(|running| !self.is_named(&running.place));
        let full = threads.running.len() >= TARGETS_MAX;
        let gives_way = if full && self.is_named(&file.place) { unnamed() } else { None };
        if threads.retired.len() >= RETIRED_TARGETS_MAX || (full && gives_way.is_none()) {
            tracing::error!(target = ?file.target, "too many access log targets: lines for this one are dropped");
            return false;
        }
        if let Some(at) = gives_way {
            threads.retire_at(at);
        }
        true
    }

    /// The thread that the target had, if it did not end yet, or a new one.
    fn begin(&self, threads: &mut Threads, file: &LogFile) -> Option<Running> {
        let place = Arc::clone(&file.place);
        let retired = threads.retired.iter().position(|retired| retired.target == file.target && retired.inbox.resume());
        if let Some(at) = retired {
            return Some(Running { place, ..threads.retired.swap_remove(at) });
        }
        let inbox = Arc::new(Inbox::default());
        let mut writer = Writer::new(Arc::clone(&inbox), file.target.clone(), self.counters.clone());
        let (interval, changes) = (self.flush_interval, Arc::clone(&self.changes));
        let run = move || {
            writer.run(interval);
            changes.fetch_add(1, AcqRel);
        };
        match thread::Builder::new().name("access-log".to_owned()).spawn(run) {
            Ok(thread) => {
                inbox.is_read_by(thread.thread().clone());
                Some(Running { target: file.target.clone(), place, inbox, thread })
            }
            Err(error) => {
                tracing::error!(target = ?file.target, %error, "no thread for an access log: its lines are dropped");
                None
            }
        }
    }

    /// Nobody holds the target of this place any more.
    fn retire(&self, place: &Arc<Place>) {
        let mut threads = self.threads.lock();
        if let Some(at) = threads.running.iter().position(|running| Arc::ptr_eq(&running.place, place)) {
            threads.retire_at(at);
            self.changes.fetch_add(1, AcqRel);
        }
    }
}

#[cfg(test)]
mod tests;
