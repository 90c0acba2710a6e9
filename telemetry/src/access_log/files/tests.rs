#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use model::access_log::AccessLog;
use prometheus::IntCounter;
use tempfile::TempDir;

use super::*;
use crate::access_log::{ChainLog, WorkerLogs};
use crate::fixture::{self, wait_until};
use crate::record::ChainTelemetry;

const NEVER: Duration = Duration::from_secs(3600);

struct Fixture {
    folder: TempDir,
    writers: Arc<Writers>,
}

impl Fixture {
    fn new() -> Self {
        let counter = |name| IntCounter::new(name, name).unwrap();
        let counters = LogCounters { written: counter("w"), dropped: counter("d") };
        Self { folder: tempfile::tempdir().unwrap(), writers: Writers::new(NEVER, counters) }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    fn files(&self, numbers: std::ops::Range<usize>) -> Vec<Arc<LogFile>> {
        let target = |number| LogTarget::File(self.path(number).to_str().unwrap().into());
        numbers.map(|number| self.writers.file(&target(number))).collect()
    }

    /// Files whose writing blocks until somebody reads.
    fn pipes(&self, numbers: std::ops::Range<usize>) -> Vec<Arc<LogFile>> {
        for number in numbers.clone() {
            assert!(Command::new("mkfifo").arg(self.path(number)).status().unwrap().success());
        }
        self.files(numbers)
    }

    /// Ends what waits for a reader of a pipe.
    fn read(&self, number: usize) -> thread::JoinHandle<String> {
        let path = self.path(number);
        thread::spawn(move || fs::read_to_string(path).unwrap())
    }

    fn dropped(&self) -> u64 {
        self.writers.counters.dropped.get()
    }

    /// Threads of targets in use, and of retired ones that did not end yet.
    fn threads(&self) -> (usize, usize) {
        let mut threads = self.writers.threads.lock();
        threads.sweep();
        (threads.running.len(), threads.retired.len())
    }
}

fn log(worker: &mut WorkerLogs, file: &Arc<LogFile>) {
    let log = AccessLog { target: file.target.clone(), format: fixture::text_format("line\n"), filters: Vec::new() };
    let mut chain = ChainTelemetry::new("chain".into(), None, Vec::new(), None);
    chain.logs.push(ChainLog { log, file: Some(Arc::clone(file)), outbox: None });
    let chain = Arc::new(chain);
    worker.record(&chain, &fixture::request(&chain));
}

#[test]
fn configuration_after_configuration_each_new_file_has_a_place_and_workers_forget_the_old_ones() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    for number in 0..3 * TARGETS_MAX {
        let chain = it.files(number..number + 1);
        it.writers.configured(chain.iter());
        log(&mut worker, &chain[0]);
        assert_eq!((it.dropped(), it.threads().0, worker.outlets.len()), (0, 1, 1), "file {number}");
        drop(chain);
        wait_until("the line", || fs::read_to_string(it.path(number)).is_ok_and(|text| text == "line\n"));
    }
}

#[test]
fn a_thread_stays_as_long_as_one_of_its_chains() {
    let it = Fixture::new();
    let (one, other) = (it.files(0..1), it.files(0..1));
    log(&mut WorkerLogs::default(), &one[0]);
    drop(one);
    assert_eq!(it.threads(), (1, 0));
    drop(other);
    wait_until("its end", || it.threads() == (0, 0));
    assert_eq!(fs::read_to_string(it.path(0)).unwrap(), "line\n");
}

#[test]
fn more_files_than_places_are_refused_and_counted_and_ask_again_when_one_is_free() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    let mut all = it.files(0..TARGETS_MAX + 1);
    it.writers.configured(all.iter());
    all.iter().for_each(|file| log(&mut worker, file));
    assert_eq!((it.dropped(), it.threads().0), (1, TARGETS_MAX));
    log(&mut worker, &all[0]);
    let refused = all.pop().unwrap();
    log(&mut worker, &refused);
    assert_eq!(it.dropped(), 2, "a known one goes on, the other is refused");
    drop(all.pop());
    log(&mut worker, &refused);
    assert_eq!((it.dropped(), it.threads().0), (2, TARGETS_MAX));
}

#[test]
fn files_that_only_old_connections_still_name_give_way_to_configured_ones() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    let old = it.files(0..TARGETS_MAX);
    old.iter().for_each(|file| log(&mut worker, file));
    let new = it.files(TARGETS_MAX..TARGETS_MAX + 1);
    log(&mut worker, &new[0]);
    assert_eq!(it.dropped(), 1, "before the configuration names it there is no place");
    it.writers.configured(new.iter());
    log(&mut worker, &new[0]);
    assert_eq!((it.dropped(), it.threads().0), (1, TARGETS_MAX));
    wait_until("what waited for the one that gave way", || it.threads().1 == 0);
    assert_eq!((0..TARGETS_MAX).filter(|number| it.path(*number).exists()).count(), 1);
    old.iter().for_each(|file| log(&mut worker, file));
    assert_eq!(it.dropped(), 2, "its lines have no place any more");
}

#[test]
fn a_file_that_is_named_again_while_its_thread_still_writes_keeps_that_thread() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    let pipe = it.pipes(0..1);
    log(&mut worker, &pipe[0]);
    drop(pipe);
    assert_eq!(it.threads(), (0, 1));
    let again = it.files(0..1);
    log(&mut worker, &again[0]);
    assert_eq!(it.threads(), (1, 0));
    drop(again);
    assert_eq!(it.read(0).join().unwrap(), "line\nline\n");
}

#[test]
fn beside_too_many_retired_threads_that_are_stuck_none_begins_until_one_ended() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    let pipes = it.pipes(0..RETIRED_TARGETS_MAX);
    pipes.iter().for_each(|pipe| log(&mut worker, pipe));
    drop(pipes);
    assert_eq!(it.threads(), (0, RETIRED_TARGETS_MAX));
    let new = it.files(RETIRED_TARGETS_MAX..RETIRED_TARGETS_MAX + 1);
    log(&mut worker, &new[0]);
    assert_eq!(it.dropped(), 1);
    assert_eq!(it.read(0).join().unwrap(), "line\n");
    wait_until("its place", || {
        log(&mut worker, &new[0]);
        it.threads().0 == 1
    });
    (1..RETIRED_TARGETS_MAX).for_each(|number| assert_eq!(it.read(number).join().unwrap(), "line\n"));
}

#[test]
fn lines_after_the_shutdown_begin_no_thread_and_are_counted() {
    let it = Fixture::new();
    let mut worker = WorkerLogs::default();
    let file = it.files(0..1);
    log(&mut worker, &file[0]);
    it.writers.shutdown(Instant::now() + Duration::from_secs(10));
    assert_eq!(fs::read_to_string(it.path(0)).unwrap(), "line\n");
    log(&mut worker, &file[0]);
    assert_eq!((it.dropped(), it.threads()), (1, (0, 0)));
}
