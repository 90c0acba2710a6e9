#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::access_log::Writers;
use crate::fixture::wait_until;

const NEVER: Duration = Duration::from_secs(3600);

fn counters() -> LogCounters {
    LogCounters { written: IntCounter::new("w", "w").unwrap(), dropped: IntCounter::new("d", "d").unwrap() }
}

fn target(path: &Path) -> LogTarget {
    LogTarget::File(path.to_str().unwrap().into())
}

fn append<'a>(text: &'a str) -> impl FnOnce(&mut Vec<u8>) -> bool + 'a {
    move |line| {
        line.extend_from_slice(text.as_bytes());
        true
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn l24_a_lone_line_is_written_within_the_interval() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let counters = counters();
    let writers = Writers::new(Duration::from_millis(20), counters.clone());
    let file = writers.file(&target(&path));
    file.outlet().unwrap().write(append("one\n"));
    wait_until("the line", || fs::read_to_string(&path).is_ok_and(|text| text == "one\n"));
    assert_eq!((counters.written.get(), counters.dropped.get()), (1, 0));
}

#[test]
fn a_file_that_was_rotated_is_opened_anew_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("log"), folder.path().join("log.1"));
    let writers = Writers::new(Duration::from_millis(20), counters());
    let file = writers.file(&target(&path));
    let outlet = file.outlet().unwrap();
    let has = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|found| found == text);
    outlet.write(append("one\n"));
    wait_until("the first line", || has(&path, "one\n"));
    fs::rename(&path, &rotated).unwrap();
    outlet.write(append("two\n"));
    wait_until("a line in the renamed file", || has(&rotated, "one\ntwo\n"));
    writers.reopen();
    outlet.write(append("three\n"));
    wait_until("a line in the new file", || has(&path, "three\n"));
    assert!(has(&rotated, "one\ntwo\n"));
}

#[test]
fn a_full_buffer_is_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let writers = Writers::new(NEVER, counters());
    let file = writers.file(&target(&path));
    let outlet = file.outlet().unwrap();
    let line = format!("{}\n", "x".repeat(1023));
    for _ in 0..FLUSH_BYTES / line.len() {
        outlet.write(append(&line));
    }
    wait_until("the buffer", || fs::metadata(&path).is_ok_and(|file| file.len() == u64::try_from(FLUSH_BYTES).unwrap()));
}

#[test]
fn shutting_down_writes_what_is_buffered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let writers = Writers::new(NEVER, counters());
    let file = writers.file(&target(&path));
    file.outlet().unwrap().write(append("last\n"));
    writers.shutdown(soon());
    assert_eq!(fs::read_to_string(&path).unwrap(), "last\n");
}

#[test]
fn lines_of_many_workers_leave_whole_and_in_each_workers_order() {
    const LINES: usize = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let counters = counters();
    let writers = Writers::new(Duration::from_millis(1), counters.clone());
    let file = writers.file(&target(&path));
    thread::scope(|scope| {
        for worker in 0..4 {
            let outlet = file.outlet().unwrap();
            scope.spawn(move || {
                for number in 0..LINES {
                    outlet.write(append(&format!("worker {worker} line {number} {}\n", "y".repeat(number % 97))));
                }
            });
        }
    });
    writers.shutdown(soon());
    let mut next = HashMap::new();
    for line in fs::read_to_string(&path).unwrap().lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [_, worker, _, number, fill] = words[..] else { panic!("a torn line: {line}") };
        let number: usize = number.parse().unwrap();
        assert_eq!(fill.len(), number % 97, "{line}");
        let seen = next.entry(worker.to_owned()).or_insert(0);
        // Lines may be dropped while the writer is behind, but never reordered.
        assert!(number >= *seen, "{line}");
        *seen = number + 1;
    }
    assert_eq!(counters.written.get() + counters.dropped.get(), 4 * u64::try_from(LINES).unwrap());
}

#[test]
fn lines_beyond_the_buffer_of_a_stuck_target_are_dropped_whole_and_counted() {
    const LINES: usize = 2 * BUFFER_BYTES_MAX / 1000;
    let counters = counters();
    let outlet = Outlet::new(Arc::default(), counters.clone()).unwrap();
    let line = format!("{}\n", "x".repeat(999));
    for _ in 0..LINES {
        outlet.write(append(&line));
    }
    let kept = outlet.buffer.lines.lock().bytes.len();
    assert!(kept <= BUFFER_BYTES_MAX && kept.is_multiple_of(line.len()) && kept + line.len() > BUFFER_BYTES_MAX);
    assert_eq!(counters.dropped.get(), u64::try_from(LINES - kept / line.len()).unwrap());
}

#[test]
fn a_line_that_is_filtered_out_leaves_nothing_behind() {
    let outlet = Outlet::new(Arc::default(), counters()).unwrap();
    outlet.write(append("a\n"));
    outlet.write(|line| {
        line.extend_from_slice(b"half");
        false
    });
    assert_eq!(outlet.buffer.lines.lock().bytes, b"a\n");
}

#[test]
fn a_target_that_cannot_be_opened_loses_lines_counted_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later/log");
    let counters = counters();
    let writers = Writers::new(Duration::from_millis(5), counters.clone());
    let file = writers.file(&target(&path));
    let outlet = file.outlet().unwrap();
    outlet.write(append("lost\n"));
    wait_until("the loss", || counters.dropped.get() == 1);
    fs::create_dir(folder.path().join("later")).unwrap();
    outlet.write(append("kept\n"));
    wait_until("the line", || fs::read_to_string(&path).is_ok_and(|text| text == "kept\n"));
}
