//! Threads that write access logs: one per target, so lines of all workers leave whole and one after the other.
//!
//! A worker appends to a buffer of its own; the target's thread swaps it for an empty one, once per interval or when it is full
//! enough, and writes. A worker waits at most for that swap. What does not fit while the target is stuck is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use model::access_log::LogTarget;
use parking_lot::Mutex;
use prometheus::IntCounter;

use crate::export::ExportCounters;

/// Bytes in a worker's buffer from which its target writes at once; Envoy's threshold.
pub const FLUSH_BYTES: usize = 64 * 1024;
/// Bytes in a worker's buffer at most, per target; lines beyond are dropped and counted. Enough for ten thousand lines while the
/// process is throttled.
pub const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Targets, and so threads, at most; lines for others are dropped and counted.
pub const TARGETS_MAX: usize = 16;
/// How long to wait before writing again to a target that would block.
const RETRY_DELAY: Duration = Duration::from_millis(10);
/// Between two complaints about one target.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What became of lines.
#[derive(Clone, Debug)]
pub(crate) struct LogCounters {
    /// Handed to the operating system.
    pub(crate) written: IntCounter,
    /// Lost: no room, no target, or an error.
    pub(crate) dropped: IntCounter,
}

impl LogCounters {
    /// The same for records, which are lines that collectors take.
    pub(crate) fn of_records(&self) -> ExportCounters {
        ExportCounters {
            exported: self.written.clone(),
            dropped_queue: self.dropped.clone(),
            dropped_export: self.dropped.clone(),
            dropped_provider: self.dropped.clone(),
        }
    }
}

/// One worker's buffer for one target.
#[derive(Debug)]
struct Buffer {
    bytes: Mutex<Vec<u8>>,
}

/// A worker's end of a target.
#[derive(Debug)]
pub(crate) struct Outlet {
    buffer: Arc<Buffer>,
    writer: Thread,
    counters: LogCounters,
}

impl Outlet {
    /// Appends what `render` appends, which says whether it did; whole or not at all.
    pub(crate) fn write(&self, render: impl FnOnce(&mut Vec<u8>) -> bool) {
        let mut bytes = self.buffer.bytes.lock();
        let before = bytes.len();
        if !render(&mut bytes) {
            bytes.truncate(before);
            return;
        }
        let after = bytes.len();
        if after > BUFFER_BYTES_MAX {
            bytes.truncate(before);
            self.counters.dropped.inc();
        } else if before < FLUSH_BYTES && after >= FLUSH_BYTES {
            drop(bytes);
            self.writer.unpark();
        }
    }
}

/// What workers and a target's thread share.
#[derive(Debug, Default)]
struct Shared {
    buffers: Mutex<Vec<Arc<Buffer>>>,
    stopping: AtomicBool,
    /// The file is to be opened anew: it was renamed, say.
    reopening: AtomicBool,
}

#[derive(Debug)]
struct Target {
    target: LogTarget,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// All targets that anything ever logged to.
#[derive(Debug)]
pub(crate) struct Writers {
    targets: Mutex<Vec<Target>>,
    flush_interval: Duration,
    counters: LogCounters,
}

impl Writers {
    pub(crate) fn new(flush_interval: Duration, counters: LogCounters) -> Self {
        Self { targets: Mutex::default(), flush_interval, counters }
    }

    /// A buffer for one worker, written to `target`; none if there are too many targets or no thread can be had.
    pub(crate) fn outlet(&self, target: &LogTarget) -> Option<Outlet> {
        let mut targets = self.targets.lock();
        let at = match targets.iter().position(|known| known.target == *target) {
            Some(at) => at,
            None => {
                let started = self.start(target, targets.len())?;
                targets.push(started);
                targets.len() - 1
            }
        };
        let found = &targets[at];
        let buffer = Arc::new(Buffer { bytes: Mutex::default() });
        found.shared.buffers.lock().push(Arc::clone(&buffer));
        Some(Outlet { buffer, writer: found.thread.thread().clone(), counters: self.counters.clone() })
    }

    /// Bytes that wait to be written.
    pub(crate) fn bytes(&self) -> u64 {
        let targets = self.targets.lock();
        let shared = targets.iter().map(|target| &target.shared);
        shared.map(|shared| shared.buffers.lock().iter().map(|buffer| length(buffer.bytes.lock().len())).sum::<u64>()).sum()
    }

    pub(crate) fn count_refused(&self) {
        self.counters.dropped.inc();
    }

    /// Makes each target open its file anew before it writes again.
    pub(crate) fn reopen(&self) {
        for target in &*self.targets.lock() {
            target.shared.reopening.store(true, Release);
            target.thread.thread().unpark();
        }
    }

    /// Writes what is buffered and ends the threads. Waits for them until `deadline`; lines written later are lost.
    pub(crate) fn shutdown(&self, deadline: Instant) {
        let targets = std::mem::take(&mut *self.targets.lock());
        for target in &targets {
            target.shared.stopping.store(true, Release);
            target.thread.thread().unpark();
        }
        for target in targets {
            while !target.thread.is_finished() && Instant::now() < deadline {
                thread::park_timeout(RETRY_DELAY);
            }
            if target.thread.is_finished() && target.thread.join().is_err() {
                tracing::error!(target = ?target.target, "the writer of an access log panicked");
            }
        }
    }

    fn start(&self, target: &LogTarget, known: usize) -> Option<Target> {
        if known >= TARGETS_MAX {
            tracing::error!(?target, "too many access log targets: lines for this one are dropped");
            return None;
        }
        let shared = Arc::new(Shared::default());
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            target: target.clone(),
            file: None,
            cut: false,
            counters: self.counters.clone(),
            complained: None,
        };
        let interval = self.flush_interval;
        match thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(interval)) {
            Ok(thread) => Some(Target { target: target.clone(), shared, thread }),
            Err(error) => {
                tracing::error!(?target, %error, "no thread for an access log: its lines are dropped");
                None
            }
        }
    }
}

/// A target's thread.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    target: LogTarget,
    file: Option<File>,
    /// The last write stopped inside a line.
    cut: bool,
    counters: LogCounters,
    complained: Option<Instant>,
}

impl Writer {
    fn run(&mut self, interval: Duration) {
        let mut spare = Vec::new();
        let mut stopping = false;
        while !stopping {
            thread::park_timeout(interval);
            // Read before the buffers are: what was logged before the shutdown is written.
            stopping = self.shared.stopping.load(Acquire);
            if self.shared.reopening.swap(false, Acquire) {
                self.file = None;
            }
            let buffers = self.shared.buffers.lock().clone();
            for buffer in &buffers {
                std::mem::swap(&mut *buffer.bytes.lock(), &mut spare);
                if !spare.is_empty() {
                    self.write(&spare);
                    spare.clear();
                    spare.shrink_to(2 * FLUSH_BYTES);
                }
            }
            drop(buffers);
            // A worker that ended leaves its buffer to us alone.
            self.shared.buffers.lock().retain(|buffer| Arc::strong_count(buffer) > 1 || !buffer.bytes.lock().is_empty());
        }
    }

    fn write(&mut self, lines: &[u8]) {
        let mut rest = lines;
        let result = self.write_all(&mut rest);
        let lost = count_lines(rest);
        let whole = count_lines(lines) - lost;
        self.counters.written.inc_by(whole);
        if let Err(error) = result {
            self.counters.dropped.inc_by(lost);
            self.cut = lines.len() > rest.len() && lines[..lines.len() - rest.len()].last() != Some(&b'\n');
            self.file = None;
            self.complain(&error);
        }
    }

    fn write_all(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(&self.target)?);
        }
        let file = self.file.as_mut().expect("opened above");
        if self.cut {
            file.write_all(b"\n")?;
            self.cut = false;
        }
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => *rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares our stdout may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.shared.stopping.load(Acquire) => {
                    thread::sleep(RETRY_DELAY);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            tracing::error!(target = ?self.target, %error, "access log lines are lost");
        }
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits")
}

fn count_lines(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.iter().filter(|byte| **byte == b'\n').count()).expect("a count fits")
}

/// Opens a target. Standard streams are duplicated: opening `/dev/stdout` anew fails on sockets and for other users' pipes.
fn open(target: &LogTarget) -> io::Result<File> {
    match target {
        LogTarget::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::File(path) => OpenOptions::new().create(true).append(true).open(&**path),
        LogTarget::Collector(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests;
