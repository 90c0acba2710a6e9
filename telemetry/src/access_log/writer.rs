//! A thread that writes an access log: one per target, so lines of all workers leave whole and one after the other.
//!
//! Not for: which target has one, which is `files`.
//! A worker appends to a buffer of its own; the target's thread swaps it for an empty one, once per interval or when it is full
//! enough, and writes. A worker waits at most for that swap. What does not fit while the target is stuck is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
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
/// How long to wait before writing again to a target that would block.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(10);
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
#[derive(Debug, Default)]
struct Buffer {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Nobody will write them.
    closed: bool,
}

/// A worker's end of a target.
#[derive(Debug)]
pub(super) struct Outlet {
    buffer: Arc<Buffer>,
    inbox: Arc<Inbox>,
    counters: LogCounters,
}

impl Outlet {
    /// A buffer of its own; none if the target's thread ended.
    pub(super) fn new(inbox: Arc<Inbox>, counters: LogCounters) -> Option<Self> {
        let buffer = Arc::new(Buffer::default());
        let mut buffers = inbox.buffers.lock();
        if buffers.closed {
            return None;
        }
        buffers.open.push(Arc::clone(&buffer));
        drop(buffers);
        Some(Self { buffer, inbox, counters })
    }

    pub(super) fn leads_to(&self, inbox: &Arc<Inbox>) -> bool {
        Arc::ptr_eq(&self.inbox, inbox)
    }

    /// Whether its target was not retired.
    pub(super) fn is_in_use(&self) -> bool {
        !self.inbox.stopping.load(Acquire)
    }

    /// Appends what `render` appends, which says whether it did; whole or not at all. Says no, without rendering, if nobody will
    /// write it.
    pub(super) fn write(&self, render: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mut lines = self.buffer.lines.lock();
        if lines.closed {
            return false;
        }
        let bytes = &mut lines.bytes;
        let before = bytes.len();
        if !render(bytes) {
            bytes.truncate(before);
            return true;
        }
        let after = bytes.len();
        if after > BUFFER_BYTES_MAX {
            bytes.truncate(before);
            self.counters.dropped.inc();
        } else if before < FLUSH_BYTES && after >= FLUSH_BYTES {
            drop(lines);
            self.inbox.wake();
        }
        true
    }
}

/// What workers and a target's thread share.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    buffers: Mutex<Buffers>,
    /// The thread is to end once it wrote everything.
    stopping: AtomicBool,
    /// The file is to be opened anew: it was renamed, say.
    reopening: AtomicBool,
    reader: OnceLock<Thread>,
}

#[derive(Debug, Default)]
struct Buffers {
    open: Vec<Arc<Buffer>>,
    /// The thread ended, or is about to.
    closed: bool,
}

impl Inbox {
    /// Bytes that wait to be written.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.lock().open.iter().map(|buffer| length(buffer.lines.lock().bytes.len())).sum()
    }

    /// Makes the thread open its file anew before it writes again.
    pub(super) fn reopen(&self) {
        self.reopening.store(true, Release);
        self.wake();
    }

    /// Makes the thread write what there is, and end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Release);
        self.wake();
    }

    /// Takes that back; says no if it is too late.
    pub(super) fn resume(&self) -> bool {
        let buffers = self.buffers.lock();
        if !buffers.closed {
            self.stopping.store(false, Release);
        }
        !buffers.closed
    }

    /// To be said before anybody else has it.
    pub(super) fn is_read_by(&self, thread: Thread) {
        self.reader.set(thread).expect("a target is given one thread");
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.get() {
            reader.unpark();
        }
    }

    /// Whether it is closed now: the thread is to end, and everything was taken.
    fn close(&self) -> bool {
        let mut buffers = self.buffers.lock();
        if !self.stopping.load(Acquire) {
            return false;
        }
        let mut all: Vec<_> = buffers.open.iter().map(|buffer| buffer.lines.lock()).collect();
        let taken = all.iter().all(|lines| lines.bytes.is_empty());
        all.iter_mut().for_each(|lines| lines.closed = taken);
        drop(all);
        buffers.closed = taken;
        taken
    }
}

/// A target's thread.
#[derive(Debug)]
pub(super) struct Writer {
    inbox: Arc<Inbox>,
    target: LogTarget,
    file: Option<File>,
    /// The last write stopped inside a line.
    cut: bool,
    counters: LogCounters,
    complained: Option<Instant>,
}

impl Writer {
    pub(super) fn new(inbox: Arc<Inbox>, target: LogTarget, counters: LogCounters) -> Self {
        Self { inbox, target, file: None, cut: false, counters, complained: None }
    }

    /// Writes, at least every `interval`, until it is to stop and wrote everything.
    pub(super) fn run(&mut self, interval: Duration) {
        let mut spare = Vec::new();
        while !self.inbox.close() {
            if !self.inbox.stopping.load(Acquire) {
                thread::park_timeout(interval);
            }
            if self.inbox.reopening.swap(false, Acquire) {
                self.file = None;
            }
            let buffers = self.inbox.buffers.lock().open.clone();
            for buffer in &buffers {
                std::mem::swap(&mut buffer.lines.lock().bytes, &mut spare);
                if !spare.is_empty() {
                    self.write(&spare);
                    spare.clear();
                    spare.shrink_to(2 * FLUSH_BYTES);
                }
            }
            drop(buffers);
            // A worker that ended leaves its buffer to us alone.
            let is_used = |buffer: &Arc<Buffer>| Arc::strong_count(buffer) > 1 || !buffer.lines.lock().bytes.is_empty();
            self.inbox.buffers.lock().open.retain(is_used);
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.inbox.stopping.load(Acquire) => {
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
